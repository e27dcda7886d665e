"""Where layers end: the modules at which a model can be cut, and the choice among them.

A clean cut is a tensor that every path from the model's output back to its input goes through::

    input ──► conv ──► relu ─┬─► conv1 ──► conv2 ─►(+)──► fc ──► output
                       ║     └──── skip connection ─┘ ║
                     clean                          clean

The output of `conv1` is not a clean cut: the skip connection goes around it. If training cut the
graph there, gradients and activations would pass by the cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from localprop.errors import BadInput
from localprop.network.autograd_graph import find_bottlenecks, find_leaves, gradient_edge_of
from localprop.network.probe import Call, ForwardTrace

# --- which modules could end a layer --------------------------------------------------------------


def find_clean_cuts(
    model: nn.Module, trace: ForwardTrace, inputs: Tensor
) -> tuple[dict[str, Call], dict[str, str]]:
    """Find the modules whose output is a clean cut.

    Returns:
        The call of each module with a clean cut at its end, by name, and for each module a reason
        why no layer ends there, which holds if none does.

    Raises:
        BadInput: the output depends on no parameter, or the input is of whole numbers and no module
            makes features of it.
    """
    entry, output = _find_entry(trace, inputs), gradient_edge_of(trace.output)
    assert output is not None
    bottlenecks = find_bottlenecks(output, entry)
    times = Counter(call.name for call in trace.calls)
    clean: dict[str, Call] = {}
    reasons = {name: "it does not run in the forward" for name, _ in model.named_modules() if name}
    for call in trace.calls:
        reason = _explain_not_clean(call, times[call.name], bottlenecks)
        if reason is None:
            clean[call.name] = call
        reasons[call.name] = reason or "it is part of a layer"
    return clean, reasons


def _find_entry(trace: ForwardTrace, inputs: Tensor) -> GradientEdge:
    """Where the graph begins: at the input or, for whole numbers, at the first module's output."""
    if trace.output.grad_fn is None:
        raise BadInput(["The model's output depends on no parameter: there is nothing to train."])
    entry = gradient_edge_of(inputs)
    if entry is not None:
        return entry
    # Whole numbers carry no gradient, so the graph begins where an embedding makes features of
    # them.
    for call in trace.calls:
        if id(inputs) in call.input_ids and call.edge is not None:
            return call.edge
    raise BadInput(
        [f"Inputs of dtype {inputs.dtype} must go through an nn.Embedding (a module) first."]
    )


def _explain_not_clean(call: Call, times: int, bottlenecks: set[GradientEdge]) -> str | None:
    """Why the end of a call is not a clean cut; None if it is one."""
    if times > 1:
        return f"it is called {times} times in one forward"
    if not isinstance(call.output, Tensor):
        return f"it returns a {type(call.output).__name__}, not one tensor"
    if call.edge is None:
        return "its output needs no gradient"
    if call.edge not in bottlenecks:
        return "a path from the input to the output goes around it"
    # An Identity returns the tensor of an earlier module. To replace the tensor at its return would
    # replace it for one reader only, while others may read the original.
    if not call.creates_output:
        return "it only passes a tensor on"
    return None


# --- which of them do -----------------------------------------------------------------------------


def choose_layer_ends(model: nn.Module, clean: dict[str, Call]) -> list[Call]:
    """Choose the calls at whose return a layer ends, in the order of the forward.

    The candidates are the modules that stand in a list. One with a weight ends a layer of its own,
    and one without joins the layer before it. A stem before the first candidate is a layer, too.
    """
    block_groups = _find_block_group_classes(model, clean)
    names = _iterate_listed_modules(model, "", clean, block_groups, siblings=True)
    candidates = sorted((clean[name] for name in names), key=lambda call: call.sequence_of_output)
    ends: list[Call] = []
    for call in candidates:
        if owns_matrix(call.module):
            stem = None if ends else _find_stem(clean, call)
            ends += [stem, call] if stem else [call]
        elif ends:
            ends[-1] = call
    return ends


def owns_matrix(module: nn.Module) -> bool:
    """Whether a module holds a weight of at least two dimensions. Norms and scales do not."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _find_stem(clean: dict[str, Call], first: Call) -> Call | None:
    """The last clean cut before the first candidate, if there are weights before it."""
    before = [call for call in clean.values() if call.sequence_of_output <= first.sequence_at_start]
    if not before:
        return None
    # A Sequential and its last child return the same tensor. `max` takes the first of equal ones,
    # and calls are in the order of their returns, so the stem ends with the child.
    end = max(before, key=lambda call: call.sequence_of_output)
    assert end.edge is not None
    weights = [leaf for leaf in find_leaves(end.edge) if isinstance(leaf, nn.Parameter)]
    return end if any(weight.ndim > 1 for weight in weights) else None


def _iterate_listed_modules(
    module: nn.Module,
    name: str,
    clean: dict[str, Call],
    block_groups: frozenset[type],
    *,
    siblings: bool,
) -> Iterator[str]:
    """Names of the modules in `module` with a clean cut that stand in a list; lists are opened.

    Args:
        module: where to look.
        name: its name in the model.
        clean: the calls with a clean cut at their end, by name.
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


def _find_block_group_classes(model: nn.Module, clean: dict[str, Call]) -> frozenset[type]:
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
