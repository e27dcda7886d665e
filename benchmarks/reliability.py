"""Kill runs and damage checkpoints, and see that nothing is lost and nothing is wrong in silence.

`kills`: a run is killed (SIGKILL) before each call that changes its directory, in the middle of
each write, and at random times, once or several times in a row. Then it is resumed. The finished
directory must have the files of an undisturbed one, the same reports, and the same hash of every
tensor. `--resume` is asked first, and the plain command where there is nothing to resume.

`damages`: a checkpoint gets flipped bits, is cut, loses or repeats bytes, has two places exchanged,
or another version. It must be refused by name, with the learner unchanged, or give the same bits.

    python benchmarks/reliability.py kills --count 1000 --seed 0
    python benchmarks/reliability.py damages --count 10000 --seed 0

Children are forks, so that no run imports torch again. The parent of killed runs computes nothing:
torch's pools of threads do not outlive a fork.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from localprop.cli import main as cli
from localprop.errors import BadInput
from localprop.learner import Learner
from localprop.state import restore, state_of
from localprop.training.build import prepare
from localprop.training.checkpoint import load, save
from localprop.training.config import Config
from localprop.training.state_file import StateFile

MAX_IN_A_ROW = 8  # kills before a run may end
QUICK = ["--model", "mlp:8,8", "--limit", "60", "--epochs", "3", "--batch-size", "30"]
# Every credit, heads, encoders, a state in losses, phases, no validation, another optimizer.
RUNS: dict[str, list[str]] = {
    "backlink": ["--method", "backlink(layers=1)", "--modules", "3"],
    "greedy, adam": ["--method", "greedy()", "--optimizer", "adam", "--lr", "0.01"],
    "end_to_end, no validation": ["--method", "end_to_end()", "--validation", "0"],
    "contsup": ["--method", "contsup()", "--model", "resnet8", "--limit", "30"],
    "interlocking": ["--method", "interlocking(wise=2)", "--modules", "3"],
    "phases": ["--phases", "greedy() for 1; end_to_end() for 1", "--modules", "2"],
    "one after the other": ["--phases", "greedy() for 1 on 0; greedy() for 2 on 1,2"],
}
# The other methods, by the network that they train.
_OF_MAPS = "auglocal dgl gn_dgl hpff infopro lopt man man_plus pathak predsim sgr trgl windows"
RUNS |= {
    name: ["--method", f"{name}()", "--model", "resnet8", "--limit", "30"]
    for name in _OF_MAPS.split()
}
RUNS["solo"] = ["--method", "solo()"]


# --- children -------------------------------------------------------------------------------------


class Killer:
    """Kills its process at the n-th call that changes a directory; counts the calls before.

    A write counts twice: it is killed before it, and after half of its bytes.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.count = 0

    def pass_point(self) -> None:
        """Count a call, or end here."""
        self.count += 1
        if self.count == self.n:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Stand before the calls of `os` that save files."""
        for name in ("fsync", "replace", "link", "unlink", "mkdir", "close"):
            self._wrap(name)
        original_open, original_fdopen = os.open, os.fdopen

        def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.pass_point()
            return original_open(path, flags, *rest, **named)

        def fdopen(descriptor: int, *rest: Any, **named: Any) -> Any:
            file = original_fdopen(descriptor, *rest, **named)
            return HalfWriter(file, self) if "w" in "".join(map(str, rest)) else file

        os.open, os.fdopen = open_, fdopen  # type: ignore[assignment]

    def _wrap(self, name: str) -> None:
        original = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            self.pass_point()
            return original(*given, **named)

        setattr(os, name, call)


class HalfWriter:
    """A file that gives a killer the chance to end after half of each write."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self._file = file
        self._killer = killer

    def write(self, content: Any) -> int:
        self._killer.pass_point()
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._killer.pass_point()
        self._file.write(content[half:])
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> HalfWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def fork(action: Callable[[], int]) -> int:
    """Run an action in a child, and return the child's number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70  # a traceback
    try:
        code = action()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def run_command(words: list[str], log: Path, killer: Killer | None = None) -> int:
    """Run `localprop` in this process; what it prints goes to a file."""
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        if killer:
            killer.install()
        code = cli.main(words)
        if killer:
            (log.parent / "points").write_text(str(killer.count))
            (log.parent / "modules").write_text("\n".join(sys.modules))
    return code


def wait(child: int) -> int:
    """The exit code of a child; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- kills ----------------------------------------------------------------------------------------


