"""The layers of a model: where it can be cut, found by two probe runs on the `meta` device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.network.probe import Call, Trace, Vertex, bottlenecks, depth, leaves, meta_input, on_meta, trace


class Piece(NamedTuple):
    """A module that begins and ends within one layer, and the tensor that it returns, which may be written into later."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    overwritten: bool


@dataclass(frozen=True)
class Layers:
    """The layers of a model, in the order of its forward; what :class:`Partition` cuts and :func:`wire` connects.

    A layer ends when the module of its name returns; the last one goes on to the model's output. All shapes are those of
    the sample, batch dimension first.

    Attributes:
        names: the module at whose return each layer ends.
        shapes: the shape of what that module returns.
        dtypes: its dtype.
        parameters: the names of the parameters that each layer uses; a shared one appears in several layers.
        sizes: for each layer, the number of elements of each of these.
        depths: for each layer, how many weights (of convolutions, linear layers, ...) its longest path has.
        overwritten: whether the model later writes into the layer's output in place.
        pieces: the modules that run within each layer, outermost ones only.
        input_shape: the shape of the sample.
        input_dtype: the dtype of the sample.
        output_shape: the shape of the model's output.
        frozen: the names of parameters that require no gradient.
        unclean: for every other module, why it is not the end of a layer.
        spoiled: the names of all modules whose outputs are written into later.
        model: the model itself.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    parameters: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    overwritten: tuple[bool, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    input_shape: torch.Size
    input_dtype: torch.dtype
    output_shape: torch.Size
    frozen: frozenset[str]
    unclean: Mapping[str, str] = field(repr=False, compare=False)
    spoiled: frozenset[str] = field(repr=False)
    model: nn.Module = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def sizes_of(self, layer: int) -> Iterator[tuple[str, int]]:
        """The names and numbers of elements of a layer's parameters."""
        return zip(self.parameters[layer], self.sizes[layer], strict=True)

    def layer_of(self, name: str) -> int:
        """The layer within which the module of a name runs.

        Raises:
            BadInput: it runs in none, or in several.
        """
        for layer, pieces in enumerate(self.pieces):
            if any(f"{name}.".startswith(f"{piece.name}.") for piece in pieces):
                return layer
        raise BadInput(f"The model has no module {name!r} that runs once, within one layer.")

    def shape_for(self, shape: torch.Size, count: int) -> torch.Size:
        """A shape of the sample's forward, for a batch of `count`."""
        return torch.Size((count, *shape[1:])) if shape[:1] == self.input_shape[:1] else shape

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        return "\n".join(
            f"{i:3d} {name:{width}} {'x'.join(map(str, shape[1:]))}"
            for i, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True))
        )


def layers_of(model: nn.Module, sample: Tensor | tuple[Tensor, ...]) -> Layers:
    """Find the layers of a model.

    A tensor is a *clean cut* if every path of the autograd graph from the model's output to its input goes through it. A
    layer is the coarsest module with a clean cut at its end that sits in a list of modules (a Sequential, a ModuleList, or
    several children of one class); lists of lists are opened. What comes before the first one (a stem) is a layer if it owns
    weights, ends without weights (activations, norms, pools) join the layer before, and so does what follows the last one.

    Args:
        model: any module whose forward takes one tensor and returns one tensor.
        sample: a batch of inputs, or a tuple that begins with one; only shape and dtype are used.

    Raises:
        BadInput: the model does not run on the sample, or owns trainable parameters that no layer uses.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> layers.names
        ('relu', 'blocks.0', 'blocks.1', 'blocks.2')
    """
    inputs = meta_input(sample if isinstance(sample, Tensor) else sample[0])
    twin = on_meta(model)
    first = trace(twin, inputs)
    clean, unclean = _clean_cuts(twin, first, _entry(first, inputs))
    ends = _ends(twin, clean)
    return _layers(model, twin, inputs, ends, unclean)


def _entry(seen: Trace, inputs: Tensor) -> Vertex:
    """Where the graph begins: the input or, if that is whole numbers, what the first module makes of it."""
    if seen.output.grad_fn is None:
        raise BadInput(["The model's output depends on no parameter: there is nothing to train."])
    if inputs.grad_fn is not None:
        return inputs.grad_fn, 0
    for call in seen.calls:
        if id(inputs) in call.inputs and call.vertex is not None:
            return call.vertex
    raise BadInput([f"Inputs of dtype {inputs.dtype} must go through an nn.Embedding (a module) first."])


