"""Finding the layers of a model: where its forward can be cut, and what each layer uses."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves

from localprop.errors import check
from localprop.network.autograd_graph import find_leaves, gradient_edge_of, measure_depth
from localprop.network.draws import EXTREMES
from localprop.network.layer_ends import CleanCut, choose_layer_ends, find_clean_cuts
from localprop.network.layers import (
    Layers,
    Submodule,
    TensorShape,
    describe_submodule,
    resize_shape,
)
from localprop.network.probe import (
    Call,
    ForwardTrace,
    count_calls,
    find_rare_counts,
    trace_again,
    trace_forward,
)
from localprop.tasks.batch import Batch, unwrap
from localprop.tasks.task import Forward, Task

__all__ = ["layers_of"]


def layers_of(
    model: nn.Module, sample: Any, *, task: Task | None = None, batch_dims: Any = ...
) -> Layers:
    """Find the layers of a model.

    The end of a module is a *clean cut* if the tensor that it returns is all that the rest of the
    forward reads of what came before, as far as it carries a gradient to the model's output. A
    layer is the coarsest module that has a clean cut at its end and stands in a list of modules: in
    a Sequential, in a ModuleList, or among several children of one class. Lists of lists are
    opened. The modules before the first such layer (the stem) are a layer if they own weights. A
    module without weights (an activation, a norm, a pool) joins the layer before it, and the
    modules after the last layer join that one.

    The model runs once, on fake tensors, and stays as it is.

    Args:
        model: any module.
        sample: a batch as the loader gives it, or only its inputs. Shapes, dtypes and whole numbers
            are used.
        task: how a batch enters the model; by default as `Task` says.
        batch_dims: where a batch holds its samples, if not in dimension 0 (`Batch.of`).

    Raises:
        BadInput: the model does not run on the sample.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> layers.names
        ('relu', 'blocks.0', 'blocks.1', 'blocks.2')
    """
    task, sample = task or Task(), unwrap(sample)
    batch = Batch.of(sample, task.targets(sample), batch_dims)
    trace, clean, not_cuttable = _look(model, task.forward, batch)
    ends = choose_layer_ends(model, clean)
    layers = _build_layers(model, task.forward, batch, trace, ends, not_cuttable)
    layers.others[batch.signature] = layers
    return layers


def _look(
    model: nn.Module, forward: Forward, batch: Batch
) -> tuple[ForwardTrace, dict[str, CleanCut], dict[str, str]]:
    """Run a model, and find its clean cuts; if draws decide what runs, those that always are."""
    trace = trace_forward(model, forward, batch)
    clean, not_cuttable = find_clean_cuts(model, trace)
    if not trace.has_drawn or trace.way == "real":
        return trace, clean, not_cuttable
    others = [
        trace_again(model, forward, batch, trace.way, trace.batch.samples, draw)
        for draw in EXTREMES
    ]
    names = [[call.name for call in each.calls] for each in (trace, *others)]
    if all(each == names[0] for each in names):
        return trace, clean, not_cuttable
    # The one that runs most shows most.
    trace = max((trace, *others), key=lambda each: len(each.calls))
    clean, not_cuttable = find_clean_cuts(model, trace)
    always = set(clean).intersection(*(find_clean_cuts(model, each)[0] for each in others))
    for name in set(clean) - always:
        not_cuttable[name] = "a random draw decides whether it runs"
    return trace, {name: cut for name, cut in clean.items() if name in always}, not_cuttable


def look_again(layers: Layers, forward: Forward, batch: Batch) -> Layers:
    """The same layers on a batch of another shape: padded to another length, for example.

    A shape is looked at once.

    Args:
        layers: of the model.
        forward: runs the model on a batch's data.
        batch: any batch.

    Raises:
        BadInput: the model does not run on it, or cannot be cut where it could.
    """
    known = layers.others.get(batch.signature)
    if known is None:
        trace = trace_forward(layers.model, forward, batch)
        clean, not_cuttable = find_clean_cuts(layers.model, trace)
        names = layers.names if len(layers) > 1 else ()
        check(
            f"The model could be cut at {name!r}, but not on a batch of shape "
            f"{tuple(batch.inputs.shape)}: {not_cuttable.get(name, 'it does not run')}."
            for name in names
            if name not in clean
        )
        ends = [clean[name] for name in names]
        known = _build_layers(layers.model, forward, batch, trace, ends, not_cuttable)
        layers.others[batch.signature] = known
    return known


def _build_layers(
    model: nn.Module,
    forward: Forward,
    batch: Batch,
    trace: ForwardTrace,
    ends: list[CleanCut],
    not_cuttable: dict[str, str],
) -> Layers:
    # The last layer goes on to the model's output, so there is no cut at its end. A model without
    # any layer end, such as one Linear, is a single layer.
    names = tuple(end.name for end in ends) or ("output",)
    cuts = ends[:-1]
    output = gradient_edge_of(trace.output)
    assert output is not None
    edges = [None, *(cut.edge for cut in cuts), output]
    parameters = list_parameters(model, edges)
    unreached = add_unreached(model, parameters)
    named = dict(model.named_parameters())
    submodules = _find_submodules(trace, [cut.call for cut in cuts])
    returned = [end.output.tensor for end in ends] or [trace.output]
    inner = [each.tensor for own in submodules.values() for call in own for each in call.outputs]
    sizes = _find_sizes(model, forward, batch, trace, [*returned, *inner, trace.output])
    shapes, growths = zip(*(sizes[id(tensor)] for tensor in returned), strict=True)
    return Layers(
        names=names,
        shapes=shapes,
        growths=growths,
        channels=tuple(_find_channel(trace, tensor) for tensor in returned),
        positions=tuple(end.positions for end in ends) or ((0,),),
        dtypes=tuple(tensor.dtype for tensor in returned),
        parameters=tuple(map(tuple, parameters)),
        sizes=tuple(tuple(named[name].numel() for name in own) for own in parameters),
        depths=tuple(measure_depth(end, start) for start, end in pairwise(edges) if end),
        modified_in_place=tuple(end.output.modified_in_place for end in ends) or (False,),
        submodules=tuple(
            tuple(_describe_submodule(call, sizes) for call in submodules[layer])
            for layer in range(len(names))
        ),
        input_shape=batch.inputs.shape,
        input_dtype=batch.inputs.dtype,
        output_shape=sizes[id(trace.output)][0],
        output_growth=sizes[id(trace.output)][1],
        output_dtype=trace.output.dtype,
        output_channel=_find_output_channel(trace),
        follows_targets=_find_followers(model, forward, batch, trace, names),
        samples=batch.samples,
        frozen=frozenset(name for name, p in named.items() if not p.requires_grad),
        not_cuttable={name: why for name, why in not_cuttable.items() if name not in names},
        modified_outputs=frozenset(
            call.name for call in trace.calls if any(o.modified_in_place for o in call.outputs)
        ),
        model=model,
        way=trace.way,
        unreached=unreached,
    )


def _find_output_channel(trace: ForwardTrace) -> int:
    """The dimension of the output that holds what it says of each position."""
    last = trace.output.ndim - 1
    return last if trace.output.ndim <= 2 else trace.output_channel or last


def _find_followers(
    model: nn.Module, forward: Forward, batch: Batch, trace: ForwardTrace, names: Sequence[str]
) -> tuple[bool, ...]:
    """For each layer, whether its output has the positions of the network's.

    An encoder-decoder makes its decoder's inputs of the targets, so that with longer targets the
    output is longer, and what the encoder returns is not.
    """
    reads_targets = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    targets = batch.targets
    if not reads_targets or targets is None or targets.ndim < 2:
        return (True,) * len(names)
    longer = batch.map(
        lambda tensor: torch.cat([tensor, tensor[:, :1]], 1) if tensor is targets else tensor
    )
    other = trace_again(model, forward, longer, trace.way, trace.batch.samples)
    pairs = zip(trace.calls, other.calls, strict=True)
    moved = {
        one.name: [o.tensor.shape for o in one.outputs] != [o.tensor.shape for o in two.outputs]
        for one, two in pairs
    }
    return tuple(moved.get(name, True) for name in names)


def _find_channel(trace: ForwardTrace, tensor: Tensor) -> int | None:
    """The dimension of a tensor's channels."""
    if tensor.ndim == 2:  # (N, C)
        count = trace.batch.samples
        return 1 if tensor.shape[0] == count or tensor.shape[1] != count else 0
    return trace.channels.get(id(tensor))


