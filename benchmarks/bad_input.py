"""Give the command line and the public functions input that makes no sense, and see what they say.

    python benchmarks/bad_input.py --count 500 --out benchmarks/results/bad_input.json

Command lines (bad_command_lines.py) must end with exit code 0, 1 or 2, without a traceback, without
anything that a terminal would obey, and without advice of torch's to run foreign code. Calls
(bad_calls.py) must work or raise BadInput, RunFailed or StepFailed, which have nothing of that kind
in their messages either. Neither may take a minute of the processor.

All run in this process, in a folder of their own; `--processes` of the command lines run as
processes besides. The file counts what happened, and lists what must not happen.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import bad_calls
import bad_command_lines

import localprop as lp
from localprop.cli import main as cli
from localprop.training.environment import describe_environment

SECONDS = 60
MORE_BYTES = 4 * 2**30  # of memory, beyond what the process has: sizes beyond are refused
_OWN = (lp.BadInput, lp.RunFailed, lp.StepFailed)


class Outcome(NamedTuple):
    """What came of an input.

    Attributes:
        kind: "exit 0", "works", "BadInput", "hang", ...
        fault: what must not happen, in words; empty if all is well.
    """

    kind: str
    fault: str = ""


class _Hang(BaseException):
    """Raised by the alarm; nobody catches it as an error."""


@contextmanager
def alarm() -> Iterator[None]:
    """Raise inside after a minute of the processor, or ten times as long, as other work may run."""

    def stop(*_: object) -> None:
        raise _Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS)}
    timers[signal.SIGALRM] = (signal.ITIMER_REAL, 10 * SECONDS)
    before = {number: signal.signal(number, stop) for number in timers}
    for which, seconds in timers.values():
        signal.setitimer(which, seconds)
    try:
        yield
    finally:
        for number, (which, _) in timers.items():
            signal.setitimer(which, 0)
            signal.signal(number, before[number])


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let the process have little more memory than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")
    if pages.exists():
        has = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + MORE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_command_line(words: list[str]) -> Outcome:
    """Run a command line in this process and in this folder."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with alarm(), redirect_stdout(out), redirect_stderr(err):
            code = cli.main(words)
    except _Hang:
        return Outcome("hang", f"more than {SECONDS} s")
    except BaseException as error:
        return Outcome("traceback", _describe(error))
    text = out.getvalue() + err.getvalue()
    return Outcome(f"exit {code}", _find_fault(text) if code in (0, 1, 2) else "the exit code")


def run_call(call: Callable[[], object]) -> Outcome:
    """Run a call in this folder."""
    out = io.StringIO()
    try:
        with alarm(), redirect_stdout(out), redirect_stderr(out):
            call()
    except _Hang:
        return Outcome("hang", f"more than {SECONDS} s")
    except _OWN as error:
        return Outcome(type(error).__name__, _find_fault(str(error)))
    except BaseException as error:
        return Outcome("another error", _describe(error))
    return Outcome("works", _find_fault(out.getvalue()))


def _find_fault(text: str) -> str:
    obeyed = [line for line in text.splitlines() if not line.isprintable()]
    if obeyed:
        return f"a terminal would obey {obeyed[0]!r}"
    return "advice of torch's" if "weights_only" in text else ""


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "localprop/" in f.filename]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {place}, from {own[-2:]}"


def run_process(words: list[str], folder: Path) -> Outcome:
    """Run a command line as a process."""
    command = [sys.executable, "-m", "localprop", *words]
    if any("\0" in word for word in words):
        return Outcome("impossible")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=10 * SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome("hang", f"more than {10 * SECONDS} s")
    text = (done.stdout + done.stderr).decode(errors="replace")
    fault = "a traceback" if "Traceback (most" in text else _find_fault(text)
    if done.returncode not in (0, 1, 2):
        fault = fault or "the exit code"
    return Outcome(f"exit {done.returncode}", fault)


# --- many of them ---------------------------------------------------------------------------------


def try_command_line(seed: object, made: Path) -> tuple[list[str], Outcome]:
    """Draw a command line and run it.

    Args:
        seed: of the draw.
        made: a folder with the files of `make_files`.
    """
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(f"command line {seed}")
        words = bad_command_lines.draw_command_line(draw, made, Path(folder))
        with inside(Path(folder)):
            return words, run_command_line(words)


def try_call(seed: object, made: Path) -> tuple[str, Outcome]:
    """Draw a call and run it; arguments as for `try_command_line`."""
    with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
        call = bad_calls.draw_call(random.Random(f"call {seed}"), made)
        return call.text, run_call(call.run)


def try_process(seed: object, made: Path) -> tuple[list[str], Outcome]:
    """Draw a command line and run it as a process."""
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(f"command line {seed}")
        words = bad_command_lines.draw_command_line(draw, made, Path(folder))
        return words, run_process(words, Path(folder))


def run_many(attempt: Callable[[object, Path], tuple[Any, Outcome]], count: int, seed: int) -> Any:
    """Try many, and count what happened.

    Args:
        attempt: one of them.
        count: how many.
        seed: of all draws.
    """
    kinds: Counter[str] = Counter()
    faults = []
    began, longest = time.process_time(), 0.0
    with tempfile.TemporaryDirectory() as made:
        bad_command_lines.make_files(Path(made))
        with limited_memory():
            for number in range(count):
                start = time.process_time()
                text, outcome = attempt(f"{seed} {number}", Path(made))
                longest = max(longest, time.process_time() - start)
                kinds[outcome.kind] += 1
                if outcome.fault:
                    shown = [word[:200] for word in text] if isinstance(text, list) else text[:500]
                    faults.append({"number": number, "input": shown, "fault": outcome.fault})
                    print(number, shown, outcome.fault, file=sys.stderr, flush=True)
    seconds = round(time.process_time() - began)
    counts = dict(sorted(kinds.items()))
    return {"tried": count, "kinds": counts, "faults": faults} | {
        "cpu_seconds": seconds,
        "longest_cpu_s": round(longest, 1),
    }


def main() -> None:
    """Try all, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures = {
        "seed": args.seed,
        "calls": run_many(try_call, args.count, args.seed),
        "command_lines": run_many(try_command_line, args.count, args.seed),
        "processes": run_many(try_process, args.processes, args.seed),
        "environment": describe_environment(),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
