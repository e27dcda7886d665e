"""The command `train`: a run from flags to summary, with progress on stderr."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from localprop.data import Dataset, is_text
from localprop.errors import BadInput, StepFailed, check
from localprop.learner import Learner
from localprop.ranks.launch import attempt, rank, world
from localprop.training.config import Config, course_of, noting, prepared
from localprop.training.phases import Course
from localprop.training.rundir import RunDir
from localprop.training.trainer import EpochReport, OnEpoch, OnStep, Score, test_score, train
from localprop.training.values import MAY_DIFFER

# torchrun ends all ranks when one is lost, maybe before the others have seen who it was: they live on for so long.
LINGER_S = 3


def run(
    given: Mapping[str, Any],
    *,
    out: str | None,
    resume: bool,
    overwrite: bool,
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train, keep each epoch in the run directory if there is one, and measure the test accuracy at the end.

    Args:
        given: fields of :class:`Config`.
        out: the run directory, or None.
        resume: go on with the run in `out`.
        overwrite: replace the run in `out`.
        recipe: of a run of a recipe its name and the fields that were replaced, for the summary; a resumed run has its own.

    Returns:
        The summary: recipe, config, rule, accuracies and losses, every epoch, parameters and seconds.

    Raises:
        BadInput: of the values, the directory, or a resumed run that was started with other values.
        RunFailed: a loss that is not finite, a disk that is full.
        StepFailed: a step that stopped half-way.

    Example:
        >>> summary = run({"model": "mlp", "epochs": 2}, out=None, resume=False, overwrite=False)
    """
    if (resume or overwrite) and out is None:
        raise BadInput(f"{'--resume' if resume else '--overwrite'} needs the directory of a run: add --out DIR.")
    folder = None if out is None else RunDir(out, writes=rank() == 0)
    if folder and attempt() and folder.is_of_this_launch():  # torchrun has started the ranks again, with the same flags
        given, resume, overwrite = {}, True, False
    if folder and resume:
        config, recipe = _stored(folder, given, recipe), folder.recipe()
    else:
        config = Config(**given)
    if world() > 1:
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER_S))
    problems: list[str] = []
    with noting(problems):
        if folder and not resume:
            folder.refuse_used(overwrite=overwrite)
    with noting(problems):
        dataset, learner = prepared(config)
        course = course_of(config, dataset, learner)
    check(problems)
    config = _resolved(config, learner)
    done = folder.resume(learner, course.others) if folder and resume else 0
    if folder and not resume:
        folder.start(config, recipe)
    try:
        reports = _trained(learner, dataset, config, course, folder, done)
        summary = {**recipe, **_summary(learner, dataset, config, reports)}
    except (StepFailed, BadInput) as error:
        if folder and error.record and error.record["seen_by"] == rank():
            folder.fail(error.record)
        raise
    if folder:
        folder.finish(summary)
    return summary


def _stored(folder: RunDir, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> Config:
    """The config of a run to go on with; flags and the name of its recipe may repeat what it is, but not change it."""
    config, named, stored = folder.config(), recipe.get("recipe"), folder.recipe().get("recipe")
    problems = [
        f"{name}={value!r}, but the run in {folder.path} has {getattr(config, name)!r}: leave it out, or start a new run."
        for name, value in given.items()
        if name not in MAY_DIFFER and value != getattr(config, name)
    ]
    if named not in (None, stored):
        problems.append(f"The run in {folder.path} is of {stored or 'no recipe'}, not of {named}: leave the name out.")
    check(problems)
    return replace(config, **given)


def _resolved(config: Config, learner: Learner) -> Config:
    modules = len(learner.partition.modules)
    device = learner.device.type if world() > 1 else str(learner.device)  # each rank has a device of its own
    return replace(config, modules=modules, warmup_epochs=config.warmup, device=device)


def _trained(
    learner: Learner, dataset: Dataset, config: Config, course: Course, folder: RunDir | None, done: int
) -> list[EpochReport]:
    def keep(report: EpochReport) -> None:
        if folder:
            folder.keep(report, learner, course.others)
        tell(report)

    before = folder.reports[:] if folder else []
    with _progress(config, done) as (tell, on_step):
        return before + train(learner, dataset, config, start_epoch=done, course=course, on_epoch=keep, on_step=on_step)


def _summary(learner: Learner, dataset: Dataset, config: Config, reports: list[EpochReport]) -> dict[str, Any]:
    score = test_score(learner, dataset, config)
    return {
        "config": asdict(config),
        "rule": repr(learner.rule),
        "layers": len(learner.partition.layers),
        "parameters": {part: sum(p.numel() for p in module.parameters()) for part, module in learner.parts().items()},
        "test_accuracy": score.accuracy,
        "test_loss": score.loss,
        "validation_accuracy": reports[-1].validation_accuracy,
        "validation_loss": reports[-1].validation_loss,
        "seconds": sum(report.seconds for report in reports),
        "peak_memory_bytes": max((report.peak_memory_bytes or 0 for report in reports), default=0) or None,
        "epochs": [asdict(report) for report in reports],
    }


def result_of(summary: Mapping[str, Any]) -> str:
    """The result of a run in one line: of images the accuracy, of text the bits per byte, too.

    Example:
        >>> result_of({"config": {"data": "digits"}, "test_accuracy": 0.5, "test_loss": 1.0})
        'test accuracy 0.5000'
    """
    score = Score(summary["test_accuracy"], summary["test_loss"])
    words = f"test accuracy {score.accuracy:.4f}"
    return f"{words}  bits per byte {score.bits:.3f}" if is_text(summary["config"]["data"]) else words


# --- progress -------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(config: Config, done: int) -> Iterator[tuple[OnEpoch, OnStep | None]]:
    """What to call after an epoch and after a step: a live bar on a terminal, a line per epoch elsewhere."""
    if rank() > 0:
        yield lambda report: None, None
        return
    if not sys.stderr.isatty():
        yield lambda report: print(line_of(report, config), file=sys.stderr, flush=True), None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=config.epochs, completed=done)

        def on_step(epoch: int, step: int, steps: int) -> None:
            bar.update(task, completed=epoch - 1 + step / steps, description=f"epoch {epoch}/{config.epochs}")

        yield lambda report: bar.console.print(line_of(report, config), highlight=False, markup=False), on_step


def line_of(report: EpochReport, config: Config) -> str:
    """One epoch in one line.

    Example:
        >>> line_of(EpochReport(1, 0.1, (0, 1), (1.5, 1.2), 0.9, 2.0), Config())
        'epoch  1/20  lr 0.1     losses 1.500 .. 1.200  validation 0.9000  2.0 s'
    """
    width = len(str(config.epochs))
    ends = dict.fromkeys([f"{report.losses[0]:.3f}", f"{report.losses[-1]:.3f}"])
    words = [f"epoch {report.epoch:{width}d}/{config.epochs}", f"lr {report.lr:<7.4g}", f"losses {' .. '.join(ends)}"]
    if report.validation_accuracy is not None:
        words.append(f"validation {report.validation_accuracy:.4f}")
    if report.validation_loss is not None and is_text(config.data):
        words.append(f"{Score(0.0, report.validation_loss).bits:.3f} bits per byte")
    words.append(f"{report.seconds:.1f} s")
    if report.peak_memory_bytes is not None:
        words.append(f"peak {report.peak_memory_bytes / 2**20:.1f} MiB")
    return "  ".join(words)
