"""Epochs: learning rates by hand, losses, accuracy, and losses that are not finite."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from localprop.data import Batches, Dataset, Images
from localprop.engine.loss import Losses
from localprop.errors import RunFailed
from localprop.learner import Learner
from localprop.training import trainer
from localprop.training.build import build, load_data, prepare
from localprop.training.config import Config
from localprop.training.learning_rates import lr_at
from localprop.training.loss_meter import LossMeter
from localprop.training.trainer import EpochReport, train

SMALL = Config(model="resnet8", modules=2, epochs=4, limit=200)


def test_each_epoch_scores_all_exits_on_validation_data() -> None:
    config = replace(SMALL, epochs=1)
    dataset, learner = prepare(config)
    (report,) = train(learner, dataset, config)
    assert isinstance(dataset, Images)
    labels = dataset.validation.labels
    batches = list(Batches(dataset, "validation", len(labels)).epoch(0))
    ((images, _),) = batches
    for module, accuracy, loss in zip(
        report.exits, report.exit_accuracies, report.exit_losses, strict=True
    ):
        logits = learner.predict(images, module=module)
        assert accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert report.exits == (0, 1)
    assert report.validation_accuracy == report.exit_accuracies[-1]


# --- learning rates ---


@pytest.mark.parametrize("schedule", ["cosine", "cosine_above_zero", "constant"])
def test_a_single_epoch_trains(schedule: str) -> None:
    config = replace(SMALL, epochs=1, lr_schedule=schedule)
    assert lr_at(config, 1) == config.lr
    dataset, learner = prepare(config)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    (report,) = train(learner, dataset, config)
    assert report.lr == 0.1
    assert not any(map(torch.equal, before, learner.model.parameters()))


LEARNING_RATES = {
    1: 0.01,
    2: 0.08897,
    5: 0.32523,
    10: 0.71408,
    11: 0.79071,
    80: 0.4,
    159: 8e-5,
    160: 0.0,
}


@pytest.mark.parametrize(("epoch", "lr"), LEARNING_RATES.items())
def test_learning_rates_are_those_of_the_recipe(epoch: int, lr: float) -> None:
    assert lr_at(Config(epochs=160, lr=0.8, warmup_from=0.01), epoch) == pytest.approx(
        lr, rel=1e-4 if lr > 1e-3 else 0.05, abs=1e-12
    )


def test_warmup_of_another_length() -> None:
    config = Config(epochs=40, lr=0.8, warmup_epochs=4, warmup_from=0.01)
    cosine = [0.4 * (1 + math.cos(math.pi * epoch / 40)) for epoch in range(41)]
    assert [lr_at(config, epoch) for epoch in (1, 3, 4, 5)] == pytest.approx(
        [0.01, cosine[3] * 2 / 4 + 0.01 * 2 / 4, cosine[4] * 3 / 4 + 0.01 / 4, cosine[5]]
    )


@pytest.mark.parametrize("lr", [0.8, 0.1, 0.001])
def test_any_learning_rate_warms_up_from_a_tenth_of_it(lr: float) -> None:
    config = Config(epochs=100, lr=lr)
    rates = [lr_at(config, epoch) for epoch in range(1, 101)]
    assert rates[0] == pytest.approx(lr / 10)
    assert rates[:11] == sorted(rates[:11])
    assert max(rates) <= lr


def test_a_cosine_after_the_warmup_by_hand() -> None:
    """TRGL's for Swin-T: from 1 % of 0.007 to 0.007 in 20 epochs, then towards a tenth."""
    config = Config(
        epochs=300,
        lr=0.007,
        lr_schedule="cosine_after_warmup",
        warmup_epochs=20,
        warmup_from=0.00007,
        lr_factor=0.1,
    )
    expected = {1: 0.00007, 5: 0.001456, 10: 0.0031885, 20: 0.0066535, 21: 0.007}
    expected |= {161: 0.00385}  # half way between 0.007 and 0.0007
    assert {epoch: lr_at(config, epoch) for epoch in expected} == pytest.approx(expected)
    assert 0.0007 < lr_at(config, 300) < 0.000701


