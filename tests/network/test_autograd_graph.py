"""Lifetimes, leaves and depths of small autograd graphs."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from localprop.network.autograd_graph import (
    find_crossing,
    find_leaves,
    find_lifetimes,
    gradient_edge_of,
    measure_depth,
)


def edge_of(tensor: torch.Tensor) -> GradientEdge:
    edge = gradient_edge_of(tensor)
    assert edge is not None
    return edge


def test_a_tensor_crosses_every_moment_between_its_making_and_its_last_reading() -> None:
    def read_time() -> int:
        return int(torch._C._autograd._get_sequence_nr())

    a = nn.Parameter(torch.ones(3)) * 1
    after_a = read_time()
    b = a * nn.Parameter(torch.ones(3))  # a parameter is there all the time
    after_b = read_time()
    unread = a * 3
    c = a + b
    after_c = read_time()
    output = c * 2
    end = read_time()
    times = [after_a, after_b, after_c, end]
    found = find_crossing(find_lifetimes(edge_of(output)), times)
    expected = [[a], [a, b], [c], [output]]
    assert list(found) == [{edge_of(tensor) for tensor in tensors} for tensors in expected]
    assert unread.grad_fn is not None


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
    leaves = find_leaves([edge_of(hidden)])
    assert {id(leaf) for leaf in leaves} == {id(leaf) for leaf in (inputs, *used.parameters())}


def test_depth_counts_the_weights_of_the_longest_path() -> None:
    """Biases and norms do not count, and a weight counts once although it is transposed."""
    long = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Linear(2, 2))
    short, inputs = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    assert measure_depth(edge_of(short(inputs))) == 1
    assert measure_depth(edge_of(long(inputs) + short(inputs))) == 3


def test_what_lies_before_the_start_does_not_count() -> None:
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    start = before(torch.ones(1, 2))
    output = after(start).relu()
    leaves = find_leaves([edge_of(output)], [edge_of(start)])
    assert {id(leaf) for leaf in leaves} == {id(leaf) for leaf in after.parameters()}
    assert measure_depth(edge_of(output), [edge_of(start)]) == 1
    assert measure_depth(edge_of(output)) == 2
