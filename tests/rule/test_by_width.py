"""Builders chosen by the channels of the features."""

from __future__ import annotations

import pytest
from torch import nn

import localprop as lp
from localprop.errors import BadInput
from localprop.methods.parse import parse_rule
from tests.helpers.points import build_head, make_point

CHOICES = ((4, lp.Head(0, 1)), (8, lp.Head(1, 1)))


@pytest.mark.parametrize(("width", "convs"), [(4, 0), (8, 1)])
def test_the_width_of_the_features_chooses(width: int, convs: int) -> None:
    head = build_head(lp.HeadByWidth(CHOICES), make_point(width, 8, 8))
    assert [type(module) for module in head.modules()].count(nn.Conv2d) == convs


def test_losses_are_chosen_too() -> None:
    loss = lp.LossByWidth(((4, lp.SimilarityLoss()), (8, lp.CrossEntropy())))
    assert len([*loss(make_point(4, 8, 8)).parameters()]) == 1
    assert not [*loss(make_point(8, 8, 8)).parameters()]


def test_a_width_without_a_builder_is_refused() -> None:
    words = "HeadByWidth has choices for 4 and 8 channels, but module 0 ends with 6"
    with pytest.raises(BadInput, match=words):
        lp.HeadByWidth(CHOICES)(make_point(6, 8, 8))


@pytest.mark.parametrize("widths", [(4, 4), (0, 4)])
def test_bad_widths_are_refused(widths: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="LossByWidth has the widths"):
        lp.LossByWidth(tuple((width, lp.TaskLoss()) for width in widths))


def test_they_are_read_from_text() -> None:
    rule = parse_rule("Rule(aux=HeadByWidth(((4, Head(0, 1)), (8, Head(1, 1)))))")
    assert rule.aux == lp.HeadByWidth(CHOICES)
    rule = parse_rule("Rule(loss=LossByWidth(((4, TaskLoss()),)))")
    assert rule.loss == lp.LossByWidth(((4, lp.TaskLoss()),))
