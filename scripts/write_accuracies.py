"""Write `planning/accuracies.json`, the accuracies that plans show, from `benchmarks/results`.

The results are no part of an installed package. A test fails if the file is stale.

    python scripts/write_accuracies.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from localprop.errors import BadInput
from localprop.methods.names import format_method
from localprop.methods.parse import parse_rule
from localprop.report.method_spec import MethodSpec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FILE = ROOT / "src" / "localprop" / "planning" / "accuracies.json"
# The files in benchmarks/results, each with its data and the shape of a sample. Of two figures of
# one method the first file's is taken, which has more seeds.
_SOURCES = {
    "digits-resnet14.json": ("scikit-learn's digits", (1, 8, 8)),
    "cifar10-subset-resnet8.json": ("CIFAR-10 as JPEG", (3, 32, 32)),
    "cifar10-resnet8-2000.jsonl": ("CIFAR-10 as JPEG", (3, 32, 32)),
    "cifar10-resnet14-10000.jsonl": ("CIFAR-10 as JPEG", (3, 32, 32)),
}


class Run(NamedTuple):
    """Runs of a method with some seeds."""

    method: str
    modules: int
    accuracies: list[float]
    config: dict[str, Any]


def read_runs(path: Path) -> Iterator[Run]:
    """The runs of a file: of `localprop compare`, or of `benchmarks/accuracy.py`."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        content = json.loads(text)
        for row in content["rows"]:
            yield Run(row["method"], row["modules"], row["accuracies"], content["config"])
        return
    runs = defaultdict[str, list[dict[str, Any]]](list)
    for line in text.splitlines():
        run = json.loads(line)
        runs[run["method"]].append(run)
    for method, own in runs.items():
        accuracies = [100 * run["test_accuracy"] for run in own]
        yield Run(method, own[0]["modules"], accuracies, own[0]["config"])


def collect() -> list[dict[str, Any]]:
    """The entries of the file."""
    entries: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, (data, shape) in _SOURCES.items():
        for run in read_runs(RESULTS / name):
            spec = MethodSpec.parse(run.method)
            try:
                method = format_method(parse_rule(spec.method))
            except BadInput:  # a label, whose expression the file does not have
                continue
            limit, epochs = run.config["limit"], run.config["epochs"]
            images = f", {limit:,} training images" if limit else ""
            key = run.config["model"], str(shape), method
            if spec.recompute or key in entries:
                continue
            entries[key] = {
                "model": run.config["model"],
                "input_shape": shape,
                "method": method,
                "modules": run.modules,
                "percent": round(mean(run.accuracies), 2),
                "seeds": len(run.accuracies),
                "data": f"{data}{images}, {epochs} epochs",
            }
    return [*entries.values()]


def build_text() -> str:
    """The text of the file, an entry a line."""
    lines = ",\n".join(json.dumps(entry) for entry in collect())
    return f"[\n{lines}\n]\n"


if __name__ == "__main__":
    FILE.write_text(build_text(), "utf-8")