def read_result(folder: Path) -> dict[str, Any]:
    """What a run has left: the names of its files, its figures, and a hash of each tensor."""
    summary = json.loads((folder / "summary.json").read_text())
    epochs = [report | {"seconds": 0} for report in summary["epochs"]]
    result: dict[str, Any] = {"names": sorted(os.listdir(folder))}
    result |= {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}
    for path in sorted(folder.glob("*.safetensors")):
        file = StateFile(path)
        file.read()
        result[path.name] = file.about["steps"], file.hashes
    return result | {"epochs": epochs}


def finish(words: list[str], folder: Path, log: Path) -> int:
    """Bring a run to its end as a user would."""
    command = ["train", "--out", str(folder)]
    resumed = wait(fork(lambda: run_command([*command, "--resume"], log)))
    if resumed != 2:
        return resumed
    return wait(fork(lambda: run_command([*command, *words], log)))


def count_points(words: list[str], work: Path) -> int:
    """Run once without a kill: the reference, in the folder "whole", and its number of points."""
    log = work / "whole.log"
    command = ["train", "--out", str(work / "whole"), *words]
    code = wait(fork(lambda: run_command(command, log, Killer(0))))
    assert code == 0, log.read_text()
    for name in (work / "modules").read_text().split():  # the next children find them imported
        with suppress(Exception):
            importlib.import_module(name)
    return int((work / "points").read_text())


def kill_runs(count: int, seed: int, settings: int) -> dict[str, Any]:
    """Kill runs of the first settings; returns how many kills of each kind, and every failure."""
    draws = random.Random(seed)
    kills: Counter[str] = Counter()
    failures: list[str] = []
    runs = 0
    root = Path(tempfile.mkdtemp())
    references: dict[str, tuple[int, dict[str, Any], float]] = {}
    try:
        while sum(kills.values()) < count:
            name = [*RUNS][:settings][runs % settings]
            runs += 1
            words, work = [*QUICK, *RUNS[name]], root / name
            if name not in references:
                work.mkdir()
                start = time.perf_counter()
                points = count_points(words, work)
                seconds = time.perf_counter() - start
                references[name] = points, read_result(work / "whole"), seconds
            points, whole, seconds = references[name]
            folder, log = work / "killed", work / "killed.log"
            shutil.rmtree(folder, ignore_errors=True)
            log.unlink(missing_ok=True)
            told = kill_once(draws, words, folder, log, points, seconds, kills)
            code = finish(words, folder, log)
            same = code == 0 and read_result(folder) == whole
            if not same or "Traceback" in log.read_text():
                failures.append(f"{name}, {told}: exit {code}\n{log.read_text()[-2000:]}")
    finally:
        shutil.rmtree(root)
    return {"kills": dict(kills), "runs": runs, "failures": failures}