def _clean_cuts(model: nn.Module, seen: Trace, entry: Vertex) -> tuple[dict[str, Call], dict[str, str]]:
    assert seen.output.grad_fn is not None
    on_every_path = bottlenecks((seen.output.grad_fn, seen.output.output_nr), entry)
    times = Counter(call.name for call in seen.calls)
    clean, unclean = {}, {name: "it does not run in the forward" for name, _ in model.named_modules() if name}
    for call in seen.calls:
        reason = _why_not(call, times[call.name], on_every_path)
        if reason:
            unclean[call.name] = reason
        else:
            clean[call.name] = call
            unclean[call.name] = "it is part of a layer"
    return clean, unclean


def _why_not(call: Call, times: int, on_every_path: set[Vertex]) -> str | None:
    if times > 1:
        return f"it is called {times} times in one forward"
    if not isinstance(call.output, Tensor):
        return f"it returns a {type(call.output).__name__}, not one tensor"
    if call.vertex is None:
        return "its output needs no gradient"
    if call.vertex not in on_every_path:
        return "a path from the input to the output goes around it"
    if not call.made_its_output:
        return "it only passes a tensor on"
    return None


# --- which clean cuts end a layer -----------------------------------------------------------------------------------


def _ends(model: nn.Module, clean: dict[str, Call]) -> list[Call]:
    """The calls at whose return a layer ends, in the order of the forward."""
    stages = _stage_classes(model, clean)
    units = sorted((clean[name] for name in _listed(model, "", clean, stages, siblings=True)), key=_made_at)
    ends: list[Call] = []
    for unit in units:
        if owns_matrix(unit.module):
            stem = None if ends else _stem(clean, unit)
            ends += [stem, unit] if stem else [unit]
        elif ends:
            ends[-1] = unit
    return ends


def _made_at(call: Call) -> int:
    assert call.vertex is not None
    return call.vertex[0]._sequence_nr()


def owns_matrix(module: nn.Module) -> bool:
    """Whether a module holds a weight of at least two dimensions; norms and scales do not make a layer."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _stem(clean: dict[str, Call], first: Call) -> Call | None:
    """The last clean cut before the first unit, if weights come before it; of several at one tensor the innermost."""
    before = [call for call in clean.values() if _made_at(call) <= first.started]
    if not before:
        return None
    end = max(before, key=_made_at)
    assert end.vertex is not None
    return end if any(leaf.ndim > 1 for leaf in leaves(end.vertex) if isinstance(leaf, nn.Parameter)) else None


def _listed(
    module: nn.Module, name: str, clean: dict[str, Call], stages: frozenset[type], *, siblings: bool
) -> Iterator[str]:
    """Names of the clean modules that sit in a list, lists of lists opened."""
    children = {f"{name}.{child}" if name else child: module for child, module in module.named_children()}
    single = {n: m for n, m in children.items() if n in clean and not _is_list(m) and type(m) not in stages}
    members = _members(module, single, siblings=siblings)
    for full, child in children.items():
        if full in members:
            yield full
        else:
            yield from _listed(child, full, clean, stages, siblings=siblings)


def _is_list(module: nn.Module) -> bool:
    """A Sequential or ModuleList, unless it holds one bare conv or Linear: such a one (conv, norm, ReLU) is a unit."""
    weighty = [child for child in module.children() if owns_matrix(child)]
    one_unit = len(weighty) == 1 and not list(weighty[0].children())
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and not one_unit


def _members(module: nn.Module, single: dict[str, nn.Module], *, siblings: bool) -> set[str]:
    """Which of a module's clean children are in a list: all of a Sequential or ModuleList, or conv1, conv2, ... of a
    hand-written net, with what stands between them."""
    if _is_list(module):
        return set(single)
    kinds = Counter(type(child) for child in single.values() if owns_matrix(child))
    several = {kind for kind, count in kinds.items() if siblings and count > 1}
    return {n for n, child in single.items() if type(child) in several or (several and not owns_matrix(child))}


def _stage_classes(model: nn.Module, clean: dict[str, Call]) -> frozenset[type]:
    """Classes that only group blocks: each instance holds a list of clean modules, and some list has several.

    A residual block is none: its inner modules are bypassed. Nor is an inverted residual, which is bypassed in some places.
    """
    inside: dict[type, list[int]] = {}
    for name, module in model.named_modules():
        if name in clean and not _is_list(module):
            units = [
                u for u in _listed(module, name, clean, frozenset(), siblings=False) if owns_matrix(clean[u].module)
            ]
            inside.setdefault(type(module), []).append(len(units))
    return frozenset(kind for kind, counts in inside.items() if min(counts) > 0 and max(counts) > 1)


# --- the second run: each layer alone -------------------------------------------------------------------------------


class _Cutting:
    """Cut the graph at the layers' ends, and keep both sides of each cut."""

    def __init__(self, ends: list[Call]) -> None:
        self.overwritten = {end.name: end.overwritten for end in ends[:-1]}
        self.outputs: list[Tensor] = []
        self.inlets: list[Tensor] = []

    def __call__(self, call: Call) -> Tensor | None:
        if call.name not in self.overwritten:
            return None
        assert isinstance(call.output, Tensor)
        self.outputs.append(call.output)
        self.inlets.append(call.output.detach().requires_grad_())
        return self.inlets[-1].clone() if self.overwritten[call.name] else self.inlets[-1]


