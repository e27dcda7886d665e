"""Bottlenecks, leaves and depths of small autograd graphs."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from localprop.network.autograd_graph import (
    find_bottlenecks,
    find_leaves,
    gradient_edge_of,
    measure_depth,
)


def edge_of(tensor: torch.Tensor) -> GradientEdge:
    edge = gradient_edge_of(tensor)
    assert edge is not None
    return edge


def test_an_edge_that_jumps_over_a_tensor_makes_it_no_bottleneck() -> None:
    """The graph that is drawn in the docstring, and a parameter, which goes around nothing."""
    inputs = torch.ones(3, requires_grad=True) * 1
    a = inputs * nn.Parameter(torch.ones(3))
    b = a * 2
    c = a + b
    output = c * 2
    found = find_bottlenecks(edge_of(output), edge_of(inputs))
    assert found == {edge_of(tensor) for tensor in (inputs, a, c, output)}


def test_outputs_of_one_operation_are_different_tensors() -> None:
    first, second = (torch.ones(4, requires_grad=True) * 1).chunk(2)
    assert edge_of(first) != edge_of(second)
    assert edge_of(first).node is edge_of(second).node


def test_leaves_and_constants_have_no_edge() -> None:
    assert gradient_edge_of(torch.ones(2, requires_grad=True)) is None
    assert gradient_edge_of(torch.ones(2) * 2) is None


def test_the_leaves_of_a_tensor_are_those_that_it_depends_on() -> None:
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    inputs = torch.ones(1, 2, requires_grad=True)
    hidden = used(inputs)
    unused(hidden)
    leaves = find_leaves(edge_of(hidden))
    assert {id(leaf) for leaf in leaves} == {id(leaf) for leaf in (inputs, *used.parameters())}


def test_depth_counts_the_weights_of_the_longest_path() -> None:
    """Biases and norms do not count, and a weight counts once although it is transposed."""
    long = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Linear(2, 2))
    short, inputs = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    assert measure_depth(edge_of(short(inputs))) == 1
    assert measure_depth(edge_of(long(inputs) + short(inputs))) == 3
