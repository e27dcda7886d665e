"""Linear probes: what a linear classifier reads from each module's output.

Source: Alain, Bengio, Understanding intermediate layers using linear classifier probes, 2016, arXiv
1610.01644.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from localprop.analysis.outputs import (
    check_one_process,
    list_module_ends,
    looking_at,
    read_outputs,
)
from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.learner import Learner
from localprop.tasks.classification import Classification
from localprop.tasks.custom import CustomTask
from localprop.tasks.elementwise import MultiLabel
from localprop.tasks.task import Task, describe, require_targets
from localprop.writing.tables import format_table

_MAX_STEPS = 1000  # of L-BFGS; features are standardised, so it seldom needs a tenth


@dataclass(frozen=True)
class Probes:
    """How well a linear map reads the targets from each module's output.

    Attributes:
        ends: the layer that each module ends with.
        scores: of each module on the test data: accuracy in 0..1, or R², at most 1.
        converged: whether the fit of each came to its end.
        measure: "accuracy" or "R²".
        train_rows: the samples, or positions, that the probes were fitted to.
        test_rows: those that they were scored on.
    """

    ends: tuple[str, ...]
    scores: tuple[float, ...]
    converged: tuple[bool, ...]
    measure: str
    train_rows: int
    test_rows: int

    def __str__(self) -> str:
        rows = [
            [str(module), end, f"{score:.4f}{'' if converged else ' (not converged)'}"]
            for module, (end, score, converged) in enumerate(
                zip(self.ends, self.scores, self.converged, strict=True)
            )
        ]
        return format_table(["module", "ends at", f"probe {self.measure}"], rows)


@check_arguments
def probe(
    learner: Learner, train_data: Iterable[Any], test_data: Iterable[Any], *, limit: int = 10_000
) -> Probes:
    """Train a linear probe on the output of each module, and score it on other data.

    Outputs are detached, those of the deployed network in evaluation mode. Where a sample has one
    target, outputs (N, ..., C) are averaged over positions to (N, C). Where each position has a
    class, as in language models, each position is a row. Features are standardised by the training
    rows. Classes are read by scikit-learn's LogisticRegression (C=1), numbers by its Ridge
    (alpha=1). Nothing is drawn at random, and the learner stays as it was.

    Args:
        learner: in one process.
        train_data: batches (inputs, targets) as the learner steps on, in an order of which the
            beginning is typical.
        test_data: likewise, of other samples.
        limit: the rows of each that are read at most, from its beginning.

    Returns:
        The scores by module; the last module's output is the network's.

    Raises:
        BadInput: the learner is on several ranks; targets are neither classes nor numbers, or do
            not belong to positions of an output; outputs are not finite; there are fewer than two
            classes, or no rows.

    Example:
        >>> train = [(torch.randn(8, 1, 8, 8), torch.arange(8)) for _ in range(3)]
        >>> found = lp.analysis.probe(learner, train, train[:1])
        >>> len(found.scores), found.measure, found.train_rows
        (3, 'accuracy', 24)

    Source: Alain and Bengio, 2016, arXiv 1610.01644.
    """
    check_one_process(learner)
    check([f"limit={limit} must be 1 or more rows."] if limit < 1 else [])
    with looking_at(learner):
        train = _collect_rows(learner, train_data, limit, "train_data")
        test = _collect_rows(learner, test_data, limit, "test_data")
        has_classes = not train.targets.is_floating_point()
        check(_find_row_problems(learner, train, test, has_classes=has_classes))
        # In here, too: the first import of scikit-learn draws from Python's generator.
        fitted = [
            _fit(own, train.targets, other, test.targets, has_classes=has_classes)
            for own, other in zip(train.features, test.features, strict=True)
        ]
    return Probes(
        ends=list_module_ends(learner),
        scores=tuple(score for score, _ in fitted),
        converged=tuple(converged for _, converged in fitted),
        measure="accuracy" if has_classes else "R²",
        train_rows=len(train.targets),
        test_rows=len(test.targets),
    )


class _Rows(NamedTuple):
    """What probes are fitted to.

    Attributes:
        features: of each module (rows, C).
        targets: classes (rows,), or numbers (rows, D).
    """

    features: list[Tensor]
    targets: Tensor


def _collect_rows(learner: Learner, data: Iterable[Any], limit: int, name: str) -> _Rows:
    parts: list[_Rows] = []
    read = 0
    for batch in data:
        rows = _make_rows(learner, batch)
        parts.append(rows)
        read += len(rows.targets)
        if read >= limit:
            break
    if not read:
        raise BadInput(f"{name} holds no rows with a target: give batches (inputs, targets).")
    columns = zip(*(part.features for part in parts), strict=True)
    features = [torch.cat(column)[:limit] for column in columns]
    return _Rows(features, torch.cat([part.targets for part in parts])[:limit])


def _make_rows(learner: Learner, batch: Any) -> _Rows:
    targets = require_targets(learner.wiring.task, batch).cpu()
    task = _find_judge(learner.wiring.task)
    is_soft = targets.is_floating_point() and isinstance(task, Classification)
    if isinstance(task, MultiLabel) or is_soft or targets.dtype == torch.bool:
        raise BadInput(
            f"A probe reads one class or numbers, but the targets of {type(task).__name__} are "
            f"{describe(targets)}: make a learner whose targets are whole numbers, or numbers for "
            "lp.Regression()."
        )
    outputs = read_outputs(learner, batch)
    if targets.is_floating_point():
        return _Rows([_pool(each) for each in outputs], targets.double().flatten(1, -1))
    if targets.ndim < 2:
        features = [_pool(each) for each in outputs]
    else:
        check(
            f"The output of module {module} is {tuple(each.shape)}, without a position for each of "
            f"the targets {tuple(targets.shape)}: a probe needs one."
            for module, each in enumerate(outputs)
            if each.shape[:-1] != targets.shape
        )
        features = [each.flatten(0, -2) for each in outputs]
    targets = targets.flatten()
    counts = targets != getattr(task, "ignore_index", None)
    return _Rows([each[counts] for each in features], targets[counts])


def _find_judge(task: Task) -> Task:
    while isinstance(task, CustomTask):
        task = task.judge
    return task


def _pool(output: Tensor) -> Tensor:
    """The mean over positions of (N, ..., C)."""
    return output.flatten(1, -2).mean(1) if output.ndim > 2 else output


def _find_row_problems(
    learner: Learner, train: _Rows, test: _Rows, *, has_classes: bool
) -> Iterable[str]:
    if has_classes and (train.targets == train.targets[0]).all():
        yield (
            f"All of the {len(train.targets)} training rows have the class "
            f"{int(train.targets[0])}: give data with two classes or more, in a mixed order."
        )
    for module, pair in enumerate(zip(train.features, test.features, strict=True)):
        if not all(each.isfinite().all() for each in pair):
            end = list_module_ends(learner)[module]
            yield f"The output of module {module} ({end}) is not finite: train again, with less lr."


def _fit(
    features: Tensor, targets: Tensor, others: Tensor, wanted: Tensor, *, has_classes: bool
) -> tuple[float, bool]:
    """The score of a probe on other rows, and whether its fit converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = LogisticRegression(max_iter=_MAX_STEPS) if has_classes else Ridge()
    chain = make_pipeline(StandardScaler(), linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result says it
        chain.fit(features.numpy(), targets.numpy())
    steps = numpy.max(linear.n_iter_) if has_classes else 0
    return float(chain.score(others.numpy(), wanted.numpy())), bool(steps < _MAX_STEPS)
