"""What a config builds: the model, the learner, and all problems at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from localprop.data.dataset import Normalization
from localprop.errors import BadInput
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from localprop.tasks.classification import Classification
from localprop.training.build import build, load_data, prepare
from localprop.training.config import Config


def test_all_problems_at_once() -> None:
    wrong: dict[str, Any] = {"epochs": 0, "lr": "x", "method": "nope", "device": "nope", "limit": 0}
    bad = Config(model="nope", **wrong)
    with pytest.raises(BadInput) as caught:
        prepare(bad)
    assert len(caught.value.problems) == 5  # without data, the model is not built
    with pytest.raises(BadInput, match="no model 'nope'"):
        build(Config(model="nope", epochs=0), load_data(Config()))


def test_a_last_batch_too_small_for_the_microbatches_is_refused() -> None:
    dataset = load_data(Config(limit=66))
    with pytest.raises(BadInput, match="has 2 of the 66"):
        build(Config(model="mlp", microbatches=4), dataset)


@pytest.mark.parametrize("model", ["mlp:100000000000000", "resnet20"])
def test_sizes_that_do_not_fit_into_memory_are_bad_input(model: str) -> None:
    method = "greedy(aux=Head(hidden=1000000000000))"
    with pytest.raises(BadInput, match="choose smaller sizes"):
        build(Config(model=model, method=method), load_data(Config()))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    dataset = load_data(Config())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = build(Config(model="mlp:8"), dataset)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    two = build(Config(model="mlp:8"), dataset)
    three = build(Config(model="mlp:8", seed=1), dataset)
    assert torch.equal(next(one.parameters()), next(two.parameters()))
    assert not torch.equal(next(one.parameters()), next(three.parameters()))


def test_the_learner_has_the_values_of_the_config() -> None:
    dataset, learner = prepare(
        Config(model="resnet8", modules=2, weight_decay=0.5, lr=0.25, microbatches=2)
    )
    assert len(learner.partition.modules) == 2
    group = learner.optimizers[0].param_groups[0]
    expected = {"lr": 0.25, "momentum": 0.9, "nesterov": True, "weight_decay": 0.5}
    assert {name: group[name] for name in expected} == expected
    assert len(build(Config(model="resnet8"), dataset).partition.modules) == 4


def test_cuts_are_numbers_of_last_layers() -> None:
    _, learner = prepare(Config(model="resnet8", cuts=(0, 2)))
    assert learner.partition.modules == (range(0, 1), range(1, 3), range(3, 4))
    with pytest.raises(BadInput, match="must increase and lie between"):
        prepare(Config(model="resnet8", cuts=(3,)))


def test_label_smoothing_concerns_the_task_alone() -> None:
    _, learner = prepare(Config(model="mlp", label_smoothing=0.3, method="greedy()"))
    losses = []
    for head in learner.wiring.heads.values():
        assert isinstance(head, nn.ModuleDict)
        losses.append(head["loss"])
    assert [loss.task for loss in losses] == [Classification(0.3, dim=-1)] * len(losses)
    assert learner.wiring.task == Classification(0.3, dim=-1)


def test_losses_that_look_at_pixels_get_the_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Normalization | None] = []

    def record_and_wire(*args: Any, **options: Any) -> Wiring:
        used.append(options["normalization"])
        return wire(*args, **options)

    monkeypatch.setattr("localprop.learner.wire", record_and_wire)
    dataset = load_data(Config(mean=(0.25,), std=(0.5,)))
    build(Config(model="mlp"), dataset)
    assert used == [Normalization((0.25,), (0.5,))]
    text = Config(model="transformer:width=8,blocks=1", data="text", context=8, limit=64)
    prepare(text)
    assert used[1:] == [None]


def test_problems_of_the_data_are_reported_with_the_others() -> None:
    with pytest.raises(BadInput) as caught:
        prepare(Config(model="nope", augment="cutout", limit=66, microbatches=4))
    assert len(caught.value.problems) == 3
    assert all(word in str(caught.value) for word in ("cutout=16", "'nope'", "last batch"))


@pytest.mark.parametrize("model", ["mlp", "mlp:8", "resnet8"])
def test_models_of_images_refuse_tokens(model: str) -> None:
    with pytest.raises(BadInput, match=f"{model} takes images, not tokens: use transformer"):
        prepare(Config(model=model, data="text", limit=64, epochs=2))
