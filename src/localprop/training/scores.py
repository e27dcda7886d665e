"""How well predictions are: accuracy and cross-entropy on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from localprop.data import Batches, Dataset
from localprop.errors import RunFailed
from localprop.learner import Learner
from localprop.training.config import Config


class Score(NamedTuple):
    """How well a network does on a split.

    Attributes:
        accuracy: the fraction of labels that it predicts correctly; of text, of next tokens.
        loss: the mean cross-entropy, in nats per label.
    """

    accuracy: float
    loss: float

    @property
    def bits(self) -> float:
        """The mean cross-entropy in bits per label; of text, per byte.

        Example:
            >>> Score(0.5, math.log(2)).bits
            1.0
        """
        return self.loss / math.log(2)


def score_test_split(learner: Learner, dataset: Dataset, config: Config) -> Score:
    """Score the network on the test split. Call this once, after the last epoch.

    Raises:
        RunFailed: the loss is not finite.

    Example:
        >>> config = Config(model="mlp", epochs=2)
        >>> dataset, learner = prepare(config)
        >>> 0 <= score_test_split(learner, dataset, config).accuracy <= 1
        True
    """
    batches = Batches(dataset, "test", config.batch_size, device=learner.device)
    score = evaluate(learner.predict, batches)
    check_finite(score, "on the test split", config)
    return score


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Score:
    """Compute the accuracy and the mean cross-entropy of predictions.

    Args:
        predict: maps inputs (N, ...) to logits (N, classes) or (N, T, classes), as `predict` of a
            learner does.
        batches: inputs with labels (N,) or (N, T). Without any batch the score is (0, 0).

    Example:
        >>> evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))]).accuracy
        0.6666666666666666
    """
    (score,) = evaluate_each(lambda inputs: (predict(inputs),), batches) or [Score(0.0, 0.0)]
    return score


@torch.no_grad()
def evaluate_each(
    predict: Callable[[Tensor], Iterable[Tensor]], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Score]:
    """`evaluate` of several predictions of the same labels, which come together."""
    correct: list[Tensor | int] = []
    losses: list[list[Tensor]] = []  # on the device until the end; added in double precision
    count = 0
    for inputs, labels in batches:
        for i, logits in enumerate(each.float() for each in predict(inputs)):
            if i == len(correct):
                correct.append(0)
                losses.append([])
            correct[i] = correct[i] + (logits.argmax(-1) == labels).sum()
            flat = logits.flatten(0, -2), labels.flatten()
            losses[i].append(functional.cross_entropy(*flat, reduction="sum"))
        count += labels.numel()
    return [
        Score(int(c) / max(count, 1), sum(torch.stack(each).tolist()) / max(count, 1))
        for c, each in zip(correct, losses, strict=True)
    ]


def check_finite(score: Score, where: str, config: Config) -> None:
    """Refuse a score whose loss is not finite.

    Raises:
        RunFailed: it is not.
    """
    if not math.isfinite(score.loss):
        raise RunFailed(
            f"The network's loss is {score.loss} {where}: lower lr (now {config.lr}), or train "
            "with clip_norm=1."
        )
