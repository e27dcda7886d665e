"""Questions about an autograd graph: what is alive at a moment, what a tensor depends on.

A `GradientEdge` of torch stands for one tensor of the graph: the node that made it, and the number
of the output of that node. Edges compare equal, and hash equal, if both agree.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge


def gradient_edge_of(tensor: Tensor) -> GradientEdge | None:
    """The edge of a tensor that an operation made; None for a leaf or without a gradient."""
    # torch's get_gradient_edge also accepts leaves, for which it creates a node. A leaf is no
    # tensor at which a graph can be cut, so leaves count as tensors without an edge here.
    if tensor.grad_fn is None:
        return None
    return GradientEdge(tensor.grad_fn, tensor.output_nr)


def find_lifetimes(output: GradientEdge) -> dict[GradientEdge, tuple[int, int]]:
    """When each tensor that `output` depends on was made and last read, in autograd's numbers.

    Parameters and other leaves are left out: they are there all the time.

    Args:
        output: where the network ends; it is read for ever.
    """
    last_read: dict[GradientEdge, int] = {output: sys.maxsize}
    for edge in _sort_topologically([output]):
        if _get_leaf(edge) is not None:
            continue
        last_read.setdefault(edge, 0)
        for source in _list_sources(edge):
            if _get_leaf(source) is None:
                read = edge.node._sequence_nr()
                last_read[source] = max(last_read.get(source, 0), read)
    return {edge: (edge.node._sequence_nr(), read) for edge, read in last_read.items()}


def find_crossing(
    lifetimes: Mapping[GradientEdge, tuple[int, int]], times: Iterable[int]
) -> Iterator[set[GradientEdge]]:
    """For each moment, the tensors that were made before and are read after it.

    Args:
        lifetimes: when each tensor was made and last read.
        times: the moments, in order.
    """
    # A sweep in time: at each moment only the tensors that are alive are looked at.
    coming = sorted(lifetimes, key=lambda edge: lifetimes[edge][0], reverse=True)
    alive: set[GradientEdge] = set()
    for time in times:
        while coming and lifetimes[coming[-1]][0] < time:
            alive.add(coming.pop())
        alive = {edge for edge in alive if lifetimes[edge][1] >= time}
        yield set(alive)


def find_leaves(
    edges: Sequence[GradientEdge], start: Collection[GradientEdge] = ()
) -> list[Tensor]:
    """The leaf tensors (parameters, and inputs that require grad) that tensors depend on.

    Args:
        edges: the tensors.
        start: where to stop; what these tensors depend on is left out.
    """
    leaves = (_get_leaf(source) for source in _sort_topologically(edges, start))
    return [leaf for leaf in leaves if leaf is not None]


def find_older(edges: Sequence[GradientEdge], time: int) -> set[str]:
    """The names of the operations that tensors depend on and that ran before a moment."""
    return {
        edge.node.name()
        for edge in _sort_topologically(edges)
        if _get_leaf(edge) is None and edge.node._sequence_nr() < time
    }


def measure_depth(edge: GradientEdge, start: Collection[GradientEdge] = ()) -> int:
    """Count the weights, tensors of two dimensions or more, on the longest path to a tensor.

    Args:
        edge: the tensor.
        start: where the paths begin; by default at the leaves.
    """
    depth: dict[GradientEdge, int] = {}
    for here in reversed(_sort_topologically([edge], start)):
        sources = [] if here in start else _list_sources(here)
        # A linear layer uses its weight through a transpose. The transpose counts as the weight,
        # and only the product that uses it adds one; otherwise the weight would count twice.
        uses_weight = not _is_weight(here) and any(map(_is_weight, sources))
        depth[here] = max((depth[source] for source in sources), default=0) + uses_weight
    return depth[edge]


def _list_sources(edge: GradientEdge) -> list[GradientEdge]:
    """The tensors that the node of an edge was computed from."""
    return [
        GradientEdge(node, number) for node, number in edge.node.next_functions if node is not None
    ]


def _sort_topologically(
    outputs: Sequence[GradientEdge], start: Collection[GradientEdge] = ()
) -> list[GradientEdge]:
    """All tensors that `outputs` depend on, these included, each before its sources; those of
    `start` are taken to have none.
    """
    # Depth first with a stack of our own: the graph of a deep network is longer than Python's limit
    # of recursion. The list also keeps the Python objects of the nodes alive. torch makes a new
    # object for a node whose object has died, and the two would not be equal.
    visited: set[GradientEdge] = set()
    finished: list[GradientEdge] = []
    for output in outputs:
        stack: list[tuple[GradientEdge, Iterator[GradientEdge]]] = []
        if output not in visited:
            visited.add(output)
            stack.append((output, iter(_list_sources(output))))
        while stack:
            edge, remaining = stack[-1]
            for source in remaining:
                if source not in visited:
                    visited.add(source)
                    sources = [] if source in start else _list_sources(source)
                    stack.append((source, iter(sources)))
                    break
            else:
                stack.pop()
                finished.append(edge)
    return finished[::-1]


def _get_leaf(edge: GradientEdge) -> Tensor | None:
    # The node of a leaf (AccumulateGrad) is the only one with this attribute.
    leaf: Tensor | None = getattr(edge.node, "variable", None)
    return leaf


def _is_weight(edge: GradientEdge) -> bool:
    """Whether a tensor is a parameter of two dimensions or more, or the transpose of one."""
    if edge.node.name() == "TBackward0":
        return any(_is_weight(source) for source in _list_sources(edge))
    leaf = _get_leaf(edge)
    return isinstance(leaf, nn.Parameter) and leaf.ndim > 1
