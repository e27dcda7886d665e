"""A method in a comparison."""

from __future__ import annotations

from dataclasses import dataclass

_RECOMPUTED = " with recompute"


@dataclass(frozen=True)
class Contender:
    """A method in a comparison.

    Attributes:
        label: how the table names it.
        method: its expression, such as `greedy()`.
        recompute: whether segments are run again instead of kept.
    """

    label: str
    method: str
    recompute: bool

    @classmethod
    def parse(cls, text: str) -> Contender:
        """From `EXPRESSION`, `EXPRESSION with recompute` or `LABEL: EXPRESSION`."""
        label, _, expression = text.rpartition(": ")
        method = expression.removesuffix(_RECOMPUTED)
        return cls((label or expression).strip(), method.strip(), recompute=method != expression)
