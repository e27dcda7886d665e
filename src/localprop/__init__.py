"""localprop: supervised local learning for PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput, RunFailed, StepFailed

if TYPE_CHECKING:
    from localprop import data, models
    from localprop.learner import Learner
    from localprop.methods import auglocal, backlink, contsup, end_to_end, greedy, interlocking
    from localprop.network import Layers, Partition, layers_of
    from localprop.ranks.pipeline import Ranks
    from localprop.rule.auxiliary import Head, Normalised, Pool, SampledLayers, Site
    from localprop.rule.borrow import Borrow
    from localprop.rule.context import ContextSupply, ConvEncoder
    from localprop.rule.credit import BackwardLinks, EndToEnd, Interlocked, Own, OwnAndWindows, Windows
    from localprop.rule.losses import Batch, CrossEntropy, LocalLoss, NoPenalty, Seen
    from localprop.rule.rule import Rule
    from localprop.rule.table import CreditTable
    from localprop.step.schedule import Schedule
    from localprop.step.wiring import wire

# Where each public name lives: it is imported when it is first used, so that `localprop --help` does without torch.
_HOMES = {
    "localprop.learner": ("Learner",),
    "localprop.methods": ("auglocal", "backlink", "contsup", "end_to_end", "greedy", "interlocking"),
    "localprop.network": ("Layers", "Partition", "layers_of"),
    "localprop.ranks.pipeline": ("Ranks",),
    "localprop.rule.auxiliary": ("Head", "Normalised", "Pool", "SampledLayers", "Site"),
    "localprop.rule.borrow": ("Borrow",),
    "localprop.rule.context": ("ContextSupply", "ConvEncoder"),
    "localprop.rule.credit": ("BackwardLinks", "EndToEnd", "Interlocked", "Own", "OwnAndWindows", "Windows"),
    "localprop.rule.losses": ("Batch", "CrossEntropy", "LocalLoss", "NoPenalty", "Seen"),
    "localprop.rule.rule": ("Rule",),
    "localprop.rule.table": ("CreditTable",),
    "localprop.step.schedule": ("Schedule",),
    "localprop.step.wiring": ("wire",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"

__all__ = [
    "BackwardLinks",
    "BadInput",
    "Batch",
    "Borrow",
    "ContextSupply",
    "ConvEncoder",
    "CreditTable",
    "CrossEntropy",
    "EndToEnd",
    "Head",
    "Interlocked",
    "Layers",
    "Learner",
    "LocalLoss",
    "NoPenalty",
    "Normalised",
    "Own",
    "OwnAndWindows",
    "Partition",
    "Pool",
    "Ranks",
    "Rule",
    "RunFailed",
    "SampledLayers",
    "Schedule",
    "Seen",
    "Site",
    "StepFailed",
    "Windows",
    "auglocal",
    "backlink",
    "contsup",
    "data",
    "end_to_end",
    "greedy",
    "interlocking",
    "layers_of",
    "models",
    "wire",
]


def __getattr__(name: str) -> Any:
    if name in ("data", "models"):
        return import_module(f"localprop.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'localprop' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
