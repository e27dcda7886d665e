"""`Learner(fast=True)`: channels last and bf16, where they gain, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.network import fast
from tests.helpers.cli import run_command
from tests.helpers.predictions import compare_learner, make_batch, sgd

RULES = {
    "greedy": lp.greedy(),
    "backlink": lp.backlink(),
    "contsup": lp.contsup(),
    "infopro": lp.infopro(),
    "predsim": lp.predsim(),
}


@pytest.fixture(autouse=True)
def _has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CPU computes in bf16, slowly if it has no instructions for it."""
    monkeypatch.setattr(fast, "computes_in_bf16", lambda device: True)


def learn(rule: lp.Rule, model: nn.Module | None = None, **options: Any) -> lp.Learner:
    torch.manual_seed(0)
    return lp.Learner(
        model or lp.models.create_model("resnet8", 3, (3, 16, 16)),
        rule,
        sample=make_batch(3, 16, 16).data,
        normalization=lp.Normalization(),
        **{"modules": 3, "optimizer": sgd, **options},
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_is_channels_last_and_bf16(rule: lp.Rule) -> None:
    """The same bits as with both by hand, and the bytes are predicted."""
    batch, states = make_batch(3, 16, 16), []
    torch.manual_seed(0)
    model = lp.models.create_model("resnet8", 3, (3, 16, 16))
    model.to(memory_format=torch.channels_last)
    by_hand = learn(rule, model, precision="bf16")
    learner = learn(rule, fast=True)
    for each in (by_hand, learner):
        for _ in range(2):
            each.step(batch.data)
        states.append({name: p.detach() for name, p in each.named_parameters()})
    assert all(torch.equal(states[0][name], p) for name, p in states[1].items())
    last = torch.channels_last
    convs = [p for name, p in learner.named_parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert len(convs) > 6
    assert all(p.is_contiguous(memory_format=last) for p in convs)
    compare_learner(learner, batch)
    assert "channels last: " in learner.explain()
    assert "bf16: " in learner.explain()
    assert "in bf16" in learner.summary()


def test_what_does_not_gain_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = torch.randn(4, 8), torch.randint(3, (4,))
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    options: dict[str, Any] = {"modules": 2, "optimizer": sgd, "fast": True}
    learner = lp.Learner(copy.deepcopy(model), lp.greedy(), sample=sample, **options)
    assert learner.fast == learner.fast._replace(precision="bf16", channels_last=False)
    assert "the model has no nn.Conv2d" in learner.explain()
    monkeypatch.setattr(fast, "computes_in_bf16", lambda device: False)
    learner = lp.Learner(model, lp.greedy(), sample=sample, **options)
    assert learner.fast.precision == "fp32"
    assert "this cpu has no instructions for it" in learner.explain()
    double = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).double()
    learner = lp.Learner(double, lp.greedy(), sample=(sample[0].double(), sample[1]), **options)
    assert "parameters are torch.float64" in learner.explain()


def test_a_users_optimizer_is_told_of_fused_kernels() -> None:
    assert (
        "fused SGD is left out: the optimizer is yours" in learn(lp.greedy(), fast=True).explain()
    )
    make = {
        "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
        "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.1),
    }
    learner = learn(lp.greedy(), fast=True, optimizer=make["SGD"])
    assert "fused SGD: a step is one kernel" in learner.explain()
    compare_learner(learner, make_batch(3, 16, 16))
    learner = learn(lp.greedy(), fast=True, optimizer=make["RMSprop"])
    assert "RMSprop has none" in learner.explain()
    assert "fused" not in learn(lp.greedy(), optimizer=make["SGD"]).explain()


def test_a_given_precision_is_kept() -> None:
    learner = learn(lp.greedy(), fast=True, precision="fp16")
    assert learner.fast.precision == "fp16"
    assert "bf16" not in learner.explain()
    assert "One GradScaler" in learner.explain()


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    batch, rule = make_batch(3, 16, 16).data, lp.contsup()
    first = learn(rule, fast=True)
    first.step(batch)
    state = first.state_dict()
    second = learn(rule, fast=True)
    assert state is not None
    second.load_state_dict(state)
    for learner in (first, second):
        learner.step(batch)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)
    second.rebuild(modules=2)
    assert second.fast.precision == "bf16"
    assert "bf16: " in second.explain()


def test_the_command_line_takes_one_switch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = "--model resnet8 --data digits --limit 64 --epochs 2 --device cpu --method greedy"
    words = ["train", *flags.split(), "--modules", "2", "--fast", "--out", str(tmp_path / "run")]
    assert run_command(capsys, *words)[0] == 0
    code, _, err = run_command(capsys, *words, "--channels-last")
    assert code == 2
    assert "--channels-last has no effect with --fast" in err
