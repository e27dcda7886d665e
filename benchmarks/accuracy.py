"""Test accuracy of every method on one small network: ResNet-14 on 10,000 images of CIFAR-10, one module per layer, 12 epochs.

All rows share network, data, optimizer, schedule and seeds; only the method (and what it cannot do without) differs. The
accuracy is that after the last epoch, on the test images, which nothing else looks at. Each run appends one line to the
result file, runs that are there already are skipped, so that the table can be made in several goes:

    python benchmarks/accuracy.py --data cifar10.npz --seeds 3 --workers 2
    python benchmarks/accuracy.py --table
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

import torch

from localprop.training.config import Config, prepared
from localprop.training.trainer import test_accuracy, train

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cifar10-10000-resnet14.jsonl"
BASE = Config(model="resnet14", epochs=12, batch_size=128, limit=10_000)
METHODS = [
    "end_to_end()",
    "greedy()",
    "backlink(layers=1)",
    "contsup()",
    "auglocal(depth=2)",
    "interlocking(wise=2)",
    "greedy(aux=Head(convs=0, linears=1))",
]


def run(task: tuple[str, int, str]) -> dict[str, object]:
    method, seed, data = task
    torch.set_num_threads(1)
    config = replace(BASE, method=method, seed=seed, data=data)
    dataset, learner = prepared(config)
    began = time.perf_counter()
    reports = train(learner, dataset, config)
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": test_accuracy(learner, dataset, config),
        "losses": reports[-1].losses,
        "modules": learner.wiring.table.effective_modules,
        "seconds": time.perf_counter() - began,
        "commit": commit(),
        "torch": torch.__version__,
        "config": {**asdict(config), "data": Path(data).name},
    }


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def done(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(path: Path) -> str:
    lines = ["| method | modules | seeds | test accuracy, % |", "|---|---|---|---|"]
    runs = done(path)
    for method in dict.fromkeys(str(row["method"]) for row in runs):
        own = [row for row in runs if row["method"] == method]
        scores = [100 * float(str(row["test_accuracy"])) for row in own]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        lines.append(f"| `{method}` | {own[0]['modules']} | {len(own)} | {statistics.mean(scores):.2f}{spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="the .npz file of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results and end")
    args = parser.parse_args()
    if not args.table:
        there = {(row["method"], row["seed"]) for row in done(args.out)}
        tasks = [(m, s, args.data) for s in range(args.seeds) for m in args.methods if (m, s) not in there]
        with multiprocessing.get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
            for row in pool.imap_unordered(run, tasks):
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{row['method']} seed {row['seed']}: {100 * float(str(row['test_accuracy'])):.2f}", flush=True)
    print(table(args.out))


if __name__ == "__main__":
    main()
