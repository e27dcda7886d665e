"""Two ranks at work: local methods, the machine's ceiling, and torch.distributed.pipelining.

    export MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_THRESHOLD_=100000000000 OMP_NUM_THREADS=1
    torchrun --nproc-per-node 2 benchmarks/pipeline.py --out
    benchmarks/results/pipeline-2-ranks.json

Each rank has one thread. Every round runs each method once: all ranks meet, and the method takes
one step that is not counted and some that are. Where batches stream, it takes one more, so that
both ranks work for as long as is counted. Ratios compare methods within one round. Less important
methods run in every other round. Modules are balanced by seconds, measured while both ranks work:
first by those of layers, then by those of the ranks in a trial. A rank is idle when it is not in a
forward, loss, backward or optimizer step. Predictions are simulated from the seconds of the actions
in one process, with two processes at once. None of this has been run over NCCL.
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
from pipeline_bench import MICROBATCHES, PLAIN, Bench
from pipeline_methods import MethodSpec, Sample, find_slowest, gather_objects, report_progress

from localprop.cost.simulate import simulate
from localprop.cost.timing import LinkModel, message_bytes
from localprop.ranks.mesh import join_process_group
from localprop.schedule.lowering import find_max_in_flight
from localprop.writing.tables import format_table

BASELINE = f"torch 1F1B, {MICROBATCHES}"
MIB = 2**20


def build_specs(bench: Bench, *, few: bool) -> Iterator[MethodSpec]:
    """All methods, or the first few, in the order of a round."""
    yield bench.build_ceiling(MICROBATCHES)
    yield bench.build_method("greedy", MICROBATCHES)
    yield bench.build_torch("1F1B", MICROBATCHES)
    yield bench.build_method("backlink(1)", MICROBATCHES)
    yield bench.build_torch("GPipe", MICROBATCHES)
    yield bench.build_ceiling(1)
    yield bench.build_method("greedy", 1)
    if not few:
        yield from build_less_important_specs(bench)


def build_less_important_specs(bench: Bench) -> Iterator[MethodSpec]:
    """The methods that run in every other round, and those in one process."""
    yield bench.build_method("greedy", MICROBATCHES, silent=True, in_every_round=False)
    yield bench.build_method("backlink(1)", 1, in_every_round=False)
    yield bench.build_method("interlocking(2)", MICROBATCHES, in_every_round=False)
    yield bench.build_method("end_to_end", MICROBATCHES, in_every_round=False)
    yield bench.build_method("end_to_end", MICROBATCHES, order="gpipe", in_every_round=False)
    yield bench.build_torch("InterleavedZeroBubble", MICROBATCHES, in_every_round=False)
    yield bench.build_torch("ZBVZeroBubble", MICROBATCHES, in_every_round=False)
    yield from map(bench.build_best_torch, pipelines.SINGLE)
    for method in ("greedy", "backlink(1)", PLAIN):
        often = method != "backlink(1)"
        yield bench.build_one_process(method, MICROBATCHES, in_every_round=often)
        yield bench.build_one_process(method, 1)
    yield bench.build_one_process("greedy", MICROBATCHES, both=True)
    yield bench.build_one_process(PLAIN, MICROBATCHES, both=True)


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class MeasuredMethod:
    """The measurements of one method.

    Attributes:
        spec: the method.
        rounds: the sample of each rank, by the number of the round.
        peak_bytes: the peak of each rank.
        predicted: the simulated seconds per step and idle shares, of methods of this library.
    """

    spec: MethodSpec
    rounds: dict[int, list[Sample | None]] = field(default_factory=dict)
    peak_bytes: list[int | None] = field(default_factory=list)
    predicted: tuple[float, tuple[float, ...]] | None = None

    @property
    def seconds(self) -> float:
        """Seconds per step, the median of all rounds."""
        return statistics.median(map(find_slowest, self.rounds.values()))

    @property
    def idle_shares(self) -> list[float] | None:
        """The idle share of each rank, the median of all rounds; None if it is not measured."""
        # A method that does not report its actions has no busy seconds.
        if not any(sample.busy for own in self.rounds.values() for sample in own if sample):
            return None
        shares = [
            [1 - sample.busy / find_slowest(samples) for sample in samples if sample]
            for samples in self.rounds.values()
        ]
        return [statistics.median(of_rank) for of_rank in zip(*shares, strict=True)]

    def ratios(self, other: MeasuredMethod | None) -> list[float]:
        """How many times as fast as another method it is, in each round that both ran in."""
        if other is None or other is self:
            return []
        both = [number for number in self.rounds if number in other.rounds]
        return [
            find_slowest(other.rounds[number]) / find_slowest(self.rounds[number])
            for number in both
        ]


def measure_link() -> LinkModel:
    """Measure the link between ranks 0 and 1, by messages of two sizes, there and back."""

    def measure_one_way(floats: int, times: int = 30) -> float:
        tensor, seconds = torch.zeros(floats), list[float]()
        peer = 1 - dist.get_rank()
        for _ in range(times):
            start = time.perf_counter()
            for move in (dist.send, dist.recv) if dist.get_rank() == 0 else (dist.recv, dist.send):
                move(tensor, peer)
            seconds.append((time.perf_counter() - start) / 2)
        return min(gather_objects(min(seconds)))

    small, large = measure_one_way(1), measure_one_way(2**18)
    return LinkModel(4 * 2**18 / max(large - small, 1e-6), small)


def predict(
    bench: Bench, spec: MethodSpec, link: LinkModel
) -> tuple[float, tuple[float, ...]] | None:
    """Seconds per step and idle shares, by the seconds that one process takes for each action."""
    learner, seconds = spec.learner, bench.seconds.get(spec.work)
    if learner is None or learner.pipeline is None or seconds is None:
        return None
    rank_schedules = learner.pipeline.rank_schedules
    timeline = simulate(
        rank_schedules,
        seconds,
        message_bytes(learner.wiring, seconds.samples),
        link,
        max_in_flight=find_max_in_flight(rank_schedules),
    )
    return timeline.seconds_per_step, timeline.idle_shares


def measure(
    bench: Bench, rounds: int, steps: int, link: LinkModel, *, few: bool
) -> list[MeasuredMethod]:
    """Measure all methods, round by round."""
    bench.balance()
    measured = [MeasuredMethod(spec) for spec in build_specs(bench, few=few)]
    for method in measured:
        method.peak_bytes = method.spec.measure_peak_bytes()
        method.predicted = predict(bench, method.spec, link)
    report_progress("memory is measured")
    for number in range(rounds):
        for method in measured:
            if method.spec.in_every_round or number % 2 == 0:
                method.rounds[number] = method.spec.sample(steps)
        report_progress(f"round {number + 1} of {rounds}")
    return measured


# --- reporting ------------------------------------------------------------------------------------


def format_ratios(ratios: Sequence[float]) -> str:
    """Median, least and most."""
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})"


def format_measurements(measured: Sequence[MeasuredMethod]) -> str:
    """The measurements as a Markdown table."""
    by_name = {method.spec.name: method for method in measured}
    header = [
        "method, micro-batches",
        "batches/s",
        "x one process",
        "x ceiling",
        f"x {BASELINE}",
        "idle %",
        "peak MiB",
        "predicted s",
        "error",
        "idle %",
    ]
    return format_table(header, [format_cells(method, by_name) for method in measured])


def format_cells(method: MeasuredMethod, by_name: dict[str, MeasuredMethod]) -> list[str]:
    """One row of the table."""
    spec, predicted = method.spec, method.predicted
    others = (spec.one_process, spec.ceiling, BASELINE)
    return [
        spec.name,
        f"{1 / method.seconds:.3f}",
        *(format_ratios(method.ratios(by_name.get(name))) for name in others),
        format_percentages(method.idle_shares or ()),
        " / ".join(f"{peak / MIB:.0f}" for peak in method.peak_bytes if peak),
        f"{predicted[0]:.3f}" if predicted else "",
        f"{100 * (predicted[0] / method.seconds - 1):+.1f}%" if predicted else "",
        format_percentages(predicted[1] if predicted else ()),
    ]


def format_percentages(shares: Sequence[float]) -> str:
    """The shares of all ranks, in per cent."""
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def make_record(method: MeasuredMethod, by_name: dict[str, MeasuredMethod]) -> dict[str, Any]:
    """The measurements of a method, for the result file."""
    spec, predicted = method.spec, method.predicted
    others = {"one process": spec.one_process, "ceiling": spec.ceiling, BASELINE: BASELINE}
    return {
        "name": spec.name,
        "seconds": method.seconds,
        "ratios": {what: method.ratios(by_name.get(name)) for what, name in others.items()},
        "idle_shares": method.idle_shares,
        "peak_bytes": method.peak_bytes,
        "predicted": predicted and {"seconds": predicted[0], "idle_shares": predicted[1]},
        "rounds": {
            number: [sample and sample._asdict() for sample in samples]
            for number, samples in method.rounds.items()
        },
    }


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return {
        "commit": run_git("rev-parse", "HEAD").strip(),
        "changed_files": run_git("status", "--porcelain").strip().splitlines(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores of {cpu}, {platform.system()}",
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
    }


def run_git(*words: str) -> str:
    """What git prints in this folder."""
    folder = Path(__file__).parent
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=folder).stdout


def parse_flags() -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="resnet110", help="a CIFAR ResNet")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, default=1, help="steps of each method that count in a round"
    )
    parser.add_argument("--few", action="store_true", help="only the most important methods")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


def main() -> None:
    flags = parse_flags()
    torch.set_num_threads(1)
    join_process_group(300.0)
    # Read before the measurements, so that the load is that of other programs.
    environment, link = describe_environment(), measure_link()
    bench = Bench(flags.model, flags.batch)
    measured = measure(bench, flags.rounds, flags.steps, link, few=flags.few)
    if dist.get_rank() == 0:
        print(format_measurements(measured))
        by_name = {method.spec.name: method for method in measured}
        config = vars(flags) | {"out": flags.out and flags.out.name}
        result = {
            "config": config,
            **environment,
            "link": asdict(link),
            "cuts": {f"{method}, {count}": cut for (method, count), cut in bench.cuts.items()},
            "torch_bounds": bench.bounds,
            "methods": [make_record(method, by_name) for method in measured],
        }
        if flags.out:
            flags.out.write_text(json.dumps(result, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