def kill_once(
    draws: random.Random,
    words: list[str],
    folder: Path,
    log: Path,
    points: int,
    seconds: float,
    kills: Counter[str],
) -> str:
    """Kill a run once or several times in a row. Returns where."""
    told = []
    command = ["train", "--out", str(folder)]
    flags = words
    for _ in range(draws.randint(1, MAX_IN_A_ROW)):
        if draws.random() < 0.75:
            # A resumed run has fewer calls: often early ones, so that it is killed again.
            n = draws.randint(1, draws.choice((points, points // 4)))
            child = fork(partial(run_command, [*command, *flags], log, Killer(n)))
            told.append(f"call {n} of {points}")
            kind = "at a call"
        else:
            child = fork(partial(run_command, [*command, *flags], log))
            after = draws.uniform(0, seconds)
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
            told.append(f"{after:.3f} s")
            kind = "at random"
        if wait(child) != -signal.SIGKILL:
            break  # the run has ended before
        kills[kind] += 1
        flags = ["--resume"] if (folder / "config.json").exists() else words
    return ", then ".join(told)


# --- damages --------------------------------------------------------------------------------------


WAYS = ("flip", "flip", "flip in header", "cut", "insert", "remove", "swap", "zero")


def damage(content: bytes, draws: random.Random) -> tuple[str, bytes]:
    """Damage a file in one of several ways. Returns the way and the content."""
    data = bytearray(content)
    size, header = len(data), 8 + int.from_bytes(data[:8], "little")
    way = draws.choice(
        ("flip", "flip", "flip in header", "cut", "insert", "remove", "swap", "zero")
    )
    match way:
        case "flip" | "flip in header":
            at = draws.randrange(header if way == "flip in header" else size)
            data[at] ^= 1 << draws.randrange(8)
        case "cut":
            del data[draws.randrange(size) :]
        case "insert":
            at = draws.randrange(size)
            data[at:at] = draws.randbytes(draws.randint(1, 64))
        case "remove":
            at = draws.randrange(size)
            del data[at : at + draws.randint(1, 64)]
        case "swap":
            length = draws.choice((1, 4, 64))
            one, two = draws.randrange(size - length), draws.randrange(size - length)
            first, second = data[one : one + length], data[two : two + length]
            data[one : one + length], data[two : two + length] = second, first
        case "zero":
            at = draws.randrange(size)
            data[at : at + 512] = bytes(len(data[at : at + 512]))
    return way, bytes(data)


def make_learner(seed: int) -> Learner:
    """A learner that has made two steps."""
    config = Config(
        model="mlp:8,8", limit=60, modules=2, batch_size=30, method="backlink(layers=1)"
    )
    dataset, learner = prepare(config)
    inputs, labels = dataset.make_zero_batch(30)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        learner.step((torch.rand(inputs.shape, generator=generator), labels))
    return learner


def are_equal(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def damage_files(count: int, seed: int) -> dict[str, Any]:
    """Damage a checkpoint in many ways; returns what became of it, and every failure in words."""
    draws = random.Random(seed)
    found: Counter[str] = Counter()
    failures: list[str] = []
    folder = Path(tempfile.mkdtemp())
    source, learner = make_learner(1), make_learner(2)
    good, other = state_of(source), state_of(learner)
    path = folder / "a.safetensors"
    save(path, source, epoch=2)
    load(path, learner)  # what the good file takes is no damage
    content, before = path.read_bytes(), _peak_mib()
    for _ in range(count):
        way, damaged = damage(content, draws)
        path.write_bytes(damaged)
        assert other is not None
        restore(learner, other)
        try:
            load(path, learner)
            outcome = "equal" if are_equal(state_of(learner), good) else "wrong in silence"
        except BadInput as error:
            unchanged = are_equal(state_of(learner), other)
            named = all(str(path) in problem for problem in error.problems)
            outcome = "refused by name" if unchanged and named else f"changed, or unnamed: {error}"
        except Exception as error:
            outcome = f"traceback: {error!r}"
        found[outcome if outcome in ("equal", "refused by name") else "failed"] += 1
        if outcome not in ("equal", "refused by name"):
            failures.append(f"{way}: {outcome}")
    shutil.rmtree(folder)
    return {"damages": dict(found), "more_mib": _peak_mib() - before, "failures": failures}


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- the command ----------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("kills", "damages"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=int, default=len(RUNS), choices=range(1, len(RUNS) + 1))
    args = parser.parse_args()
    start = time.perf_counter()
    with redirect_stderr(io.StringIO()):
        if args.what == "kills":
            result = kill_runs(args.count, args.seed, args.settings)
        else:
            result = damage_files(args.count, args.seed)
    result |= {"count": args.count, "seed": args.seed, "seconds": time.perf_counter() - start}
    result["cpu_seconds"] = sum(os.times()[:4])
    print(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
