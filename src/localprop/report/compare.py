"""Methods side by side on one network and data set: what `localprop compare` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from localprop.cost.baselines import PlainLoop
from localprop.data import Batches, Dataset
from localprop.errors import (
    RunFailed,
    StepFailed,
    as_run_failure,
    check,
    collect_problems,
)
from localprop.learner import Learner
from localprop.loggers.read import Log, make_loggers
from localprop.loggers.safe_logger import SafeLogger
from localprop.report.comparison import Comparison, Outcome, format_comparison, make_row
from localprop.report.comparison_directory import (
    ComparisonDirectory,
    find_shared_names,
    name_run,
)
from localprop.report.costs import BaselineCosts, MethodCosts, measure_costs
from localprop.report.method_notes import find_method_notes
from localprop.report.method_spec import (
    Methods,
    MethodSpec,
    filter_trainable,
    parse_and_check_methods,
)
from localprop.report.value_checks import find_range_problems
from localprop.tasks.batch import Batch
from localprop.training.build import OnNote, build, load_data
from localprop.training.config import Config
from localprop.training.environment import describe_environment
from localprop.training.kept_run import finish_run
from localprop.training.optimizers import make_optimizer_factory
from localprop.training.run import ShowProgress as ShowEpochs
from localprop.training.scores import Score
from localprop.training.tf32 import TF32_NOTE, use_tf32
from localprop.training.trainer import OnEpoch, OnStep

# Called with what is running, and with the number of epochs finished since the last call.
Progress = Callable[[str, int], object]
# Takes the number of epochs of all runs.
ShowProgress = Callable[[int], AbstractContextManager[Progress]]


@contextmanager
def hide_progress(total: int) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda what, epochs: None


# --- train and measure ----------------------------------------------------------------------------


def compare(
    config: Config,
    dataset: Dataset,
    specs: Sequence[MethodSpec],
    *,
    seeds: int = 3,
    rounds: int = 15,
    directory: ComparisonDirectory | None = None,
    loggers: Sequence[SafeLogger] = (),
    progress: Progress = lambda what, epochs: None,
    keep: Callable[[Comparison, Mapping[str, MethodCosts]], object] = lambda figures, costs: None,
) -> Comparison:
    """Measure a step of each method, and train each method with every seed.

    Runs with one seed are pairs: their networks begin with the same weights, and see the same
    batches. A failed run does not stop the others.

    Args:
        config: what all runs share. Each method replaces its `method` and the options
            behind it.
        dataset: every run trains on its training split. Accuracy and loss are those on its test
            split after the last epoch; nothing is selected by them.
        specs: the methods; see `filter_methods`.
        seeds: runs of each method; the first has the seed `config.seed`.
        rounds: interleaved rounds of the timing.
        directory: where each run is kept, and what is there already is taken from.
        loggers: told of all runs, whose names their records have.
        progress: called with what is running.
        keep: called with the figures so far and the costs of all methods, after the measurements
            and after each run.

    Raises:
        BadInput: if a method cannot be trained with this network or data set.
        RunFailed: if the measurements before the first run fail, for example out of memory.
    """
    configs = {spec.label: _make_method_config(config, spec) for spec in specs}
    before = directory.read_costs(configs) if directory else None
    if before is None:
        progress("measuring memory and time per step", 0)
    with as_run_failure(), use_tf32(config.tf32):
        baseline, costs = before or _measure_costs(config, configs, dataset, rounds)
    all_seeds = tuple(range(config.seed, config.seed + seeds))
    comparison = Comparison(baseline, (), config, all_seeds, runs_left=len(configs) * seeds)
    if before is None:
        keep(comparison, costs)
    for label, method_config in configs.items():
        finished_rows, outcomes = comparison.rows, list[Outcome]()
        for number, seed in enumerate(all_seeds, start=1):
            run = f"{label}, seed {number} of {seeds}"
            run_config = replace(method_config, seed=seed)
            folder = directory.folder_of(label, seed) if directory else None
            log = [each.of_run(name_run(label, seed)) for each in loggers]
            outcomes.append(_run_one_seed(run, run_config, dataset, folder, log, progress))
            row = make_row(label, outcomes, costs[label], baseline)
            rows, left = (*finished_rows, row), comparison.runs_left - 1
            comparison = replace(comparison, rows=rows, runs_left=left)
            keep(comparison, costs)
    return comparison


def filter_methods(
    config: Config, dataset: Dataset, specs: Sequence[MethodSpec]
) -> tuple[list[tuple[MethodSpec, Learner]], list[str]]:
    """Split methods into those that this network and data set support and the others' problems.

    Args:
        config: what all runs share.
        dataset: the data.
        specs: the methods.

    Returns:
        The trainable methods with their learners, and one sentence for each problem.

    Example:
        >>> specs = [MethodSpec.parse("greedy()"), MethodSpec.parse("contsup()")]
        >>> trainable, problems = filter_methods(config, dataset, specs)
    """
    learners: list[Learner] = []
    trainable, problems = filter_trainable(
        specs, lambda spec: learners.append(build(_make_method_config(config, spec), dataset))
    )
    return list(zip(trainable, learners, strict=True)), problems


def _make_method_config(config: Config, spec: MethodSpec) -> Config:
    return replace(config, method=spec.method, **spec.options)


def _run_one_seed(
    run: str, config: Config, dataset: Dataset, folder: Path | None, log: Log, progress: Progress
) -> Outcome:
    progress(run, 0)

    @contextmanager
    def show_epochs(config: Config, done: int) -> Iterator[tuple[OnEpoch, OnStep | None]]:
        progress(run, done)
        yield lambda report: progress(run, 1), None

    try:
        with as_run_failure():
            return _train_and_score(config, dataset, folder, log, show_epochs)
    except (StepFailed, RunFailed) as error:
        return f"{run}: {error}"


def _train_and_score(
    config: Config, dataset: Dataset, folder: Path | None, log: Log, show_epochs: ShowEpochs
) -> Score:
    summary = finish_run(config, dataset, folder, show_epochs, log)
    return Score(summary["test_accuracy"], summary["test_loss"])


def _measure_costs(
    config: Config, configs: dict[str, Config], dataset: Dataset, rounds: int
) -> tuple[BaselineCosts, dict[str, MethodCosts]]:
    # The plain loop beside them has no steps that can be taken back.
    learners = {
        label: build(replace(each, on_nonfinite="ignore", atomic=False), dataset)
        for label, each in configs.items()
    }
    device = next(iter(learners.values())).device
    batch = _take_first_batch(dataset, config, device)
    return measure_costs(_make_plain_loop(config, dataset, batch), learners, batch, rounds)


def _take_first_batch(dataset: Dataset, config: Config, device: torch.device) -> Batch:
    # The batches, which may hold the whole data set on the device, die here. Alive, they would
    # count as memory of a step.
    batches = Batches(
        dataset, "train", config.batch_size, shuffle=True, seed=config.seed, device=device
    )
    return Batch.of(next(batches.epoch(0)))


def _make_plain_loop(config: Config, dataset: Dataset, batch: Batch) -> PlainLoop:
    model = build(config, dataset).model
    optimizer = make_optimizer_factory(config)(list(model.parameters()))
    return PlainLoop(model, optimizer, batch, config.label_smoothing)


# --- the command ----------------------------------------------------------------------------------


def run_compare(
    config: Config,
    methods: Methods,
    *,
    seeds: int,
    rounds: int,
    out: str | None,
    overwrite: bool,
    log: Log = (),
    strict: bool = True,
    show_progress: ShowProgress = hide_progress,
    report: Callable[[str], object] = print,
    on_note: Callable[[str], object] = lambda note: None,
) -> dict[str, Any]:
    """Compare methods, and keep each run and the figures so far.

    With the files that a comparison which was stopped has left in `out`, it goes on.

    Args:
        config: what all runs share.
        methods: expressions.
        seeds: runs of each method.
        rounds: interleaved rounds of the timing.
        out: directory for the figures and the runs, or None.
        overwrite: whether to replace the comparison in that directory.
        log: loggers of all runs.
        strict: whether a method that this network or data set does not support is bad input. If
            not, it is left out and named under the table.
        show_progress: takes the number of epochs of all runs, and yields a `Progress`.
        report: called with the table so far if the comparison ends early or a run fails.
        on_note: called before the first run with what `init` has changed, and with each note on the
            methods (`find_method_notes`); later, with what makes a logger fail.

    Returns:
        The figures with the notes, and the table's text as `table`.

    Raises:
        BadInput: all problems with values, data, methods and directory.
        RunFailed: if a run failed, after all others have finished; or if a file cannot be written.
        RunStopped: the process got SIGTERM or SIGHUP, and the run in progress is saved.
    """
    directory = None if out is None else ComparisonDirectory(out, overwrite=overwrite)
    problems = _find_value_problems(config, seeds, rounds)
    notes: list[str] = []
    specs = parse_and_check_methods(methods, problems)
    loggers: list[SafeLogger] = []
    with collect_problems(problems):
        loggers = make_loggers(log, on_note)
    if directory:
        problems += directory.find_problems(spec.label for spec in specs)
    elif loggers:
        problems += find_shared_names(spec.label for spec in specs)
    dataset = _load_and_check(config, problems, notes.append)
    built, left_out = filter_methods(config, dataset, specs)
    check(left_out if strict else [])
    notes += [*dataset.notes, *[TF32_NOTE] * config.tf32, *find_method_notes(built)]
    specs = [spec for spec, _ in built]
    del built  # the learners would count as memory of what is measured later
    about = {
        "config": config.as_json(),
        "methods": {spec.label: spec.expression for spec in specs},
        "seeds": [*range(config.seed, config.seed + seeds)],
        "data": dataset.fingerprint(),
    }
    figures: dict[str, Any] = {}
    shared = {**about, "left_out": left_out, "notes": notes, "environment": describe_environment()}

    def keep(comparison: Comparison, costs: Mapping[str, MethodCosts]) -> None:
        measured = {"costs": {label: asdict(each) for label, each in costs.items()}}
        result = {**comparison.as_json(), **shared, **measured}
        if comparison.rows:
            lines = [format_comparison(comparison), *(f"Left out: {line}" for line in left_out)]
            figures.update(result, table="\n".join(lines))
        if directory:
            directory.save(result)

    try:
        if directory:
            directory.claim(about)
        for note in notes:
            on_note(note)
        with show_progress(len(specs) * seeds * config.epochs) as progress:
            comparison = compare(
                config,
                dataset,
                specs,
                seeds=seeds,
                rounds=rounds,
                directory=directory,
                loggers=loggers,
                progress=progress,
                keep=keep,
            )
        _check_all_succeeded(comparison)
    except BaseException:  # also on Ctrl-C: finished runs may have taken hours
        if figures:
            report(figures["table"])
        raise
    finally:
        if directory:
            directory.release()
    return figures


def _check_all_succeeded(comparison: Comparison) -> None:
    failed = sum(len(row.failures) for row in comparison.rows)
    if failed:
        runs = len(comparison.rows) * len(comparison.seeds)
        raise RunFailed(
            f"{failed} of {runs} runs failed; the table above says why and shows the results of "
            "the others."
        )


def _find_value_problems(config: Config, seeds: int, rounds: int) -> list[str]:
    problems = [*find_range_problems(seeds=(seeds, 1), rounds=(rounds, 2)), *config.find_problems()]
    # Seeds are signed 64-bit integers.
    if not problems and config.seed + seeds > 2**63:
        problems.append(
            f"seed={config.seed} leaves no room for {seeds} seeds: choose a smaller one."
        )
    return problems


def _load_and_check(config: Config, problems: list[str], on_note: OnNote) -> Dataset:
    """Load the data; raise BadInput for `problems` and all new ones."""
    with collect_problems(problems):
        dataset = load_data(config.with_valid_defaults())
        # Every method shares the problems of end-to-end training. Reported here, they appear once
        # instead of once per method.
        with collect_problems(problems):
            build(replace(config, method="end_to_end()"), dataset, on_note=on_note)
    check(dict.fromkeys(problems))
    return dataset
