"""The exceptions of localprop: what a user can correct, and what stops a step or a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BadInput", "NotFinite", "RunFailed", "RunStopped", "StepFailed"]


class BadInput(ValueError):
    """Input that localprop cannot use. Lists every problem with the values seen and the fix.

    Args:
        problems: complete sentences, one per problem.

    Attributes:
        problems: the sentences.
        record: on several ranks, the record of a problem that only one rank found
            (`localprop.ranks.faults`); otherwise None.

    Example:
        >>> str(BadInput(["modules=20, but the model has 16 layers: choose 16 or fewer."]))
        'modules=20, but the model has 16 layers: choose 16 or fewer.'
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.record: dict[str, Any] | None = None
        self.problems = tuple([problems] if isinstance(problems, str) else problems)
        super().__init__("\n".join(self.problems))


def check(problems: Iterable[str]) -> None:
    """Raise `BadInput` if there are any problems."""
    found = tuple(problems)
    if found:
        raise BadInput(found)


class StepFailed(RuntimeError):
    """A training step stopped. All is as before it, unless `atomic=False` or on several ranks.

    Args:
        message: which action failed, on which layers, and what had been updated before.
        action: the action that failed.
        record: on several ranks, the record of the first failure of any rank
            (`localprop.ranks.faults`).
    """

    def __init__(
        self, message: str, action: Any = None, record: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.action = action
        self.record = record


class NotFinite(StepFailed):
    """A loss or a gradient of a step is NaN or infinite.

    Args:
        message: which, where, and what would help.
        action: the first action that has made such a number.
        finding: which and where, as a part of a sentence.
        losses: those of the step, `localprop.engine.loss.Losses`.
    """

    def __init__(
        self, message: str, action: Any = None, finding: str = "", losses: Any = ()
    ) -> None:
        super().__init__(message, action)
        self.finding, self.losses = finding, losses


class RunFailed(RuntimeError):
    """A run cannot continue, for instance because a loss is not finite."""


class RunStopped(Exception):
    """A run has saved its state and ended, because its process was asked to end.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@contextmanager
def collect_problems(problems: list[str]) -> Iterator[None]:
    """Catch `BadInput`, append its problems to a list, and continue after the block.

    Example:
        >>> problems = []
        >>> with collect_problems(problems):
        ...     raise BadInput("one")
        >>> problems
        ['one']
    """
    try:
        yield
    except BadInput as error:
        problems += error.problems


@contextmanager
def as_run_failure() -> Iterator[None]:
    """Turn PyTorch errors such as out-of-memory into a `RunFailed` with a one-line message.

    Raises:
        RunFailed: instead of PyTorch's own error.

    Example:
        >>> with as_run_failure():
        ...     raise MemoryError("CUDA out of memory.")
        Traceback (most recent call last):
        localprop.errors.RunFailed: CUDA out of memory. (a smaller model or batch may fit)
    """
    try:
        yield
    except (StepFailed, RunFailed):  # RuntimeErrors too, but already in our words
        raise
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFailed(f"{reason[0]} (a smaller model or batch may fit)") from error
