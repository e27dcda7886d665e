"""Two ranks at work: local methods against the machine's ceiling, one process, and torch.distributed.pipelining.

    export MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_THRESHOLD_=100000000000 OMP_NUM_THREADS=1
    torchrun --nproc-per-node 2 benchmarks/pipeline.py --out benchmarks/results/pipeline-2-ranks.json

One thread per rank. Every round runs each contender once: all ranks meet, it takes a step that is not counted and some
that are, and where batches stream one more, so that both ranks work for as long as is counted. Ratios are of one round;
lesser contenders run in every other one. Modules are balanced by seconds, measured while both ranks work: of layers, then
of a trial's ranks. Ranks idle when they are not in a forward, loss, backward or optimizer step. What is predicted comes
from the seconds of one process (two at once), and is simulated. Over NCCL none of this has been run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch_pipelines as pipelines
from pipeline_contenders import PARTS, PLAIN, Bench, Contender, Sample, gathered, say, slower

from localprop.ranks.lowering import in_flight
from localprop.ranks.mesh import join
from localprop.report.tables import markdown
from localprop.step.timeline import simulate
from localprop.step.timing import Wire, message_bytes

BASELINE = f"torch 1F1B, {PARTS}"
MIB = 2**20


def contenders_of(bench: Bench, *, few: bool) -> Iterator[Contender]:
    """All of them, or the first few, in the order of a round."""
    yield bench.ceiling(PARTS)
    yield bench.ours("greedy", PARTS)
    yield bench.torchs("1F1B", PARTS)
    yield bench.ours("backlink(1)", PARTS)
    yield bench.torchs("GPipe", PARTS)
    yield bench.ceiling(1)
    yield bench.ours("greedy", 1)
    if few:
        return
    yield bench.ours("greedy", PARTS, silent=True, often=False)
    yield bench.ours("backlink(1)", 1, often=False)
    yield bench.ours("interlocking(2)", PARTS, often=False)
    yield bench.ours("end_to_end", PARTS, often=False)
    yield bench.ours("end_to_end", PARTS, order="gpipe", often=False)
    yield bench.torchs("InterleavedZeroBubble", PARTS, often=False)
    yield bench.torchs("ZBVZeroBubble", PARTS, often=False)
    yield from map(bench.best_torch, pipelines.SINGLE)
    for method in ("greedy", "backlink(1)", PLAIN):
        yield bench.one_process(method, PARTS, often=method != "backlink(1)")
        yield bench.one_process(method, 1)
    yield bench.one_process("greedy", PARTS, both=True)
    yield bench.one_process(PLAIN, PARTS, both=True)


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What is known of one contender.

    Attributes:
        contender: whose.
        rounds: of each rank its sample, by the number of the round.
        peak_bytes: of each rank.
        predicted: seconds per step and idle shares on paper, of ours.
    """

    contender: Contender
    rounds: dict[int, list[Sample | None]] = field(default_factory=dict)
    peak_bytes: list[int | None] = field(default_factory=list)
    predicted: tuple[float, tuple[float, ...]] | None = None

    @property
    def seconds(self) -> float:
        """Per step, the median of all rounds."""
        return statistics.median(map(slower, self.rounds.values()))

    @property
    def idle_shares(self) -> list[float] | None:
        """Of each rank, medians."""
        if not any(sample and sample.busy for samples in self.rounds.values() for sample in samples):
            return None
        shares = [[1 - s.busy / slower(samples) for s in samples if s] for samples in self.rounds.values()]
        return [statistics.median(own) for own in zip(*shares, strict=True)]

    def ratios(self, other: Measured | None) -> list[float]:
        """How many times as fast as another contender, in each round that both ran in."""
        if other is None or other is self:
            return []
        both = [number for number in self.rounds if number in other.rounds]
        return [slower(other.rounds[number]) / slower(self.rounds[number]) for number in both]


def measured_wire() -> Wire:
    """The link between ranks 0 and 1: messages of two sizes, there and back."""

    def one_way(floats: int, times: int = 30) -> float:
        tensor, seconds = torch.zeros(floats), []
        for _ in range(times):
            start = time.perf_counter()
            for move in (dist.send, dist.recv) if dist.get_rank() == 0 else (dist.recv, dist.send):
                move(tensor, 1 - dist.get_rank())
            seconds.append((time.perf_counter() - start) / 2)
        return min(gathered(min(seconds)))

    small, large = one_way(1), one_way(2**18)
    return Wire(4 * 2**18 / max(large - small, 1e-6), small)


