"""Speed and memory on a GPU: all methods beside the plain loop and checkpointing, by precision.

    make bench-gpu                                                      # goes on where it stopped
    python benchmarks/gpu.py benchmarks/results/gpu.jsonl --table
    python benchmarks/gpu.py FILE --device cpu --tiny                   # a look at this script

Each part is one line of the file: `localprop bench memory` or `speed` of one network in one
precision. Parts that are there already are not run again. No part begins that might end after the
minutes given, judged by the longest one so far; the first always does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from speed import METHODS, read_lines

from localprop.errors import BadInput, RunFailed
from localprop.report.bench import BenchSetting, run_bench
from localprop.report.tasks import TEXT_METHODS
from localprop.tasks.batch import Batch
from localprop.training.device import find_device
from localprop.training.tf32 import use_tf32

# The end of each row, and whether matrix products of float32 are TF32 meanwhile.
PRECISIONS = {"fp32": ("", False), "TF32": ("", True), "bf16": (" with bf16", False)}


@dataclass(frozen=True)
class TokenSetting(BenchSetting):
    """A language model and random tokens; `input_shape` is (T,), and `classes` the vocabulary."""

    def find_problems(self) -> list[str]:
        """None: the values are those below."""
        return []

    def make_batch(self) -> Batch:
        """Random tokens, each with the token that is to follow."""
        generator = torch.Generator().manual_seed(0)
        shape = 2, self.batch_size, *self.input_shape
        tokens, following = torch.randint(self.classes, shape, generator=generator)
        device = find_device(self.device)
        return Batch.of((tokens.to(device), following.to(device)))


class Part(NamedTuple):
    """A line of the file: what is measured, on which network, in which precision."""

    network: str
    setting: BenchSetting
    methods: tuple[str, ...]
    what: str
    precision: str

    @property
    def name(self) -> str:
        """How the file knows it."""
        return f"{self.network}, {self.what}, {self.precision}"


def list_networks(device: str) -> Iterator[tuple[str, BenchSetting, tuple[str, ...]]]:
    """The networks, with the methods that train them."""
    for depth in (32, 110):
        setting = BenchSetting(f"resnet{depth}", batch_size=1024, momentum=0.9, device=device)
        yield f"ResNet-{depth}", setting, METHODS
    vit = BenchSetting(
        "torchvision:vit_b_16", (3, 224, 224), 1000, device, 4, batch_size=64, momentum=0.9
    )
    yield "ViT-B", vit, TEXT_METHODS
    gpt = "transformer:width=768,heads=12,blocks=12"
    setting = TokenSetting(gpt, (1024,), 50257, device, 4, batch_size=8, momentum=0.9)
    yield "GPT-2 small", setting, TEXT_METHODS


def list_tiny_networks(device: str) -> Iterator[tuple[str, BenchSetting, tuple[str, ...]]]:
    """One of each kind, small enough for a CPU."""
    few = "end_to_end()", "greedy(aux=Head(convs=0, linears=1))"
    yield "ResNet-8", BenchSetting("resnet8", (3, 8, 8), 10, device, 2, batch_size=4), few
    lm = "transformer:width=8,heads=2,blocks=2"
    yield "a transformer", TokenSetting(lm, (6,), 11, device, 2, batch_size=2), few


def list_parts(device: str, *, tiny: bool) -> Iterator[Part]:
    """All parts. TF32 takes the bytes of fp32, so its memory is not measured."""
    for network, setting, methods in (list_tiny_networks if tiny else list_networks)(device):
        for precision, (end, is_tf32) in PRECISIONS.items():
            rows = tuple(method + end for method in methods)
            for what in ("speed",) if is_tf32 else ("speed", "memory"):
                yield Part(network, setting, rows, what, precision)


def run_part(part: Part, rounds: int, out: Path) -> None:
    """Run a part, append its line to the file, and print its table."""
    with use_tf32(PRECISIONS[part.precision][1]):
        figures = run_bench(part.what, part.setting, part.methods, rounds)
    with out.open("a") as file:
        file.write(json.dumps({"part": part.name, **figures}) + "\n")
    print(f"{part.name}\n\n{figures['table']}\n", flush=True)


def main(words: list[str] | None = None) -> int:
    """Run what is missing. The exit code is 0 if nothing is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true", help="small networks")
    parser.add_argument("--table", action="store_true", help="print the tables of the file")
    args = parser.parse_args(words)
    known = {figures["part"]: figures["table"] for figures in read_lines(args.out)}
    if args.table:
        for name, table in known.items():
            print(f"{name}\n\n{table}\n")
        return 0
    missing = [p for p in list_parts(args.device, tiny=args.tiny) if p.name not in known]
    begin, longest, left = time.monotonic(), 0.0, list[str]()
    for part in missing:
        start = time.monotonic()
        if longest and start - begin + longest > 60 * args.minutes:
            left.append(f"{part.name}: no time is left")
            continue
        try:
            run_part(part, args.rounds, args.out)
        except (BadInput, RunFailed) as error:  # the others may do
            left.append(f"{part.name}: {error}")
        longest = max(longest, time.monotonic() - start)
    for line in left:
        print(line, file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
