"""A run from its fields to its summary, as `localprop train` makes it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from localprop.data import Batches, Dataset, is_text
from localprop.errors import BadInput, RunStopped, StepFailed, check, collect_problems
from localprop.learner import Learner
from localprop.loggers.read import Log, make_loggers
from localprop.loggers.safe_logger import SafeLogger
from localprop.ranks.launch import get_attempt, get_rank, get_world_size
from localprop.training.build import build_phase_schedule, load_data, prepare
from localprop.training.changes import are_same
from localprop.training.config import MAY_DIFFER, Config
from localprop.training.exits import list_figures, score_exits
from localprop.training.phase_schedule import PhaseSchedule
from localprop.training.run_directory import RunDirectory
from localprop.training.run_log import RunLog
from localprop.training.scores import Score, check_finite
from localprop.training.tf32 import TF32_NOTE
from localprop.training.trainer import EpochReport, OnEpoch, OnStep, TrainingStopped, train

LINGER_S = 3
# What a scheduler of jobs sends before it ends one, and a terminal when it closes.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

# Given the config and the epochs done before, a context manager. Its value, a pair of functions, is
# called after each epoch and after each step.
ShowProgress = Callable[[Config, int], AbstractContextManager[tuple[OnEpoch, OnStep | None]]]


@contextmanager
def hide_progress(config: Config, done: int) -> Iterator[tuple[OnEpoch, OnStep | None]]:
    """Show nothing while a run trains."""
    yield lambda report: None, None


def run(
    given: Mapping[str, Any],
    *,
    out: str | None,
    resume: bool,
    overwrite: bool,
    recipe: Mapping[str, Any] = MappingProxyType({}),
    keep: int = 2,
    log: Log = (),
    show_progress: ShowProgress = hide_progress,
    on_note: Callable[[str], object] = lambda note: None,
    load_dataset: Callable[[Config], Dataset] = load_data,
) -> dict[str, Any]:
    """Train, save each epoch in the run directory if there is one, and score the test split.

    Args:
        given: fields of `Config`.
        out: the run directory, or None.
        resume: continue the run in `out`, with its config.
        overwrite: replace the run in `out`.
        recipe: for a run of a recipe, its name and the fields that were replaced, for the summary.
            A resumed run has its own.
        keep: how many of the newest checkpoints to keep. The best one is kept besides.
        log: loggers (`localprop.loggers`). On several ranks, rank 0 logs for all.
        show_progress: shows epochs and steps.
        on_note: called before the first epoch with what `init` has changed, and with each note of
            `Learner.notes`; later, with what makes a logger fail.
        load_dataset: loads the data set of a config.

    Returns:
        The summary: recipe, notes, config, rule, accuracies and losses, every epoch, parameters and
        seconds.

    Raises:
        BadInput: the values, the directory, or fields and data that a resumed run has otherwise.
        RunFailed: a loss is not finite, or the disk is full.
        RunStopped: the process got SIGTERM or SIGHUP. The step was finished, and its state saved.
        StepFailed: a step stopped half-way.

    Example:
        >>> summary = run({"model": "mlp", "epochs": 2}, out=None, resume=False, overwrite=False)
    """
    if (resume or overwrite) and out is None:
        flag = "--resume" if resume else "--overwrite"
        raise BadInput(f"{flag} needs the directory of a run: add --out DIR.")
    check(find_keep_problems(keep))
    directory = None if out is None else RunDirectory(out, writes=get_rank() == 0, keep=keep)
    try:
        return _run(
            given, directory, resume, overwrite, recipe, log, show_progress, on_note, load_dataset
        )
    finally:
        if directory:
            directory.release()


def find_keep_problems(keep: object) -> list[str]:
    """Check how many checkpoints are to be kept.

    Example:
        >>> find_keep_problems(0)
        ['keep=0, but at least 1 checkpoint is needed to resume from: raise it.']
    """
    if isinstance(keep, int) and keep >= 1:
        return []
    return [f"keep={keep!r}, but at least 1 checkpoint is needed to resume from: raise it."]


def _run(
    given: Mapping[str, Any],
    directory: RunDirectory | None,
    resume: bool,
    overwrite: bool,
    recipe: Mapping[str, Any],
    log: Log,
    show_progress: ShowProgress,
    on_note: Callable[[str], object],
    load_dataset: Callable[[Config], Dataset],
) -> dict[str, Any]:
    if directory and get_attempt() and directory.is_of_this_launch():
        # torchrun has restarted the ranks after a failure, with the same flags.
        given, resume, overwrite = {}, True, False
    if directory and (resume or overwrite):
        directory.lock()
    if directory and resume:
        config = _read_config(directory, given, recipe)
        recipe = directory.read_recipe()
    else:
        config = Config(**given)
    _outlive_sigterm()
    unused = None if resume else directory
    goes_on = resume and directory is not None and directory.has_checkpoint()
    log = log if get_rank() == 0 else ()
    dataset, learner, phase_schedule, loggers, notes = _prepare(
        config, unused, overwrite, log, load_dataset, on_note, weights=not goes_on
    )
    config = _resolve_defaults(config, learner)
    learners = (learner, *phase_schedule.others.values())
    notes += [*dataset.notes, *[TF32_NOTE] * config.tf32]
    notes += dict.fromkeys(note for each in learners for note in each.notes)
    done = 0
    if directory and resume:
        directory.refuse_changed(config, dataset.fingerprint())
        done = directory.restore(learner, phase_schedule.others)
        directory.repair()
        notes += directory.notes
    elif directory:
        directory.start(config, recipe, dataset.fingerprint(), overwrite=overwrite)
    for note in notes:
        on_note(note)
    run_log = RunLog(loggers)
    with run_log.follow(config, done):
        with _write_failures(directory):
            reports = _train(
                learner, dataset, config, phase_schedule, directory, done, run_log, show_progress
            )
            summary = {**recipe, "notes": notes, **_summarise(learner, dataset, config, reports)}
        if directory:
            directory.finish(summary)
    run_log.log_summary(summary)
    return summary


def _outlive_sigterm() -> None:
    """On several ranks, end `LINGER_S` seconds after SIGTERM instead of at once.

    torchrun ends all ranks when one is lost. The others may not have found out yet which one it
    was, and need the time to report it.
    """
    if get_world_size() > 1:
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER_S))


def _read_config(
    directory: RunDirectory, given: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Config:
    """Read the config of a run to resume.

    Flags and the name of a recipe may repeat what the run has. Only the fields in `MAY_DIFFER` may
    change.
    """
    config = directory.read_config()
    problems = [
        f"{name}={value!r}, but the run in {directory.path} has {getattr(config, name)!r}: leave "
        "it out, or start a new run."
        for name, value in given.items()
        if name not in MAY_DIFFER and not are_same(name, value, getattr(config, name))
    ]
    named, stored = recipe.get("recipe"), directory.read_recipe().get("recipe")
    if named not in (None, stored):
        problems.append(
            f"The run in {directory.path} is of {stored or 'no recipe'}, not of {named}: leave the "
            "name out."
        )
    check(problems)
    return replace(config, **given)


def _prepare(
    config: Config,
    directory: RunDirectory | None,
    overwrite: bool,
    log: Log,
    load_dataset: Callable[[Config], Dataset],
    on_note: Callable[[str], object],
    weights: bool,
) -> tuple[Dataset, Learner, PhaseSchedule, list[SafeLogger], list[str]]:
    """Build everything, and check the directory of a new run. Reports the problems of all.

    The last value holds the notes on initial weights.
    """
    problems: list[str] = []
    notes: list[str] = []
    with collect_problems(problems):
        if directory:
            directory.refuse_used(overwrite=overwrite)
    with collect_problems(problems):
        loggers = make_loggers(log, on_note)
    with collect_problems(problems):
        dataset, learner = prepare(config, load_dataset, weights=weights, on_note=notes.append)
        phase_schedule = build_phase_schedule(config, dataset, learner)
    check(problems)
    return dataset, learner, phase_schedule, loggers, notes


def _resolve_defaults(config: Config, learner: Learner) -> Config:
    """Fill in the values that depend on the network and the machine."""
    # On several ranks each rank has a device of its own, and the config is common to all.
    device = learner.device.type if get_world_size() > 1 else str(learner.device)
    modules = len(learner.partition.modules)
    return replace(config, modules=modules, warmup_epochs=config.warmup, device=device)


@contextmanager
def _write_failures(directory: RunDirectory | None) -> Iterator[None]:
    """Write failure.json if this is the rank that recorded the failure of all."""
    try:
        yield
    except (StepFailed, BadInput) as error:
        if directory and error.record and error.record["seen_by"] == get_rank():
            directory.write_failure(error.record)
        raise


def _train(
    learner: Learner,
    dataset: Dataset,
    config: Config,
    phase_schedule: PhaseSchedule,
    directory: RunDirectory | None,
    done: int,
    run_log: RunLog,
    show_progress: ShowProgress,
) -> list[EpochReport]:
    """Train the epochs that are left, and return the reports of all epochs."""
    earlier = directory.reports[:] if directory else []
    partial = directory.partial if directory else None
    with (
        show_progress(config, done) as (show_epoch, show_step),
        _ending_by_signals(directory, learner, phase_schedule) as should_stop,
    ):

        def on_epoch(report: EpochReport) -> None:
            if directory:
                directory.save_epoch(report, learner, phase_schedule.others)
            run_log.log_epoch(report)
            show_epoch(report)

        def on_step(epoch: int, step: int, steps: int) -> None:
            run_log.count_step(epoch, step, steps)
            if show_step:
                show_step(epoch, step, steps)

        return earlier + train(
            learner,
            dataset,
            config,
            start_epoch=done,
            phase_schedule=phase_schedule,
            on_epoch=on_epoch,
            on_step=on_step,
            partial=partial,
            should_stop=should_stop,
        )


@contextmanager
def _ending_by_signals(
    directory: RunDirectory | None, learner: Learner, phase_schedule: PhaseSchedule
) -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and SIGHUP let the step end, and save. A second one ends at once, as usual.

    Yields:
        A function that says whether to stop.

    Raises:
        RunStopped: after the state has been saved.
    """
    received: list[int] = []
    # Ranks would have to agree on the step; only the main thread may handle signals.
    in_main_thread = threading.current_thread() is threading.main_thread()
    handled = STOPPING if directory and get_world_size() == 1 and in_main_thread else ()
    before = {number: signal.getsignal(number) for number in handled}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}  # nohup

    def restore_handlers() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    def receive(number: int, frame: object) -> None:
        received.append(number)
        restore_handlers()

    for number in before:
        signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    except TrainingStopped as stopped:
        assert directory
        directory.save_partial(stopped.epoch, stopped.partial, learner, phase_schedule.others)
        name = signal.Signals(received[0]).name
        after = f"epoch {stopped.epoch}"
        if stopped.partial:
            after = f"step {stopped.partial.step} of epoch {stopped.epoch + 1}"
        message = f"{name}: the run stopped after {after}, and its state is saved."
        raise RunStopped(message, received[0]) from stopped
    finally:
        restore_handlers()


