"""Checkpoints: a resumed run is bit-equal to the undisturbed one, or is refused with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import localprop as lp
from localprop.errors import BadInput, RunFailed
from localprop.learner import Learner
from localprop.state import restore, state_of
from localprop.training.build import load_data
from localprop.training.checkpoint import load, save
from localprop.training.config import Config
from localprop.training.state_file import StateFile, write_state
from localprop.training.trainer import train

LINKS = lp.Rule(
    lp.BackwardLinks(layers=1, weight=0.5),
    aux=lp.Head(0, 1),
    context=lp.ContextSupply(input=True, previous=1),
)
Factory = Callable[[list[nn.Parameter]], Optimizer]


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.01)


class Block(nn.Module):
    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(narrow, wide, 3, padding=1)
        self.norm = nn.BatchNorm2d(wide)
        self.dropout = nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.dropout(self.norm(self.conv(images)).relu())
        return outputs


class Network(nn.Module):
    """Four blocks, then a classifier, with BatchNorm and dropout."""

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(1 if i == 0 else chans, chans) for i in range(4)])
        self.classifier = nn.Linear(chans, 10)

    def forward(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        logits: Tensor = self.classifier(images.mean((2, 3)))
        return logits


def build_network(seed: int, chans: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return Network(chans)


def build_learner(
    seed: int,
    rule: lp.Rule = LINKS,
    *,
    optimizer: Factory = sgd,
    shared: bool = False,
    modules: int = 3,
    chans: int = 6,
) -> Learner:
    model = build_network(seed, chans)
    sample = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    given = optimizer(list(model.parameters())) if shared else optimizer
    return Learner(model, rule, modules=modules, optimizer=given, sample=sample)


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(
        10, (8,), generator=generator
    )


def run_steps(learner: Learner, first: int, last: int) -> list[list[float]]:
    return [[loss.item() for loss in learner.step(make_batch(step))] for step in range(first, last)]


def copy_state(learner: Learner) -> dict[str, Any]:
    """The state of a learner in one process."""
    state = state_of(learner)
    assert state is not None
    return state


def flatten(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        found |= (
            {f"{key}/{inner}": deep for inner, deep in flatten(value).items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return found


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    left, right = flatten(one), flatten(two)
    assert left.keys() == right.keys()
    for key, value in left.items():
        same = torch.equal(value, right[key]) if isinstance(value, Tensor) else value == right[key]
        assert same, key


# --- resumed runs ---


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("shared", [False, True])
def test_resumed_steps_are_bit_equal(tmp_path: Path, optimizer: Factory, shared: bool) -> None:
    whole, first, second = (
        build_learner(seed, optimizer=optimizer, shared=shared) for seed in (1, 1, 2)
    )
    expected = run_steps(whole, 0, 6)
    assert run_steps(first, 0, 3) == expected[:3]
    save(tmp_path / "a.pt", first, epoch=7)
    assert load(tmp_path / "a.pt", second) == 7
    assert run_steps(second, 3, 6) == expected[3:]
    assert_equal(copy_state(second), copy_state(whole))
    assert [*tmp_path.iterdir()] == [tmp_path / "a.pt"]


def test_resumed_epochs_are_bit_equal(tmp_path: Path) -> None:
    config = Config(epochs=4, limit=40, batch_size=16)
    dataset = load_data(config)
    whole, first, second = (build_learner(seed) for seed in (1, 1, 2))
    expected = train(whole, dataset, config)

    def stop(report: Any) -> None:
        save(tmp_path / "last.pt", first, report.epoch)
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, dataset, config, on_epoch=stop)
    done = load(tmp_path / "last.pt", second)
    resumed = train(second, dataset, config, start_epoch=done)
    assert [(r.epoch, r.lr, r.losses, r.validation_accuracy) for r in resumed] == [
        (r.epoch, r.lr, r.losses, r.validation_accuracy) for r in expected[2:]
    ]
    assert_equal(copy_state(second), copy_state(whole))


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_state_does_not_depend_on_how_parameters_are_grouped(
    before: bool, after: bool, optimizer: Factory
) -> None:
    one, two = (
        build_learner(1, optimizer=optimizer, shared=before),
        build_learner(2, optimizer=optimizer, shared=after),
    )
    run_steps(one, 0, 3)
    restore(two, copy_state(one))
    assert_equal(copy_state(two), copy_state(one))
    assert run_steps(two, 3, 5) == run_steps(one, 3, 5)
    assert_equal(copy_state(two), copy_state(one))


def test_state_moves_to_other_segments() -> None:
    one, two = (
        build_learner(seed, lp.end_to_end(), modules=modules) for seed, modules in ((1, 4), (2, 2))
    )
    assert len(one.optimizers) != len(two.optimizers)
    run_steps(one, 0, 2)
    restore(two, copy_state(one))
    assert_equal(copy_state(two), copy_state(one))


def test_a_state_is_a_copy() -> None:
    one, two = build_learner(1), build_learner(2)
    run_steps(one, 0, 1)
    state = copy_state(one)
    kept = {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in flatten(state).items()
    }
    restore(two, state)
    run_steps(one, 1, 2)
    run_steps(two, 1, 3)
    assert_equal(flatten(state), kept)


def test_keys_are_parameter_names_and_the_content_is_plain(tmp_path: Path) -> None:
    learner = build_learner(1)
    run_steps(learner, 0, 1)
    state = copy_state(learner)["optimizer"]
    for name, _ in learner.named_parameters():
        assert isinstance(state[f"state.{name}.momentum_buffer"], Tensor)
        assert state[f"group.{name}.lr"] == 0.1
    save(tmp_path / "a.pt", learner, epoch=1)
    whole = StateFile(tmp_path / "a.pt").read()
    assert {*whole} == {*copy_state(learner), "epoch", "others", "extra", "trained_by"}
    plain = load_file(tmp_path / "a.pt")  # by safetensors itself
    assert torch.equal(
        plain["model/classifier.weight"], learner.model.state_dict()["classifier.weight"]
    )


def test_frozen_parameters_need_no_state() -> None:
    one, two = build_learner(1, shared=True), build_learner(2, shared=True)
    run_steps(one, 0, 1)
    state = copy_state(one)
    state["optimizer"] = {
        key: value for key, value in state["optimizer"].items() if "classifier.bias." not in key
    }
    next(p for name, p in two.named_parameters() if name == "classifier.bias").requires_grad_(False)
    restore(two, state)


def test_groups_of_one_optimizer_keep_their_hyperparameters() -> None:
    def grouped(seed: int) -> Learner:
        model = build_network(seed)
        some, others = [*model.parameters()][:3], [*model.parameters()][3:]
        optimizer = SGD(
            [{"params": some, "weight_decay": seed / 10}, {"params": others, "lr": seed / 100}],
            lr=0.1,
        )
        sample = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        return Learner(model, lp.greedy(), modules=3, optimizer=optimizer, sample=sample)

    one, two = grouped(1), grouped(2)
    restore(two, copy_state(one))
    assert [group["weight_decay"] for group in two.optimizers[0].param_groups] == [0.1, 0]
    assert [group["lr"] for group in two.optimizers[0].param_groups] == [0.1, 0.01]
    with pytest.raises(BadInput, match=r"one group here had different values of weight_decay|lr"):
        restore(
            build_learner(3, lp.greedy(), optimizer=lambda p: SGD(p, lr=0.1), shared=True),
            copy_state(one),
        )


# --- refused states and files ---


def refusal_of(state: dict[str, Any], learner: Learner) -> str:
    before = copy_state(learner)
    with pytest.raises(BadInput) as caught:
        restore(learner, state)
    assert_equal(copy_state(learner), before)
    return str(caught.value)


def test_another_rule_or_number_of_modules_is_refused_by_name() -> None:
    message = refusal_of(
        copy_state(build_learner(1)), build_learner(1, lp.greedy(lp.Head(0, 1)), modules=4)
    )
    assert "heads: the checkpoint lacks 2.aux.1.weight" in message
    assert "encoders: the checkpoint also has 1.0.0.weight" in message


def test_another_width_is_refused_by_shape() -> None:
    message = refusal_of(copy_state(build_learner(1)), build_learner(1, chans=5))
    shapes = "has shape (6, 1, 3, 3) in the checkpoint, but (5, 1, 3, 3) here"
    assert f"model: blocks.0.conv.weight {shapes}" in message
    assert "heads: 0.aux.1.weight has shape" in message


def test_another_optimizer_is_refused() -> None:
    message = refusal_of(copy_state(build_learner(1)), build_learner(1, optimizer=adam))
    assert "no betas, eps, amsgrad" in message
    assert "which Adam needs" in message
    assert "nesterov" in refusal_of(copy_state(build_learner(1, optimizer=adam)), build_learner(1))


def test_a_foreign_parameter_is_refused() -> None:
    model, other = build_network(1), nn.Linear(2, 2)
    sample = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    optimizer = sgd([*model.parameters(), *other.parameters()])
    learner = Learner(model, lp.greedy(), modules=2, optimizer=optimizer, sample=sample)
    with pytest.raises(BadInput, match=r"owns 2 parameter\(s\) that are not the learner's"):
        copy_state(learner)


def test_an_incomplete_state_is_refused() -> None:
    message = refusal_of({"model": {}, "heads": 3}, build_learner(1))
    assert [
        word in message for word in ("'heads'", "'encoders'", "'optimizer'", "steps", "'model'")
    ] == [True] * 4 + [False]


def damage_file(good: Path, folder: Path) -> Iterable[tuple[Path, str]]:
    content = good.read_bytes()
    files = {
        "missing": None,
        "empty": b"",
        "text": b"these are words",
        "cut": content[: len(content) // 2],
        "head": content[:100],
        "noise": bytes(range(256)) * 8,
    }
    for name, data in files.items():
        if data is not None:
            (folder / name).write_bytes(data)
        yield folder / name, "no file" if data is None else "cannot be read as a checkpoint"
    torch.save({"model": {}}, folder / "old")
    save_file({"a": torch.ones(2)}, folder / "weights", {"format": "pt"})
    write_state(folder / "hollow", {"epoch": 1})
    (folder / "later").write_bytes(content.replace(b'"version":"2"', b'"version":"9"'))
    yield folder / "old", "a file of torch.save, as localprop wrote before"
    yield folder / "weights", "no checkpoint of localprop"
    yield folder / "later", "version '9'"
    yield folder / "hollow", "lacks encoders, extra"
    yield folder, "no file"


def test_wrong_files_are_bad_input_that_names_them(tmp_path: Path) -> None:
    learner = build_learner(1)
    save(tmp_path / "good.pt", learner, epoch=1)
    before = copy_state(learner)
    for path, words in damage_file(tmp_path / "good.pt", tmp_path):
        with pytest.raises(BadInput) as caught:
            load(path, learner)
        assert words in str(caught.value)
        assert all(str(path) in problem for problem in caught.value.problems)
    assert_equal(copy_state(learner), before)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build_learner(1)
    path = tmp_path / "a.pt"
    save(path, learner, epoch=1)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"No space left"):
        save(path, learner, epoch=2)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
