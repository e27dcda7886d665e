"""What the heartbeat of ranks costs: steps with it and without it, in turns.

Blocks of steps alternate. In every second one the thread of the heartbeat is held, and waits are
not told to it. Seconds are of the clock, CPU seconds of the whole process. `core_share` is the CPU
time of the heartbeat's thread alone, which the kernel counts, in each second that it runs: a step
on a core of its own loses no more.

    torchrun --nproc-per-node 2 benchmarks/heartbeat.py --out benchmarks/results/heartbeat.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

import localprop as lp
from localprop.ranks.heartbeat import Heartbeat
from localprop.ranks.transport import raising_peer_lost
from localprop.training.environment import describe_environment


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def find_thread() -> int:
    """The number of the heartbeat's thread."""
    (number,) = (t.native_id for t in threading.enumerate() if t.name == "localprop heartbeat")
    assert number is not None
    return number


def read_cpu_s(thread: int) -> float:
    """The CPU seconds of a thread."""
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9


@contextmanager
def held(heartbeat: Heartbeat) -> Iterator[None]:
    """Within the context, the heartbeat's thread stands still, and nothing is told to it."""

    def wait(peer: int | None, _: Heartbeat | None) -> Any:
        return raising_peer_lost(peer)

    with heartbeat._lock, mock.patch("localprop.ranks.transport.waiting_for", wait):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch = torch.randn(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    learner = lp.Learner(lp.models.resnet8(), lp.backlink(), modules=4, optimizer=sgd, sample=batch)
    assert learner.pipeline is not None
    heartbeat, thread = learner.pipeline.heartbeat, find_thread()
    learner.step(batch)
    blocks: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    beaten, held_s, begun = read_cpu_s(thread), 0.0, time.perf_counter()
    for number in range(2 * args.rounds):
        name = "without" if number % 2 else "with"
        with held(heartbeat) if number % 2 else nullcontext():
            clock, cpu = time.perf_counter(), time.process_time()
            for _ in range(args.steps):
                learner.step(batch)
            learner.flush()
            spent = time.perf_counter() - clock, time.process_time() - cpu
        held_s += spent[0] * (number % 2)
        blocks[name].append((spent[0] / args.steps, spent[1] / args.steps))
    seconds = time.perf_counter() - begun
    result = {
        "environment": describe_environment(),
        "rounds": args.rounds,
        "steps": args.steps,
        "batch": args.batch,
        "load": os.getloadavg(),
        "seconds": round(seconds, 1),
        "core_share": (read_cpu_s(thread) - beaten) / (seconds - held_s),
        **{
            f"{unit}_{name}": [round(each[i], 6) for each in values]
            for i, unit in enumerate(("step_s", "step_cpu_s"))
            for name, values in blocks.items()
        },
        **{
            f"{unit}_ratio": statistics.median(
                one[i] / other[i]
                for one, other in zip(blocks["with"], blocks["without"], strict=True)
            )
            for i, unit in enumerate(("step_s", "step_cpu_s"))
        },
    }
    if dist.get_rank() == 0:
        print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
