"""The directory of a run.

config.json             the config
env.json                versions, device, commit, command line and a hash of the data
metrics.jsonl           a line for each epoch
epoch-00007.safetensors the checkpoint after 7 epochs, one of the newest (`Checkpoints`)
best.safetensors        the checkpoint with the highest validation accuracy
summary.json            the results; only a run that has ended has it
failure.json            the record of the failure; only a failed run on several ranks has it

A checkpoint holds the config and the reports of all epochs, too. The other files are for readers: a
run goes on without them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.ranks.launch import get_launch_id
from localprop.training.changes import describe_other_torch, find_changes
from localprop.training.checkpoint import NO_LEARNERS, collect_content
from localprop.training.checkpoints import Checkpoints
from localprop.training.config import Config
from localprop.training.directory_lock import DirectoryLock
from localprop.training.environment import describe_environment
from localprop.training.loss_meter import PartialEpoch
from localprop.training.trainer import EpochReport
from localprop.writing.files import clear_leftovers, is_leftover, to_json, write_text

CONFIG_FILE = "config.json"
ENV_FILE = "env.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
_FAILURE = "failure.json"

NOTHING: Mapping[str, Any] = MappingProxyType({})


class RunDirectory:
    """The files of a run. Each file is complete at all times, and one process writes at a time.

    Args:
        path: the directory. It need not exist before `start`.
        writes: whether this process writes. On several ranks only rank 0 does, but all ranks call
            the same methods.
        keep: how many of the newest checkpoints to keep.

    Attributes:
        path: the directory.
        reports: the reports of the epochs done.
        partial: what the next epoch has come to; None if it has not begun.
        notes: what was found damaged or missing, and done without, one sentence each.

    Example:
        >>> run = RunDirectory("runs/first")
        >>> run.start(config)
        >>> run.save_epoch(report, learner)
    """

    def __init__(self, path: str | Path, *, writes: bool = True, keep: int = 2) -> None:
        self.path = Path(os.path.expanduser(path))
        self.writes = writes
        self.reports: list[EpochReport] = []
        self.partial: PartialEpoch | None = None
        self.notes: list[str] = []
        self._restored: tuple[int, int] | None = None  # epochs, and steps of the next one
        self._checkpoints = Checkpoints(self.path, keep)
        self._lock = DirectoryLock()
        self._about: dict[str, Any] = {}  # the config and the rest that checkpoints repeat

    # --- one process at a time --------------------------------------------------------------------

    def lock(self) -> None:
        """Keep other processes from writing into the directory, if there is one already.

        Raises:
            BadInput: another process writes into it.
        """
        if self.writes and self.path.is_dir():
            self._lock.take(self.path)

    def release(self) -> None:
        """Let other processes write into the directory."""
        self._lock.release()

    # --- a new run --------------------------------------------------------------------------------

    def refuse_used(self, *, overwrite: bool = False) -> None:
        """Refuse a path that a new run cannot have. Nothing is written or removed.

        What a run leaves that was killed while it made the directory does not count.

        Args:
            overwrite: accept the directory of another run.

        Raises:
            BadInput: the path is no directory, is not readable, or has files. With `overwrite`,
                files of a run are accepted.
        """
        if not self.writes:
            return
        try:
            used = self.path.exists() and (not self.path.is_dir() or any(self._list_used()))
        except OSError as error:
            raise BadInput(
                f"{self.path} cannot be read ({error.strerror}): choose another directory."
            ) from error
        if used and not (self.path / CONFIG_FILE).is_file() and not self.has_checkpoint():
            raise BadInput(
                f"{self.path} exists and is not the directory of a run: choose an empty one."
            )
        if used and not overwrite:
            raise BadInput(
                f"{self.path} holds a run already: choose another directory, or --resume, or "
                "--overwrite it."
            )

    def _list_used(self) -> Iterator[str]:
        """The files that a new run would have to respect."""
        begun = "localprop" in self._read_environment()
        for entry in self.path.iterdir():
            if not is_leftover(entry.name) and not (entry.name == ENV_FILE and begun):
                yield entry.name

    def start(
        self,
        config: Config,
        recipe: Mapping[str, Any] = NOTHING,
        data: Mapping[str, Any] = NOTHING,
        *,
        overwrite: bool = False,
    ) -> None:
        """Make the directory of a new run, and remove the files of a run that was there.

        Whenever this is interrupted, the directory is one that `refuse_used` accepts as before.

        Args:
            config: the config of the run.
            recipe: for a run of a recipe, its name and the fields that were replaced.
            data: the fingerprint of the data set.
            overwrite: accept the directory of another run.

        Raises:
            BadInput: the directory cannot be made or written, or another process has begun a run
                in it.
        """
        self.reports, self.partial = [], None
        self._about = {"config": config.as_json(), "recipe": {**recipe}, "data": {**data}}
        if not self.writes:
            return
        text = to_json(config.as_json())
        about = {"recipe": {**recipe}, "data": {**data}, "config": _hash(text)}
        environment = describe_environment() | {"launch": get_launch_id(), **about}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            self.refuse_used(overwrite=overwrite)
            clear_leftovers(self.path)
            side_files = [self.path / name for name in (SUMMARY_FILE, METRICS_FILE, _FAILURE)]
            for path in (*self._checkpoints.list_all(), *side_files):
                path.unlink(missing_ok=True)
            write_text(self.path / ENV_FILE, to_json(environment))
            # The last, and never removed: it marks the directory as that of a run.
            write_text(self.path / CONFIG_FILE, text)
        except (OSError, RunFailed) as error:
            raise BadInput(
                f"{self.path} cannot be written ({error}): choose another directory."
            ) from error

    # --- a run to resume --------------------------------------------------------------------------

    def read_config(self) -> Config:
        """Read the config of the run in the directory: config.json, or without it a checkpoint's.

        Raises:
            BadInput: there is no run, or config.json is damaged.
        """
        file = self.path / CONFIG_FILE
        try:
            values = json.loads(file.read_text("utf-8"))
        except OSError as error:
            saved = self._read_checkpoint().get("config")
            if saved is None:
                raise BadInput(
                    f"{self.path} holds no run ({file.name}: {error.strerror}): check the path, or "
                    "start the run again."
                ) from error
            self.notes.append(f"{file} cannot be read ({error.strerror}): the checkpoint has it.")
            return Config(**saved)
        except (ValueError, RecursionError) as error:
            raise self._describe_damage(f"{error}") from error
        if not isinstance(values, dict):
            raise self._describe_damage("it is no object")
        known = [field.name for field in fields(Config)]
        unknown = [key for key in values if key not in known]
        check(f"{file} has {key!r}, which no config has: remove it." for key in unknown)
        return Config(**values)

    def _describe_damage(self, reason: str) -> BadInput:
        file = self.path / CONFIG_FILE
        fix = "remove it, since the checkpoints have the config, too, and --resume"
        if not self.has_checkpoint():
            fix = "start a new run"
        return BadInput(f"{file} is damaged ({reason}): {fix}.")

    def read_recipe(self) -> dict[str, Any]:
        """Read what `start` got as `recipe` when the run began."""
        saved = self._read_checkpoint().get("recipe")
        if saved is not None:
            return dict(saved)
        environment = self._read_environment()
        recipe = environment.get("recipe")
        try:
            of_this_run = environment.get("config") == _hash((self.path / CONFIG_FILE).read_text())
        except (OSError, ValueError):
            of_this_run = False
        return recipe if of_this_run and isinstance(recipe, dict) else {}

    def _read_checkpoint(self) -> dict[str, Any]:
        """What the newest checkpoint says of the run; an empty dictionary without any."""
        file = self._checkpoints.find()
        return {} if file is None else dict(file.about["run"])

    def is_of_this_launch(self) -> bool:
        """Whether an earlier attempt of this torchrun launch has started the run."""
        is_run = (self.path / CONFIG_FILE).is_file()
        return is_run and self._read_environment().get("launch") == get_launch_id()

    def has_checkpoint(self) -> bool:
        """Whether the run has saved its state."""
        return bool(self._checkpoints.list_all())

    @property
    def skipped(self) -> list[str]:
        """Why newer checkpoints than that of `restore` could not be taken, one sentence each."""
        return self._checkpoints.skipped

    def restore(self, learner: Learner, others: Mapping[str, Learner] = NO_LEARNERS) -> int:
        """Restore a learner, and in a run in phases the other methods' learners.

        The newest good checkpoint counts. Why newer ones were skipped stands in `notes`.

        Returns:
            The number of epochs done; 0 without a checkpoint.

        Raises:
            BadInput: no checkpoint is good, or the newest good one is of another learner.
        """
        content = self._checkpoints.restore(learner, others)
        if content is None:
            return 0
        self.notes += [f"Skipped: {each}" for each in self._checkpoints.skipped]
        run = content["run"]
        self.reports = [EpochReport(**report) for report in run["reports"]]
        self.partial = None if run["partial"] is None else PartialEpoch(**run["partial"])
        self._restored = self._find_place(content["epoch"])
        return self._restored[0]

    def refuse_changed(self, config: Config, data: Mapping[str, Any]) -> None:
        """Refuse to resume with another config or other data than those of the checkpoint.

        Args:
            config: the config to go on with. Fields in `MAY_DIFFER` may have changed.
            data: the fingerprint of the data set to go on with.

        Raises:
            BadInput: names what has changed.
        """
        self._about = {"config": config.as_json(), "recipe": self.read_recipe(), "data": {**data}}
        file = self._checkpoints.find()
        if file is None:
            return
        check(find_changes(file, self._about["config"], data))
        self.notes += describe_other_torch(file)

    def repair(self) -> None:
        """Do what a kill has left undone, and write damaged files anew. Says so in `notes`.

        Raises:
            RunFailed: a file cannot be written.
        """
        if not self.writes:
            return
        with suppress(OSError):  # whatever is wrong with the directory stops the first save
            clear_leftovers(self.path)
            if self._restored is not None:
                self._checkpoints.settle(self._restored, is_best=self._is_best())
        if not (self.path / CONFIG_FILE).is_file():
            write_text(self.path / CONFIG_FILE, to_json(self._about["config"]))
        if not self._read_environment():
            self.notes.append(f"{self.path / ENV_FILE} is missing or damaged: it is written anew.")
            about = {name: self._about[name] for name in ("recipe", "data")}
            write_text(self.path / ENV_FILE, to_json(describe_environment() | about))
        expected, file = self._format_reports(), self.path / METRICS_FILE
        try:
            whole = file.read_text("utf-8").startswith(expected)
        except (OSError, ValueError):
            whole = not expected
        if not whole:
            self.notes.append(f"{file} is missing or damaged: it is written anew.")
            write_text(file, expected)

    # --- a run in progress ------------------------------------------------------------------------

    def save_epoch(
        self,
        report: EpochReport,
        learner: Learner,
        others: Mapping[str, Learner] = NO_LEARNERS,
    ) -> None:
        """Write the report of an epoch, then the checkpoint.

        Raises:
            RunFailed: a file cannot be written.
        """
        self.reports.append(report)
        self.partial = None
        if self.writes:
            write_text(self.path / METRICS_FILE, self._format_reports())
        self._save(learner, others, report.epoch)

    def save_partial(
        self,
        epochs: int,
        partial: PartialEpoch | None,
        learner: Learner,
        others: Mapping[str, Learner] = NO_LEARNERS,
    ) -> None:
        """Write a checkpoint between two steps. At the end of an epoch there is one already.

        Raises:
            RunFailed: the file cannot be written.
        """
        self.partial = partial
        if partial is not None:
            self._save(learner, others, epochs)

    def _save(self, learner: Learner, others: Mapping[str, Learner], epochs: int) -> None:
        content = collect_content(learner, epochs, others)
        if content is None or not self.writes:
            return
        partial = None if self.partial is None else asdict(self.partial)
        reports = [asdict(each) for each in self.reports]
        content["run"] = {**self._about, "reports": reports, "partial": partial}
        self._checkpoints.save(content, self._find_place(epochs), is_best=self._is_best())

    def _find_place(self, epochs: int) -> tuple[int, int]:
        return epochs, 0 if self.partial is None else self.partial.step

    def _is_best(self) -> bool:
        """Whether an epoch has just ended with a higher accuracy than all before."""
        *before, last = [None, *(each.validation_accuracy for each in self.reports)]
        is_higher = last is not None and all(each is None or each < last for each in before)
        return is_higher and self.partial is None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as ended.

        Raises:
            RunFailed: the file cannot be written.
        """
        if self.writes:
            write_text(self.path / SUMMARY_FILE, to_json(summary))
            # An earlier attempt, after which torchrun has restarted the ranks, may have left one.
            (self.path / _FAILURE).unlink(missing_ok=True)

    def write_failure(self, record: Mapping[str, Any]) -> None:
        """Write failure.json, the record that one rank has made of the failure of all.

        Raises:
            RunFailed: the file cannot be written.
        """
        write_text(self.path / _FAILURE, to_json(record))

    # --- files ------------------------------------------------------------------------------------

    def _format_reports(self) -> str:
        return "".join(to_json(asdict(each), indent=None) for each in self.reports)

    def _read_environment(self) -> dict[str, Any]:
        """Read env.json; an empty dictionary if it is absent or damaged."""
        try:
            values = json.loads((self.path / ENV_FILE).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
