"""The sweep: models of other libraries and hand-written patterns, each checked by itself.

    python benchmarks/models/sweep.py                            # everything, into results/models.*
    python benchmarks/models/sweep.py 'timm:resnet*' hf:bert     # only these rows are measured anew
    python benchmarks/models/sweep.py --list

Each case runs in a process of its own, with a limit of its CPU time, so that a crash costs one row.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from checks import Measured, explain_failure
from report import find_commit, judge, write_report

RESULTS = Path(__file__).parent.parent / "results"
SOURCES = {
    "hf": "hugging_face_cases",
    "hf+": "hugging_face_more",
    "own": "patterns",
    "timm": "timm_cases",
    "tv": "torchvision_cases",
    "": "library_cases",
}
Record = dict[str, Any]


def list_names() -> list[str]:
    """The names of all cases. No library is imported."""
    return [
        f"{source}:{name}" if source else name
        for source, module in SOURCES.items()
        for name in load_cases(module)
    ]


def load_cases(module: str) -> Any:
    return importlib.import_module(module).CASES


def find_build(name: str) -> Any:
    source, _, rest = name.partition(":")
    if source in SOURCES:
        return load_cases(SOURCES[source])[rest]
    return load_cases(SOURCES[""])[name]


def select_names(patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; all without any."""
    names = list_names()
    if not patterns:
        return names
    found = [name for name in names if any(fnmatch.fnmatch(name, each) for each in patterns)]
    if not found:
        raise SystemExit(f"No case matches {' '.join(patterns)}: see --list.")
    return found


# --- one case, in its own process -----------------------------------------------------------------


def run_case(name: str, folder: Path, seconds: int) -> None:
    """Measure a case, and keep in a file what is known so far."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(1)

    def save(record: Record) -> None:
        (folder / "new").write_text(json.dumps(record), "utf-8")
        os.replace(folder / "new", folder / "record")

    save({})
    try:
        measured = Measured(find_build(name), save)
    except ImportError as error:
        save({"not_installed": str(error), "complete": True})
    except Exception as error:
        save({"not_built": explain_failure(error), "complete": True})
    else:
        save({**measured.run(), "complete": True})


class Running:
    """A case that is measured in a process of its own.

    The process is a fork of this one, which has imported torch already.
    """

    def __init__(self, name: str, seconds: int) -> None:
        self.name, self._start = name, time.perf_counter()
        self._folder = tempfile.TemporaryDirectory()
        arguments = (name, Path(self._folder.name), seconds)
        self.process = multiprocessing.get_context("fork").Process(target=run_case, args=arguments)
        self.process.start()

    def collect(self) -> Record:
        """What was found, once the process has ended."""
        self.process.join()
        folder, code = Path(self._folder.name), self.process.exitcode
        record: Record = json.loads((folder / "record").read_text("utf-8"))
        if not record.pop("complete", False):
            by_limit = code in (-signal.SIGXCPU, -signal.SIGKILL)
            record["ended"] = "no time" if by_limit else "died"
            if not by_limit:
                record["error"] = (folder / "log").read_text("utf-8", "replace").strip()[-2000:]
        self._folder.cleanup()
        record["seconds"] = round(time.perf_counter() - self._start, 1)
        record["commit"] = find_commit()
        record["verdict"], record["notes"] = judge(record)
        return record


def measure_all(names: Iterable[str], arguments: argparse.Namespace) -> None:
    """Measure cases, and write the tables after each of them."""
    waiting, running = list(names), list[Running]()
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            running.append(Running(waiting.pop(0), arguments.seconds))
        ended = connection.wait([each.process.sentinel for each in running])
        for each in [each for each in running if each.process.sentinel in ended]:
            running.remove(each)
            add_record(arguments.out, each.name, each.collect())


def add_record(path: Path, name: str, record: Record) -> None:
    """Put a row into the tables; other rows stay as they are."""
    print(
        f"{name:45} {record['verdict']:13} {record['seconds']:6.1f} s  {record['notes']}",
        flush=True,
    )
    figures = path.with_suffix(".json")
    known = json.loads(figures.read_text("utf-8"))["cases"] if figures.exists() else {}
    write_report(path, {**known, name: record}, list_names())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="names of cases, with * and ?; all by default")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--out", type=Path, default=RESULTS / "models.md", help="the table")
    parser.add_argument("--jobs", type=int, default=1, help="cases at the same time")
    parser.add_argument("--seconds", type=int, default=120, help="CPU time of a case")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(select_names(arguments.names)))
    else:
        measure_all(select_names(arguments.names), arguments)


if __name__ == "__main__":
    main()
