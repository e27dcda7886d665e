"""F: what happens where the network's forward enters a segment, and where it leaves it.

::

      segment s - 1              the hook at its end                      segment s
    ──────────────────► output ─┬─ leave s-1 ─ actions ─ enter s ─┬─► input ───────────────►
                                │  inject a root, keep features,  │
                                │  h = detached and dense         │
                                └─────────────────────────────────┘

What each of the two has to do for a segment is worked out before the first step, as a short tuple
of changes to the input: a plain greedy segment has none at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from localprop.engine.backward import InjectGradient, find_first
from localprop.engine.plan import StepPlan
from localprop.engine.skips import take_skips
from localprop.engine.store import StepContext, Store
from localprop.schedule.schedule import Action
from localprop.schedule.values import Kind, Value, name_context

InputChange = Callable[[StepContext, Tensor], Tensor]


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def canonical_layout(tensor: Tensor) -> Tensor:
    """The tensor in one of the layouts that a cut may have, contiguous or channels last: kernels
    may round by layout.
    """
    if tensor.is_contiguous():
        return tensor
    last = _CHANNELS_LAST.get(tensor.ndim)
    if last is not None and tensor.is_contiguous(memory_format=last):
        return tensor
    return tensor.contiguous()


# --- changes to a segment's input ---------------------------------------------------------------


@dataclass(frozen=True)
class MakeLeaf:
    """Ask for the gradient at the input, before contexts are added to it."""

    value: Value

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        step.store[self.value] = segment_input.requires_grad_()
        return segment_input


@dataclass(frozen=True)
class AddContexts:
    """Add encodings of earlier inputs of modules."""

    # The source, whether this takes it, its encoder.
    contexts: tuple[tuple[Value, bool, nn.Module], ...]
    microbatch: int

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        for value, takes, encoder in self.contexts:
            if value.kind is Kind.INPUT:
                source = step.batches[self.microbatch].inputs
            else:
                source = step.store.pop(value) if takes else step.store[value]
            # Not in place: autograd refuses to write into a leaf, and others may keep this tensor.
            segment_input = segment_input + encoder(source)
        return segment_input


@dataclass(frozen=True)
class CopyInput:
    """Run on a copy: the segment's layers write into their input, and neither a leaf nor what
    others keep may change.
    """

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        return segment_input.clone()


@dataclass(frozen=True)
class KeepModuleInput:
    """Keep the input of a module, contexts added, as a constant: for losses, or for contexts of
    later modules.
    """

    value: Value
    copied: bool

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        # Once contexts are added, the input carries the encoders' graph. Readers must neither train
        # encoders nor keep that graph alive.
        constant = segment_input.detach()
        step.store[self.value] = constant.clone() if self.copied else constant
        return segment_input


@dataclass(frozen=True)
class ShareModuleInput:
    """Keep the input of a module as a tensor of its graph, for a second-order loss; the segment may
    not write into it.
    """

    value: Value
    copied: bool

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        if not segment_input.requires_grad:
            segment_input.requires_grad_()
        step.store[self.value] = segment_input
        # The loss differentiates by the tensor in the store, so the clone that the layers write
        # into must come after it in the graph.
        return segment_input.clone() if self.copied else segment_input


def prepare_input(plan: StepPlan, action: Action) -> Iterator[InputChange]:
    """What F does to the input of a segment: contexts, or a copy."""
    wiring, segment = plan.wiring, action.segment
    encoders = wiring.encoders_at(segment)
    if encoders is not None:
        sources = wiring.sources[wiring.segments[segment].module]
        values = [name_context(source.module, action.microbatch) for source in sources]
        contexts = (
            (v, plan.liveness.takes(action, v), e) for v, e in zip(values, encoders, strict=True)
        )
        yield AddContexts(tuple(contexts), action.microbatch)
    # A sum with contexts is a new tensor already, which the layers may write into.
    elif plan.modifies_input(segment):
        yield CopyInput()


def keep_input(plan: StepPlan, action: Action) -> Iterator[InputChange]:
    """What F does to the input of a module for others, once it is complete."""
    wiring, segment, microbatch = plan.wiring, action.segment, action.microbatch
    module, copied = wiring.segments[segment].module, plan.modifies_input(segment)
    writes = plan.liveness.operands[action].writes
    for_losses = Value(Kind.MODULE_INPUT, module, microbatch=microbatch)
    second_order = segment in plan.second_order
    if for_losses in writes:
        # A constant would do for other losses of this module, but a second-order loss stands alone.
        yield (ShareModuleInput if second_order and module else KeepModuleInput)(for_losses, copied)
    for_contexts = Value(Kind.CONTEXT, module, microbatch=microbatch)
    if for_contexts in writes:
        yield KeepModuleInput(for_contexts, copied)


# --- entering and leaving -----------------------------------------------------------------------


class EnterSegment:
    """The beginning of F.

    Args:
        plan: of the step.
        action: the forward.
    """

    def __init__(self, plan: StepPlan, action: Action) -> None:
        segment, microbatch, liveness = action.segment, action.microbatch, plan.liveness
        self.action = action
        self._generators = plan.generators
        self._draw = plan.draw_key(action)
        self._has_graph = has_graph(plan, action)
        # An output that the next forward reads here never gets into the store: the hook hands it
        # over. The first segment of a rank reads what RECV_F has stored.
        self._received = Value(Kind.OUTPUT, segment - 1, microbatch=microbatch)
        changes: list[InputChange] = []
        leaf = Value(Kind.LEAF, segment, microbatch=microbatch)
        if leaf in liveness.operands[action].writes:
            changes.append(MakeLeaf(leaf))
        if (skips := take_skips(plan, action)) is not None:
            changes.append(skips)
        # The order counts. The leaf comes before the contexts, since it stands for the output of
        # the segment before; a module's input is complete only after them.
        self._changes = (*changes, *prepare_input(plan, action), *keep_input(plan, action))

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        """What the segment runs on."""
        # F begins in one hook and ends in the next one, so no `with torch.no_grad()` can span it.
        # `LeaveSegment` switches back; after a failure the engine's own `enable_grad` does.
        if not self._has_graph:
            torch.set_grad_enabled(False)
        self._generators.seed(step.seeds[self._draw])
        for change in self._changes:
            segment_input = change(step, segment_input)
        return segment_input

    def take_received(self, store: Store) -> list[Tensor]:
        """What crosses the segment's beginning, where another rank has sent it."""
        received: list[Tensor] = store.pop(self._received)
        return received


