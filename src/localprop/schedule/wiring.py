"""Wiring: a credit table applied to a network, worked out before the first step.

::

    credit table            segments              flows of segment 1 (a tail)
    loss0 TTT|...           0: layers 0, 1        flow 0: loss 0, trains, onward to segment 0
    loss1 ..T|TTT           1: layer 2            flow 1: loss 1, trains, ends here
                            2: layers 3, 4, 5
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from localprop.network.layers import HandedOn, LayerEnd, Layers
from localprop.rule.local_loss import LocalLoss
from localprop.rule.parameter_copy import ParameterCopy
from localprop.rule.source import Source
from localprop.rule.table import CreditTable
from localprop.schedule.flows import Flow
from localprop.tasks.task import Task

_T = TypeVar("_T")


class Segment(NamedTuple):
    """Consecutive layers of one module that the same losses train with the same weights.

    The network's forward is cut between segments, and each backward runs through one segment.

    Attributes:
        layers: the indices of the layers.
        parameters: the names of the model's parameters that the segment's step updates, without the
            frozen ones.
        module: the local module that the segment belongs to.
        starts_module: whether it is the first segment of that module, where context enters.
        tied: the names of the other parameters that the segment trains, each with the segment
            whose step updates it.
    """

    layers: range
    parameters: tuple[str, ...]
    module: int
    starts_module: bool
    tied: tuple[tuple[str, int], ...] = ()


class Skips(NamedTuple):
    """What lives at the end of a segment besides its features, and carries a gradient.

    ::

        segment 0        segment 1        segment 2
           h0 ─────────────►  h1 ────────────►  ...      features
           k0 ─────────────►  k1 ────────────►           further tensors that modules return
            └─────────────────────────────────►          kept: k0 goes around the end of segment 1

    Attributes:
        made: where further tensors stand among those that the segment's last module returns, and
            whether the model later writes into them.
        kept: of the tensors that live at the segment's beginning, features first, those that are
            read after its end.
    """

    made: tuple[HandedOn, ...] = ()
    kept: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.made) + len(self.kept)


class Objective(NamedTuple):
    """A local loss and its auxiliary network at the end of a segment.

    Attributes:
        segment: the segment at whose end the objective sits.
        loss: the number of the loss, which is its row in the credit table.
        number: the position among the objectives at this end, or None for the first one.
        flow: the flow of the segment that the loss's gradient joins, or None if nothing there
            learns.
        scale: the factor on the gradient when it joins the flow.
        trained: whether the objective has parameters of its own.
        second_order: whether the loss differentiates through its segment and trains it by itself.
        taps: the inner outputs that the loss reads.
        copies: the network's parameters that are copied into the objective.
    """

    segment: int
    loss: int
    number: int | None
    flow: int | None
    scale: float
    trained: bool
    second_order: bool
    taps: tuple[Tap, ...]
    copies: tuple[ResolvedCopy, ...]

    @property
    def key(self) -> tuple[int, int | None]:
        """The segment and the flow field of the actions L, H and P of this objective."""
        return self.segment, self.number

    @property
    def seed_key(self) -> tuple[str | int, ...]:
        """The part of the random seed that identifies the objective within a step."""
        return ("L", self.segment) if self.number is None else ("L", self.segment, self.number)


class Tap(NamedTuple):
    """An inner output that a loss reads, and the flow that takes the loss's gradient there.

    Attributes:
        name: the module of the network that returns the output.
        segment: the segment that this module is part of.
        flow: the flow of that segment which carries the loss, or None if the loss trains nothing
            there.
        scale: the factor on the gradient.
    """

    name: str
    segment: int
    flow: int | None
    scale: float


class ResolvedCopy(NamedTuple):
    """A copy, or a running average, of a parameter of the network inside an objective.

    Attributes:
        copy: the source, the interval and the decay.
        target: the name of the copy in the objective's head.
        source_segment: the segment that steps the source, or None if no segment does.
    """

    copy: ParameterCopy
    target: str
    source_segment: int | None


@dataclass(frozen=True)
class Wiring:
    """Everything that the schedule and the engine need to know of a rule on a network.

    Attributes:
        table: the credit table.
        layers: the network's layers.
        segments: in the order of the forward.
        skips: what lives at the end of each segment besides its features.
        flows: the flows through each segment.
        objectives: in the order of the forward.
        sources: the contexts of each module.
        heads: by the number of the loss, an nn.ModuleDict of `aux` and `loss`.
        encoders: by the number of the receiving module, an nn.ModuleList with one per source.
        task: what the network is trained for.
        weights_once: the segments whose weights' gradients are made once for all flows.
        atomic: whether optimizers step after all else, so that a step that fails can be taken back.
    """

    table: CreditTable
    layers: Layers
    segments: tuple[Segment, ...]
    skips: tuple[Skips, ...]
    flows: tuple[tuple[Flow, ...], ...]
    objectives: tuple[Objective, ...]
    sources: tuple[tuple[Source, ...], ...]
    heads: nn.ModuleDict
    encoders: nn.ModuleDict
    task: Task
    weights_once: frozenset[int] = frozenset()
    atomic: bool = False

    @cached_property
    def _segments_of(self) -> dict[int, list[int]]:
        return _group(range(len(self.segments)), [segment.module for segment in self.segments])

    def segments_of(self, module: int) -> list[int]:
        """The segments of a module."""
        return self._segments_of.get(module, [])

    @cached_property
    def _objective_at(self) -> dict[tuple[int, int | None], Objective]:
        return {objective.key: objective for objective in self.objectives}

    def list_spans(self, segments: Iterable[int] | None = None) -> Iterator[tuple[range, bool]]:
        """The layers of each segment, or of some, and whether a loss sits at its end."""
        with_loss = {objective.segment for objective in self.objectives}
        for s in range(len(self.segments)) if segments is None else segments:
            yield self.segments[s].layers, s in with_loss

    def objective_at(self, segment: int, number: int | None) -> Objective:
        """The objective of the actions L, H and P with this segment and flow field."""
        return self._objective_at[segment, number]

    @cached_property
    def _objectives_of(self) -> dict[int, list[Objective]]:
        return _group(self.objectives, [objective.segment for objective in self.objectives])

    def objectives_of(self, segment: int) -> list[Objective]:
        """The objectives at the end of a segment."""
        return self._objectives_of.get(segment, [])

    def flow_number(self, segment: int, flow: int) -> int | None:
        """The flow field of an action: the flow's number, or None if the segment has one flow."""
        # None keeps the common case readable: a segment of one flow prints 3B and not 3B.0.
        return flow if len(self.flows[segment]) > 1 else None

    def encoders_at(self, segment: int) -> nn.ModuleList | None:
        """The encoders whose outputs are added to a segment's input, if there are any."""
        key = str(self.segments[segment].module)
        if not self.segments[segment].starts_module or key not in self.encoders:
            return None
        encoders = self.encoders[key]
        assert isinstance(encoders, nn.ModuleList)
        return encoders

    def can_be_sent(self, segment: int) -> bool:
        """Whether another rank can go on where a segment ends: at the return of a module that is
        called once, and nothing goes around it.
        """
        layer = self.segments[segment].layers[-1]
        return not self.skips[segment].kept and self.layers.find_end(layer) is not None

    @cached_property
    def odd_ends(self) -> list[int]:
        """The segments that do not end where a module, at its only call, hands one tensor on to the
        next segment.
        """
        return [
            s
            for s, skips in enumerate(self.skips[:-1])
            if skips or not LayerEnd.parse(self.end_name(s)).is_plain
        ]

    def enters_in_checkpoint(self, segment: int) -> bool:
        """Whether a segment begins within a checkpoint of the model's own."""
        return self.layers.in_checkpoints[self.segments[segment].layers[0] - 1]

    def has_second_order_loss(self, segment: int) -> bool:
        """Whether a loss differentiates through a segment and trains it."""
        return any(objective.second_order for objective in self.objectives_of(segment))

    @cached_property
    def _steps(self) -> list[tuple[int, ...]]:
        steps = []
        for s, segment in enumerate(self.segments):
            elsewhere = tuple(sorted({step for _, step in segment.tied}))
            # A segment whose parameters are all stepped elsewhere needs no step of its own.
            has_own = segment.parameters or self.encoders_at(s) or not elsewhere
            steps.append((s, *elsewhere) if has_own else elsewhere)
        return steps

    def steps_of(self, segment: int) -> tuple[int, ...]:
        """The segments whose steps update what the backwards of a segment train: itself first, then
        those that step the tied parameters among it.
        """
        return self._steps[segment]

    def to(
        self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format
    ) -> None:
        """Move heads and encoders to a device, in the dtypes of their inputs."""
        dtypes = self.layers.dtypes
        for number, head in self.heads.items():
            # A mixed model may change its dtype at a cut, and a head computes in that of its
            # features.
            last = self.segments_of(self.table.module_of_loss[int(number)])[-1]
            head.to(device=device, dtype=dtypes[self.segments[last].layers[-1]])
            head.to(memory_format=memory_format)
        for module, encoders in self.encoders.items():
            # What an encoder returns is added to the module's input, so it has the dtype of that.
            first = self.segments_of(int(module))[0]
            encoders.to(device=device, dtype=dtypes[self.segments[first].layers[0] - 1])
            encoders.to(memory_format=memory_format)

    @property
    def task_loss(self) -> LocalLoss:
        """The last module's loss, which is the task's."""
        return get_loss(self.heads, len(self.table.rows) - 1)

    def head(self, objective: Objective) -> nn.ModuleDict:
        """The auxiliary network and the loss of an objective: "aux" and "loss"."""
        head = self.heads[str(objective.loss)]
        assert isinstance(head, nn.ModuleDict)
        return head

    def parameters_trained_by(
        self, named: Mapping[str, nn.Parameter], segment: int, step: int
    ) -> list[nn.Parameter]:
        """The parameters that a segment trains and that the step of `step` updates.

        Args:
            named: the model's parameters by name.
            segment: the segment; the encoders at its input belong to it.
            step: the same segment, or one that steps tied parameters.
        """
        if step != segment:
            return [named[name] for name, owner in self.segments[segment].tied if owner == step]
        encoders = self.encoders_at(segment)
        return [
            *(named[name] for name in self.segments[segment].parameters),
            *(encoders.parameters() if encoders else ()),
        ]

    @property
    def tied(self) -> dict[str, tuple[int, list[int]]]:
        """Of each trained parameter that several layers use, the segment that steps it, and these
        layers.
        """
        layers: dict[str, list[int]] = {}
        for layer, names in enumerate(self.layers.parameters):
            for name in names:
                layers.setdefault(name, []).append(layer)
        steps = {name: s for s, each in enumerate(self.segments) for name in each.parameters}
        return {
            name: (steps[name], using)
            for name, using in layers.items()
            if name in steps and len(using) > 1
        }

    def layers_in(self, segments: range) -> range:
        """The layers of consecutive segments."""
        first, last = self.segments[segments[0]], self.segments[segments[-1]]
        return range(first.layers[0], last.layers[-1] + 1)

    def parameters_used_by(self, segments: Iterable[int]) -> set[str]:
        """The names of the model's parameters that segments use, including frozen ones."""
        return {
            name
            for s in segments
            for layer in self.segments[s].layers
            for name in self.layers.parameters[layer]
        }

    def message_shapes(
        self, segment: int, samples: int, *, output: bool
    ) -> list[tuple[torch.Size, torch.dtype]]:
        """Shapes and dtypes of the tensors in a message, for a number of samples.

        Args:
            segment: the segment.
            samples: how many.
            output: what crosses the end of the segment; otherwise the gradients, or the context, of
                what crosses its beginning, where constants have none.
        """
        layers, known = self.segments[segment].layers, self.layers
        layer = layers[-1] if output else layers[0] - 1
        shape = known.shape_for(known.shapes[layer], known.growths[layer], samples)
        end, count = known.find_end(layer), None if output else len(known.handed_on[layer])
        others = [] if end is None else known.select_crossing(layer, end.tensors)[1:count]
        return [
            (shape, known.dtypes[layer]),
            *((known.shape_for(o.shape, o.growth, samples), o.dtype) for o in others),
        ]

    def span_name(self, segment: int) -> str:
        """The names of a segment's first and last layer, as "first .. last"."""
        first, last = (self.layers.names[self.segments[segment].layers[i]] for i in (0, -1))
        return first if first == last else f"{first} .. {last}"

    def end_name(self, segment: int) -> str:
        """The module of the network at whose return a segment ends."""
        return self.layers.names[self.segments[segment].layers[-1]]


def _group(values: Iterable[_T], keys: Iterable[int]) -> dict[int, list[_T]]:
    """The values with each key, in their order."""
    groups: dict[int, list[_T]] = {}
    for value, key in zip(values, keys, strict=True):
        groups.setdefault(key, []).append(value)
    return groups


# --- objectives -------------------------------------------------------------------------------


def get_loss(heads: nn.ModuleDict, k: int) -> LocalLoss:
    """The loss with number k."""
    loss = heads[str(k)]["loss"]  # type: ignore[index]
    assert isinstance(loss, LocalLoss)
    return loss
