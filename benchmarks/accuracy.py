"""Test accuracy of the methods on CIFAR-10, in settings that a CPU can train, one module per layer.

All rows of a setting share network, data, optimizer, schedule and seeds; only the method differs. The accuracy is that after
the last epoch, on the test images, which nothing else looks at. Each run appends one line to the setting's result file, and
runs that are there already are skipped, so that a table can be made in several goes; methods that the network does not suit
are named and left out:

    python benchmarks/accuracy.py resnet14-10000 --data cifar10.npz --seeds 3 --workers 2
    python benchmarks/accuracy.py resnet8-2000 --data cifar10.npz --seeds 3 --workers 2
    python benchmarks/accuracy.py resnet14-10000 --table
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from localprop.errors import BadInput
from localprop.training.config import Config, prepared
from localprop.training.expression import methods, rule_of
from localprop.training.trainer import test_score, train

HERE = Path(__file__).parent
SETTINGS = {
    "resnet14-10000": Config(model="resnet14", epochs=12, batch_size=128, limit=10_000),
    "resnet8-2000": Config(model="resnet8", epochs=5, batch_size=64, limit=2_000),
}
METHODS = [*(f"{name}()" for name in methods()), "greedy(aux=Head(convs=0, linears=1))"]


def run(task: tuple[str, str, int, str]) -> dict[str, object] | str:
    """One run's line, or why there is none."""
    setting, method, seed, data = task
    torch.set_num_threads(1)
    config = replace(SETTINGS[setting], method=method, seed=seed, data=data)
    try:
        dataset, learner = prepared(config)
    except BadInput as error:
        return f"{method} left out: {error}"
    learner.model.to(memory_format=torch.channels_last)  # the same sums in another order, a third faster on this CPU
    began = time.perf_counter()
    reports = train(learner, dataset, config)
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": test_score(learner, dataset, config).accuracy,
        "losses": reports[-1].losses,
        "modules": learner.wiring.table.effective_modules,
        "seconds": time.perf_counter() - began,
        "commit": commit(),
        "torch": torch.__version__,
        "config": {**asdict(config), "data": Path(data).name},
    }


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def rule_text(method: str) -> str:
    """One text for all ways to write a method."""
    return repr(rule_of(method))


def done(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(path: Path) -> str:
    """The results as Markdown, best first."""
    lines = ["| method | modules | seeds | test accuracy, % |", "|---|---:|---:|---:|"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in done(path):
        runs.setdefault(rule_text(row["method"]), []).append(row)
    for own in sorted(runs.values(), key=lambda own: -statistics.mean(row["test_accuracy"] for row in own)):
        scores = [100 * row["test_accuracy"] for row in own]
        spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        lines.append(
            f"| `{own[0]['method']}` | {own[0]['modules']} | {len(own)} | {statistics.mean(scores):.2f}{spread} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data", help="the .npz file of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--table", action="store_true", help="print the table of the results and end")
    args = parser.parse_args()
    path = HERE / "results" / f"cifar10-{args.setting}.jsonl"
    if not args.table:
        there = {(rule_text(row["method"]), row["seed"]) for row in done(path)}
        todo = [(m, s) for s in range(args.seeds) for m in args.methods if (rule_text(m), s) not in there]
        tasks = [(args.setting, m, s, args.data) for m, s in todo]
        with multiprocessing.get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
            for row in pool.imap_unordered(run, tasks):
                if isinstance(row, str):
                    print(row, flush=True)
                    continue
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{row['method']} seed {row['seed']}: {100 * float(str(row['test_accuracy'])):.2f}", flush=True)
    print(table(path))


if __name__ == "__main__":
    main()
