"""The exceptions of localprop: what a user can correct, and what stops a step or a run."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BadInput", "NotFinite", "RunFailed", "RunStopped", "StepFailed"]

_LONGEST = 80  # characters of a value in a message


def escape(text: str) -> str:
    r"""A text that a terminal shows and does not obey: what cannot be printed is escaped.

    Names of files and of classes, which messages repeat, may hold anything.

    Example:
        >>> print(escape("a\x1b[31m b"))
        a\x1b[31m b
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def show(value: object) -> str:
    """A value in a message: its repr, shortened, or what it is where that would be too long.

    Example:
        >>> show("a"), show(range), show(10**5000)
        ("'a'", 'range', 'a whole number of many digits')
    """
    if isinstance(value, type) or callable(value):
        return escape(getattr(value, "__qualname__", type(value).__qualname__))
    if not isinstance(value, str | bytes | int | float | complex | tuple | list | dict | None):
        return f"a {type(value).__name__}"
    try:
        return escape(_SHORT.repr(value))
    except ValueError:  # Python writes no more than 4300 digits
        return "a whole number of many digits"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _LONGEST


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
        listed = [problems] if isinstance(problems, str) else problems
        self.problems = tuple(map(escape, listed))
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
        super().__init__(escape(message))
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
    """A run cannot continue, for instance because a loss is not finite.

    Args:
        message: why.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


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
def as_bad_sizes(what: str) -> Iterator[None]:
    """Turn errors of PyTorch about sizes that are impossible, or beyond memory, into `BadInput`.

    Args:
        what: cannot be built.

    Raises:
        BadInput: instead of PyTorch's own error.

    Example:
        >>> with as_bad_sizes("This network"):
        ...     torch.empty(2**62)
        Traceback (most recent call last):
        localprop.errors.BadInput: This network cannot be built (...): choose smaller sizes.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        # A TypeError of torch's says that a number has more than 64 bits; others are mistakes.
        if isinstance(error, TypeError) and "verflow" not in str(error):
            raise
        raise BadInput(f"{what} cannot be built ({reason}): choose smaller sizes.") from error


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
