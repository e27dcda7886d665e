"""Gantt charts of pipelines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import localprop as lp
from localprop.cost.simulate import Event, Timeline, simulate
from localprop.errors import BadInput
from localprop.report.gantt import draw_gantt
from localprop.schedule.lowering import lower
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import Action, Op
from tests.helpers.timelines import make_wiring


def make_timeline(ranks: int) -> Timeline:
    """Make the timeline of an end-to-end pipeline with a layer on each rank."""
    wiring = make_wiring(lp.end_to_end(), modules=ranks)
    rank_schedules = lower(wiring, Placement.at(wiring, range(1, ranks)))
    return simulate(rank_schedules, lambda action: float(action.op in (Op.F, Op.B)))


def test_a_wait_is_labelled_with_the_rank_it_waits_for(tmp_path: Path) -> None:
    draw_gantt({"pipe": make_timeline(3)}, tmp_path / "chart.svg")
    labels = set(re.findall("<!-- .* -->", (tmp_path / "chart.svg").read_text()))
    assert {"<!-- pipe -->", "<!-- 1 -->", "<!-- milliseconds -->"} <= labels


def test_charts_of_many_ranks_stay_small(tmp_path: Path) -> None:
    draw_gantt({"pipe": make_timeline(32)}, tmp_path / "chart.html", note="a < b")
    text = (tmp_path / "chart.html").read_text()
    assert len(text) < 500_000
    assert "<p>a &lt; b</p>" in text


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.html, \.png, \.svg"):
        draw_gantt({}, tmp_path / "chart.jpeg")


@pytest.mark.parametrize("op", [Op.F, Op.L, Op.B, Op.S, Op.H, Op.P])
def test_every_kind_of_action_is_drawn(op: Op, tmp_path: Path) -> None:
    event = Event(0, Action(op, 0), 0, 0.0, 1.0)
    draw_gantt({"one": Timeline(1, 1, (event,), (), {}, (0.0,))}, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").stat().st_size
