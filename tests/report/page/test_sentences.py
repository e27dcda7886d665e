"""What the page says in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localprop.report.page.results import Method
from localprop.report.page.sentences import describe_credit, describe_method
from localprop.report.paired import Difference
from localprop.training.config import Config

METHOD = Method(
    label="greedy()",
    letter="B",
    config=Config(),
    runs=(),
    quality=36.9,
    quality_std=0.8,
    seeds=3,
    peak_bytes=10,
    peak_ratio=0.12,
    time=1.29,
    gap=Difference(-3.1, -4.6, -1.4, "worse"),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "greedy() needs 88 % less memory than the plain PyTorch loop, takes 1.29 times as "
            "long, and scores 3.1 points less than end_to_end() (95 % interval −4.6 to −1.4).",
        ),
        (
            {"peak_ratio": 1.2, "time": 0.91, "gap": Difference(0.5, -1.0, 2.0, "")},
            "greedy() needs 20 % more memory than the plain PyTorch loop, takes 9 % less time, and "
            "scores 0.5 points more than end_to_end(), which 3 seeds cannot tell from no "
            "difference (95 % interval −1.0 to +2.0).",
        ),
        (
            {"peak_ratio": 1.0, "time": 1.01, "gap": Difference(0.0, 0.0, 0.0, "")},
            "greedy() needs as much memory as the plain PyTorch loop, takes as long, and scores "
            "the same as end_to_end() with every seed.",
        ),
        (
            {"gap": Difference(-2.0, None, None, "")},
            "greedy() needs 88 % less memory than the plain PyTorch loop, takes 1.29 times as "
            "long, and scores 2.0 points less than end_to_end(), with one seed.",
        ),
    ],
)
def test_a_method_in_a_sentence(changes: dict[str, object], expected: str) -> None:
    method = replace(METHOD, **changes)  # type: ignore[arg-type]
    assert describe_method(method, "end_to_end()", is_text=False) == expected


def test_bits_are_better_the_fewer_they_are() -> None:
    method = replace(METHOD, gap=Difference(-0.25, -0.3, -0.2, "better"))
    text = describe_method(method, "end_to_end()", is_text=True)
    assert "takes 0.250 bits per byte less than end_to_end() (95 % interval −0.300" in text


def test_a_credit_table_in_words() -> None:
    cells = [(0, 0, "trains"), (2, 0, "passes"), (2, 1, "trains"), (2, 2, "trains")]
    assert describe_credit(cells) == (
        "Loss 0 trains layers 0. Loss 2 trains layers 1 to 2 and passes through 0."
    )