class LeaveSegment:
    """The end of F.

    Args:
        plan: of the step.
        action: the forward.
    """

    def __init__(self, plan: StepPlan, action: Action) -> None:
        segment = action.segment
        writes = plan.liveness.operands[action].writes
        self._has_graph = has_graph(plan, action)
        self._graph, self._scalar = find_first(writes, Kind.GRAPH), plan.scalar
        self._features = find_first(writes, Kind.FEATURES)
        self._second_order = segment in plan.second_order
        self._sent = find_first(writes, Kind.OUTPUT) if segment == plan.stage.segments[-1] else None

    def __call__(self, step: StepContext, output: Tensor) -> None:
        """Keep what others read of the output."""
        store = step.store
        if self._graph is not None:
            store[self._graph] = InjectGradient.apply(store, self._scalar, output, *step.made)
        if step.made:
            step.made = [canonical_layout(tensor.detach()) for tensor in step.made]
        if self._features is not None:
            # On a detached tensor the loss's backward ends at the features; the segment is B's. A
            # second-order loss differentiates through the segment, so it needs the graph.
            store[self._features] = output if self._second_order else output.detach()
        if self._sent is not None:
            # The receiver must compute on the layout that the hook would have handed over here: the
            # bits of a kernel's result may depend on it. Of constants copies are sent, since they
            # may be views of the batch, which may change before they are delivered.
            dense = torch.contiguous_format
            constants = [each.detach().clone(memory_format=dense) for each in step.constants]
            store[self._sent] = [canonical_layout(output.detach()), *step.made, *constants]
            step.made, step.constants = [], []
        if not self._has_graph:
            torch.set_grad_enabled(True)


class KeepInnerOutput:
    """The hook of an inner output that losses look at.

    Args:
        plan: of the step.
        name: of the module that returns it.
        segment: the segment that the module runs in.
    """

    def __init__(self, plan: StepPlan, name: str, segment: int) -> None:
        self.name, self.segment = name, segment
        # A copy is handed on where the network writes into the output later.
        self._copied = name in plan.wiring.layers.modified_outputs
        self._second_order = segment in plan.second_order
        self._tensors = self._find_values(plan, Kind.TAP)
        # An edge is a place in the graph. Unlike the output it keeps no storage alive.
        self._edges = self._find_values(plan, Kind.TAP_EDGE)

    def _find_values(self, plan: StepPlan, kind: Kind) -> dict[int, Value]:
        """The values of one kind that somebody reads, by micro-batch."""
        values = {m: Value(kind, self.name, microbatch=m) for m in range(plan.microbatches)}
        return {m: value for m, value in values.items() if value in plan.liveness.written}

    def __call__(self, store: Store, microbatch: int, output: Tensor) -> Tensor:
        """Keep the output for losses, and its edge for backwards."""
        if microbatch in self._tensors:
            store[self._tensors[microbatch]] = output if self._second_order else output.detach()
        # Behind frozen layers, and under no_grad, an output has no place in a graph.
        if output.grad_fn is not None and microbatch in self._edges:
            store[self._edges[microbatch]] = GradientEdge(output.grad_fn, output.output_nr)
        # The clone comes after the edge in the graph, so the gradient that arrives through it and
        # the one that a loss leaves at the edge are summed.
        return output.clone() if self._copied else output


def has_graph(plan: StepPlan, action: Action) -> bool:
    """Whether a forward builds a graph: for backwards that follow, or for a second-order loss."""
    writes = plan.liveness.operands[action].writes
    return find_first(writes, Kind.GRAPH) is not None or action.segment in plan.second_order