def _layers(model: nn.Module, twin: nn.Module, inputs: Tensor, ends: list[Call], unclean: dict[str, str]) -> Layers:
    cutting = _Cutting(ends)
    second = trace(twin, inputs, cutting)
    outputs = [*cutting.outputs, second.output]
    names = tuple(end.name for end in ends) or ("output",)
    used = [leaves((out.grad_fn, out.output_nr)) if out.grad_fn else [] for out in outputs]
    check(_leaks(names, used, cutting.inlets))
    name_of = {id(parameter): name for name, parameter in twin.named_parameters()}
    parameters = tuple(tuple(name_of[id(leaf)] for leaf in own if id(leaf) in name_of) for own in used)
    check(_unused(model, parameters))
    return Layers(
        names=names,
        shapes=tuple(output.shape for output in _returned(second, names)),
        dtypes=tuple(output.dtype for output in _returned(second, names)),
        parameters=parameters,
        sizes=tuple(tuple(twin.get_parameter(name).numel() for name in own) for own in parameters),
        depths=tuple(depth((out.grad_fn, out.output_nr)) if out.grad_fn else 0 for out in outputs),
        overwritten=tuple(end.overwritten for end in ends) or (False,),
        pieces=_pieces(second, cutting.overwritten, len(names)),
        input_shape=inputs.shape,
        input_dtype=inputs.dtype,
        output_shape=second.output.shape,
        frozen=frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
        unclean={name: why for name, why in unclean.items() if name not in names},
        spoiled=frozenset(call.name for call in second.calls if call.overwritten),
        model=model,
    )


def _returned(second: Trace, names: tuple[str, ...]) -> list[Tensor]:
    returned = {call.name: call.output for call in second.calls if isinstance(call.output, Tensor)}
    return [returned.get(name, second.output) for name in names]


def _leaks(names: tuple[str, ...], used: list[list[Tensor]], inlets: list[Tensor]) -> Iterator[str]:
    """A layer must begin at the end of the layer before, and see nothing earlier."""
    for i, own in enumerate(used):
        for j, inlet in enumerate(inlets[: max(i - 1, 0)]):
            if any(leaf is inlet for leaf in own):
                yield (
                    f"Layer {names[i]!r} also reads the output of layer {names[j]!r} past the layer between: "
                    "the model cannot be cut there. Give the cuts by name with Partition.at."
                )


def _unused(model: nn.Module, parameters: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    used = {name for own in parameters for name in own}
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in used]
    if idle:
        shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        yield (
            f"No layer uses the parameter(s) {shown}: they get no gradient (unused, or under no_grad in the forward). "
            "Remove them, or freeze them with requires_grad_(False)."
        )


def _pieces(second: Trace, ends: dict[str, bool], count: int) -> tuple[tuple[Piece, ...], ...]:
    """The outermost modules that begin and end within one layer and run once: what can be stubbed to skip the layer."""
    times = Counter(call.name for call in second.calls)
    spans = _spans(second, ends)
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    for call in second.calls:
        begun, ended = spans[call]
        outermost = call.parent is None or len(set(spans[call.parent])) > 1
        if begun == ended and outermost and times[call.name] == 1 and isinstance(call.output, Tensor):
            overwritten = call.overwritten or ends.get(call.name, False)
            pieces[ended].append(Piece(call.name, call.output.shape, call.output.dtype, overwritten))
    return tuple(tuple(own) for own in pieces)


def _spans(second: Trace, ends: dict[str, bool]) -> dict[Call, tuple[int, int]]:
    """For each call, the layer in which it began and the one in which it returned."""
    cuts = [_made_at(call) for call in second.calls if call.name in ends]
    spans, passed = {}, 0
    for call in second.calls:
        spans[call] = (sum(cut <= call.started for cut in cuts), passed)
        passed += call.name in ends
    return spans
