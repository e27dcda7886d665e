"""What lives during one step: the losses, the graphs of segments whose backward is to come, and the errors that wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from localprop.engine.contexts import ModuleInputs
from localprop.engine.flow_gradients import SetAside
from localprop.engine.gradient_sums import FlowKey, GradientSums
from localprop.errors import BadInput
from localprop.rule.losses import Batch
from localprop.schedule.schedule import Action, Schedule
from localprop.schedule.wiring import Wiring

Backward = Callable[[Tensor], object]
Observer = Callable[[Action], object]


class Losses(tuple[Tensor, ...]):
    """The local losses of one step, 0-dimensional tensors on the model's device, in the order of the forward.

    Attributes:
        numbers: the row of each in the credit table.
        modules: the module at whose end each of them sits.
    """

    numbers: tuple[int, ...]

    modules: tuple[int, ...]
    _last: int

    @classmethod
    def of(cls, losses: Mapping[int, Tensor], at: tuple[int, ...]) -> Losses:
        """From a mapping of a loss's number to its value; `at` is the module of each loss that there may be."""
        ordered = cls(losses[k] for k in sorted(losses))
        ordered.numbers = tuple(sorted(losses))
        ordered.modules = tuple(at[k] for k in ordered.numbers)
        ordered._last = at[-1]
        return ordered

    @property
    def task(self) -> Tensor:
        """The last module's: the loss of the network's own output.

        Raises:
            BadInput: on a rank that does not run the last module.
        """
        if self._last not in self.modules:
            raise BadInput(
                f"The task's loss is that of module {self._last}, which another rank runs: ask the last rank."
            )
        return self[-1]


class InjectGradient(torch.autograd.Function):
    """The handle of a segment's graph: its backward takes the error out of a box.

    `autograd.backward(output, error)` would keep the error alive until the whole backward has ended, since Python's frames
    refer to it; taken out of a box it dies at its first use. Nor does the handle keep the output's storage alive.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, box: list[Tensor]) -> Tensor:
        ctx.box = box
        return output.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.box.pop(), None


@dataclass
class SegmentGraph:
    """What is kept of a segment's forward until its last backward."""

    handle: Tensor
    box: list[Tensor]
    leaf: Tensor | None
    backwards_left: int


@dataclass
class StepContext:
    """What lives during one step, of one micro-batch where a segment stands alone."""

    number: int
    backward: Backward
    stepping: bool
    observe: Observer | None
    batch: Batch
    errors: GradientSums
    first: int = 0  # the number of this replica's first micro-batch among all
    microbatch: int = 0
    weight: float = 1.0
    expected: int = 0
    action: Action | None = None
    begun: int = 0  # actions so far, the current one included
    leaf: Tensor | None = None
    features: Tensor | None = None
    module_inputs: ModuleInputs = field(default_factory=dict)
    arrived: dict[int, Tensor] = field(
        default_factory=dict
    )  # micro-batch -> what the rank before has sent
    inputs_for_losses: ModuleInputs = field(
        default_factory=dict
    )  # inputs of modules whose losses look at them
    tapped: dict[tuple[str, int], Tensor] = field(
        default_factory=dict
    )  # inner outputs, by name and micro-batch
    tap_errors: dict[FlowKey, list[tuple[str, Tensor]]] = field(default_factory=dict)
    gradients_for_next: dict[int, list[Tensor]] = field(
        default_factory=dict
    )  # what attached losses leave for the next
    outgoing: Tensor | None = None  # what the rank after is to be sent
    upward: dict[FlowKey, Tensor] = field(
        default_factory=dict
    )  # errors for the rank before, by who made them
    graphs: dict[tuple[int, int], SegmentGraph] = field(default_factory=dict)
    aside: SetAside = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[tuple[int, int], Tensor] = field(
        default_factory=dict
    )  # inputs of segments that will run again
    batches: list[Batch] = field(default_factory=list)
    stepped: list[int] = field(default_factory=list)


def canonical_layout(tensor: Tensor) -> Tensor:
    """The tensor in one of the layouts that a cut may have, contiguous or channels last: kernels may round by layout."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.ndim in formats and tensor.is_contiguous(memory_format=formats[tensor.ndim]):
        return tensor
    return tensor.contiguous()


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in so many parts, whose sizes differ by at most one.

    Raises:
        BadInput: fewer samples than parts.
    """
    if parts == 1:
        return [batch]
    if len(batch.inputs) < parts:
        raise BadInput(
            [
                f"A batch of {len(batch.inputs)} cannot be split into {parts} micro-batches: use fewer."
            ]
        )
    return [
        Batch(x, y)
        for x, y in zip(
            batch.inputs.tensor_split(parts), batch.targets.tensor_split(parts), strict=True
        )
    ]


def provenance(run: StepContext, wiring: Wiring, schedule: Schedule, error: Exception) -> str:
    """What a failed step tells: the action, its layers, the schedule around it, and what had been stepped."""
    action = run.action
    if action is None:
        return f"The step failed before its first action: {error}"
    layers, segment = wiring.layers, wiring.segments[action.segment]
    shape = "x".join(map(str, layers.shapes[segment.layers[-1]][1:]))
    return (
        f"Action {action} failed ({type(error).__name__}: {error}), on {wiring.span_name(action.segment)} "
        f"(module {segment.module}, output {shape} per sample), batch of shape {tuple(run.batch.inputs.shape)}.\n"
        f"Schedule: {_around(schedule, _place(schedule, action, run.begun - 1))}\n"
        f"Segments stepped already: {', '.join(map(str, run.stepped)) or 'none'}. Gradients were dropped."
    )


def _place(schedule: Schedule, action: Action, counted: int) -> int:
    """Where an action stands: as counted, since some stand twice, unless only some actions of the schedule are run."""
    return (
        counted
        if 0 <= counted < len(schedule) and schedule[counted] == action
        else schedule.index(action)
    )


def _around(schedule: Schedule, at: int, width: int = 5) -> str:
    words = [f"{action} <-- here" if i == at else str(action) for i, action in enumerate(schedule)]
    before, after = max(at - width, 0), at + width + 1
    return " ".join(
        [
            *(["..."] if before else []),
            *words[before:after],
            *(["..."] if after < len(words) else []),
        ]
    )
