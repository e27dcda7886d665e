"""Train 10,000 steps by every method, and see whether anything grows.

    python benchmarks/long_runs.py --steps 10000 --out benchmarks/results/long_runs.json

A tiny residual network with BatchNorm and dropout trains on a few batches in turns. Every 50th
batch is refused (labels out of range), and every 50th step fails in the middle of the network.
Counted are the resident memory of the process, live tensors, Python's objects, file descriptors
and threads: after a tenth of the steps, and at their end. Each method runs in a process of its own.
The file is written after each method; those that it has already are left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import localprop as lp
from localprop.training.environment import describe_environment

EVERY = 50  # steps from one refused batch to the next, and from one failure to the next
WIDTH = 4
# Arguments of methods that this network needs.
ARGUMENTS: dict[str, dict[str, Any]] = {"trgl": {"plain": True}, "auglocal": {"joined": False}}


class Block(nn.Module):
    """A residual block with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, WIDTH, H, W)."""
        return torch.relu(x + self.dropout(self.norm(self.conv(x))))


class Failure:
    """A hook that fails when it is told to."""

    def __init__(self) -> None:
        self.due = False

    def __call__(self, *_: object) -> None:
        """Fail once."""
        if self.due:
            self.due = False
            raise ArithmeticError("on purpose")


def make_learner(method: str) -> tuple[lp.Learner, Failure]:
    """A learner of four layers, and what makes its steps fail."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 4)]
    model = nn.Sequential(*stem, Block(), Block(), Block(), *head)
    failure = Failure()
    model[4].register_forward_hook(failure)
    learner = lp.Learner(
        model,
        getattr(lp, method)(**ARGUMENTS.get(method, {})),
        modules=3,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.001, momentum=0.9),
        sample=make_batches()[0],
        normalization=lp.Normalization(),
    )
    return learner, failure


def make_batches() -> list[tuple[Tensor, Tensor]]:
    """Three batches, one of them smaller."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(n, 3, 4, 4, generator=generator), torch.arange(n)) for n in (4, 4, 3)]


def train(learner: lp.Learner, failure: Failure, first: int, last: int) -> dict[str, int]:
    """Train some steps, refused and failed ones among them, and count these.

    Args:
        learner: a learner.
        failure: makes its steps fail.
        first: the number of the first step.
        last: the number after that of the last.
    """
    batches, counts = make_batches(), {"refused": 0, "failed": 0}
    for number in range(first, last):
        images, labels = batches[number % len(batches)]
        failure.due = number % EVERY == EVERY // 2
        try:
            learner.step((images, labels + 4 if number % EVERY == 0 else labels))
        except lp.BadInput:
            counts["refused"] += 1
        except lp.StepFailed:
            counts["failed"] += 1
    return counts


def count_all() -> dict[str, int]:
    """What the process holds now."""
    gc.collect()
    objects = gc.get_objects()
    fields = Path("/proc/self/statm").read_text().split()
    return {
        "resident_bytes": int(fields[1]) * os.sysconf("SC_PAGE_SIZE"),
        "tensors": sum(issubclass(type(each), Tensor) for each in objects),
        "objects": len(objects),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "system_threads": len(os.listdir("/proc/self/task")),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(method: str, steps: int) -> dict[str, Any]:
    """Train by a method, and count what there is after a tenth of the steps and at the end."""
    with one_thread():
        learner, failure = make_learner(method)
        began = time.process_time()
        train(learner, failure, 0, steps // 10)
        before = count_all()
        counts = train(learner, failure, steps // 10, steps)
        after = count_all()
    seconds = round(time.process_time() - began, 1)
    return {"steps": steps, **counts, "before": before, "after": after, "cpu_seconds": seconds}


def main() -> None:
    """Measure every method, or one, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", help="only this one, on stdout")
    args = parser.parse_args()
    if args.method:
        print(json.dumps(measure(args.method, args.steps)))
        return
    done: dict[str, Any] = {"environment": describe_environment(), "methods": {}}
    if args.out is not None and args.out.exists():
        done = json.loads(args.out.read_text())
    for method in lp.methods.__all__:
        if method not in done["methods"]:
            words = [sys.executable, __file__, "--method", method, "--steps", str(args.steps)]
            output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            done["methods"][method] = json.loads(output)
            print(method, done["methods"][method], flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(done, indent=2) + "\n")


if __name__ == "__main__":
    main()
