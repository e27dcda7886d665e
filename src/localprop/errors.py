"""What localprop says when something is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class BadInput(ValueError):
    """Input that cannot be used; every problem found, each with the values seen and what would fix it.

    Args:
        problems: complete sentences, one per problem.

    Attributes:
        record: what a rank has told the others, if only it has seen the problem (:mod:`localprop.ranks.faults`).

    Example:
        >>> str(BadInput(["modules=20, but the model has 16 layers: choose 16 or fewer."]))
        'modules=20, but the model has 16 layers: choose 16 or fewer.'
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.record: dict[str, Any] | None = None
        self.problems = tuple([problems] if isinstance(problems, str) else problems)
        super().__init__("\n".join(self.problems))


def check(problems: Iterable[str]) -> None:
    """Raise :class:`BadInput` if there are any problems."""
    found = tuple(problems)
    if found:
        raise BadInput(found)


class StepFailed(RuntimeError):
    """A training step that stopped half-way: which action, on which layers, and what had been stepped already.

    Args:
        message: all that.
        action: the action that failed.
        record: on several ranks, the record of the first failure of all (:mod:`localprop.ranks.faults`).
    """

    def __init__(self, message: str, action: Any = None, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.action = action
        self.record = record


class RunFailed(RuntimeError):
    """A run that cannot go on, for instance because a loss is not finite."""
