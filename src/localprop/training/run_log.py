"""What loggers are told of a run: its start, its epochs and its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from localprop.errors import RunStopped
from localprop.loggers.safe_logger import Logger, Record
from localprop.training.config import Config
from localprop.training.trainer import EpochReport

# Figures of a summary that stand in the last record under the same name.
_OF_THE_END = (
    "test_accuracy",
    "test_loss",
    "validation_accuracy",
    "validation_loss",
    "seconds",
    "peak_memory_bytes",
)


class RunLog:
    """Makes records of a run, as `localprop.loggers` describes them.

    Args:
        loggers: what is called with each record. Each gets one of its own.

    Example:
        >>> log = RunLog([lambda record: print(record["step"], record["loss/0"])])
        >>> log.count_step(1, 20, 20)
        >>> log.log_epoch(report)
        20 1.0
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers
        self._steps = 0

    @contextmanager
    def follow(self, config: Config, done: int) -> Iterator[None]:
        """Log the start of a run, and its end if it fails or is stopped.

        Args:
            config: the config of the run.
            done: the epochs done before.

        Raises:
            BadInput: a logger refuses the start.
            RunFailed: a logger fails at the start.
        """
        try:
            self._log("start", {"epoch": done, "epochs": config.epochs, "config": config.as_json()})
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | RunStopped)
            outcome = "stopped" if stopped else "failed"
            self._log("end", {"outcome": outcome, "error": str(error) or type(error).__name__})
            raise

    def count_step(self, epoch: int, step: int, steps: int) -> None:
        """Note how many steps an epoch has; for `on_step` of a run."""
        self._steps = steps

    def log_epoch(self, report: EpochReport) -> None:
        """Log an epoch."""
        figures = {
            "epoch": report.epoch,
            "step": report.epoch * self._steps,
            "lr": report.lr,
            **_name_each("loss", report.modules, report.losses),
            "validation_accuracy": report.validation_accuracy,
            "validation_loss": report.validation_loss,
            **_name_each("exit_accuracy", report.exits, report.exit_accuracies),
            **_name_each("exit_loss", report.exits, report.exit_losses),
            "seconds": report.seconds,
            "peak_memory_bytes": report.peak_memory_bytes,
            "skipped": report.skipped,
        }
        self._log("epoch", figures)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Log the end of a run that has finished."""
        # MLflow keeps figures in files, so that none may be named as the folder of others.
        exits = {
            f"exit_{name}/{each['module']}": each[name]
            for name in ("test_accuracy", "test_loss")
            for each in summary["modules"]
        }
        figures = {name: summary[name] for name in _OF_THE_END}
        self._log("end", {"outcome": "finished", **figures, **exits})

    def _log(self, kind: str, figures: Record) -> None:
        known = {name: value for name, value in figures.items() if value is not None}
        for logger in self._loggers:
            logger({"kind": kind, **known})


def _name_each(name: str, modules: Sequence[int], values: Sequence[Any]) -> Record:
    return {f"{name}/{module}": value for module, value in zip(modules, values, strict=True)}
