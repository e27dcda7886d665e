"""Show progress on stderr: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from localprop.cli.fit import fit
from localprop.cli.output import format_notes
from localprop.data import is_text
from localprop.ranks.launch import get_rank
from localprop.report.compare import Progress
from localprop.training.config import Config
from localprop.training.scores import Score
from localprop.training.trainer import EpochReport, OnEpoch, OnStep
from localprop.writing.terminal import print_text

SILENT_S = 5


_Given = ParamSpec("_Given")
_Shown = TypeVar("_Shown")


class WaitingLine:
    """Says what is being waited for and for how long, but nothing in the first five seconds.

    Args:
        what: is being done.
        clock: seconds since any time.

    Example:
        >>> times = iter([0.0, 4.9, 65.0])
        >>> line = WaitingLine("planning", clock=lambda: next(times))
        >>> line.__rich__().plain, line.__rich__().plain
        ('', 'planning  1:05')
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._start = clock()

    def __rich__(self) -> Text:
        seconds = int(self._clock() - self._start)
        return Text(f"{self._what}  {seconds // 60}:{seconds % 60:02d}" * (seconds >= SILENT_S))


@contextmanager
def show_waiting(what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Inside, a `WaitingLine` on a terminal; nothing elsewhere.

    Not for what measures seconds: a thread draws the line.

    Example:
        >>> with show_waiting("planning"):
        ...     pass
    """
    if not sys.stderr.isatty() or get_rank() > 0:
        yield
        return
    # Results on stdout stay there; lines on stderr appear above this one.
    with Live(
        WaitingLine(what, clock),
        console=Console(stderr=True),
        refresh_per_second=2,
        transient=True,
        redirect_stdout=False,
    ):
        yield


@contextmanager
def show_waiting_until(
    what: str, show: Callable[_Given, AbstractContextManager[_Shown]]
) -> Iterator[Callable[_Given, AbstractContextManager[_Shown]]]:
    """Inside, a `WaitingLine` until something else is shown. Yields what shows that.

    Example:
        >>> with show_waiting_until("preparing", show_runs) as show, show(3) as progress:
        ...     progress("greedy(), seed 1 of 1", 0)
    """
    with ExitStack() as waiting:
        waiting.enter_context(show_waiting(what))

        def show_instead(
            *args: _Given.args, **kwargs: _Given.kwargs
        ) -> AbstractContextManager[_Shown]:
            waiting.close()
            return show(*args, **kwargs)

        yield show_instead


def print_line(line: str) -> None:
    """Print lines on stderr at once."""
    print_text(fit(line, sys.stderr), sys.stderr)


def print_note(note: str) -> None:
    """Print a note on stderr. On several ranks, rank 0 prints the notes of all."""
    if get_rank() == 0:
        print_line(format_notes([note]))


@contextmanager
def show_runs(total: int) -> Iterator[Progress]:
    """Show the progress of a comparison.

    Args:
        total: the epochs of all runs.
    """
    if not sys.stderr.isatty():
        yield _make_line_printer()
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda run, epochs: bar.update(task, description=run, advance=epochs)


def _make_line_printer() -> Callable[[str, int], None]:
    """Make a function that prints a line for every new run."""
    last = ""

    def print_new_run(run: str, epochs: int) -> None:
        nonlocal last
        if run != last:
            last = run
            print_line(run)

    return print_new_run


@contextmanager
def show_epochs(config: Config, done: int) -> Iterator[tuple[OnEpoch, OnStep | None]]:
    """Show the progress of a run. Yields functions to call after each epoch and after each step.

    Args:
        config: the config of the run.
        done: the epochs done before.
    """
    if get_rank() > 0:  # rank 0 shows the progress of all
        yield lambda report: None, None
        return
    if not sys.stderr.isatty():
        yield lambda report: print_line(format_epoch(report, config)), None
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=config.epochs, completed=done)

        def on_epoch(report: EpochReport) -> None:
            bar.console.print(format_epoch(report, config), highlight=False, markup=False)

        def on_step(epoch: int, step: int, steps: int) -> None:
            description = f"epoch {epoch}/{config.epochs}"
            bar.update(task, completed=epoch - 1 + step / steps, description=description)

        yield on_epoch, on_step


def format_epoch(report: EpochReport, config: Config) -> str:
    """Format the report of an epoch as one line.

    Example:
        >>> format_epoch(EpochReport(1, 0.1, (0, 1), (1.5, 1.2), 0.9, 2.0), Config())
        'epoch  1/20  lr 0.1     losses 1.500 .. 1.200  validation 0.9000  2.0 s'
    """
    width = len(str(config.epochs))
    # The first and the last module's loss; one number if they are equal.
    losses = dict.fromkeys([f"{report.losses[0]:.3f}", f"{report.losses[-1]:.3f}"])
    words = [
        f"epoch {report.epoch:{width}d}/{config.epochs}",
        f"lr {report.lr:<7.4g}",
        f"losses {' .. '.join(losses)}",
    ]
    if report.validation_accuracy is not None:
        words.append(f"validation {report.validation_accuracy:.4f}")
    if report.validation_loss is not None and is_text(config.data):
        words.append(f"{Score(0.0, report.validation_loss).bits:.3f} bits per byte")
    words.append(f"{report.seconds:.1f} s")
    if report.peak_memory_bytes is not None:
        words.append(f"peak {report.peak_memory_bytes / 2**20:.1f} MiB")
    return "  ".join(words)
