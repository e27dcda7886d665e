"""Where layers end: the modules at which a model can be cut, and the choice among them.

A model can be cut where a module returns, if its output is all that the rest of the forward reads
of what came before, and that carries a gradient to the task's loss. It is then a *clean cut*::

    input ──► conv ──► relu ─┬─► conv1 ──► conv2 ─►(+)──► fc ──► output
                       ║     └──── skip connection ─┘ ║
                     clean                          clean

The output of `conv1` is no clean cut: when it returns, that of `relu` is still to be read. If
training cut the graph there, gradients and activations would pass by the cut.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.autograd.graph import GradientEdge

from localprop.errors import BadInput
from localprop.network.autograd_graph import (
    find_crossing,
    find_leaves,
    find_lifetimes,
    gradient_edge_of,
)
from localprop.network.probe import Call, ForwardTrace, Output, count_calls


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
        name: the name of the module; "name#2" is its second call of several.
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
    def is_repeated(self) -> bool:
        """Whether it is one of several calls of its module."""
        return self.name != self.call.name

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


# --- which modules could end a layer --------------------------------------------------------------


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
    times = count_calls(trace)
    cuts: dict[str, Cut] = {}
    born: dict[GradientEdge, str] = {}  # the cut that each tensor is replaced at
    seen: dict[int, Call] = {}  # the first call that returned each tensor
    reasons = {name: "it does not run in the forward" for name, _ in model.named_modules() if name}
    for call, alive in zip(trace.calls, crossing, strict=True):
        reason = _explain_no_cut(call, alive, born)
        if reason is None:
            is_only = times[call.name] == 1
            name = call.name if is_only else f"{call.name}#{call.number}"
            cut = _make_cut(name, call, {edge: lifetimes[edge][1] for edge in alive}, born)
            cuts[name] = cut
            for each in cut.tensors:
                # A tensor that was written into has the name of an earlier one for its readers.
                if seen.get(id(each.output.tensor), call).start >= call.start:
                    born.setdefault(each.edge, name)
                    if is_only and cuts[born[each.edge]].is_repeated:
                        born[each.edge] = name  # of a module and its child the one that is simple
        for output in call.outputs:
            seen.setdefault(id(output.tensor), call)
        reasons[call.name] = reason or "it is part of a layer"
    return cuts, reasons


def _make_cut(
    name: str,
    call: Call,
    last_read: Mapping[GradientEdge, int],
    born: Mapping[GradientEdge, str],
) -> Cut:
    positions: dict[GradientEdge, list[int]] = defaultdict(list)
    for i, each in enumerate(call.outputs):
        edge = each.edge
        if edge is not None and edge in last_read and _is_made_in(call, edge):
            positions[edge].append(i)
    tensors = tuple(
        CutTensor(tuple(own), call.outputs[own[0]], last_read[edge])
        for edge, own in positions.items()
    )
    return Cut(
        name, call, tensors, {edge: born[edge] for edge in last_read.keys() - positions.keys()}
    )


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


# --- which of them do -----------------------------------------------------------------------------


def choose_layer_ends(model: nn.Module, cuts: Mapping[str, Cut]) -> list[Cut]:
    """Choose the cuts at which a layer ends, in the order of the forward.

    The candidates are the modules that stand in a list. One with a weight ends a layer of its own,
    and one without joins the layer before it. A stem before the first candidate is a layer, too,
    and so is what makes a tensor that goes around a cut.
    """
    # What goes around no other is cut wherever it is; a module that others go around must stand in
    # a real list.
    clean = {name: cut for name, cut in cuts.items() if not cut.around and not cut.is_repeated}
    block_groups = _find_block_group_classes(model, clean)
    cuts_of: dict[str, list[Cut]] = defaultdict(list)
    for cut in cuts.values():
        cuts_of[cut.call.name].append(cut)
    names = _iterate_listed_modules(model, "", set(cuts_of), set(clean), block_groups)
    candidates = sorted((cut for name in names for cut in cuts_of[name]), key=lambda cut: cut.time)
    ends: list[Cut] = []
    for cut in candidates:
        if owns_matrix(cut.module):
            stem = None if ends else _find_stem(clean, cut)
            ends += [stem, cut] if stem else [cut]
        elif ends:
            ends[-1] = cut
    return add_births(cuts, ends)


def add_births(cuts: Mapping[str, Cut], ends: Iterable[Cut]) -> list[Cut]:
    """Add the cuts at which what goes around others is replaced. All are in the forward's order."""
    chosen = {cut.name: cut for cut in ends}
    waiting = list(chosen.values())[:-1]  # nothing is cut at the end of the last layer
    while waiting:
        handed_on = {edge for cut in chosen.values() for edge in cut.edges}
        around = waiting.pop().around
        for name in dict.fromkeys(name for edge, name in around.items() if edge not in handed_on):
            chosen[name] = cuts[name]
            waiting.append(cuts[name])
    ordered, known = list[Cut](), set[GradientEdge]()
    for cut in sorted(chosen.values(), key=lambda cut: cut.call.end):
        if not known.issuperset(cut.edges):  # else its child has been cut at the same moment
            ordered.append(cut)
            known.update(cut.edges)
    return ordered