Sizes = dict[int, tuple[torch.Size, tuple[int, ...]]]


def _find_sizes(
    model: nn.Module, forward: Forward, batch: Batch, trace: ForwardTrace, tensors: list[Tensor]
) -> Sizes:
    """For each of these tensors, its shape on the batch, and how it grows with samples.

    The tensors are given by their ids; the trace keeps them alive.
    """
    count = trace.batch.samples
    growths = [_find_growth(tensor.shape, count) for tensor in tensors]
    if None in growths:  # a size is equal to the number of samples, or a multiple of it
        with suppress(Exception):
            compared = _compare_sizes(model, forward, batch, trace)
            growths = [compared[id(tensor)] for tensor in tensors]
    more, found = batch.samples - count, Sizes()
    for tensor, growth in zip(tensors, growths, strict=True):
        own = growth or _guess_growth(tensor.shape, count)
        found[id(tensor)] = resize_shape(tensor.shape, own, more), own
    return found


def _find_growth(shape: torch.Size, count: int) -> tuple[int, ...] | None:
    """How a shape grows with samples, if one of its sizes is their number and no other can be."""
    if [size % count for size in shape].count(0) != 1 or count not in shape:
        return None
    return tuple(int(size == count) for size in shape)


def _guess_growth(shape: torch.Size, count: int) -> tuple[int, ...]:
    first = bool(shape) and shape[0] == count
    return tuple(int(first and dim == 0) for dim in range(len(shape)))


