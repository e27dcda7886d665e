"""Where layers end: the choice among the cuts of a model."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import nn
from torch.autograd.graph import GradientEdge

from localprop.network.autograd_graph import find_leaves
from localprop.network.calls import Call
from localprop.network.cuts import Cut


def choose_layer_ends(
    model: nn.Module, calls: Sequence[Call], cuts: Mapping[str, Cut], samples: int
) -> list[Cut]:
    """Choose the cuts at which a layer ends, in the order of the forward.

    The candidates are the modules that stand in a list. One with a weight ends a layer of its own,
    and one without joins the layer before it. A stem before the first candidate is a layer, too,
    and so is what makes a tensor that goes around a cut.

    Args:
        model: the model.
        calls: those of its submodules.
        cuts: where it can be cut, by name.
        samples: the number of samples with which it ran.
    """
    # A module that nothing goes around may end a layer wherever it is; others must stand in a list.
    clean = {name: cut for name, cut in cuts.items() if not cut.around and cut.is_plain}
    cuts_of: dict[str, list[Cut]] = defaultdict(list)
    for cut in cuts.values():
        if not cut.call.function:
            cuts_of[cut.call.name].append(cut)
    following = {
        call.name: cut
        for call, cut in find_following_cuts(model, calls, cuts).items()
        if cut is not None
    }
    block_groups = _find_block_group_classes(model, clean, following)
    for name, cut in following.items():
        cuts_of[name] = [cut]
    names = _iterate_listed_modules(
        model, "", set(cuts_of), set(clean), following, block_groups, count_weights(model) / 4
    )
    residuals = {cut.name for cut in following.values()}
    opened = [name for name in following if type(model.get_submodule(name)) is nn.Module]
    names = (n for n in names if not any(n.startswith(f"{other}.") for other in opened))
    listed = dict.fromkeys(cut.name for name in [*names, *opened] for cut in cuts_of[name])
    for call in _find_sharing_blocks(calls):
        shared = cuts.get(call.name)
        if shared is None or shared.features.tensor.shape[:1] != (samples,):
            continue
        if shared.around or not any(outer.name in clean for outer in _list_outwards(call.parent)):
            listed[shared.name] = None
    candidates = sorted((cuts[name] for name in listed), key=lambda cut: cut.time)
    ends: list[Cut] = []
    for cut in candidates:
        if owns_matrix(cut.module) or cut.name in residuals:
            stem = None if ends else _find_stem(clean, cut)
            ends += [stem, cut] if stem else [cut]
        elif ends and not cut.around:
            ends[-1] = cut
    return _add_births(cuts, ends, _list_starts(calls))


def _find_sharing_blocks(calls: Iterable[Call]) -> list[Call]:
    """Find the calls of numbered blocks of one class that share more than one of them hands on.

    Each runs on what an earlier one has returned, and on something else: what the one before that
    has returned, all that a dense block has made so far, a query of the whole stage. Inside of such
    a block, what goes around is an addition of its own.
    """
    returned: dict[tuple[str, type], list[Call]] = defaultdict(list)
    found: dict[Call, None] = {}
    for call in sorted(calls, key=lambda call: call.start):
        siblings = call.name.rstrip("0123456789")
        if call.function or siblings == call.name or not _is_block(call.module):
            continue
        read = {id(tensor) for tensor, _ in call.inputs if tensor.requires_grad}
        before = returned[siblings, type(call.module)]
        for other in before if len(read) > 1 else ():
            if any(id(each.tensor) in read for each in other.outputs):
                found |= {other: None, call: None}
        before.append(call)
    return list(found)


def _is_block(module: nn.Module) -> bool:
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in module.modules()) > 1


def find_following_cuts(
    model: nn.Module, calls: Sequence[Call], cuts: Mapping[str, Cut]
) -> dict[Call, Cut | None]:
    """For blocks in a list around which something goes, the first cut after it that nothing goes
    around: perhaps a residual is added there, outside of the block.

    None for a block that cannot be cut at all, neither at its return nor before others run.
    """
    blocks = {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        if _is_module_list(module)
        for child, m in module.named_children()
        if owns_matrix(m)
    }
    own = [call for call in calls if call.name in blocks and not call.function]
    own = sorted([*own, *_find_opened_blocks(model, calls)], key=lambda call: call.start)
    clean = sorted(
        (cut for cut in cuts.values() if not cut.around and len(cut.tensors) == 1),
        key=lambda cut: cut.call.end,
    )
    cut_at = {cut.call for cut in cuts.values()}
    # What is inside of a block that ends needs no end of its own.
    ended = {cut.call for cut in clean if cut.call.name in blocks}
    starts = _list_starts(calls)
    found: dict[Call, Cut | None] = {}
    sharing = set(_find_sharing_blocks(calls))
    for call in own:
        inside = any(outer in ended for outer in _list_outwards(call))
        if inside and (call not in sharing or call in cut_at):
            continue
        until = next(iter(starts[bisect_left(starts, call.end) :]), sys.maxsize)
        following = next((cut for cut in clean if call.end <= cut.call.end <= until), None)
        if following is not None:
            ended.add(call)
        if following is not None or call not in cut_at:
            found[call] = following
    return found


def _find_opened_blocks(model: nn.Module, calls: Iterable[Call]) -> Iterator[Call]:
    """Numbered blocks that nobody calls, since a GraphModule has opened them, as if somebody did.

    What holds their modules is an `nn.Module` without a forward.
    """
    within: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        names = call.name.split(".")
        for count in range(1, len(names)):
            within[".".join(names[:count])].append(call)
    for name, own in within.items():
        module = model.get_submodule(name)
        if name.rpartition(".")[2].isdigit() and type(module) is nn.Module and _is_block(module):
            start, end = min(call.start for call in own), max(call.end for call in own)
            yield Call(name, module, None, start, end=end)


def _list_outwards(call: Call | None) -> Iterator[Call]:
    """A call, the one during which it was made, and so on."""
    while call is not None:
        yield call
        call = call.parent


def _list_starts(calls: Iterable[Call]) -> list[int]:
    """The times at which modules with weights begin, in order."""
    return sorted(c.start for c in calls if not c.function and owns_matrix(c.module))


def _add_births(cuts: Mapping[str, Cut], ends: Iterable[Cut], starts: Sequence[int]) -> list[Cut]:
    """Add the cuts at which what goes around others is replaced. All are in the forward's order.

    Args:
        cuts: all, by name.
        ends: those at which a layer ends.
        starts: when modules with weights begin.
    """
    chosen = {cut.name: cut for cut in ends}
    waiting = list(chosen.values())[:-1]  # nothing is cut at the end of the last layer
    while waiting:
        handed_on = {edge for cut in chosen.values() for edge in cut.edges}
        around = waiting.pop().around
        for name in dict.fromkeys(name for edge, name in around.items() if edge not in handed_on):
            chosen[name] = cuts[name]
            waiting.append(cuts[name])
    passing = {edge for cut in chosen.values() for edge in cut.around}
    ordered, known = list[Cut](), set[GradientEdge]()
    for cut in sorted(chosen.values(), key=lambda cut: cut.call.end):
        if known.issuperset(cut.edges):  # its child has been cut at the same moment
            continue
        if cut.call.function and ordered and passing.isdisjoint(ordered[-1].edges):
            first = bisect_left(starts, ordered[-1].call.end)
            if first == bisect_left(starts, cut.call.start):
                ordered.pop()  # only functions have run: the layer before goes on to this cut
        ordered.append(cut)
        known.update(cut.edges)
    return ordered


def count_weights(module: nn.Module) -> int:
    """The number of elements of a module's weights of two dimensions or more."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


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
    clean: Collection[str],
    whole: Collection[str] = (),
    block_groups: Collection[type] = (),
    large: float = 0,
    by_class: bool = True,
) -> Iterator[str]:
    """Names of the modules in `module` with a cut that stand in a list; lists are opened.

    Args:
        module: where to look.
        name: its name in the model.
        cuttable: the names of the modules that a model can be cut at.
        clean: those that nothing goes around.
        whole: those that are not opened, even if they are lists.
        block_groups: classes that are opened like lists.
        large: modules with so many weights may be cut within a skip: a decoder, but no block of
            several branches.
        by_class: whether several clean children of one class make a list.
    """
    children = {f"{name}.{child}" if name else child: m for child, m in module.named_children()}
    candidates = {
        child_name: child
        for child_name, child in children.items()
        if child_name in whole
        or (
            child_name in cuttable
            and not _is_module_list(child)
            and type(child) not in block_groups
        )
    }
    members = _select_list_members(module, candidates, clean, by_class=by_class)
    for child_name, child in children.items():
        if child_name in members:
            yield child_name
        else:
            is_opened = _is_module_list(child) or type(child) in block_groups
            is_unit = child_name in cuttable and not is_opened and count_weights(child) < large
            yield from _iterate_listed_modules(
                child,
                child_name,
                clean if is_unit else cuttable,
                clean,
                () if is_unit else whole,
                block_groups,
                large,
                by_class,
            )


