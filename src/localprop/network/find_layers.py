"""Finding the layers of a model: where its forward can be cut, and what each layer uses."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.network.autograd_graph import gradient_edge_of
from localprop.network.calls import Call, count_calls
from localprop.network.cuts import Cut, find_constants, find_cuts
from localprop.network.draws import EXTREMES
from localprop.network.followers import find_followers
from localprop.network.layer_ends import choose_layer_ends, find_following_cuts
from localprop.network.layer_parameters import add_unreached, list_parameters, measure_depths
from localprop.network.layers import (
    HandedOn,
    LayerCall,
    Layers,
    Submodule,
    TensorShape,
    describe_submodule,
    resize_shape,
)
from localprop.network.probe import (
    ForwardTrace,
    find_rare_counts,
    trace_again,
    trace_forward,
)
from localprop.tasks.batch import Batch, unwrap
from localprop.tasks.task import Forward, Task

__all__ = ["layers_of"]


@check_arguments
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
    trace, cuts, not_cuttable = _look(model, task.forward, batch)
    ends = choose_layer_ends(model, trace.calls, cuts, trace.batch.samples)
    layers = _build_layers(model, task.forward, batch, trace, ends, not_cuttable)
    layers.others[batch.signature] = layers
    return layers


def _look(
    model: nn.Module, forward: Forward, batch: Batch
) -> tuple[ForwardTrace, dict[str, Cut], dict[str, str]]:
    """Run a model, and find its cuts; if draws decide what runs, those that there always are."""
    trace = trace_forward(model, forward, batch)
    cuts, not_cuttable = find_cuts(model, trace)
    if None in find_following_cuts(model, trace.calls, cuts).values():
        # Perhaps a residual is added between two modules.
        trace = _trace_functions(model, forward, batch, trace)
        cuts, not_cuttable = find_cuts(model, trace)
    if not trace.has_drawn or trace.way == "real":
        return trace, cuts, not_cuttable
    functions = any(call.function for call in trace.calls)
    others = [
        trace_again(model, forward, batch, trace.way, trace.batch.samples, draw, functions)
        for draw in EXTREMES
    ]
    names = [[call.name for call in each.calls] for each in (trace, *others)]
    if all(each == names[0] for each in names):
        return trace, cuts, not_cuttable
    # The one that runs most shows most.
    trace = max((trace, *others), key=lambda each: len(each.calls))
    cuts, not_cuttable = find_cuts(model, trace)
    always = set(cuts).intersection(*(find_cuts(model, each)[0] for each in others))
    while lost := {name for name in always if not always.issuperset(cuts[name].around.values())}:
        always -= lost
    for name in set(cuts) - always:
        not_cuttable[name] = "a random draw decides whether it runs"
    return trace, {name: cut for name, cut in cuts.items() if name in always}, not_cuttable


def _trace_functions(
    model: nn.Module, forward: Forward, batch: Batch, trace: ForwardTrace
) -> ForwardTrace:
    """Another look in the same way, at functions, too."""
    count = trace.batch.samples
    return trace_again(model, forward, batch, trace.way, count, functions=True)


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
        if any("+" in name for name in layers.names):
            trace = _trace_functions(layers.model, forward, batch, trace)
        cuts, not_cuttable = find_cuts(layers.model, trace)
        names = layers.names if len(layers) > 1 else ()
        check(
            f"The model could be cut at {name!r}, but not on a batch of shape "
            f"{tuple(batch.inputs.shape)}: {not_cuttable.get(name, 'it does not run')}."
            for name in names
            if name not in cuts
        )
        ends = [cuts[name] for name in names]
        check(_find_unborn(ends))
        known = _build_layers(layers.model, forward, batch, trace, ends, not_cuttable)
        layers.others[batch.signature] = known
    return known


def _build_layers(
    model: nn.Module,
    forward: Forward,
    batch: Batch,
    trace: ForwardTrace,
    ends: list[Cut],
    not_cuttable: dict[str, str],
) -> Layers:
    # The last layer goes on to the model's output, so there is no cut at its end. A model without
    # any layer end, such as one Linear, is a single layer.
    names = tuple(end.name for end in ends) or ("output",)
    cuts = ends[:-1]
    output = gradient_edge_of(trace.output)
    assert output is not None
    handed_on, made = _find_handed_on(cuts), [*(cut.edges for cut in cuts), [output]]
    parameters = list_parameters(model, made)
    unreached = add_unreached(model, parameters)
    named = dict(model.named_parameters())
    outermost = _find_outermost(trace, [cut.call for cut in cuts])
    submodules = _find_submodules(trace, outermost)
    returned = [end.features.tensor for end in ends] or [trace.output]
    inner = [each.tensor for own in submodules.values() for call in own for each in call.outputs]
    sizes = _find_sizes(model, forward, batch, trace, [*returned, *inner, trace.output])
    shapes, growths = zip(*(sizes[id(tensor)] for tensor in returned), strict=True)
    return Layers(
        names=names,
        shapes=shapes,
        growths=growths,
        channels=tuple(_find_channel(trace, tensor) for tensor in returned),
        handed_on=(*handed_on, ()),
        constants=(*(find_constants(cut, trace.calls) for cut in cuts), ()),
        dtypes=tuple(tensor.dtype for tensor in returned),
        parameters=tuple(map(tuple, parameters)),
        sizes=tuple(tuple(named[name].numel() for name in own) for own in parameters),
        depths=tuple(measure_depths(made)),
        in_checkpoints=tuple(end.call.in_checkpoint for end in ends) or (False,),
        submodules=tuple(
            tuple(_describe_submodule(call, sizes) for call in submodules[layer])
            for layer in range(len(names))
        ),
        calls=_list_layer_calls(trace, outermost, len(names)),
        input_shape=batch.inputs.shape,
        input_dtype=batch.inputs.dtype,
        output_shape=sizes[id(trace.output)][0],
        output_growth=sizes[id(trace.output)][1],
        output_dtype=trace.output.dtype,
        output_channel=_find_output_channel(trace),
        follows_targets=find_followers(model, forward, batch, trace, ends),
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


def _find_unborn(ends: list[Cut]) -> Iterator[str]:
    """What goes around a cut on this batch, but did not on the sample."""
    handed_on = {edge for cut in ends for edge in cut.edges}
    for cut in ends[:-1]:
        for name in {name for edge, name in cut.around.items() if edge not in handed_on}:
            yield f"On this batch, the output of {name!r} goes around the cut at {cut.name!r}."


def _find_handed_on(cuts: Sequence[Cut]) -> Iterator[tuple[HandedOn, ...]]:
    """What each layer hands on at its end, and until when it is read."""
    ends, known = [cut.call.end for cut in cuts], set[GradientEdge]()
    for cut in cuts:
        yield tuple(
            HandedOn(
                each.positions,
                bisect_right(ends, each.last_read),
                each.output.modified_in_place,
            )
            for each in cut.tensors
            if each.edge not in known
        )
        known.update(cut.edges)


def _find_output_channel(trace: ForwardTrace) -> int:
    """The dimension of the output that holds what it says of each position."""
    last = trace.output.ndim - 1
    return last if trace.output.ndim <= 2 else trace.output_channel or last


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


def _find_outermost(trace: ForwardTrace, cuts: Sequence[Call]) -> dict[int, list[Call]]:
    """The outermost calls that begin and end within one layer, for each layer.

    What they return takes part in the gradient: a module that makes a mask or a table of positions
    is none of them.
    """
    spans = _find_layer_spans(trace, cuts)
    outermost: dict[int, list[Call]] = defaultdict(list)
    for call in trace.calls:
        first, last = spans[call]
        # A parent that spans several layers, such as a Sequential of blocks, has to run.
        # A parent that has raised never returned, and has no span.
        is_outermost = call.parent not in spans or len(set(spans[call.parent])) > 1
        is_on_path = any(each.edge is not None for each in call.outputs)
        if first == last and is_outermost and is_on_path and not call.function:
            outermost[last].append(call)
    return outermost


def _find_submodules(
    trace: ForwardTrace, outermost: dict[int, list[Call]]
) -> dict[int, list[Call]]:
    """Those of the outermost calls whose forwards can be replaced, to skip a layer."""
    times = count_calls(trace.calls)
    return defaultdict(
        list,
        {
            layer: [each for each in calls if times[each.name] == 1 and _is_plain(each.output)]
            for layer, calls in outermost.items()
        },
    )


def _list_layer_calls(
    trace: ForwardTrace, outermost: dict[int, list[Call]], count: int
) -> tuple[tuple[LayerCall, ...], ...]:
    return tuple(
        tuple(
            LayerCall(call.name, call.number, call.is_overwritten, call.changed)
            for call in outermost.get(layer, ())
            if not call.in_checkpoint
        )
        for layer in range(count)
    )


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