@pytest.mark.parametrize(("epochs", "warmup"), [(2, 0), (9, 0), (20, 2), (100, 10), (160, 10)])
def test_default_warmup(epochs: int, warmup: int) -> None:
    assert Config(epochs=epochs).warmup == warmup


def test_a_constant_schedule_is_constant() -> None:
    assert {lr_at(Config(epochs=30, lr_schedule="constant"), epoch) for epoch in range(1, 31)} == {
        0.1
    }


def test_a_multistep_schedule_by_hand() -> None:
    """PredSim's: a quarter after 50, 75, 89 and 94 of 100 epochs."""
    config = Config(
        epochs=100, lr=0.4, lr_schedule="multistep", milestones=(50, 75, 89, 94), lr_factor=0.25
    )
    expected = {1: 0.4, 50: 0.4, 51: 0.1, 75: 0.1, 76: 0.025, 89: 0.025}
    expected |= {90: 0.00625, 94: 0.00625, 95: 0.0015625, 100: 0.0015625}
    assert {epoch: lr_at(config, epoch) for epoch in expected} == pytest.approx(expected)


def test_a_multistep_schedule_may_warm_up() -> None:
    config = Config(
        epochs=9,
        lr=0.4,
        lr_schedule="multistep",
        milestones=(5,),
        warmup_epochs=2,
        warmup_from=0.01,
    )
    assert [lr_at(config, epoch) for epoch in (1, 2, 3, 5, 6)] == pytest.approx(
        [0.01, 0.205, 0.4, 0.4, 0.04]
    )


def test_a_cosine_above_zero_is_counted_from_0() -> None:
    """AugLocal's for ImageNet: lr (1 + cos(pi e / E)) / 2, e from 0, without warm-up."""
    config = Config(epochs=90, lr=0.4, lr_schedule="cosine_above_zero", warmup_epochs=0)
    for e in (0, 1, 45, 89):
        assert lr_at(config, e + 1) == pytest.approx(0.2 * (1 + math.cos(math.pi * e / 90)))
    assert lr_at(config, 1) == 0.4
    assert Config(epochs=1, lr_schedule="cosine_above_zero").find_problems() == []


# --- epochs ---


def test_the_loss_goes_down_and_every_optimizer_follows_the_schedule() -> None:
    dataset, learner = prepare(SMALL)
    rates: list[set[float]] = []
    reported: list[EpochReport] = []
    steps: list[tuple[int, int, int]] = []

    def on_epoch(report: EpochReport) -> None:
        reported.append(report)
        rates.append(
            {group["lr"] for optimizer in learner.optimizers for group in optimizer.param_groups}
        )

    reports = train(
        learner, dataset, SMALL, on_epoch=on_epoch, on_step=lambda *step: steps.append(step)
    )
    assert reported == reports
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    assert rates == [{lr_at(SMALL, epoch)} for epoch in range(1, 5)]
    assert reports[0].modules == (0, 1)
    assert all(
        last < first for first, last in zip(reports[0].losses, reports[-1].losses, strict=True)
    )
    assert reports[-1].validation_accuracy is not None
    assert reports[-1].validation_accuracy > 0.5
    assert reports[-1].validation_loss is not None
    assert reports[0].validation_loss is not None
    assert reports[-1].validation_loss < min(reports[0].validation_loss, math.log(10))
    assert steps == [(epoch, step, 4) for epoch in range(1, 5) for step in range(1, 5)]


