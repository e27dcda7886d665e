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

from collections import Counter
from collections.abc import Iterator
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


class CleanCut(NamedTuple):
    """A moment at which a model can be cut: a module returns.

    Attributes:
        call: the call that returns.
        positions: where the one tensor that goes on stands among the tensors that it returns.
    """

    call: Call
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the module."""
        return self.call.name

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self.call.module

    @property
    def output(self) -> Output:
        """The tensor that goes on."""
        return self.call.outputs[self.positions[0]]

    @property
    def edge(self) -> GradientEdge:
        """Its place in the graph."""
        assert self.output.edge is not None
        return self.output.edge

    @property
    def time(self) -> int:
        """When the tensor was made, in autograd's numbers."""
        return self.edge.node._sequence_nr()


# --- which modules could end a layer --------------------------------------------------------------


def find_clean_cuts(
    model: nn.Module, trace: ForwardTrace
) -> tuple[dict[str, CleanCut], dict[str, str]]:
    """Find the modules whose output is a clean cut.

    Returns:
        The cut at the end of each module that has one, by name, and for each module a reason why no
        layer ends there, which holds if none does.

    Raises:
        BadInput: the output depends on no parameter.
    """
    output = gradient_edge_of(trace.output)
    if output is None:
        raise BadInput(["The model's output depends on no parameter: there is nothing to train."])
    crossing = find_crossing(find_lifetimes(output), (call.end for call in trace.calls))
    times = count_calls(trace)
    clean: dict[str, CleanCut] = {}
    reasons = {name: "it does not run in the forward" for name, _ in model.named_modules() if name}
    for call, alive in zip(trace.calls, crossing, strict=True):
        reason = _explain_not_clean(call, times[call.name], alive)
        if reason is None:
            positions = [i for i, each in enumerate(call.outputs) if each.edge in alive]
            clean[call.name] = CleanCut(call, tuple(positions))
        reasons[call.name] = reason or "it is part of a layer"
    return clean, reasons


def _explain_not_clean(call: Call, times: int, alive: set[GradientEdge]) -> str | None:
    """Why the end of a call is not a clean cut; None if it is one.

    Args:
        call: the call.
        times: how many times its module is called.
        alive: what was made before its return and is read after it.
    """
    if _runs_compiled(call):
        return "it runs inside a compiled module"
    if times > 1:
        return f"it is called {times} times in one forward"
    if not call.outputs:
        return f"it returns a {type(call.output).__name__}, no tensor"
    returned = {output.edge for output in call.outputs if output.edge is not None}
    if not returned:
        return "its output needs no gradient"
    if not returned & alive:
        return "the model's output does not depend on what it returns"
    if not alive <= returned:
        return "a path from the input to the output goes around it"
    if len(alive) > 1:
        return f"it returns {len(alive)} tensors that are read later, not one"
    # An Identity returns the tensor of an earlier module. To replace the tensor at its return would
    # replace it for one reader only, while others may read the original.
    (edge,) = alive
    if edge.node._sequence_nr() < call.start:
        return "it only passes a tensor on"
    return None


def _runs_compiled(call: Call) -> bool:
    """Whether a call is made by the wrapper of torch.compile, whose graph takes no hooks."""
    # A wrapper's own name ends with that of its module.
    return call.name.startswith("_orig_mod") or "._orig_mod" in call.name


# --- which of them do -----------------------------------------------------------------------------


def choose_layer_ends(model: nn.Module, clean: dict[str, CleanCut]) -> list[CleanCut]:
    """Choose the cuts at which a layer ends, in the order of the forward.

    The candidates are the modules that stand in a list. One with a weight ends a layer of its own,
    and one without joins the layer before it. A stem before the first candidate is a layer, too.
    """
    block_groups = _find_block_group_classes(model, clean)
    names = _iterate_listed_modules(model, "", clean, block_groups, siblings=True)
    candidates = sorted((clean[name] for name in names), key=lambda cut: cut.time)
    ends: list[CleanCut] = []
    for cut in candidates:
        if owns_matrix(cut.module):
            stem = None if ends else _find_stem(clean, cut)
            ends += [stem, cut] if stem else [cut]
        elif ends:
            ends[-1] = cut
    return ends


def owns_matrix(module: nn.Module) -> bool:
    """Whether a module holds a weight of at least two dimensions. Norms and scales do not."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _find_stem(clean: dict[str, CleanCut], first: CleanCut) -> CleanCut | None:
    """The last clean cut before the first candidate, if there are weights before it."""
    before = [cut for cut in clean.values() if cut.time < first.call.start]
    if not before:
        return None
    # A Sequential and its last child return the same tensor. `max` takes the first of equal ones,
    # and calls are in the order of their returns, so the stem ends with the child.
    end = max(before, key=lambda cut: cut.time)
    weights = [leaf for leaf in find_leaves(end.edge) if isinstance(leaf, nn.Parameter)]
    return end if any(weight.ndim > 1 for weight in weights) else None


def _iterate_listed_modules(
    module: nn.Module,
    name: str,
    clean: dict[str, CleanCut],
    block_groups: frozenset[type],
    *,
    siblings: bool,
) -> Iterator[str]:
    """Names of the modules in `module` with a clean cut that stand in a list; lists are opened.

    Args:
        module: where to look.
        name: its name in the model.
        clean: the clean cuts, by the names of the modules that return.
        block_groups: classes that are opened like lists.
        siblings: whether several children of one class make a list.
    """
    children = {f"{name}.{child}" if name else child: m for child, m in module.named_children()}
    candidates = {
        child_name: child
        for child_name, child in children.items()
        if child_name in clean and not _is_module_list(child) and type(child) not in block_groups
    }
    members = _select_list_members(module, candidates, siblings=siblings)
    for child_name, child in children.items():
        if child_name in members:
            yield child_name
        else:
            yield from _iterate_listed_modules(
                child, child_name, clean, block_groups, siblings=siblings
            )


def _is_module_list(module: nn.Module) -> bool:
    """Whether a module is a list: a Sequential or ModuleList, unless it is one unit itself."""
    # Sequential(conv, norm, relu) is a unit, written as a list for convenience: only one child has
    # weights, and that child is a bare conv or Linear.
    weighted = [child for child in module.children() if owns_matrix(child)]
    is_unit = len(weighted) == 1 and not list(weighted[0].children())
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and not is_unit


def _select_list_members(
    module: nn.Module, candidates: dict[str, nn.Module], *, siblings: bool
) -> set[str]:
    """Which of the candidates among a module's children stand in a list.

    Those are all children of a Sequential or ModuleList. In a network that is written by hand, they
    are conv1, conv2, ..., several children of one class, and what stands between them.
    """
    if _is_module_list(module):
        return set(candidates)
    if not siblings:
        return set()
    classes = Counter(type(child) for child in candidates.values() if owns_matrix(child))
    repeated = {cls for cls, count in classes.items() if count > 1}
    return {
        name
        for name, child in candidates.items()
        if type(child) in repeated or (repeated and not owns_matrix(child))
    }


def _find_block_group_classes(model: nn.Module, clean: dict[str, CleanCut]) -> frozenset[type]:
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
        names = _iterate_listed_modules(module, name, clean, frozenset(), siblings=False)
        weighted = sum(owns_matrix(clean[inner].module) for inner in names)
        counts.setdefault(type(module), []).append(weighted)
    return frozenset(cls for cls, found in counts.items() if min(found) > 0 and max(found) > 1)
