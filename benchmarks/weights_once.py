"""Weights' gradients made once, of the sum of several flows, beside those made by each flow.

    python benchmarks/weights_once.py --out benchmarks/results/weights-once.json

All steps of all networks run in turns in one process, on one thread. Ratios are to the plain loop
on the same network in the same round: of wall seconds, and of the CPU seconds of the process, which
other work on the machine disturbs less. The file is written after each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import localprop as lp
from localprop.cost.baselines import PlainLoop
from localprop.report.costs import measure_peak_bytes
from localprop.tasks.batch import Batch
from localprop.training.environment import describe_environment

# Network, rule and modules.
CASES: dict[str, tuple[str, Callable[[], lp.Rule], int]] = {
    "backlink(1)": ("resnet32", lambda: lp.backlink(1), 16),
    "interlocking(3, sum)": ("resnet32", lambda: lp.interlocking(3, combine="sum"), 8),
    "backlink(3)": ("resnet110", lambda: lp.backlink(3), 16),
}


@dataclass
class Contender:
    """A way to train, with what it costs.

    Attributes:
        name: of the table.
        plain: the name of the plain loop on the same network.
        step: trains on a batch.
        facts: peaks in bytes, and operations.
        wall: seconds of each round.
        cpu: CPU seconds of each round.
    """

    name: str
    plain: str
    step: Callable[[], object]
    facts: dict[str, int]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self) -> None:
        """Time a step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def build(network: str) -> torch.nn.Module:
    """A network, always with the same weights."""
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(lp.models, network)()
    return model


def make_plain(network: str, batch: Batch) -> Contender:
    """The plain PyTorch loop; it has stepped."""
    model = build(network)
    loop = PlainLoop(model, sgd(model.parameters()), batch)
    facts = {"flops": loop.flops(), "peak_bytes": loop.peak_bytes()}
    return Contender(f"{network} plain", f"{network} plain", loop.step, facts)


def make_learner(case: str, weight_gradients: str, batch: Batch) -> Contender:
    """A learner of a case; it has stepped."""
    network, make_rule, modules = CASES[case]
    learner = lp.Learner(
        build(network),
        make_rule(),
        modules=modules,
        optimizer=sgd,
        sample=batch.data,
        weight_gradients=weight_gradients,
        atomic=False,
        on_nonfinite="ignore",
    )
    facts = {"flops": learner.flops(), "predicted_peak_bytes": learner.memory().peak_bytes}
    learner.step(batch.data)
    facts["peak_bytes"] = measure_peak_bytes(learner, batch)
    name = f"{network} {case} {weight_gradients}"
    return Contender(name, f"{network} plain", lambda: learner.step(batch.data), facts)


def summarise(contenders: list[Contender]) -> list[dict[str, Any]]:
    """The figures of all contenders so far: medians over rounds, and quartiles of ratios."""
    by_name = {each.name: each for each in contenders}
    rows = []
    for each in contenders:
        row: dict[str, Any] = {"name": each.name, **each.facts}
        row["rounds"], row["seconds"] = len(each.wall), statistics.median(each.wall)
        row["cpu_seconds"] = statistics.median(each.cpu)
        others = {"plain": by_name[each.plain]}
        if each.name.endswith(" once"):
            others["each"] = by_name[each.name.removesuffix("once") + "each"]
        for other, base in others.items():
            for kind in ("wall", "cpu"):
                pairs = zip(getattr(each, kind), getattr(base, kind), strict=True)
                ratios = [a / b for a, b in pairs]
                row[f"{kind}_ratio_to_{other}"] = statistics.median(ratios)
                if len(ratios) > 1:
                    row[f"{kind}_quartiles_to_{other}"] = statistics.quantiles(
                        ratios, n=4, method="inclusive"
                    )
            row[f"flops_ratio_to_{other}"] = each.facts["flops"] / base.facts["flops"]
            row[f"peak_ratio_to_{other}"] = each.facts["peak_bytes"] / base.facts["peak_bytes"]
        rows.append(row)
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = arguments.batch
    batch = Batch.of((torch.randn(size, 3, 32, 32), torch.randint(10, (size,))))
    contenders = [make_plain(network, batch) for network in ("resnet32", "resnet110")]
    for case in CASES:
        contenders += [make_learner(case, how, batch) for how in ("once", "each")]
    result = {"environment": describe_environment(), "batch": size, "threads": 1}
    loads = []
    for _ in range(arguments.rounds):
        for each in contenders:
            each.time()
        loads.append(os.getloadavg()[0])
        found = {**result, "load": loads, "contenders": summarise(contenders)}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    for row in summarise(contenders):
        line = [
            row["name"],
            f"{row['cpu_ratio_to_plain']:.3f}",
            f"{row['peak_ratio_to_plain']:.3f}",
        ]
        print(*line, f"{row.get('cpu_ratio_to_each', 1):.3f}")


if __name__ == "__main__":
    main()
