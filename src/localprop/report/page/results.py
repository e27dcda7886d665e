"""What comparisons and runs have left in their directories, as a page shows it."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localprop.data import is_text
from localprop.errors import BadInput, check, collect_problems
from localprop.report.comparison import Comparison, ComparisonRow
from localprop.report.comparison_directory import RESULT_FILE, ComparisonDirectory
from localprop.report.method_spec import MethodSpec
from localprop.report.paired import Difference
from localprop.report.run_analysis import read_analysis
from localprop.training.config import Config
from localprop.training.run_directory import (
    CONFIG_FILE,
    ENV_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    RunDirectory,
)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Attributes:
        path: its directory.
        config: its config.
        environment: versions, device and commit; empty where the file is missing.
        epochs: the reports of the epochs done.
        summary: None if the run has not ended.
        analysis: what `localprop analyse` has found; None if it has not looked at this run.
    """

    path: Path
    config: Config
    environment: Json
    epochs: Sequence[Json]
    summary: Json | None
    analysis: Json | None = None


@dataclass(frozen=True)
class Method:
    """The figures of a method. Those that are unknown are None.

    Attributes:
        label: its name.
        letter: what stands for it in charts.
        config: of its runs, but for their seeds.
        runs: that are on disk, one for each seed.
        quality: test accuracy in percent, or bits per byte of text: the mean over seeds.
        quality_std: its standard deviation over seeds.
        seeds: the number of runs that ended.
        peak_bytes: of a training step.
        peak_ratio: its ratio to that of the plain PyTorch loop.
        time: of a step as a ratio to the plain loop's; of single runs seconds per epoch.
        row: the figures of a comparison, with all others.
        gap: from the first method.
    """

    label: str
    letter: str
    config: Config
    runs: tuple[Run, ...]
    quality: float | None
    quality_std: float | None
    seeds: int
    peak_bytes: int | None
    peak_ratio: float | None
    time: float | None
    row: ComparisonRow | None = None
    gap: Difference | None = None


@dataclass(frozen=True)
class Group:
    """Methods that share a network and data: a comparison, or runs of `train`.

    Attributes:
        name: the directory.
        methods: in their order; the first is the baseline.
        comparison: None for runs of `train`.
        environment: of the comparison, or of the first run.
        data: the fingerprint of the data; empty where the files are older than it.
        notes: of the comparison.
    """

    name: str
    methods: tuple[Method, ...]
    comparison: Comparison | None
    environment: Json
    data: Json
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        """What the runs share."""
        return self.methods[0].config

    @property
    def is_of_text(self) -> bool:
        """Whether bits per byte count, of which fewer are better."""
        return is_text(self.config.data)


def read_groups(paths: Iterable[str | Path]) -> list[Group]:
    """Read the results in directories of `compare --out` and `train --out`.

    Args:
        paths: such directories, or files of `compare --json`.

    Raises:
        BadInput: there is no result, or a file is damaged; all of them.
    """
    problems: list[str] = []
    groups: list[Group] = []
    runs: dict[tuple[str, str], list[Run]] = {}
    for path in dict.fromkeys(Path(os.path.expanduser(path)) for path in paths):
        file = path if path.is_file() else path / RESULT_FILE
        with collect_problems(problems):
            if file.is_file():
                groups.append(_read_comparison(file))
            else:
                run = _read_run(path)
                runs.setdefault((run.config.model, run.config.data), []).append(run)
    if not problems and not groups and not runs:
        problems.append("No result is named: give the directory of a comparison or of a run.")
    check(problems)
    return [*groups, *(_group_runs(each) for each in runs.values())]


# --- comparisons ----------------------------------------------------------------------------------


