"""localprop: supervised local learning for PyTorch."""

from localprop import data, models
from localprop.errors import BadInput, RunFailed, StepFailed
from localprop.learner import Learner
from localprop.methods import auglocal, backlink, contsup, end_to_end, greedy, interlocking
from localprop.network import Layers, Partition, layers_of
from localprop.rule.auxiliary import Head, Pool, SampledLayers, Site
from localprop.rule.context import ContextSupply, ConvEncoder
from localprop.rule.credit import BackwardLinks, CreditTable, EndToEnd, Interlocked, Own
from localprop.rule.losses import Batch, CrossEntropy, LocalLoss
from localprop.rule.rule import Rule
from localprop.step.schedule import Schedule
from localprop.step.wiring import wire

__version__ = "0.1.0"

__all__ = [
    "BackwardLinks",
    "BadInput",
    "Batch",
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
    "Own",
    "Partition",
    "Pool",
    "Rule",
    "RunFailed",
    "SampledLayers",
    "Schedule",
    "Site",
    "StepFailed",
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
