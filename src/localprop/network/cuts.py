"""Where a model can be cut.

A model can be cut where a module returns, if all that the rest of the forward reads of what came
before, and that carries a gradient to the task's loss, is in what it returns, or was replaced at an
earlier cut, where it was made::

    input ──► conv ──► relu ─┬─► conv1 ──► conv2 ─►(+)──► fc ──► output
                       ║     │     ║                ║
                     clean   │  relu's output     clean
                             │  goes around
                             └──── skip connection ─┘

The first and the last of these cuts are *clean*: nothing goes around them. At the one in the middle
the skip lives, too; it is a leaf since the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.autograd.graph import GradientEdge

from localprop.errors import BadInput
from localprop.network.autograd_graph import find_crossing, find_lifetimes, gradient_edge_of
from localprop.network.calls import Call, Output, count_calls
from localprop.network.probe import ForwardTrace


class CutTensor(NamedTuple):
    """A tensor that a module returns and that is read after the cut at its return.

    Attributes:
        positions: where it stands among the tensors that the module returns.
        output: the tensor.
        last_read: when it is read for the last time, in autograd's numbers.
    """

    positions: tuple[int, ...]
    output: Output
    last_read: int

    @property
    def edge(self) -> GradientEdge:
        """Its place in the graph."""
        assert self.output.edge is not None
        return self.output.edge


class Cut(NamedTuple):
    """A moment at which a model can be cut: a module returns.

    Attributes:
        name: the name of the module; "name#2" is its second call of several, and "name+1" the
            first function of torch after its return.
        call: the call that returns.
        tensors: those that it hands on, the features first.
        around: the tensors that are read after it, too, but made before its call, each with the
            module at whose return it can be replaced.
    """

    name: str
    call: Call
    tensors: tuple[CutTensor, ...]
    around: Mapping[GradientEdge, str]

    @property
    def is_plain(self) -> bool:
        """Whether it is the return of the only call of its module."""
        return self.name == self.call.name

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self.call.module

    @property
    def features(self) -> Output:
        """The first tensor that goes on, which auxiliary networks see."""
        return self.tensors[0].output

    @property
    def edges(self) -> list[GradientEdge]:
        """The places of all its tensors in the graph."""
        return [each.edge for each in self.tensors]

    @property
    def time(self) -> int:
        """When the features were made, in autograd's numbers."""
        return self.tensors[0].edge.node._sequence_nr()


def find_cuts(model: nn.Module, trace: ForwardTrace) -> tuple[dict[str, Cut], dict[str, str]]:
    """Find the modules at whose return the model can be cut.

    Returns:
        The cut at the end of each module that has one, by name, and for each module a reason why no
        layer ends there, which holds if none does.

    Raises:
        BadInput: the output depends on no parameter.
    """
    end = gradient_edge_of(trace.output)
    if end is None:
        raise BadInput(["The model's output depends on no parameter: there is nothing to train."])
    lifetimes = find_lifetimes(end)
    crossing = find_crossing(lifetimes, (call.end for call in trace.calls))
    times = count_calls(trace.calls)
    cuts: dict[str, Cut] = {}
    born: dict[GradientEdge, str] = {}  # the cut that each tensor is replaced at
    seen: dict[int, Call] = {}  # the first call that returned each tensor
    reasons = {name: "it does not run in the forward" for name, _ in model.named_modules() if name}
    for call, alive in zip(trace.calls, crossing, strict=True):
        reason = _explain_no_cut(call, alive, born)
        if reason is None:
            name = call.name_among(times[call.name])
            last_read = {edge: lifetimes[edge][1] for edge in alive}
            cut = cuts[name] = _make_cut(name, call, last_read, born, trace.batch.samples)
            for each in cut.tensors:
                # A tensor that was written into has the name of an earlier one for its readers.
                if seen.get(id(each.output.tensor), call).start >= call.start:
                    born.setdefault(each.edge, name)
                    if name == call.name and not cuts[born[each.edge]].is_plain:
                        born[each.edge] = name  # of a module and its child the one that is plain
        for output in call.outputs:
            seen.setdefault(id(output.tensor), call)
        if not call.function:
            reasons[call.name] = reason or "it is part of a layer"
    return cuts, reasons


def find_constants(cut: Cut, calls: Sequence[Call]) -> tuple[int, ...]:
    """Where tensors stand that a module returns without a gradient, and that later modules get: the
    mask of a block that hands it to the next one.

    Args:
        cut: the return of the module.
        calls: all calls, in the order of their returns.
    """
    own = {i for each in cut.tensors for i in each.positions}
    if len(own) == len(cut.call.outputs):
        return ()
    # Modules around this one return later, too, but have begun before.
    later = [call for call in calls[calls.index(cut.call) + 1 :] if call.start >= cut.call.end]
    read = {id(tensor) for call in later for tensor, _ in call.inputs}
    outputs = enumerate(cut.call.outputs)
    return tuple(i for i, each in outputs if i not in own and id(each.tensor) in read)


def _make_cut(
    name: str,
    call: Call,
    last_read: Mapping[GradientEdge, int],
    born: Mapping[GradientEdge, str],
    samples: int,
) -> Cut:
    positions: dict[GradientEdge, list[int]] = defaultdict(list)
    for i, each in enumerate(call.outputs):
        edge = each.edge
        if edge is not None and edge in last_read and _is_made_in(call, edge):
            positions[edge].append(i)
    tensors = [
        CutTensor(tuple(own), call.outputs[own[0]], last_read[edge])
        for edge, own in positions.items()
    ]
    # Features have a sample in each place of dimension 0, if any of the tensors has.
    tensors.sort(key=lambda each: each.output.tensor.shape[:1] != (samples,))
    around = {edge: born[edge] for edge in last_read.keys() - positions.keys()}
    return Cut(name, call, tuple(tensors), around)


def _explain_no_cut(
    call: Call, alive: set[GradientEdge], born: Mapping[GradientEdge, str]
) -> str | None:
    """Why a model cannot be cut at the end of a call; None if it can.

    Args:
        call: the call.
        alive: what was made before its return and is read after it.
        born: what was replaced at an earlier cut.
    """
    if _runs_compiled(call):
        return "it runs inside a compiled module"
    if not call.outputs:
        return f"it returns a {type(call.output).__name__}, no tensor"
    returned = {output.edge for output in call.outputs if output.edge is not None}
    if not returned:
        return "its output needs no gradient"
    if not returned & alive:
        return "the model's output does not depend on what it returns"
    # An Identity returns the tensor of an earlier module. To replace the tensor at its return would
    # replace it for one reader only, while others may read the original.
    made_here = {edge for edge in returned if _is_made_in(call, edge)}
    if not made_here & alive:
        return "it only passes a tensor on"
    if not alive <= made_here | born.keys():
        return "a path from the input to the output goes around it"
    return None


def _is_made_in(call: Call, edge: GradientEdge) -> bool:
    return edge.node._sequence_nr() >= call.start


def _runs_compiled(call: Call) -> bool:
    """Whether a call is made by the wrapper of torch.compile, whose graph takes no hooks."""
    # A wrapper's own name ends with that of its module.
    return call.name.startswith("_orig_mod") or "._orig_mod" in call.name
