"""Phases from text, and phases that the epochs do not reach."""

from __future__ import annotations

import pytest

from localprop.training.config import Config
from localprop.training.phases import Phase, parse_phases

GUIDED = "greedy() for 2; end_to_end() for 1"


def test_phases_are_parsed() -> None:
    assert parse_phases(" greedy() for 4;end_to_end() for 1 on 0,2 ") == (
        Phase("greedy()", 4),
        Phase("end_to_end()", 1, (0, 2)),
    )
    assert eval(repr(Phase("greedy()", 4, (1,))), {"Phase": Phase}) == Phase("greedy()", 4, (1,))


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("greedy()", 1),
        ("greedy() for 0; nope() for 1", 2),
        ("greedy() for 1;", 1),
        ("greedy() for 1 on a", 1),
        ("", 1),
    ],
)
def test_bad_phases_are_refused(text: str, problems: int) -> None:
    assert len(Config(phases=text).find_problems()) == problems


def test_a_method_beside_phases_is_refused() -> None:
    assert "leave one of them out" in Config(phases=GUIDED, method="greedy()").find_problems()[0]


def test_phases_that_never_begin_are_refused() -> None:
    def problems_of(phases: str, epochs: int) -> list[str]:
        return Config(phases=phases, epochs=epochs).find_problems()

    phases = "greedy() for 50 on 0; greedy() for 60 on 1,2"
    message = "The phases take 110 epochs, but epochs=20: phase 2 never begins; use --epochs 110."
    assert problems_of(phases, 20) == [message]
    assert problems_of(phases, 51) == []
    assert len(problems_of(phases, 50)) == 1
    (problem,) = problems_of("Rule() for 3; greedy() for 1; Rule() for 1", 3)
    assert "phases 2, 3 never begin;" in problem
