"""localprop: supervised local learning for PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput, RunFailed, StepFailed

if TYPE_CHECKING:
    from localprop import data, models
    from localprop.learner import Learner
    from localprop.methods import (
        auglocal,
        backlink,
        contsup,
        dgl,
        end_to_end,
        gn_dgl,
        greedy,
        hpff,
        infopro,
        interlocking,
        lopt,
        man,
        man_plus,
        pathak,
        predsim,
        sgr,
        solo,
        trgl,
        windows,
    )
    from localprop.network import Layers, Partition, layers_of
    from localprop.ranks.pipeline import Ranks
    from localprop.rule.auxiliary import Head, Normalised, Pool, Site
    from localprop.rule.borrow import Borrow
    from localprop.rule.context import ContextSupply, ConvEncoder
    from localprop.rule.contrast import Contrastive
    from localprop.rule.copied import NextLayerHead, SharedReadout, ThroughNextLayer
    from localprop.rule.credit import BackwardLinks, EndToEnd, Interlocked, Own, OwnAndWindows, Windows
    from localprop.rule.features import FeatureReconstruction
    from localprop.rule.groups import GroupCrossEntropy, GroupHeads, WideningHead
    from localprop.rule.heads import Bare, BottleneckHead, ConvHead, MlpSrHead, OneConvHead, PooledHead
    from localprop.rule.losses import Batch, CrossEntropy, LocalLoss, NoPenalty, Seen
    from localprop.rule.penalties import Kinetic, Reconciled
    from localprop.rule.reconstruction import PixelReconstruction
    from localprop.rule.rule import Rule
    from localprop.rule.sampled import SampledLayers
    from localprop.rule.similarity import Similarity
    from localprop.rule.table import CreditTable, Entry
    from localprop.rule.terms import Term, Terms
    from localprop.rule.windowed import OwnAndWindowLosses
    from localprop.step.schedule import Schedule
    from localprop.step.wiring import wire

# Where each public name lives: it is imported when it is first used, so that `localprop --help` does without torch.
_HOMES = {
    "localprop.learner": ("Learner",),
    "localprop.methods": (
        "auglocal",
        "backlink",
        "contsup",
        "dgl",
        "end_to_end",
        "gn_dgl",
        "greedy",
        "hpff",
        "infopro",
        "interlocking",
        "lopt",
        "man",
        "man_plus",
        "pathak",
        "predsim",
        "sgr",
        "solo",
        "trgl",
        "windows",
    ),
    "localprop.network": ("Layers", "Partition", "layers_of"),
    "localprop.ranks.pipeline": ("Ranks",),
    "localprop.rule.auxiliary": ("Head", "Normalised", "Pool", "Site"),
    "localprop.rule.borrow": ("Borrow",),
    "localprop.rule.context": ("ContextSupply", "ConvEncoder"),
    "localprop.rule.contrast": ("Contrastive",),
    "localprop.rule.copied": ("NextLayerHead", "SharedReadout", "ThroughNextLayer"),
    "localprop.rule.credit": ("BackwardLinks", "EndToEnd", "Interlocked", "Own", "OwnAndWindows", "Windows"),
    "localprop.rule.features": ("FeatureReconstruction",),
    "localprop.rule.groups": ("GroupCrossEntropy", "GroupHeads", "WideningHead"),
    "localprop.rule.heads": ("Bare", "BottleneckHead", "ConvHead", "MlpSrHead", "OneConvHead", "PooledHead"),
    "localprop.rule.losses": ("Batch", "CrossEntropy", "LocalLoss", "NoPenalty", "Seen"),
    "localprop.rule.penalties": ("Kinetic", "Reconciled"),
    "localprop.rule.reconstruction": ("PixelReconstruction",),
    "localprop.rule.rule": ("Rule",),
    "localprop.rule.sampled": ("SampledLayers",),
    "localprop.rule.similarity": ("Similarity",),
    "localprop.rule.table": ("CreditTable", "Entry"),
    "localprop.rule.terms": ("Term", "Terms"),
    "localprop.rule.windowed": ("OwnAndWindowLosses",),
    "localprop.step.schedule": ("Schedule",),
    "localprop.step.wiring": ("wire",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"

__all__ = [
    "BackwardLinks",
    "BadInput",
    "Bare",
    "Batch",
    "Borrow",
    "BottleneckHead",
    "ContextSupply",
    "Contrastive",
    "ConvEncoder",
    "ConvHead",
    "CreditTable",
    "CrossEntropy",
    "EndToEnd",
    "Entry",
    "FeatureReconstruction",
    "GroupCrossEntropy",
    "GroupHeads",
    "Head",
    "Interlocked",
    "Kinetic",
    "Layers",
    "Learner",
    "LocalLoss",
    "MlpSrHead",
    "NextLayerHead",
    "NoPenalty",
    "Normalised",
    "OneConvHead",
    "Own",
    "OwnAndWindowLosses",
    "OwnAndWindows",
    "Partition",
    "PixelReconstruction",
    "Pool",
    "PooledHead",
    "Ranks",
    "Reconciled",
    "Rule",
    "RunFailed",
    "SampledLayers",
    "Schedule",
    "Seen",
    "SharedReadout",
    "Similarity",
    "Site",
    "StepFailed",
    "Term",
    "Terms",
    "ThroughNextLayer",
    "WideningHead",
    "Windows",
    "auglocal",
    "backlink",
    "contsup",
    "data",
    "dgl",
    "end_to_end",
    "gn_dgl",
    "greedy",
    "hpff",
    "infopro",
    "interlocking",
    "layers_of",
    "lopt",
    "man",
    "man_plus",
    "models",
    "pathak",
    "predsim",
    "sgr",
    "solo",
    "trgl",
    "windows",
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
