"""The directory of a comparison.

compare.json    the figures so far
greedy/seed-0   the run of greedy() with the seed 0, as `localprop train --out` keeps it; and so on

The file is written when the costs of a step are measured, and after each run. With it and the
runs, a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from localprop.cost.baselines import Timing
from localprop.errors import BadInput, check
from localprop.report.costs import BaselineCosts, MethodCosts
from localprop.training.changes import are_same
from localprop.training.config import MAY_DIFFER
from localprop.training.directory_lock import DirectoryLock
from localprop.writing.files import clear_leftovers, to_json, write_text

RESULT_FILE = "compare.json"
_MAX_NAME = 80  # characters of a folder's name; file systems take 255 bytes


class ComparisonDirectory:
    """The files of a comparison. One process writes at a time.

    Args:
        path: the directory. It need not exist before `claim`.
        overwrite: whether another comparison that is there is replaced.

    Attributes:
        path: the directory.

    Example:
        >>> directory = ComparisonDirectory("runs/compared")
        >>> directory.find_problems(["greedy()"])
        []
        >>> directory.folder_of("greedy()", 0).as_posix()
        'runs/compared/greedy/seed-0'
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(os.path.expanduser(path))
        self.overwrite = overwrite
        self._lock = DirectoryLock()
        self._saved: dict[str, Any] = {}  # what compare.json had when the comparison went on

    def folder_of(self, label: str, seed: int) -> Path:
        """The directory of a method's run with a seed."""
        return self.path / name_run(label, seed)

    def list_folders(self) -> list[Path]:
        """The directories of the runs that compare.json names, method by method."""
        saved = self._read()
        return [
            self.folder_of(label, seed)
            for label in saved.get("methods", ())
            for seed in saved["seeds"]
        ]

    def find_problems(self, labels: Iterable[str]) -> list[str]:
        """Find why the comparison of these methods cannot be kept here. Nothing is changed."""
        parents = (self.path, *self.path.absolute().parents)
        existing = next(parent for parent in parents if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            return [f"{existing} is not a writable directory: choose another --out."]
        problems = find_shared_names(labels)
        file = self.path / RESULT_FILE
        if file.exists() and not self.overwrite and not self._read():
            problems.append(
                f"{file} is there already, and no comparison that can go on: choose another --out, "
                "or add --overwrite."
            )
        return problems

    def claim(self, about: Mapping[str, Any]) -> None:
        """Make the directory, keep other processes out, and clear what killed ones have left.

        Args:
            about: the config, the methods by label, the seeds and the fingerprint of the data.

        Raises:
            BadInput: the directory cannot be made, or has another comparison.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{self.path} cannot be created ({error.strerror}): choose another --out."
            ) from error
        try:
            self._lock.take(self.path)
            clear_leftovers(self.path)
            if self.overwrite:
                self._remove()
        except OSError as error:
            raise BadInput(
                f"{self.path} cannot be changed ({error.strerror}): choose another --out."
            ) from error
        self._saved = self._read()
        plain = json.loads(to_json(about))  # JSON has no tuples
        check(self._find_changes(plain) if self._saved else [])

    def release(self) -> None:
        """Let other processes write into the directory."""
        self._lock.release()

    def read_costs(
        self, labels: Iterable[str]
    ) -> tuple[BaselineCosts, dict[str, MethodCosts]] | None:
        """The costs that were measured before; None if those of a method are missing."""
        saved = self._saved.get("costs", {})
        if not saved or not {*labels} <= saved.keys():
            return None
        baseline = BaselineCosts(**self._saved["baseline"])
        return baseline, {label: _read_method_costs(values) for label, values in saved.items()}

    def save(self, figures: Mapping[str, Any]) -> None:
        """Write compare.json.

        Raises:
            RunFailed: the file cannot be written.
        """
        write_text(self.path / RESULT_FILE, to_json(figures))

    def _read(self) -> dict[str, Any]:
        """Read compare.json; empty if there is none that a comparison can go on with."""
        try:
            values = json.loads((self.path / RESULT_FILE).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        needed = {"config", "methods", "seeds", "data", "costs", "baseline"}
        return values if isinstance(values, dict) and needed <= values.keys() else {}

    def _remove(self) -> None:
        """Remove the runs that compare.json names, and then itself."""
        old = self._read()
        for label in old.get("methods", ()):
            for seed in old["seeds"]:
                shutil.rmtree(self.folder_of(label, seed), ignore_errors=True)
            with suppress(OSError):  # other files are there
                (self.path / name_folder(label)).rmdir()
        (self.path / RESULT_FILE).unlink(missing_ok=True)

    def _find_changes(self, about: Mapping[str, Any]) -> Iterator[str]:
        """Find in what a comparison differs from the one that is here, one sentence each."""
        saved, fix = self._saved, "put it back, choose another --out, or add --overwrite."
        for name, value in about["config"].items():
            before = saved["config"].get(name)
            is_free = name in MAY_DIFFER or name == "method"
            if not is_free and not are_same(name, value, before):
                yield f"{name}={value!r}, but the comparison in {self.path} has {before!r}: {fix}"
        for label, before in saved["methods"].items():
            value = about["methods"].get(label)
            if value != before:
                found = "is missing" if value is None else f"is {value}"
                yield f"The method {label!r} {found}, but was {before} in {self.path}: {fix}"
        if missing := sorted({*saved["seeds"]} - {*about["seeds"]}):
            seeds = ", ".join(map(str, missing))
            yield f"The comparison in {self.path} also has the seeds {seeds}: {fix}"
        if about["data"] != saved["data"]:
            yield f"The data are not those of the comparison in {self.path}: {fix}"


def name_folder(label: str) -> str:
    """The name of the folder of a method's runs, which needs no quotes in a shell.

    Example:
        >>> name_folder("greedy(aux=Head(convs=0, linears=1))")
        'greedy-aux=head-convs=0-linears=1'
    """
    name = re.sub(r"[^a-z0-9=._]+", "-", label.lower()).strip("-.") or "method"
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}-{blake2b(label.encode(), digest_size=4).hexdigest()}"


def name_run(label: str, seed: int) -> str:
    """The name of a run, which is that of its folder in the directory of a comparison.

    Example:
        >>> name_run("greedy()", 0)
        'greedy/seed-0'
    """
    return f"{name_folder(label)}/seed-{seed}"


def find_shared_names(labels: Iterable[str]) -> list[str]:
    """Find methods whose runs would have the same names.

    Example:
        >>> find_shared_names(["greedy()", "Greedy"])
        ["2 methods would share the folder greedy: give them other labels, as in 'mine: greedy()'."]
    """
    return [
        f"{count} methods would share the folder {name}: give them other labels, as in "
        "'mine: greedy()'."
        for name, count in Counter(map(name_folder, labels)).items()
        if count > 1
    ]


def _read_method_costs(values: Mapping[str, Any]) -> MethodCosts:
    return MethodCosts(**{**values, "timing": Timing(**values["timing"])})
