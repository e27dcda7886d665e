"""The directory of a run.

config.json     the config
env.json        versions, device, commit and command line
metrics.jsonl   a line for each epoch
last.pt         the checkpoint after the last epoch
summary.json    the results; only a run that has ended has it
failure.json    the record of the failure; only a failed run on several ranks has it
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.ranks.launch import get_launch_id
from localprop.training import checkpoint
from localprop.training.config import Config
from localprop.training.environment import describe_environment
from localprop.training.trainer import EpochReport
from localprop.writing.files import to_json, write_text

_CONFIG = "config.json"
_ENV = "env.json"
_METRICS = "metrics.jsonl"
_LAST = "last.pt"
_SUMMARY = "summary.json"
_FAILURE = "failure.json"


class RunDirectory:
    """The files of a run. Each file is complete at all times.

    Args:
        path: the directory. It need not exist before `start`.
        writes: whether this process writes. On several ranks only rank 0 does, but all ranks call
            the same methods.

    Attributes:
        path: the directory.
        reports: the reports of the epochs done.

    Example:
        >>> run = RunDirectory("runs/first")
        >>> run.start(config)
        >>> run.save_epoch(report, learner)
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(os.path.expanduser(path))
        self.writes = writes
        self.reports: list[EpochReport] = []

    # --- a new run --------------------------------------------------------------------------------

    def refuse_used(self, *, overwrite: bool = False) -> None:
        """Refuse a path that a new run cannot have. Nothing is written or removed.

        Args:
            overwrite: accept the directory of another run.

        Raises:
            BadInput: the path is no directory, is not readable, or has files. With `overwrite`,
                files of a run are accepted.
        """
        if not self.writes:
            return
        try:
            used = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        except OSError as error:
            raise BadInput(
                f"{self.path} cannot be read ({error.strerror}): choose another directory."
            ) from error
        if used and not (self.path / _CONFIG).is_file():
            raise BadInput(
                f"{self.path} exists and is not the directory of a run: choose a new or an empty "
                "one."
            )
        if used and not overwrite:
            raise BadInput(
                f"{self.path} holds a run already: choose another directory, or --resume, or "
                "--overwrite it."
            )

    def start(self, config: Config, recipe: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Make the directory of a new run, and remove the files of a run that was there.

        Args:
            config: the config of the run.
            recipe: for a run of a recipe, its name and the fields that were replaced.

        Raises:
            BadInput: the directory cannot be made or written.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # config.json goes last: it marks the directory as one that may be overwritten.
            for name in (_SUMMARY, _LAST, _METRICS, _ENV, _FAILURE, _CONFIG):
                (self.path / name).unlink(missing_ok=True)
            write_text(self.path / _CONFIG, to_json(config.as_json()))
        except (OSError, RunFailed) as error:
            raise BadInput(
                f"{self.path} cannot be written ({error}): choose another directory."
            ) from error
        environment = describe_environment()
        environment |= {"launch": get_launch_id(), "recipe": {**recipe}}
        write_text(self.path / _ENV, to_json(environment))
        self.reports = []

    # --- a run to resume --------------------------------------------------------------------------

    def read_config(self) -> Config:
        """Read the config of the run in the directory.

        Raises:
            BadInput: there is no run, or config.json is damaged.
        """
        file = self.path / _CONFIG
        try:
            values = json.loads(file.read_text("utf-8"))
        except OSError as error:
            raise BadInput(
                f"{self.path} holds no run ({file.name}: {error.strerror}): check the path."
            ) from error
        except ValueError as error:
            raise BadInput(f"{file} is damaged ({error}): start a new run.") from error
        if not isinstance(values, dict):
            raise BadInput(f"{file} is damaged (it is no object): start a new run.")
        known = [field.name for field in fields(Config)]
        unknown = [key for key in values if key not in known]
        check(f"{file} has {key!r}, which no config has: remove it." for key in unknown)
        return Config(**values)

    def read_recipe(self) -> dict[str, Any]:
        """Read what `start` got as `recipe` when the run began."""
        return dict(self._read_environment().get("recipe", {}))

    def is_of_this_launch(self) -> bool:
        """Whether an earlier attempt of this torchrun launch has started the run."""
        return bool(self._read_environment().get("launch") == get_launch_id())

    def has_checkpoint(self) -> bool:
        """Whether the run has finished an epoch."""
        return (self.path / _LAST).exists()

    def restore(
        self, learner: Learner, others: Mapping[str, Learner] = MappingProxyType({})
    ) -> int:
        """Restore a learner, and in a run in phases the other methods' learners.

        A report whose epoch has no checkpoint is dropped.

        Returns:
            The number of epochs done; 0 without a checkpoint.

        Raises:
            BadInput: last.pt or metrics.jsonl is damaged, or last.pt is of another learner.
        """
        last, done = self.path / _LAST, 0
        if last.exists():
            done = checkpoint.load(last, learner, others)
        self.reports = [report for report in self._read_reports() if report.epoch <= done]
        return done

    # --- a run in progress ------------------------------------------------------------------------

    def save_epoch(
        self,
        report: EpochReport,
        learner: Learner,
        others: Mapping[str, Learner] = MappingProxyType({}),
    ) -> None:
        """Write the report of an epoch, then the checkpoint.

        The order matters: `restore` drops a report without its checkpoint, but could not make up
        for a checkpoint without its report.

        Raises:
            RunFailed: a file cannot be written.
        """
        self.reports.append(report)
        if self.writes:
            lines = [to_json(asdict(each), indent=None) for each in self.reports]
            write_text(self.path / _METRICS, "".join(lines))
        checkpoint.save(self.path / _LAST, learner, report.epoch, others)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as ended.

        Raises:
            RunFailed: the file cannot be written.
        """
        if self.writes:
            write_text(self.path / _SUMMARY, to_json(summary))
            # An earlier attempt, after which torchrun has restarted the ranks, may have left one.
            (self.path / _FAILURE).unlink(missing_ok=True)

    def write_failure(self, record: Mapping[str, Any]) -> None:
        """Write failure.json, the record that one rank has made of the failure of all.

        Raises:
            RunFailed: the file cannot be written.
        """
        write_text(self.path / _FAILURE, to_json(record))

    # --- files ------------------------------------------------------------------------------------

    def _read_environment(self) -> dict[str, Any]:
        """Read env.json; an empty dictionary if it is absent or damaged."""
        try:
            values = json.loads((self.path / _ENV).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _read_reports(self) -> list[EpochReport]:
        file = self.path / _METRICS
        try:
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
            return [_parse_report(line) for line in lines]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(
                f"{file} is damaged ({error}): remove it, or start a new run."
            ) from error


def _parse_report(line: str) -> EpochReport:
    values = json.loads(line)
    tuples = {name: tuple(values[name]) for name in ("modules", "losses")}
    return EpochReport(**values | tuples)