def test_mean_losses_weigh_images_not_batches() -> None:
    config = replace(SMALL, model="mlp:8", modules=1, method="end_to_end", limit=66, epochs=2)
    dataset, learner = prepare(config)
    recorded: list[tuple[float, int]] = []
    step = learner.step

    def step_and_record(batch: tuple[Tensor, Tensor]) -> Losses:
        losses = step(batch)
        recorded.append((losses.task.item(), len(batch[0])))
        return losses

    learner.step = step_and_record  # type: ignore[method-assign, assignment]
    first = train(learner, dataset, config)[0]
    assert [images for _, images in recorded] == [64, 2] * 2
    assert first.losses == pytest.approx(
        (sum(loss * images for loss, images in recorded[:2]) / 66,)
    )


def test_runs_are_reproducible_and_leave_random_state_alone() -> None:
    dataset = load_data(SMALL)
    before = torch.get_rng_state()
    one, two = (build(SMALL, dataset) for _ in range(2))
    losses = [
        [report.losses for report in train(learner, dataset, SMALL)] for learner in (one, two)
    ]
    assert losses[0] == losses[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_validation_split_there_is_no_validation_accuracy() -> None:
    dataset = load_data(SMALL)
    assert isinstance(dataset, Images)
    empty = replace(dataset, validation=dataset.validation.select(torch.arange(0)))
    last = train(build(SMALL, dataset), empty, SMALL)[-1]
    assert (last.validation_accuracy, last.validation_loss) == (None, None)


def test_losses_are_read_at_intervals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_read: list[int] = []
    read = LossMeter.read

    def record_and_read(meter: LossMeter) -> None:
        steps_read.append(meter._steps)
        read(meter)

    monkeypatch.setattr(LossMeter, "read", record_and_read)
    monkeypatch.setattr(trainer, "READ_EVERY", 3)
    config = replace(SMALL, epochs=2, batch_size=20)  # 10 steps
    dataset, learner = prepare(config)
    train(learner, dataset, config)
    assert steps_read == [0, 3, 6, 9] * 2


# --- losses that are not finite ---


def poison_learner(at: int, value: float) -> tuple[Learner, Dataset, Config]:
    """Build a learner whose last weights become `value` before step `at`, from 1."""
    config = replace(SMALL, batch_size=20, epochs=2, method="greedy")
    dataset, learner = prepare(config)
    step = learner.step

    def poison_and_step(batch: tuple[Tensor, Tensor]) -> object:
        if learner.steps == at - 1:
            with torch.no_grad():
                [*learner.model.parameters()][-1].fill_(value)
        return step(batch)

    learner.step = poison_and_step  # type: ignore[method-assign, assignment]
    return learner, dataset, config


@pytest.mark.parametrize(
    ("at", "step"), [(1, "epoch 1, step 1,"), (7, "epoch 1, step 7,"), (12, "epoch 2, step 2,")]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(
    at: int, step: str, value: float
) -> None:
    learner, dataset, config = poison_learner(at, value)
    with pytest.raises(RunFailed) as caught:
        train(learner, dataset, config)
    message = str(caught.value)
    for word in (step, "module 1", "nan", "lower lr (now 0.1; try 0.01 first)", "warm"):
        assert word in message
    assert "precision" not in message


@pytest.mark.parametrize("bad", [{2}, {1, 2, 3, 4}])
def test_batches_without_finite_numbers_are_skipped_and_counted(bad: set[int]) -> None:
    config = replace(SMALL, epochs=1, lr_schedule="constant", batch_size=50, on_nonfinite="skip")
    dataset, learner = prepare(config)
    step, calls = learner.step, itertools.count(1)

    def step_on(batch: tuple[Tensor, Tensor]) -> object:
        images, labels = batch
        return step((images * math.nan if next(calls) in bad else images, labels))

    learner.step = step_on  # type: ignore[method-assign, assignment]
    if len(bad) == 4:
        with pytest.raises(RunFailed, match="epoch 1, step 4, no batch has finite numbers"):
            train(learner, dataset, config)
        return
    (report,) = train(learner, dataset, config)
    assert (report.skipped, learner.skipped, learner.steps) == (1, 1, 3)
    assert all(map(math.isfinite, report.losses))
