"""Loggers as the user names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localprop.errors import BadInput, check, collect_problems, show
from localprop.loggers.csv_file import CsvFile
from localprop.loggers.safe_logger import Logger, SafeLogger
from localprop.loggers.tensorboard import TensorBoard

# What `log` may be: functions of a record, and texts such as "csv:log.csv".
Log = Logger | str | Sequence[Logger | str]

# The loggers in the box, by the word before the colon.
_KINDS: Mapping[str, Callable[[str | Path], Logger]] = {"csv": CsvFile, "tensorboard": TensorBoard}


def make_loggers(log: Log, tell: Callable[[str], object]) -> list[SafeLogger]:
    """Make the loggers of a run.

    Args:
        log: a function of a record, a text "csv:FILE" or "tensorboard:FOLDER", or several of them.
        tell: called with one sentence when a logger fails.

    Raises:
        BadInput: all problems of the texts, files and folders.

    Example:
        >>> make_loggers(["csv:log.csv", "excel:log.xls"], print)
        Traceback (most recent call last):
        localprop.errors.BadInput: log='excel:log.xls': write csv:FILE or tensorboard:FOLDER.
    """
    problems: list[str] = []
    loggers: list[SafeLogger] = []
    several = [log] if isinstance(log, str) or callable(log) else [*log]
    for number, each in enumerate(several):
        if isinstance(each, SafeLogger):
            loggers.append(each)
        elif isinstance(each, str) and each in several[:number]:
            problems.append(f"log={show(each)} is given twice: leave one out.")
        else:
            with collect_problems(problems):
                loggers.append(SafeLogger(_read(each) if isinstance(each, str) else each, tell))
    check(problems)
    return loggers


def _read(text: str) -> Logger:
    kind, _, place = text.partition(":")
    if kind not in _KINDS or not place:
        raise BadInput(f"log={show(text)}: write csv:FILE or tensorboard:FOLDER.")
    return _KINDS[kind](place)
