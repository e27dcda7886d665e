"""A run whose directory may hold a part of it already, or all."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from localprop.data import Dataset
from localprop.errors import check
from localprop.loggers.read import Log
from localprop.training.changes import are_same
from localprop.training.config import MAY_DIFFER, Config
from localprop.training.run import ShowProgress, hide_progress, run
from localprop.training.run_directory import CONFIG_FILE, SUMMARY_FILE, RunDirectory


def finish_run(
    config: Config,
    dataset: Dataset,
    folder: Path | None,
    show_progress: ShowProgress = hide_progress,
    log: Log = (),
) -> dict[str, Any]:
    """Train a run, go on with one that was stopped, or read the summary of one that has ended.

    Args:
        config: the run.
        dataset: its data set.
        folder: the directory of the run, or None.
        show_progress: shows epochs and steps. Not called for a run that has ended.
        log: loggers. Not called for a run that has ended, either.

    Returns:
        The summary of `run`.

    Raises:
        BadInput: the directory has another run; and as `run`.
        RunFailed, RunStopped, StepFailed: as `run`.

    Example:
        >>> folder = Path("runs/first")
        >>> summary = finish_run(config, load(config.data), folder)
        >>> finish_run(config, load(config.data), folder) == json.loads(json.dumps(summary))
        True
    """
    # Fields that are None are chosen by the run: modules, and epochs of warm-up.
    values = {field.name: getattr(config, field.name) for field in fields(Config)}
    given = {name: value for name, value in values.items() if value is not None}
    if folder is not None and (summary := read_summary(folder)):
        check(
            f"{name}={value!r}, but the run in {folder} has {summary['config'].get(name)!r}: "
            "choose another directory."
            for name, value in given.items()
            if name not in MAY_DIFFER and not are_same(name, value, summary["config"].get(name))
        )
        return summary
    return run(
        given,
        out=None if folder is None else str(folder),
        resume=folder is not None and _is_begun(folder),
        overwrite=False,
        keep=1,
        log=log,
        show_progress=show_progress,
        load_dataset=lambda config: dataset,
    )


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary of a run that has ended; None if it has not, or the file is damaged.

    Example:
        >>> read_summary(Path("runs/nothing"))
    """
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return summary if isinstance(summary, dict) and "config" in summary else None


def _is_begun(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or RunDirectory(folder, writes=False).has_checkpoint()
