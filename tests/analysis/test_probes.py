"""Linear probes: what they can read is known beforehand, or fitted a second time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import localprop as lp
from tests.helpers.language_models import WORDS, language_model
from tests.helpers.reference import sgd


def draw(seed: int, samples: int = 60) -> tuple[Tensor, Tensor]:
    """Images whose class stands in the sign of one channel's mean, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 2, 4, 4, generator=generator)
    labels = torch.randint(2, (samples,), generator=generator)
    images[:, 0] += 2 * (2 * labels[:, None, None] - 1)
    return images, labels


def make_learner(task: Any = None, targets: Tensor | None = None) -> lp.Learner:
    """Module 0 hands everything on, and module 1 nothing of it."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        second.weight.zero_()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    images, labels = draw(0)
    sample = (images, labels if targets is None else targets)
    layers = (first, second, head)
    model = nn.Sequential(*layers)
    return lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=sample, task=task)


def test_a_probe_reads_what_is_there_and_nothing_else() -> None:
    """Without information it names the more frequent class of the training rows."""
    found = lp.analysis.probe(make_learner(), [draw(1), draw(2)], [draw(3)])
    assert found.scores[0] == 1.0
    frequent = int(torch.cat([draw(1)[1], draw(2)[1]]).float().mean() > 0.5)
    chance = float((draw(3)[1] == frequent).float().mean())
    assert found.scores[1:] == pytest.approx((chance, chance))
    assert (found.measure, found.train_rows, found.test_rows) == ("accuracy", 120, 60)
    assert found.converged == (True, True, True)
    assert str(found).splitlines()[2].split() == ["|", "0", "|", "0", "|", "1.0000", "|"]


def test_a_second_fit_by_hand() -> None:
    """Pooled and standardised by the training rows alone; classes overlap."""
    learner = make_learner()
    train, test = draw(1), draw(2)
    train[0][:, 0] -= 1.9 * (2 * train[1][:, None, None] - 1)
    test[0][:, 0] -= 1.9 * (2 * test[1][:, None, None] - 1)
    found = lp.analysis.probe(learner, [train], [test])
    first = learner.model.get_submodule("0")
    rows = [first(x).detach().mean((2, 3)).double().numpy() for x in (train[0], test[0])]
    mean, std = rows[0].mean(0), rows[0].std(0)
    rows = [(each - mean) / std for each in rows]
    fitted = LogisticRegression(max_iter=1000).fit(rows[0], train[1].numpy())
    assert found.scores[0] == pytest.approx(fitted.score(rows[1], test[1].numpy()))
    assert 0.3 < found.scores[0] < 1


def test_numbers_are_read_by_ridge_regression() -> None:
    """y = 3 times a pooled channel - 1: a linear map of module 0, and of nothing behind it."""

    def label(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        target = 3 * batch[0][:, 1].mean((1, 2)) - 1
        return batch[0], torch.stack([target, -target], 1)

    learner = make_learner(lp.Regression(), label(draw(0))[1])
    found = lp.analysis.probe(learner, [label(draw(1)), label(draw(2))], [label(draw(3))])
    assert found.measure == "R²"
    assert found.scores[0] > 0.99
    # The mean of other rows is worse than that of the test rows: just below 0.
    assert -0.2 < found.scores[1] <= 0


def test_a_language_model_has_a_row_for_each_position() -> None:
    """Labels that are the words themselves: the embedding tells most of them."""
    model, batches = language_model()
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=batches[0])
    train = [(x, x.clone()) for x, _ in batches[:3]]
    train[0][1][0, 0] = -100
    last = batches[3][0]
    found = lp.analysis.probe(learner, train, [(last, last)])
    assert (found.train_rows, found.test_rows) == (3 * 30 - 1, 30)
    assert found.scores[0] > 0.7 > 5 / WORDS
    assert len(found.scores) == 4


def test_the_limit_counts_rows_and_reads_no_further() -> None:
    def read() -> Any:
        yield draw(1)
        yield draw(2)
        raise AssertionError("read too far")

    found = lp.analysis.probe(make_learner(), read(), read(), limit=100)
    assert (found.train_rows, found.test_rows) == (100, 100)


def test_what_a_probe_cannot_read_is_refused() -> None:
    learner = make_learner()
    one = draw(1)[0], torch.zeros(60).long()
    with pytest.raises(lp.BadInput, match="All of the 60 training rows have the class 0"):
        lp.analysis.probe(learner, [one], [draw(2)])
    with pytest.raises(lp.BadInput, match="test_data holds no rows"):
        lp.analysis.probe(learner, [draw(1)], [])
    with pytest.raises(lp.BadInput, match="limit=0 must be 1 or more rows"):
        lp.analysis.probe(learner, [draw(1)], [draw(1)], limit=0)
    images, labels = draw(1)
    with pytest.raises(lp.BadInput, match=r"module 0 \(0\) is not finite") as caught:
        lp.analysis.probe(learner, [(images / 0, labels)], [draw(2)])
    assert len(caught.value.problems) == 3
    several = torch.zeros(60, 2)
    several[::2] = 1
    multi = make_learner(lp.MultiLabel(), several)
    with pytest.raises(lp.BadInput, match="the targets of MultiLabel are a float32 tensor"):
        lp.analysis.probe(multi, [(images, several)], [(images, several)])


def test_targets_without_a_position_of_the_output_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 2, 2))
    pixels = torch.arange(16).reshape(1, 4, 4).expand(6, 4, 4) % 3
    batch = (torch.randn(6, 2, 4, 4), pixels)
    learner = lp.Learner(
        model, lp.greedy(), modules=2, optimizer=sgd, sample=batch, task=lp.Segmentation()
    )
    with pytest.raises(lp.BadInput, match=r"module 0 is \(6, 2, 2, 4\), without a position"):
        lp.analysis.probe(learner, [batch], [batch])
