"""What lives during a step: its constants, where it stands, and one store for all of its values.

A step's tensors have one rule of death: the last action that reads a value takes it out of the
store. Which action that is, is known before the first step (schedule/liveness.py), so nothing is
counted or asked while a step runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from localprop.rule.local_loss import LossInputs
from localprop.schedule.randomness import Draw
from localprop.schedule.schedule import Action
from localprop.schedule.values import Value
from localprop.tasks.batch import Batch

Backward = Callable[[Tensor], object]
Observer = Callable[[Action], object]

# Tensors; places in a graph (GradientEdge); lists of a segment's gradients, some of them None. A
# segment's graph is held at its root (engine/backward.py).
Store = dict[Value, Any]


@dataclass
class StepContext:
    """What belongs to one batch. On several ranks that of the batch before lives on, until its
    deferred actions have run.

    Attributes:
        number: the number of the step.
        seeds: of the random draws of F, R and L.
        batches: the micro-batches.
        weights: the share of each of them in the samples of the batch.
        inputs: what losses may read of each of them.
        backward: called on each local loss.
        updating: whether parameters are stepped; else gradients stay in `.grad`.
        autocast: whether autocast is on, be it ours or a host's, so that backwards must switch it
            off.
        store: the values that are alive.
        made: what the module that has just returned hands on besides its features.
        constants: what it returns without a gradient and later modules get.
        around: what lives on behind the next cut, too.
        losses: by the number of the loss, summed over the micro-batches so far.
        updated: the segments stepped so far.
    """

    number: int
    seeds: dict[Draw, int]
    batches: list[Batch]
    weights: list[float]
    inputs: list[LossInputs]
    backward: Backward
    updating: bool
    autocast: bool
    store: Store = field(default_factory=dict)
    made: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    around: list[Tensor] = field(default_factory=list)
    losses: dict[int, Tensor] = field(default_factory=dict)
    updated: list[int] = field(default_factory=list)


@dataclass
class Cursor:
    """Where the engine stands in its schedule.

    Attributes:
        observe: called with every action before it runs.
        microbatch: the micro-batch whose forward runs.
        expected: the segment whose end the forward must reach next.
        action: the action that runs.
        begun: how many actions have begun, this one included.
    """

    observe: Observer | None = None
    microbatch: int = 0
    expected: int = 0
    action: Action | None = None
    begun: int = 0