def _summarise(
    learner: Learner, dataset: Dataset, config: Config, reports: list[EpochReport]
) -> dict[str, Any]:
    batches = Batches(dataset, "test", config.batch_size, device=learner.device)
    exits = score_exits(learner, batches)
    *_, score = exits.values()
    check_finite(score, "on the test split", config)
    peaks = [report.peak_memory_bytes or 0 for report in reports]
    return {
        "config": config.as_json(),
        "rule": repr(learner.rule),
        "layers": len(learner.partition.layers),
        "parameters": {
            name: sum(p.numel() for p in module.parameters())
            for name, module in learner.trained_modules().items()
        },
        "test_accuracy": score.accuracy,
        "test_loss": score.loss,
        "modules": list_figures(learner, exits),
        "validation_accuracy": reports[-1].validation_accuracy,
        "validation_loss": reports[-1].validation_loss,
        "seconds": sum(report.seconds for report in reports),
        "peak_memory_bytes": max(peaks, default=0) or None,
        "epochs": [asdict(report) for report in reports],
    }


def format_result(summary: Mapping[str, Any]) -> str:
    """Format the result of a run as one line: the accuracy, and of text also the bits per byte.

    Example:
        >>> format_result({"config": {"data": "digits"}, "test_accuracy": 0.5, "test_loss": 1.0})
        'test accuracy 0.5000'
    """
    score = Score(summary["test_accuracy"], summary["test_loss"])
    result = f"test accuracy {score.accuracy:.4f}"
    if is_text(summary["config"]["data"]):
        result += f"  bits per byte {score.bits:.3f}"
    return result
