"""Finding the layers of a model: two probe runs on the `meta` device.

The first run finds where layers end. The second one cuts the autograd graph there, so that the
graph behind each output is that of one layer alone, and reads off what each layer uses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from localprop.errors import check
from localprop.network.autograd_graph import find_leaves, gradient_edge_of, measure_depth
from localprop.network.layer_ends import choose_layer_ends, find_clean_cuts
from localprop.network.layers import Layers, Submodule
from localprop.network.probe import (
    Call,
    ForwardTrace,
    copy_to_meta,
    make_meta_input,
    trace_forward,
)

__all__ = ["layers_of"]


def layers_of(model: nn.Module, sample: Tensor | tuple[Tensor, ...]) -> Layers:
    """Find the layers of a model.

    A tensor is a *clean cut* if every path of the autograd graph from the model's output to its
    input goes through it. A layer is the coarsest module that has a clean cut at its end and stands
    in a list of modules: in a Sequential, in a ModuleList, or among several children of one class.
    Lists of lists are opened. The modules before the first such layer (the stem) are a layer if
    they own weights. A module without weights (an activation, a norm, a pool) joins the layer
    before it, and the modules after the last layer join that one.

    Args:
        model: any module whose forward takes one tensor and returns one tensor.
        sample: a batch of inputs, or a tuple that begins with one; only shape and dtype are used.

    Raises:
        BadInput: the model does not run on the sample, or owns trainable parameters that no layer
            uses.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> layers.names
        ('relu', 'blocks.0', 'blocks.1', 'blocks.2')
    """
    inputs = make_meta_input(sample if isinstance(sample, Tensor) else sample[0])
    meta = copy_to_meta(model)
    clean, not_cuttable = find_clean_cuts(meta, trace_forward(meta, inputs), inputs)
    ends = choose_layer_ends(meta, clean)
    return _build_layers(model, meta, inputs, ends, not_cuttable)


class _GraphCutter:
    """Cuts the autograd graph at the ends of layers, and keeps both sides of each cut::

        layer 0 ──► output ╳ leaf ──► layer 1 ──► output ╳ leaf ──► layer 2 ──► model's output

    The leaves that an output depends on are then the parameters of its own layer, and one cut.
    """

    def __init__(self, ends: list[Call]) -> None:
        # The last layer goes on to the model's output, so there is no cut at its end.
        self.modified_in_place = {end.name: end.modified_in_place for end in ends[:-1]}
        self.outputs: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def __call__(self, call: Call) -> Tensor | None:
        if call.name not in self.modified_in_place:
            return None
        assert isinstance(call.output, Tensor)
        self.outputs.append(call.output)
        self.leaves.append(call.output.detach().requires_grad_())
        # Autograd refuses to modify a leaf in place, so the model gets a copy where it will do
        # that.
        return self.leaves[-1].clone() if self.modified_in_place[call.name] else self.leaves[-1]


def _build_layers(
    model: nn.Module,
    meta: nn.Module,
    inputs: Tensor,
    ends: list[Call],
    not_cuttable: dict[str, str],
) -> Layers:
    """Run the copy on the `meta` device once more, cut at `ends`, and describe each layer."""
    cutter = _GraphCutter(ends)
    trace = trace_forward(meta, inputs, cutter)
    outputs = [*cutter.outputs, trace.output]
    # A model without any layer end, such as one Linear, is a single layer.
    names = tuple(end.name for end in ends) or ("output",)
    leaves = [_find_leaves_of(output) for output in outputs]
    check(_find_leaks(names, leaves, cutter.leaves))
    parameters = _name_parameters(meta, leaves)
    check(_find_unused_parameters(model, parameters))
    returned = _select_outputs(trace, names)
    return Layers(
        names=names,
        shapes=tuple(tensor.shape for tensor in returned),
        dtypes=tuple(tensor.dtype for tensor in returned),
        parameters=parameters,
        sizes=tuple(_count_elements(meta, own) for own in parameters),
        depths=tuple(_measure_depth_of(output) for output in outputs),
        modified_in_place=tuple(end.modified_in_place for end in ends) or (False,),
        submodules=_find_submodules(trace, cutter.modified_in_place, len(names)),
        input_shape=inputs.shape,
        input_dtype=inputs.dtype,
        output_shape=trace.output.shape,
        frozen=frozenset(name for name, p in model.named_parameters() if not p.requires_grad),
        not_cuttable={name: why for name, why in not_cuttable.items() if name not in names},
        modified_outputs=frozenset(call.name for call in trace.calls if call.modified_in_place),
        model=model,
    )


def _find_leaves_of(output: Tensor) -> list[Tensor]:
    edge = gradient_edge_of(output)
    return find_leaves(edge) if edge else []


def _measure_depth_of(output: Tensor) -> int:
    edge = gradient_edge_of(output)
    return measure_depth(edge) if edge else 0


def _name_parameters(
    meta: nn.Module, leaves: Iterable[list[Tensor]]
) -> tuple[tuple[str, ...], ...]:
    """The names of the parameters among the leaves of each layer."""
    # A Tensor compares elementwise, so it is looked up by its identity.
    name_of = {id(parameter): name for name, parameter in meta.named_parameters()}
    return tuple(tuple(name_of[id(leaf)] for leaf in own if id(leaf) in name_of) for own in leaves)


def _count_elements(meta: nn.Module, parameters: Iterable[str]) -> tuple[int, ...]:
    return tuple(meta.get_parameter(name).numel() for name in parameters)


def _select_outputs(trace: ForwardTrace, names: tuple[str, ...]) -> list[Tensor]:
    """The tensor that the module at the end of each layer returned."""
    returned = {call.name: call.output for call in trace.calls if isinstance(call.output, Tensor)}
    return [returned.get(name, trace.output) for name in names]


def _find_leaks(
    names: tuple[str, ...], leaves: list[list[Tensor]], cuts: list[Tensor]
) -> Iterator[str]:
    """Yield a problem for each layer that reads more than the output of the layer before it."""
    for layer, own in enumerate(leaves):
        for earlier, cut in enumerate(cuts[: max(layer - 1, 0)]):
            if any(leaf is cut for leaf in own):
                yield (
                    f"Layer {names[layer]!r} also reads the output of layer {names[earlier]!r}, "
                    "past the layer between them: the model cannot be cut there. Give the cuts by "
                    "name with Partition.at."
                )


def _find_unused_parameters(
    model: nn.Module, parameters: tuple[tuple[str, ...], ...]
) -> Iterator[str]:
    """Yield a problem if the model owns trainable parameters that no layer uses."""
    used = {name for own in parameters for name in own}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    unused = [name for name in trainable if name not in used]
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        yield (
            f"No layer uses the parameter(s) {', '.join(unused[:5])}{more}: they get no gradient "
            "(unused, or under no_grad in the forward). Remove them, or freeze them with "
            "requires_grad_(False)."
        )


def _find_submodules(
    trace: ForwardTrace, ends: dict[str, bool], count: int
) -> tuple[tuple[Submodule, ...], ...]:
    """The outermost modules that begin and end within one layer and run once, for each layer.

    To skip a layer, it is enough to replace the forwards of these modules.
    """
    times = Counter(call.name for call in trace.calls)
    spans = _find_layer_spans(trace, ends)
    submodules: list[list[Submodule]] = [[] for _ in range(count)]
    for call in trace.calls:
        first, last = spans[call]
        # A parent that spans several layers, such as a Sequential of blocks, has to run.
        is_outermost = call.parent is None or len(set(spans[call.parent])) > 1
        is_replaceable = times[call.name] == 1 and isinstance(call.output, Tensor)
        if first == last and is_outermost and is_replaceable:
            submodules[last].append(_describe_submodule(call, ends))
    return tuple(tuple(own) for own in submodules)


def _describe_submodule(call: Call, ends: dict[str, bool]) -> Submodule:
    assert isinstance(call.output, Tensor)
    # In this run the end of a layer returns a copy where the model writes into its output, and the
    # copy is modified. Whether it happens is known from the first run.
    modified_in_place = call.modified_in_place or ends.get(call.name, False)
    return Submodule(call.name, call.output.shape, call.output.dtype, modified_in_place)


def _find_layer_spans(trace: ForwardTrace, ends: dict[str, bool]) -> dict[Call, tuple[int, int]]:
    """For each call, the layer in which it began and the layer in which it returned."""
    # Calls are in the order of their returns, which counts the cuts before a return. How many cuts
    # came before its beginning follows from autograd's sequence numbers.
    cuts = sorted(call.sequence_of_output for call in trace.calls if call.name in ends)
    spans: dict[Call, tuple[int, int]] = {}
    last = 0
    for call in trace.calls:
        first = bisect_right(cuts, call.sequence_at_start)
        spans[call] = first, last
        last += call.name in ends
    return spans
