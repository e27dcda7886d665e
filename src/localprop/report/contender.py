"""A method in a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from localprop.errors import BadInput

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


def suited(contenders: Iterable[Contender], build: Callable[[Contender], object]) -> tuple[list[Contender], list[str]]:
    """The methods that can be trained, and why the others cannot: one sentence for each problem, after its label.

    Args:
        contenders: the methods.
        build: makes a method's learner; raises BadInput where there can be none.

    Example:
        >>> suited([Contender.parse("greedy()")], lambda contender: contender.recompute)[1]
        []
    """
    fit, problems = list[Contender](), list[str]()
    for contender in contenders:
        try:
            build(contender)
            fit.append(contender)
        except BadInput as error:
            problems += [f"{contender.label}: {problem}" for problem in error.problems]
    return fit, problems