def predicted(bench: Bench, contender: Contender, wire: Wire) -> tuple[float, tuple[float, ...]] | None:
    """Seconds per step and idle shares, by the seconds that one process takes for each action."""
    learner, seconds = contender.learner, bench.seconds.get(contender.work)
    if learner is None or learner.pipeline is None or seconds is None:
        return None
    programmes = learner.pipeline.programmes
    sizes = message_bytes(learner.wiring, seconds.samples)
    timeline = simulate(programmes, seconds, sizes, wire, in_flight=in_flight(programmes))
    return timeline.seconds_per_step, timeline.idle_shares


def measure(bench: Bench, rounds: int, steps: int, wire: Wire, *, few: bool) -> list[Measured]:
    """Everything."""
    bench.balance()
    found = [Measured(contender) for contender in contenders_of(bench, few=few)]
    for own in found:
        own.peak_bytes = own.contender.peak_bytes()
        own.predicted = predicted(bench, own.contender, wire)
    say("memory is known")
    for number in range(rounds):
        for own in found:
            if own.contender.often or number % 2 == 0:
                own.rounds[number] = own.contender.sample(steps)
        say(f"round {number + 1} of {rounds}")
    return found


# --- reporting -------------------------------------------------------------------------------------------------------


def spread(ratios: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""


def table(found: Sequence[Measured]) -> str:
    """In Markdown."""
    by_name = {own.contender.name: own for own in found}
    head = ["contender, micro-batches", "batches/s", "x one process", "x ceiling", f"x {BASELINE}", "idle %", "peak MiB",
            "predicted s", "error", "idle %"]  # fmt: skip
    return markdown(head, [cells(own, by_name) for own in found])


def cells(own: Measured, by_name: dict[str, Measured]) -> list[str]:
    contender, idle, paper = own.contender, own.idle_shares, own.predicted
    others = (contender.one, contender.ceiling, BASELINE)
    return [
        contender.name,
        f"{1 / own.seconds:.3f}",
        *(spread(own.ratios(by_name.get(name))) for name in others),
        " / ".join(f"{100 * share:.1f}" for share in idle or ()),
        " / ".join(f"{peak / MIB:.0f}" for peak in own.peak_bytes if peak),
        f"{paper[0]:.3f}" if paper else "",
        f"{100 * (paper[0] / own.seconds - 1):+.1f}%" if paper else "",
        " / ".join(f"{100 * share:.1f}" for share in paper[1]) if paper else "",
    ]


def record(own: Measured, by_name: dict[str, Measured]) -> dict[str, Any]:
    """For the result file."""
    contender = own.contender
    others = {"one process": contender.one, "ceiling": contender.ceiling, BASELINE: BASELINE}
    return {
        "name": contender.name,
        "seconds": own.seconds,
        "ratios": {what: own.ratios(by_name.get(name)) for what, name in others.items()},
        "idle_shares": own.idle_shares,
        "peak_bytes": own.peak_bytes,
        "predicted": own.predicted and {"seconds": own.predicted[0], "idle_shares": own.predicted[1]},
        "rounds": {n: [sample and sample._asdict() for sample in samples] for n, samples in own.rounds.items()},
    }


def surroundings() -> dict[str, Any]:
    """Versions, commit and machine."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(": ")[1] for line in info.splitlines() if line.startswith("model name")]
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain").splitlines(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores of {(names or [platform.processor()])[0]}, {platform.system()}",
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="resnet110", help="a CIFAR ResNet")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="steps that count, of each contender in a round")
    parser.add_argument("--few", action="store_true", help="only what the goals compare")
    parser.add_argument("--out", type=Path, help="a JSON file")
    config = parser.parse_args()
    torch.set_num_threads(1)
    join(300.0)
    around, wire, bench = surroundings(), measured_wire(), Bench(config.model, config.batch)
    found = measure(bench, config.rounds, config.steps, wire, few=config.few)
    if dist.get_rank() == 0:
        print(table(found))
        by_name = {own.contender.name: own for own in found}
        result = {
            "config": {key: value.name if isinstance(value, Path) else value for key, value in vars(config).items()},
            **around,
            "wire": asdict(wire),
            "cuts": {f"{method}, {parts}": cut for (method, parts), cut in bench.cuts.items()},
            "torch_bounds": bench.bounds,
            "contenders": [record(own, by_name) for own in found],
        }
        if config.out:
            config.out.write_text(json.dumps(result, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
