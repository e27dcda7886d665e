"""The directory of a run: config.json, env.json, metrics.jsonl, last.pt, and summary.json once it has ended.

A run on several ranks that fails leaves failure.json, too.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import localprop
from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.ranks.launch import identity
from localprop.training import checkpoint
from localprop.training.config import Config
from localprop.training.trainer import EpochReport

_CONFIG, _ENV, _METRICS, _SUMMARY, _LAST = "config.json", "env.json", "metrics.jsonl", "summary.json", "last.pt"
_FAILURE = "failure.json"


class RunDir:
    """What a run leaves on the disk. Each file is complete at all times; summary.json is there only of a run that ended.

    Args:
        path: the directory; it need not exist before :meth:`start`.
        writes: whether this process writes; of several ranks only the first one does, but all call the same methods.

    Example:
        >>> run = RunDir("runs/first")
        >>> run.start(config)
        >>> run.keep(report, learner)
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(os.path.expanduser(path))
        self.writes = writes
        self.reports: list[EpochReport] = []

    def refuse_used(self, *, overwrite: bool = False) -> None:
        """Refuse a path that a new run cannot have; nothing is written or removed.

        Raises:
            BadInput: no directory, one with files (unless they are those of a run, to be overwritten), no permission.
        """
        if not self.writes:
            return
        try:
            used = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        except OSError as error:
            raise BadInput(f"{self.path} cannot be read ({error.strerror}): choose another directory.") from error
        if used and not (self.path / _CONFIG).is_file():
            raise BadInput(f"{self.path} exists and is not the directory of a run: choose a new or an empty one.")
        if used and not overwrite:
            raise BadInput(
                f"{self.path} holds a run already: choose another directory, or --resume, or --overwrite it."
            )

    def start(self, config: Config, recipe: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Make the directory for a new run, without the files of a run that was there.

        Args:
            config: of the run.
            recipe: of a run of a recipe its name and the fields that were replaced.

        Raises:
            BadInput: the directory cannot be made or written.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (_SUMMARY, _LAST, _METRICS, _ENV, _FAILURE, _CONFIG):
                (self.path / name).unlink(missing_ok=True)
            write_text(self.path / _CONFIG, json_text(asdict(config)))
        except (OSError, RunFailed) as error:
            raise BadInput(f"{self.path} cannot be written ({error}): choose another directory.") from error
        write_text(self.path / _ENV, json_text(environment() | {"launch": identity(), "recipe": {**recipe}}))
        self.reports = []

    def config(self) -> Config:
        """The config of the run that is there.

        Raises:
            BadInput: there is none, or config.json is damaged.
        """
        file = self.path / _CONFIG
        try:
            values = json.loads(file.read_text("utf-8"))
        except OSError as error:
            raise BadInput(f"{self.path} holds no run ({file.name}: {error.strerror}): check the path.") from error
        except ValueError as error:
            raise BadInput(f"{file} is damaged ({error}): start a new run.") from error
        known = [field.name for field in fields(Config)]
        if not isinstance(values, dict):
            raise BadInput(f"{file} is damaged (it is no object): start a new run.")
        check(f"{file} has {key!r}, which no config has: remove it." for key in values if key not in known)
        read: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return Config(**read)

    def recipe(self) -> dict[str, Any]:
        """What the run that is there was started with as `recipe`."""
        return dict(self._environment().get("recipe", {}))

    def resume(self, learner: Learner, others: Mapping[str, Learner] = MappingProxyType({})) -> int:
        """Bring a learner, and of a run in phases those of its other methods, to where the run stopped.

        Returns:
            The epochs done; 0 if the run had ended none.

        Raises:
            BadInput: last.pt or metrics.jsonl is damaged or of another learner.
        """
        done = checkpoint.load(self.path / _LAST, learner, others) if (self.path / _LAST).exists() else 0
        self.reports = [report for report in self._read_reports() if report.epoch <= done]
        return done

    def keep(self, report: EpochReport, learner: Learner, others: Mapping[str, Learner] = MappingProxyType({})) -> None:
        """Write the report of an epoch, then the learner's state: a report without a state is dropped by a resume.

        Raises:
            RunFailed: the disk refuses.
        """
        self.reports.append(report)
        if self.writes:
            write_text(self.path / _METRICS, "".join(json_text(asdict(each), indent=None) for each in self.reports))
        checkpoint.save(self.path / _LAST, learner, report.epoch, others)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, the sign that the run has ended.

        Raises:
            RunFailed: the disk refuses.
        """
        if self.writes:
            write_text(self.path / _SUMMARY, json_text(summary))
            (self.path / _FAILURE).unlink(missing_ok=True)  # of an attempt after which the ranks were started again

    def fail(self, record: Mapping[str, Any]) -> None:
        """Write failure.json, what one rank has recorded of the failure of a run on several.

        Raises:
            RunFailed: the disk refuses.
        """
        write_text(self.path / _FAILURE, json_text(record))

    def is_of_this_launch(self) -> bool:
        """Whether an earlier attempt of the same launch has started the run that is here."""
        return bool(self._environment().get("launch") == identity())

    def _environment(self) -> dict[str, Any]:
        """What env.json says; nothing if it is absent or damaged."""
        try:
            found = json.loads((self.path / _ENV).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read_reports(self) -> list[EpochReport]:
        file = self.path / _METRICS
        try:
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
            return [_report(json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(f"{file} is damaged ({error}): remove it, or start a new run.") from error


def environment() -> dict[str, Any]:
    """What a result depends on besides its config: versions, device, threads, commit and command line.

    Example:
        >>> environment()["localprop"]
        '0.1.0'
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "localprop": localprop.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "accelerator": torch.cuda.get_device_name() if accelerator and accelerator.type == "cuda" else str(accelerator),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "command": sys.argv,
    }


def _commit() -> str | None:
    """The commit of the package's own checkout, "+" if files differ from it; None for an installed package."""
    package = Path(localprop.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # the package may well lie inside somebody else's checkout, in a virtual environment
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}+" if commit and changes else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _report(values: dict[str, Any]) -> EpochReport:
    return EpochReport(**values | {"modules": tuple(values["modules"]), "losses": tuple(values["losses"])})


def json_text(value: Any, indent: int | None = 2) -> str:
    """A value as JSON with a final newline; a number that is not finite is refused.

    Example:
        >>> json_text({"a": 1}, indent=None)
        '{"a": 1}\\n'
    """
    return json.dumps(value, indent=indent, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file that is either complete or as it was before.

    Raises:
        RunFailed: the disk refuses.

    Example:
        >>> write_text(Path("summary.json"), json_text({"a": 1}))
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunFailed(f"{path} cannot be written ({error.strerror}): check the disk and its permissions.") from error
    finally:
        temporary.unlink(missing_ok=True)
