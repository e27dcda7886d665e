"""How ranks that differ are told what differs, and where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localprop.ranks.agreement import Fact, _describe_optimizers, find_disagreements
from localprop.schedule.schedule import Action, Op


def compare(*texts: str) -> list[str]:
    return [*find_disagreements([[Fact("the plan", text, "think")] for text in texts])]


def test_equal_facts_are_no_problem() -> None:
    assert compare("one", "one", "one") == []


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (("one", "one", "two"), "Rank(s) 2 differ from rank 0 in the plan (two against one)"),
        (("one", "two", "two"), "Rank(s) 1, 2 differ from rank 0 in the plan (two against one)"),
        (("one", "two", "six"), "(rank 1: two against one, rank 2: six against one)"),
        (("a\nb\nc", "a\nx\ny"), "(x against b)"),  # the first line that differs
        (("a\nb", "a"), "(nothing against b)"),
        (("-" * 200 + "a", "-" * 200 + "b"), f"(...{'-' * 50}b against ...{'-' * 50}a)"),
    ],
)
def test_the_difference_is_shown(texts: tuple[str, ...], shown: str) -> None:
    (problem,) = compare(*texts)
    assert shown in problem
    assert problem.endswith(": run the same program on all ranks; think.")


def test_optimizers_are_told_by_kind_and_hyperparameters() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    sgd = torch.optim.SGD(weights, lr=torch.tensor(0.5), momentum=0.9)
    lines = [*_describe_optimizers({Action(Op.S, 0): sgd, Action(Op.H, 3): sgd})]
    assert lines[0] == "SGD for segment 0"
    assert "SGD(lr=0.5) for segment 0" in lines
    assert "SGD(momentum=0.9) for loss at segment 3" in lines
    assert not any("params" in line for line in lines)
