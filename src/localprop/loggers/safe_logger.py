"""A logger that cannot stop a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localprop.errors import BadInput, RunFailed
from localprop.user_code import describe_error

Record = dict[str, Any]
Logger = Callable[[Record], object]


class SafeLogger:
    """Calls a logger until it fails, tells the failure, and does without it.

    A run of hours does not end because a service or a disk of its log does. At the start nothing is
    lost yet, so there a failure ends the run.

    Args:
        logger: what to call.
        tell: called with one sentence after a failure.
        run: the name of the run, which each record gets; "" for none.

    Example:
        >>> safe = SafeLogger(lambda record: 1 / (2 - record["epoch"]), print)
        >>> for epoch in range(4):
        ...     safe({"kind": "epoch" if epoch else "start", "epoch": epoch})
        The logger <lambda> failed (ZeroDivisionError: ...): the run goes on without it.
    """

    def __init__(self, logger: Logger, tell: Callable[[str], object], run: str = "") -> None:
        self._logger, self._tell, self._run = logger, tell, run
        self._active = False  # from the start to a failure

    def of_run(self, run: str) -> SafeLogger:
        """The same logger for one of several runs."""
        return SafeLogger(self._logger, self._tell, run)

    def __call__(self, record: Record) -> None:
        """Pass a record on.

        Raises:
            BadInput: the logger refuses the start of a run.
            RunFailed: it fails there.
        """
        starts = record["kind"] == "start"
        if not starts and not self._active:
            return
        try:
            self._logger({**record, **({"run": self._run} if self._run else {})})
            self._active = True
        except Exception as error:  # code of the user's may raise anything
            if starts:
                self._end_run(error)
            self._active = False
            self._tell(f"{self._describe(error)}: the run goes on without it.")

    def _end_run(self, error: Exception) -> None:
        if isinstance(error, BadInput):
            raise error
        fix = "correct it, or leave it out of log"
        raise RunFailed(f"{self._describe(error)} before the first step: {fix}.") from error

    def _describe(self, error: Exception) -> str:
        name = getattr(self._logger, "__name__", None) or repr(self._logger)
        return f"The logger {name} failed ({describe_error(error)})"
