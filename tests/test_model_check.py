"""`lp.check` and `localprop check`: what a model is like before anybody trains it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.cli.main import main
from tests.helpers.reference import sgd
from tests.helpers.towers import Tower, forward_in_order

BATCH = (torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.long))


def test_a_model_that_can_be_trained() -> None:
    found = lp.check(Tower(forward_in_order), BATCH)
    assert found.ok
    assert found.task == lp.Classification()
    assert found.layers is not None
    assert found.layers.names == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert "modules=2 to 4 work" in str(found)


def test_ties_and_parameters_that_nothing_reaches() -> None:
    tower = Tower(forward_in_order)
    tower.linear(2).weight = tower.linear(0).weight
    tower.spare = nn.Linear(2, 2)
    found = lp.check(tower, BATCH)
    assert found.tied == {"blocks.0.linear.weight": (0, 2)}
    assert "unreached  spare.weight, spare.bias" in str(found)
    assert found.ok


def test_a_residual_outside_of_the_block() -> None:
    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = x.sin() + block(x)
        return x

    found = lp.check(Tower(forward), BATCH)
    assert found.ok
    assert "blocks.1+1" in str(found)


def test_a_model_of_one_layer() -> None:
    found = lp.check(nn.Linear(6, 3), (torch.zeros(4, 6), torch.zeros(4, dtype=torch.long)))
    assert not found.ok
    assert "The model has one layer and cannot be cut" in str(found)


def test_a_model_that_does_not_run() -> None:
    found = lp.check(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), (BATCH[0].float(), BATCH[1]))
    assert not found.ok
    assert found.layers is None
    (problem,) = found.problems
    assert "could not run on a sample" in problem


def test_a_batch_whose_task_is_not_known() -> None:
    found = lp.check(Tower(forward_in_order), (BATCH[0], BATCH[0], BATCH[1]))
    assert found.task is None
    assert any("task=lp.task(" in problem for problem in found.problems)


CODE = """
import torch
from torch import nn

def make():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, (torch.zeros(4, 6), torch.zeros(4, dtype=torch.long))

def make_one():
    return nn.Linear(6, 3), (torch.zeros(4, 6), torch.zeros(4, dtype=torch.long))

def fail():
    raise OSError("no weights here")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "checked_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return "checked_code"


def test_the_command(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{code}:make"]) == 0
    assert "modules=2 to 3 work" in capsys.readouterr().out
    assert main(["check", f"{code}:make_one", "--json"]) == 1
    figures = json.loads(capsys.readouterr().out)
    assert (figures["ok"], figures["layers"]) == (False, ["output"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("make", "no model 'make'"),
        ("no_such_module:make", "ModuleNotFoundError"),
        ("checked_code:missing", "The module checked_code has no 'missing'"),
        ("checked_code:fail", "OSError: no weights here"),
    ],
)
def test_bad_sources(
    source: str, words: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", source]) == 2
    assert words in capsys.readouterr().err


def test_a_lazy_model_is_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3))
    assert any("has lazy modules" in problem for problem in lp.check(model, BATCH).problems)


@pytest.mark.parametrize("rule", [lp.greedy(), lp.auglocal()])
def test_maps_before_outputs_of_queries_are_refused(rule: lp.Rule) -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
            self.queries = nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.queries(self.maps(x).flatten(2)).mT
            return output

    sample = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long)
    task = lp.Classification(dim=-1)
    with pytest.raises(lp.BadInput, match="no positions in common with the network's outputs"):
        lp.Learner(Queries(), rule, modules=4, optimizer=sgd, sample=sample, task=task)