def _is_module_list(module: nn.Module) -> bool:
    """Whether a module is a list: a Sequential or ModuleList, unless it is one unit itself.

    A ModuleDict with the names 0, 1, ... is the beginning of a Sequential, of which more than the
    last output is wanted: torchvision's IntermediateLayerGetter.
    """
    # Sequential(conv, norm, relu) is a unit, written as a list for convenience: only one child has
    # weights, and that child is a bare conv or Linear.
    weighted = [child for child in module.children() if owns_matrix(child)]
    is_unit = len(weighted) == 1 and not list(weighted[0].children())
    is_list = isinstance(module, (nn.Sequential, nn.ModuleList)) or (
        isinstance(module, nn.ModuleDict) and all(name.isdigit() for name in module)
    )
    return is_list and not is_unit


def _has_numbered_blocks(module: nn.Module) -> bool:
    """Whether all children are blocks of one class, b1, b2, ..., as in a stage of timm's RegNet."""
    children = dict(module.named_children())
    return (
        len({name.rstrip("0123456789") for name in children}) == 1
        and len({type(child) for child in children.values()}) == 1
        and all(name[-1].isdigit() and [*child.children()] for name, child in children.items())
    )


def _select_list_members(
    module: nn.Module,
    candidates: Mapping[str, nn.Module],
    clean: Collection[str],
    *,
    by_class: bool,
) -> set[str]:
    """Which of the candidates among a module's children stand in a list.

    Those are all children of a Sequential or ModuleList, and clean blocks b1, b2, ... In a network
    that is written by hand, they are conv1, conv2, ..., several clean children of one class, and
    what stands between them.
    """
    if _is_module_list(module):
        return set(candidates)
    candidates = {name: child for name, child in candidates.items() if name in clean}
    if _has_numbered_blocks(module) and len(candidates) == len(list(module.children())):
        return set(candidates)
    if not by_class:
        return set()
    classes = Counter(type(child) for child in candidates.values() if owns_matrix(child))
    repeated = {cls for cls, count in classes.items() if count > 1}
    return {
        name
        for name, child in candidates.items()
        if type(child) in repeated or (repeated and not owns_matrix(child))
    }


def _find_block_group_classes(
    model: nn.Module, clean: Collection[str], following: Collection[str]
) -> frozenset[type]:
    """Find the classes whose instances only group blocks, such as a stage of ConvNeXt.

    Every instance holds a list of modules with clean cuts at their ends or right after them, and
    some instance has several of them.
    """
    # A residual block is no such class: a skip connection goes around its inner modules, so they
    # have no clean cuts. Nor is an inverted residual: some instances have a skip connection, others
    # have none, and one instance without inner cuts is enough to keep the class whole.
    counts: dict[type, list[int]] = {}
    for name, module in model.named_modules():
        if name not in clean or _is_module_list(module):
            continue
        names = _iterate_listed_modules(module, name, clean, clean, following, by_class=False)
        weighted = sum(owns_matrix(model.get_submodule(inner)) for inner in names)
        counts.setdefault(type(module), []).append(weighted)
    return frozenset(cls for cls, found in counts.items() if min(found) > 0 and max(found) > 1)