def _read_comparison(file: Path) -> Group:
    values = _read_json(file)
    if not {"rows", "config", "baseline", "seeds"} <= values.keys() or not values["rows"]:
        raise BadInput(f"{file} has no finished run of a comparison: run localprop compare first.")
    comparison = Comparison.from_json(values)
    expressions = values.get("methods", {})
    directory = ComparisonDirectory(file.parent)
    gaps = comparison.find_gaps()
    methods = []
    for number, row in enumerate(comparison.rows):
        spec = MethodSpec.parse(expressions.get(row.method, row.method))
        config = replace(comparison.config, method=spec.method, **spec.options)
        folders = [directory.folder_of(row.method, seed) for seed in comparison.seeds]
        runs = [_read_run(folder) for folder in folders if (folder / CONFIG_FILE).is_file()]
        mean, std = row.accuracy_mean, row.accuracy_std
        if comparison.is_of_text:
            mean, std = (
                None if each is None else each / math.log(2)
                for each in (row.loss_mean, row.loss_std)
            )
        methods.append(
            Method(
                label=row.method,
                letter=_letter(number),
                config=config,
                runs=tuple(runs),
                quality=mean,
                quality_std=std,
                seeds=sum(each is not None for each in row.accuracies),
                peak_bytes=row.peak_bytes,
                peak_ratio=row.peak_ratio,
                time=row.step_ratio,
                row=row,
                gap=gaps[number],
            )
        )
    return Group(
        name=file.parent.name if file.name == RESULT_FILE else file.stem,
        methods=tuple(methods),
        comparison=comparison,
        environment=values.get("environment", {}),
        data=values.get("data", {}),
        notes=(*values.get("notes", ()), *values.get("left_out", ())),
    )


# --- runs -----------------------------------------------------------------------------------------


def _read_run(path: Path) -> Run:
    if not path.is_dir():
        raise BadInput(f"{path} is no directory: name that of compare --out or of train --out.")
    # Old configs have fields that are no more, and checkpoints are not needed here.
    config = RunDirectory(path, writes=False).read_config()
    summary = path / SUMMARY_FILE
    environment = path / ENV_FILE
    metrics = path / METRICS_FILE
    return Run(
        path,
        config,
        _read_json(environment) if environment.is_file() else {},
        _read_lines(metrics) if metrics.is_file() else (),
        _read_json(summary) if summary.is_file() else None,
        read_analysis(path, config),
    )


def _group_runs(runs: Sequence[Run]) -> Group:
    """Put runs that differ in their seeds alone together, as one method."""
    by_config: dict[Config, list[Run]] = {}
    for run in runs:
        by_config.setdefault(replace(run.config, seed=0), []).append(run)
    labels = [_describe(config) for config in by_config]
    methods = []
    for number, (config, own) in enumerate(by_config.items()):
        label = labels[number]
        if labels.count(label) > 1:
            label = f"{label} ({own[0].path.name})"
        methods.append(_make_method(label, _letter(number), config, own))
    first = runs[0]
    name = first.path.name if len(runs) == 1 else "Runs"
    return Group(name, tuple(methods), None, first.environment, first.environment.get("data", {}))


def _make_method(label: str, letter: str, config: Config, runs: Sequence[Run]) -> Method:
    ended = [run.summary for run in runs if run.summary]
    text = is_text(config.data)
    figures = [
        each["test_loss"] / math.log(2) if text else 100 * each["test_accuracy"] for each in ended
    ]
    seconds = [epoch["seconds"] for run in runs for epoch in run.epochs]
    peaks = [each["peak_memory_bytes"] for each in ended if each.get("peak_memory_bytes")]
    return Method(
        label=label,
        letter=letter,
        config=config,
        runs=tuple(runs),
        quality=statistics.mean(figures) if figures else None,
        quality_std=statistics.stdev(figures) if len(figures) > 1 else None,
        seeds=len(figures),
        peak_bytes=max(peaks, default=None),
        peak_ratio=None,
        time=statistics.median(seconds) if seconds else None,
    )


def _describe(config: Config) -> str:
    """The method of a run and its options; in phases, these."""
    if config.phases:
        return config.phases
    options = {name: getattr(config, name) for name in MethodSpec("", "").options}
    return MethodSpec("", config.method, **options).expression


def _letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + chr(ord("A") + last)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} cannot be read ({error}): remove it, or name another.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{file} holds no result: name another file.")
    return values


def _read_lines(file: Path) -> list[Json]:
    try:
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} cannot be read ({error}): remove it, or name another.") from error
