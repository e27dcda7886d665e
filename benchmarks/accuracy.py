"""Test accuracy of the methods on CIFAR-10, in settings that a CPU can train.

Each module has one layer. All rows of a setting share network, data, optimizer, schedule and seeds,
so that only the method differs. The accuracy is that of the last epoch on the test images, which
select nothing. Each run appends one line to the result file of its setting. Runs that are there
already are skipped, so a table can be made in several sessions. Methods that do not fit the network
are named and left out.

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
from localprop.methods.names import find_methods
from localprop.methods.parse import parse_rule
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.scores import score_test_split
from localprop.training.trainer import train

HERE = Path(__file__).parent
SETTINGS = {
    "resnet14-10000": Config(model="resnet14", epochs=12, batch_size=128, limit=10_000),
    "resnet8-2000": Config(model="resnet8", epochs=5, batch_size=64, limit=2_000),
}
METHODS = [*(f"{name}()" for name in find_methods()), "greedy(aux=Head(convs=0, linears=1))"]

Row = dict[str, Any]


def run_task(task: tuple[str, str, int, str]) -> Row | str:
    """Train once, for (setting, method, seed, data). Returns the row, or why there is none."""
    setting, method, seed, data = task
    torch.set_num_threads(1)
    config = replace(SETTINGS[setting], method=method, seed=seed, data=data)
    try:
        dataset, learner = prepare(config)
    except BadInput as error:
        return f"{method} left out: {error}"
    # Channels last gives the same sums in another order, and is a third faster on this CPU.
    learner.model.to(memory_format=torch.channels_last)
    start = time.perf_counter()
    reports = train(learner, dataset, config)
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": score_test_split(learner, dataset, config).accuracy,
        "losses": reports[-1].losses,
        "modules": learner.wiring.table.effective_modules,
        "seconds": time.perf_counter() - start,
        "commit": read_commit(),
        "torch": torch.__version__,
        "config": {**asdict(config), "data": Path(data).name},
    }


def read_commit() -> str:
    """The commit of the working tree."""
    words = ["git", "rev-parse", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, cwd=HERE).stdout.strip()


def normalize_method(method: str) -> str:
    """The same text for all ways to write a method."""
    return repr(parse_rule(method))


def read_rows(path: Path) -> list[Row]:
    """The rows of a result file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def list_missing_runs(path: Path, methods: list[str], seeds: int) -> list[tuple[str, int]]:
    """The methods and seeds that the result file does not have yet."""
    finished = {(normalize_method(row["method"]), row["seed"]) for row in read_rows(path)}
    return [
        (method, seed)
        for seed in range(seeds)
        for method in methods
        if (normalize_method(method), seed) not in finished
    ]


def format_results(path: Path) -> str:
    """The results as a Markdown table, best first."""
    scores: dict[str, list[float]] = {}
    first_rows: dict[str, Row] = {}
    for row in read_rows(path):
        method = normalize_method(row["method"])
        first_rows.setdefault(method, row)
        scores.setdefault(method, []).append(100 * row["test_accuracy"])
    lines = ["| method | modules | seeds | test accuracy, % |", "|---|---:|---:|---:|"]
    for method in sorted(scores, key=lambda method: -statistics.mean(scores[method])):
        row, own = first_rows[method], scores[method]
        accuracy = f"{statistics.mean(own):.2f}"
        if len(own) > 1:
            accuracy += f" +- {statistics.stdev(own):.2f}"
        lines.append(f"| `{row['method']}` | {row['modules']} | {len(own)} | {accuracy} |")
    return "\n".join(lines)


def run_tasks(tasks: list[tuple[str, str, int, str]], workers: int, path: Path) -> None:
    """Train in several processes, and append each row to the result file as soon as it is known."""
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for row in pool.imap_unordered(run_task, tasks):
            if isinstance(row, str):
                print(row, flush=True)
                continue
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            accuracy = 100 * row["test_accuracy"]
            print(f"{row['method']} seed {row['seed']}: {accuracy:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data", help="the .npz file of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument(
        "--table", action="store_true", help="print the table of the results and exit"
    )
    args = parser.parse_args()
    path = HERE / "results" / f"cifar10-{args.setting}.jsonl"
    if not args.table:
        missing = list_missing_runs(path, args.methods, args.seeds)
        tasks = [(args.setting, method, seed, args.data) for method, seed in missing]
        run_tasks(tasks, args.workers, path)
    print(format_results(path))


if __name__ == "__main__":
    main()