def owns_matrix(module: nn.Module) -> bool:
    """Whether a module holds a weight of at least two dimensions. Norms and scales do not."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _find_stem(clean: Mapping[str, Cut], first: Cut) -> Cut | None:
    """The last clean cut before the first candidate, if there are weights before it."""
    before = [cut for cut in clean.values() if cut.time < first.call.start]
    if not before:
        return None
    # A Sequential and its last child return the same tensor. `max` takes the first of equal ones,
    # and calls are in the order of their returns, so the stem ends with the child.
    end = max(before, key=lambda cut: cut.time)
    weights = [leaf for leaf in find_leaves(end.edges) if isinstance(leaf, nn.Parameter)]
    return end if any(weight.ndim > 1 for weight in weights) else None


def _iterate_listed_modules(
    module: nn.Module,
    name: str,
    cuttable: Collection[str],
    siblings: Collection[str],
    block_groups: Collection[type] = (),
) -> Iterator[str]:
    """Names of the modules in `module` with a cut that stand in a list; lists are opened.

    Args:
        module: where to look.
        name: its name in the model.
        cuttable: the names of the modules that a model can be cut at.
        siblings: those among them that may make a list with others of their class.
        block_groups: classes that are opened like lists.
    """
    children = {f"{name}.{child}" if name else child: m for child, m in module.named_children()}
    candidates = {
        child_name: child
        for child_name, child in children.items()
        if child_name in cuttable and not _is_module_list(child) and type(child) not in block_groups
    }
    members = _select_list_members(module, candidates, siblings)
    for child_name, child in children.items():
        if child_name in members:
            yield child_name
        else:
            yield from _iterate_listed_modules(child, child_name, cuttable, siblings, block_groups)


def _is_module_list(module: nn.Module) -> bool:
    """Whether a module is a list: a Sequential or ModuleList, unless it is one unit itself."""
    # Sequential(conv, norm, relu) is a unit, written as a list for convenience: only one child has
    # weights, and that child is a bare conv or Linear.
    weighted = [child for child in module.children() if owns_matrix(child)]
    is_unit = len(weighted) == 1 and not list(weighted[0].children())
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and not is_unit


def _select_list_members(
    module: nn.Module, candidates: Mapping[str, nn.Module], siblings: Collection[str]
) -> set[str]:
    """Which of the candidates among a module's children stand in a list.

    Those are all children of a Sequential or ModuleList. In a network that is written by hand, they
    are conv1, conv2, ..., several children of one class, and what stands between them.
    """
    if _is_module_list(module):
        return set(candidates)
    candidates = {name: child for name, child in candidates.items() if name in siblings}
    classes = Counter(type(child) for child in candidates.values() if owns_matrix(child))
    repeated = {cls for cls, count in classes.items() if count > 1}
    return {
        name
        for name, child in candidates.items()
        if type(child) in repeated or (repeated and not owns_matrix(child))
    }


def _find_block_group_classes(model: nn.Module, clean: Mapping[str, Cut]) -> frozenset[type]:
    """Find the classes whose instances only group blocks, such as a stage of ConvNeXt.

    Every instance holds a list of modules with clean cuts, and some instance has several of them.
    """
    # A residual block is no such class: a skip connection goes around its inner modules, so they
    # have no clean cuts. Nor is an inverted residual: some instances have a skip connection, others
    # have none, and one instance without inner cuts is enough to keep the class whole.
    counts: dict[type, list[int]] = {}
    for name, module in model.named_modules():
        if name not in clean or _is_module_list(module):
            continue
        names = _iterate_listed_modules(module, name, clean, ())
        weighted = sum(owns_matrix(clean[inner].module) for inner in names)
        counts.setdefault(type(module), []).append(weighted)
    return frozenset(cls for cls, found in counts.items() if min(found) > 0 and max(found) > 1)
