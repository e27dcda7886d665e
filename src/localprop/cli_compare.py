"""The commands `compare` and `bench`: from flags to tables, with progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from localprop.data import Dataset
from localprop.errors import BadInput, RunFailed, check
from localprop.report.bench import Setting, memory, speed
from localprop.report.compare import Comparison, Progress, compare, told, trainable
from localprop.report.contender import Contender, suited
from localprop.report.tables import bench_memory_table, bench_speed_table, comparison_table
from localprop.training.config import Config, build, load_data, noting
from localprop.training.expression import rule_of
from localprop.training.rundir import environment, json_text, write_text

_RESULTS = "compare.json"
_NOTE = (
    "The digits are easy: all methods come close to each other here, and a few test images decide the order. "
    "Use --data FILE.npz --model ... --epochs ... for the same table on your own data."
)


def contenders_of(texts: Sequence[str]) -> list[Contender]:
    """The methods of a comparison.

    Raises:
        BadInput: none, or two with one label.
    """
    contenders = [Contender.parse(text) for text in texts if text.strip()]
    labels = [contender.label for contender in contenders]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    check(f"Two methods are called {label!r}: give one a label, as in 'mine: {label}'." for label in twice)
    if not contenders:
        raise BadInput("No method to compare: name one after --methods, such as 'greedy()'.")
    return contenders


def run_compare(
    config: Config,
    methods: Sequence[str],
    *,
    seeds: int,
    rounds: int,
    out: str | None,
    overwrite: bool,
    strict: bool = True,
) -> dict[str, Any]:
    """Compare methods; return the figures and the table's text under `table`.

    Nothing is printed, but if this ends early or a run has failed, the table so far, on stderr. The figures so far are in the
    directory after each run.

    Args:
        config: what all runs share.
        methods: expressions.
        seeds: runs of each.
        rounds: of the timing.
        out: directory for the figures, or None.
        overwrite: replace those that are there.
        strict: whether a method that the network does not suit is bad input; else it is left out, and named.

    Raises:
        BadInput: of the values, the data, a method and the directory.
        RunFailed: a run has failed, after all others have ended; or the disk refuses.
    """
    problems = [*_count_problems(seeds=(seeds, 1), rounds=(rounds, 2)), *config.problems()]
    if not problems and config.seed + seeds > 2**63:
        problems.append(f"seed={config.seed} leaves no room for {seeds} seeds: choose a smaller one.")
    file = None if out is None else Path(os.path.expanduser(out)) / _RESULTS
    problems += _place_problems(file, overwrite) if file else []
    dataset, contenders = _checked(config, methods, problems)
    contenders, unfit = trainable(config, dataset, contenders)
    check(unfit if strict else [])
    figures: dict[str, Any] = {}
    around = {"left_out": unfit, "environment": environment()}
    if file:
        _make_folder(file.parent)

    def keep(comparison: Comparison) -> None:
        table = "\n".join([_table(comparison), *(f"Left out: {each}" for each in unfit)])
        figures.update({**comparison.as_json(), **around, "table": table})
        if file:
            write_text(file, json_text({key: figures[key] for key in figures if key != "table"}))

    try:
        with _progress(len(contenders) * seeds * config.epochs) as progress:
            comparison = compare(config, dataset, contenders, seeds=seeds, rounds=rounds, progress=progress, keep=keep)
        _refuse_failed(comparison)
    except BaseException:  # Ctrl-C, too
        if figures:
            _say(figures["table"])
        raise
    return figures


def _refuse_failed(comparison: Comparison) -> None:
    failed = sum(len(row.failures) for row in comparison.rows)
    if failed:
        runs = len(comparison.rows) * len(comparison.seeds)
        raise RunFailed(f"{failed} of {runs} runs failed; the table above says why, and has the others' figures.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made ({error.strerror}): choose another --out.") from error


def _checked(config: Config, methods: Sequence[str], problems: list[str]) -> tuple[Dataset, list[Contender]]:
    """Data and methods; BadInput for these problems and all others, each of which is told once, not for every method."""
    contenders = _noted_contenders(methods, problems)
    with noting(problems):
        dataset = load_data(config.sound())
        with noting(problems):
            build(replace(config, method="end_to_end()"), dataset)  # what it is refused for, no method can do without
    check(dict.fromkeys(problems))
    return dataset, contenders


def _noted_contenders(methods: Sequence[str], problems: list[str]) -> list[Contender]:
    contenders: list[Contender] = []
    with noting(problems):
        contenders = contenders_of(methods)
    problems += suited(contenders, lambda contender: rule_of(contender.method))[1]
    return contenders


def _place_problems(file: Path, overwrite: bool) -> list[str]:
    """Why the result could not be written; asked with everything else that can be wrong."""
    existing = next(parent for parent in (file.parent, *file.parent.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return [f"{existing} is no directory that can be written to: choose another --out."]
    if file.exists() and not overwrite:
        return [f"{file} exists already: choose another --out, or add --overwrite."]
    return []


def _count_problems(**counts: tuple[object, int]) -> list[str]:
    return [
        f"{name}={count!r} must be a whole number of {least} or more."
        for name, (count, least) in counts.items()
        if not isinstance(count, int) or count < least
    ]


def _table(comparison: Comparison) -> str:
    note = [_NOTE] if comparison.config.data == "digits" else []
    return "\n".join([comparison_table(comparison), *note])


def run_bench(what: str, setting: Setting, methods: Sequence[str], rounds: int) -> dict[str, Any]:
    """Run one of the benchmarks; returns its figures and the table's text under `table`.

    Raises:
        BadInput: of the values and the methods.
    """
    problems = [*_count_problems(rounds=(rounds, 2)), *setting.problems()]
    contenders = _noted_contenders(methods, problems)
    check(problems)
    with told():
        batch = setting.batch()
        check(
            suited(contenders, lambda contender: setting.learner(contender, batch))[1]
        )  # before the first is measured
        figures, table = _measured(what, setting, contenders, rounds)
    return {**figures, "setting": asdict(setting), "environment": environment(), "table": table}


def _measured(what: str, setting: Setting, contenders: Sequence[Contender], rounds: int) -> tuple[dict[str, Any], str]:
    if what == "memory":
        base, rows = memory(setting, contenders, _say)
        figures: dict[str, Any] = {"baseline": {"peak_bytes": base}, "rows": [asdict(row) for row in rows]}
        return figures, bench_memory_table(setting, base, rows)
    seconds, timed = speed(setting, contenders, rounds, _say)
    figures = {"baseline": {"step_seconds": seconds}, "rows": [asdict(row) for row in timed]}
    return figures, bench_speed_table(setting, seconds, timed, rounds)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A live bar on a terminal, a line for every new run elsewhere."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, epochs: bar.update(task, description=what, advance=epochs)


def _lines() -> Callable[[str, int], None]:
    last = [""]

    def progress(what: str, epochs: int) -> None:
        if what != last[0]:
            last[0] = what
            print(what, file=sys.stderr, flush=True)

    return progress
