"""Questions about an autograd graph: what every path goes through, what a tensor depends on.

A `GradientEdge` of torch stands for one tensor of the graph: the node that made it, and the number
of the output of that node. Edges compare equal, and hash equal, if both agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge


def gradient_edge_of(tensor: Tensor) -> GradientEdge | None:
    """The edge of a tensor that an operation made; None for a leaf or without a gradient."""
    # torch's get_gradient_edge also accepts leaves, for which it creates a node. A leaf is no
    # tensor at which a graph can be cut, so leaves count as tensors without an edge here.
    if tensor.grad_fn is None:
        return None
    return GradientEdge(tensor.grad_fn, tensor.output_nr)


def find_bottlenecks(output: GradientEdge, entry: GradientEdge) -> set[GradientEdge]:
    """Find the tensors through which every path from the output back to the input goes.

    In a topological order, a tensor is on every path if and only if no edge jumps over it::

        input ──► a ──► b ──► c ──► output         a and c are bottlenecks of this graph, b is not:
                  └───────────┘                    the edge a → c jumps over it

    Args:
        output: where the network ends.
        entry: where it begins.
    """
    # Parameters, masks and constants are side branches that end without reaching the input. They do
    # not bypass anything, so only the tensors that depend on the input are put in order.
    order = _sort_topologically(output)
    dependent = _find_dependents(order, entry)
    position = {edge: i for i, edge in enumerate(edge for edge in order if edge in dependent)}
    bottlenecks, farthest = set(), 0
    # Walk from the output to the input. `farthest` is the farthest jump seen so far: a tensor
    # before it is jumped over.
    for edge, here in position.items():
        if here >= farthest:
            bottlenecks.add(edge)
        for source in _list_sources(edge):
            if source in position:
                farthest = max(farthest, position[source])
    return bottlenecks


def find_leaves(edge: GradientEdge) -> list[Tensor]:
    """The leaf tensors (parameters, and inputs that require grad) that a tensor depends on."""
    leaves = (_get_leaf(source) for source in _sort_topologically(edge))
    return [leaf for leaf in leaves if leaf is not None]


def measure_depth(edge: GradientEdge) -> int:
    """Count the weights, tensors of two dimensions or more, on the longest path to a tensor."""
    depth: dict[GradientEdge, int] = {}
    for here in reversed(_sort_topologically(edge)):
        sources = _list_sources(here)
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


def _sort_topologically(output: GradientEdge) -> list[GradientEdge]:
    """All tensors that `output` depends on, itself included, each before its sources."""
    # Depth first with a stack of our own: the graph of a deep network is longer than Python's limit
    # of recursion. The list also keeps the Python objects of the nodes alive. torch makes a new
    # object for a node whose object has died, and the two would not be equal.
    visited = {output}
    finished: list[GradientEdge] = []
    stack: list[tuple[GradientEdge, Iterator[GradientEdge]]] = [
        (output, iter(_list_sources(output)))
    ]
    while stack:
        edge, remaining = stack[-1]
        for source in remaining:
            if source not in visited:
                visited.add(source)
                stack.append((source, iter(_list_sources(source))))
                break
        else:
            stack.pop()
            finished.append(edge)
    return finished[::-1]


def _find_dependents(order: list[GradientEdge], entry: GradientEdge) -> set[GradientEdge]:
    """The tensors of `order` that depend on the entry, the entry included."""
    dependent: set[GradientEdge] = set()
    for edge in reversed(order):
        if edge == entry or any(source in dependent for source in _list_sources(edge)):
            dependent.add(edge)
    return dependent


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
