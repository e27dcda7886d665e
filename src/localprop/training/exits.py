"""How well a network does when it is left at the end of each module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from localprop.engine.early_exit import predict_exits
from localprop.learner import Learner
from localprop.network.modes import evaluation_mode
from localprop.tasks.batch import Batch
from localprop.training.scores import Score, evaluate, evaluate_each


def score_exits(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[int, Score]:
    """Score a deployed network at the ends of its modules, all by one forward of each batch.

    Args:
        learner: on several ranks only the network itself, which is the last exit, has a score.
        batches: as for `evaluate`.

    Returns:
        By module; those without a head that makes outputs of the task are left out.

    Example:
        >>> from localprop.data import Batches
        >>> config = Config(model="mlp", epochs=2)
        >>> dataset, learner = prepare(config)
        >>> list(score_exits(learner, Batches(dataset, "test", 64)))
        [0, 1, 2]
    """
    last = learner.wiring.segments[-1].module
    if learner.pipeline is not None:
        return {last: evaluate(learner.predict, batches)}
    modules: list[int] = []

    def predict(inputs: Tensor) -> Iterable[Tensor]:
        batch = Batch.of(inputs, learner.wiring.task.targets(inputs)).to(learner.device)
        with evaluation_mode(learner.network):
            found = predict_exits(learner.network, learner.model, learner.wiring, batch)
        modules[:] = found
        return found.values()

    scores = evaluate_each(predict, batches)
    return dict(zip(modules, scores, strict=True)) or {last: Score(0.0, 0.0)}


def list_figures(learner: Learner, scores: Mapping[int, Score]) -> list[dict[str, Any]]:
    """The figures of each exit for JSON: its module, the layer where this ends, and the score."""
    names, modules = learner.partition.layers.names, learner.partition.modules
    return [
        {
            "module": module,
            "end": names[modules[module][-1]],
            "test_accuracy": score.accuracy,
            "test_loss": score.loss if math.isfinite(score.loss) else None,
        }
        for module, score in scores.items()
    ]
