"""Interlocking's auxiliary network, counted by hand from the official code."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.points import count_parameters, list_leaf_types, make_point


@pytest.mark.parametrize(("width", "expected"), [(128, 222_410), (256, 369_866)])
def test_conv_head_parameters(width: int, expected: int) -> None:
    assert count_parameters(lp.ConvHead()(make_point(width, 8, 8))) == expected


def test_conv_head_order() -> None:
    point, conv = make_point(4, 8, 8), ["Conv2d", "BatchNorm2d", "ReLU"]
    assert list_leaf_types(lp.ConvHead()(point)) == [*conv, *conv, "Pool", "Linear"]
    assert list_leaf_types(lp.ConvHead(convs=(), norm=False)(point)) == ["Pool", "Linear"]
    assert "BatchNorm2d" not in list_leaf_types(lp.ConvHead(norm=False)(point))


def test_a_width_of_0_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        lp.ConvHead((8, 0))
    assert "convs=(8, 0)" in str(caught.value)
