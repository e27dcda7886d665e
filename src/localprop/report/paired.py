"""Differences of figures that come in pairs: two methods with the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """How far a method is from the baseline, over the seeds that both were trained with.

    Attributes:
        mean: of the differences of each seed.
        low: the lower end of the mean's 95 % confidence interval; None with a single seed.
        high: its upper end.
        verdict: "better" or "worse" where the interval leaves zero out, else "".
    """

    mean: float
    low: float | None
    high: float | None
    verdict: str


def compare_pairs(
    values: Sequence[float | None], base: Sequence[float | None], *, larger_is_better: bool
) -> Difference | None:
    """Compare the figures of a method with those of the baseline, seed by seed.

    The interval is that of Student's t for the mean of paired differences. It assumes that they
    are distributed normally.

    Args:
        values: of the method, one for each seed; None for a failed run.
        base: of the baseline, with the same seeds.
        larger_is_better: whether a positive difference is a gain.

    Returns:
        The difference; None if a run of either has failed, or if there is none.

    Example:
        >>> compare_pairs([3.0, 4.0, 6.0], [1.0, 1.0, 1.0], larger_is_better=True)
        Difference(mean=3.333..., low=-0.46..., high=7.12..., verdict='')

    Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    pairs = list(zip(values, base, strict=False))  # the last method may have fewer seeds so far
    known = [value - other for value, other in pairs if value is not None and other is not None]
    if not known or len(known) < len(pairs):
        return None
    mean = statistics.mean(known)
    if len(known) == 1:
        return Difference(mean, None, None, "")
    from scipy.stats import t as student  # takes half a second

    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
    half = quantile * statistics.stdev(known) / math.sqrt(len(known))
    low, high = mean - half, mean + half
    gain = low > 0 if larger_is_better else high < 0
    loss = high < 0 if larger_is_better else low > 0
    return Difference(mean, low, high, "better" if gain else "worse" if loss else "")
