"""The time of a step: every method beside the plain loop and checkpointing, and how it grows.

    python benchmarks/speed.py benchmarks/results/speed.jsonl
    python benchmarks/speed.py benchmarks/results/speed.jsonl --table

Each setting is one line of the file: a comparison in interleaved rounds in one process, with the
peak memory, the operations and the environment. Settings that are there already are not run again,
so a run that was stopped goes on. `localprop bench speed` runs a single setting, with `--against`
beside steps of other implementations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localprop.report.bench import BenchSetting, run_bench

LINEAR = "greedy(aux=Head(convs=0, linears=1))"
# What is published for ResNet-32 in 16 modules, by others' code and by papers.
METHODS = (
    "end_to_end()", "end_to_end() with recompute", "end_to_end() with recompute=modules",
    LINEAR, "greedy()", "dgl()", "predsim()", "infopro()",
    "contsup(previous=0)", "contsup()", "auglocal(depth=2)", "auglocal(depth=3)",
    "backlink()", "backlink(layers=3)", "interlocking(wise=2)", "interlocking(wise=3)",
)  # fmt: skip
FAST = tuple(
    f"{method} with fast"
    for method in (
        "end_to_end()", LINEAR, "greedy()", "dgl()", "infopro()", "contsup()",
        "auglocal(depth=3)", "backlink()", "interlocking(wise=2)",
    )
)  # fmt: skip
FEW = ("end_to_end()", "end_to_end() with recompute", LINEAR, "greedy()", "backlink()")
BASE = BenchSetting("resnet32", momentum=0.9)


def list_settings() -> Iterator[tuple[str, BenchSetting, tuple[str, ...]]]:
    """What is varied, the setting, and the methods."""
    yield "all methods", BASE, (*METHODS, *FAST)
    deep = BenchSetting("resnet110", momentum=0.9, batch_size=32)
    yield "all methods, deep", deep, (*FEW, "backlink(layers=3)", "interlocking(wise=2)")
    for batch_size in (1, 8, 32):
        yield "batch", BenchSetting("resnet32", momentum=0.9, batch_size=batch_size), FEW
    for modules in (2, 4, 8):
        yield "modules", BenchSetting("resnet32", momentum=0.9, modules=modules), FEW
    for depth in (56, 110):
        yield "depth", BenchSetting(f"resnet{depth}", momentum=0.9, batch_size=32), FEW
    yield "width", BenchSetting("resnet32:widen=2", momentum=0.9, batch_size=32), FEW
    for size in (16, 64):
        shape = (3, size, size)
        yield "image", BenchSetting("resnet32", input_shape=shape, momentum=0.9, batch_size=32), FEW
    yield "classes", BenchSetting("resnet32", classes=1000, momentum=0.9), FEW


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The comparisons that a file has, by their settings."""
    return {make_key(figures["setting"]): figures for figures in read_lines(path)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What a file of results holds; nothing if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_key(setting: dict[str, Any]) -> str:
    return json.dumps({**setting, "input_shape": list(setting["input_shape"])}, sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--table", action="store_true", help="print the tables of the file")
    args = parser.parse_args()
    known = read(args.out)
    if args.table:
        for figures in known.values():
            print(f"{figures['varied']}\n\n{figures['table']}\n")
        return
    for varied, setting, methods in list_settings():
        if make_key(asdict(setting)) not in known:
            figures = run_bench("speed", setting, methods, args.rounds)
            with args.out.open("a") as file:
                file.write(json.dumps({"varied": varied, **figures}) + "\n")
            print(figures["table"], flush=True)


if __name__ == "__main__":
    main()