def _compare_sizes(
    model: nn.Module, forward: Forward, batch: Batch, trace: ForwardTrace
) -> dict[int, tuple[int, ...]]:
    """How the shape of each tensor that a call returned grows, by a look with more samples."""
    count = trace.batch.samples
    rare = () if trace.way == "real" else find_rare_counts(model, batch)
    more = next((c for c in rare if c > count), count + 1)
    other = trace_again(model, forward, batch, trace.way, more)
    pairs = zip(_list_returned(trace), _list_returned(other), strict=True)
    return {
        id(one): tuple((b - a) // (more - count) for a, b in zip(one.shape, two.shape, strict=True))
        for one, two in pairs
    }


def _list_returned(trace: ForwardTrace) -> list[Tensor]:
    inner = [output.tensor for call in trace.calls for output in call.outputs]
    return [*inner, trace.output]


def list_parameters(model: nn.Module, edges: Sequence[GradientEdge | None]) -> list[list[str]]:
    """The names of the parameters that lie between each two neighbours of `edges`."""
    # A Tensor compares elementwise, so it is looked up by its identity.
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [name_of[id(leaf)] for leaf in find_leaves(end, start) if id(leaf) in name_of]
        for start, end in pairwise(edges)
        if end is not None
    ]


def add_unreached(model: nn.Module, layers: list[list[str]]) -> tuple[str, ...]:
    """Add the trainable parameters that the forward has not reached to the layers they fit best.

    Such a parameter may be unused for good, or belong to a branch that this batch did not take;
    then it must be trained like its neighbours.

    Returns:
        Their names.
    """
    reached = {name for own in layers for name in own}
    unreached = [
        name for name, p in model.named_parameters() if p.requires_grad and name not in reached
    ]
    nearest = [_find_nearest(name, layers) for name in unreached]
    for name, layer in zip(unreached, nearest, strict=True):
        layers[layer].append(name)
    return tuple(unreached)


def _find_nearest(name: str, layers: Sequence[Sequence[str]]) -> int:
    """The layer with the parameter whose name begins most like this one; of several the last."""

    def count_common(other: str) -> int:
        pairs = zip(name.split(".")[:-1], other.split(".")[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    common = [max(map(count_common, own), default=0) for own in layers]
    return max(range(len(layers)), key=lambda layer: (common[layer], layer))


def _find_submodules(trace: ForwardTrace, cuts: Sequence[Call]) -> dict[int, list[Call]]:
    """The outermost modules that begin and end within one layer and run once, for each layer.

    To skip a layer, it is enough to replace the forwards of these modules.
    """
    times = count_calls(trace)
    spans = _find_layer_spans(trace, cuts)
    submodules: dict[int, list[Call]] = defaultdict(list)
    for call in trace.calls:
        first, last = spans[call]
        # A parent that spans several layers, such as a Sequential of blocks, has to run.
        # A parent that has raised never returned, and has no span.
        is_outermost = call.parent not in spans or len(set(spans[call.parent])) > 1
        is_replaceable = times[call.name] == 1 and _is_plain(call.output)
        if first == last and is_outermost and is_replaceable:
            submodules[last].append(call)
    return submodules


def _is_plain(output: Any) -> bool:
    """Whether something consists of tensors and plain values, and can be made again."""
    plain = (Tensor, int, float, str, type(None))
    leaves = tree_leaves(output)
    return any(isinstance(leaf, Tensor) for leaf in leaves) and all(
        isinstance(leaf, plain) for leaf in leaves
    )


def _describe_submodule(call: Call, sizes: Sizes) -> Submodule:
    tensors = [
        TensorShape(*sizes[id(each.tensor)], each.tensor.dtype, each.modified_in_place)
        for each in call.outputs
    ]
    return describe_submodule(call.name, call.output, tensors, call.arguments)


def _find_layer_spans(
    trace: ForwardTrace, cuts: Sequence[Call]
) -> dict[Call | None, tuple[int, int]]:
    """For each call, the layer in which it began and the layer in which it returned."""
    # Calls are in the order of their returns, which counts the cuts before a return. How many cuts
    # came before its beginning follows from the times.
    times = [cut.end for cut in cuts]
    spans: dict[Call | None, tuple[int, int]] = {}
    last = 0
    for call in trace.calls:
        spans[call] = bisect_right(times, call.start), last
        last += call in cuts
    return spans
