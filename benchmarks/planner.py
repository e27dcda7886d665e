"""What plans promise, beside what the engine reads and what executed steps take.

    python benchmarks/planner.py replay  --out benchmarks/results/planner-replay.json
    python benchmarks/planner.py budgets --out benchmarks/results/planner-budgets.json
    python benchmarks/planner.py fronts  --out benchmarks/results

`replay` compares replayed peaks and operations with those that the engine reads on fake tensors.
`budgets` executes plans with AdamW and compares the bytes of live storages, measured in the third
step, with the budgets. `fronts` plans three large networks, and draws bytes against time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import localprop as lp
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.layer_costs import Network
from localprop.cost.memory import measure_peak
from localprop.errors import BadInput
from localprop.methods.parse import parse_rule
from localprop.network.find_layers import layers_of
from localprop.planning.candidates import Candidates, Way, keep_front
from localprop.planning.sizes import format_size
from localprop.tasks.batch import Batch
from localprop.writing.tables import format_table

RULES = (
    "end_to_end", "greedy", "dgl", "backlink", "backlink(layers=2)", "interlocking",
    "interlocking(wise=3)", "predsim", "auglocal(depth=2)",
)  # fmt: skip
# The families whose best ways are executed.
FAMILIES: dict[str, Callable[[Way], bool]] = {
    "end to end, recompute": lambda way: way.method == "end_to_end" and way.microbatches == 1,
    "end to end, micro-batches": lambda way: way.method == "end_to_end" and way.microbatches > 1,
    "greedy": lambda way: way.method == "greedy",
    "backlink": lambda way: way.method == "backlink",
    "interlocking": lambda way: way.method == "interlocking",
}
SHARES = (0.75, 0.5, 0.3)


def make_images(samples: int, size: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, channels, size, size), torch.randint(10, (samples,))


def make_tokens(samples: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(20, (samples, length)), torch.randint(20, (samples, length))


def build(name: str, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return lp.models.create_model(name, 10, shape)


def build_tokens(width: int, heads: int, blocks: int) -> nn.Module:
    torch.manual_seed(0)
    return lp.models.transformer_lm(20, 32, width=width, heads=heads, blocks=blocks)


NAMES = (
    "resnet20", "resnet32", "vgg8b", "densenet_bc_100_12", "torchvision:resnet18",
    "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf", "torchvision:convnext_tiny",
    "torchvision:swin_t", "timm:vit_tiny_patch16_224",
    "timm:deit_tiny_patch16_224", "timm:resmlp_12_224",
    "timm:convmixer_768_32", "timm:poolformer_s12",
)  # fmt: skip
"""16 images of 64 pixels for those of the libraries, 64 (16) of 32 for ours."""
HEAVY = ("vgg8b", "densenet_bc_100_12")


def list_models() -> Iterator[tuple[str, Callable[[], nn.Module], Any, lp.Task | None]]:
    """Twenty networks, each with a batch and a task."""
    for name in NAMES:
        size, samples = (64, 16) if ":" in name else (32, 16 if name in HEAVY else 64)
        yield name, partial(build, name, (3, size, size)), make_images(samples, size), None
    yield "mlp", partial(build, "mlp", (3, 32, 32)), make_images(512, 32), None
    language = lp.Classification(dim=-1)
    small, large = (64, 2, 6), (96, 3, 12)
    yield "transformer, 6 blocks", partial(build_tokens, *small), make_tokens(64, 32), language
    yield "transformer, 12 blocks", partial(build_tokens, *large), make_tokens(32, 32), language


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def choose(found: lp.Plan, belongs: Callable[[Way], bool], budget: int) -> Way | None:
    """The fastest way of a family within a budget."""
    front = keep_front(way for way in found.ways if belongs(way))
    return replace(found, front=tuple(front)).fit(budget)


# --- replays ------------------------------------------------------------------------------------


def compare_replays(models: slice) -> list[dict[str, Any]]:
    """Replayed peaks beside those that an engine reads, for some rules, cuts and recomputes."""
    rows: list[dict[str, Any]] = []
    for name, make, batch, task in list(list_models())[:14:2][models]:
        candidates = make_candidates(make(), batch, task)
        for text in RULES:
            for way in list_ways(candidates, text):
                read = candidates.confirm(replace(way, flops=0))
                rows.append(
                    {
                        "model": name,
                        "way": str(way),
                        "recompute": way.rerun,
                        "read_bytes": read.peak_bytes,
                        "error": way.peak_bytes / read.peak_bytes - 1,
                        "flops_error": way.flops / read.flops - 1,
                    }
                )
                print(f"{name:32} {way!s:60} {rows[-1]['error']:+.4%}", flush=True)
    return rows


def make_candidates(model: nn.Module, batch: Any, task: lp.Task | None) -> Candidates:
    task = task or lp.Classification()
    own = Batch.of(batch, task.targets(batch))
    layers = layers_of(model, batch, task=task)
    return Candidates(Network(model, layers, task, own, adamw), [1])


def list_ways(candidates: Candidates, text: str) -> list[Way]:
    """A few replayed ways of a method: stored, recomputed, and in the deepest stretches."""
    if text == "end_to_end":
        ways = [way for way in candidates.list_end_to_end() if way.modules == 1]
    else:
        try:
            ways = list(candidates.list_local(text, parse_rule(text)))
        except BadInput as error:
            print(f"{text} is left out: {error.problems[0]}")
            return []
    chosen: dict[tuple[int, str], Way] = {}
    counts = sorted({way.modules for way in ways})
    for way in ways:
        if not way.confirmed and way.modules in (counts[0], counts[len(counts) // 2]):
            chosen[way.modules, way.rerun] = way  # of stretches the last, which is the fastest
    return list(chosen.values())


# --- budgets --------------------------------------------------------------------------------------


def execute_plans(models: slice) -> list[dict[str, Any]]:
    """The peaks of executed plans, for each family and budget."""
    rows: list[dict[str, Any]] = []
    for name, make, batch, task in list(list_models())[models]:
        begin = time.perf_counter()
        found = lp.plan(
            make(), batch, optimizer=adamw, task=task, split_batch_norm=True, microbatches=(1, 2, 4)
        )
        print(f"{name}: {len(found.ways)} ways in {time.perf_counter() - begin:.0f} s", flush=True)
        for share in SHARES:
            budget = round(share * found.plain.peak_bytes)
            for family, belongs in FAMILIES.items():
                way = choose(found, belongs, budget)
                if way is not None:
                    peak = execute(way, make, batch, task)
                    rows.append(
                        {
                            "model": name,
                            "budget_bytes": budget,
                            "family": family,
                            "way": str(way),
                            "planned_bytes": way.peak_bytes,
                            "executed_bytes": peak,
                            "kept": peak <= budget,
                        }
                    )
                    print(f"  {family:26} {way!s:56} {peak / budget:.3f} of the budget", flush=True)
    return rows


def execute(way: Way, make: Callable[[], nn.Module], batch: Any, task: lp.Task | None) -> int:
    """The peak of the third step, in bytes of live storages."""
    model = make()
    learner = lp.Learner(model, **way.kwargs, optimizer=adamw, sample=batch, task=task)
    for _ in range(2):
        learner.step(batch)
    held = list_held_tensors(
        (model, learner.heads), learner.engine.optimizers.all(), Batch.of(batch)
    )
    return measure_peak(lambda: learner.step(batch), held, torch.device("cpu")).peak_bytes


# --- fronts ---------------------------------------------------------------------------------------

LARGE = {
    "vit_l": ("torchvision:vit_l_16", 256, 224, 1000),
    "resnet152": ("torchvision:resnet152", 256, 224, 1000),
    "resnet110": ("resnet110", 128, 32, 10),
}
SMALL_HEAD = "aux=Head(convs=0, linears=1)"


def draw_fronts(folder: Path) -> list[dict[str, Any]]:
    """Plans of three large networks, with the default heads and with linear ones."""
    rows = []
    for name, (model, samples, size, classes) in LARGE.items():
        with torch.device("meta"):
            network = lp.models.create_model(model, classes, (3, size, size))
            batch = torch.zeros(samples, 3, size, size), torch.zeros(samples, dtype=torch.long)
        begin = time.process_time()
        found = lp.plan(
            network,
            batch,
            methods=["greedy", f"greedy({SMALL_HEAD})", f"backlink({SMALL_HEAD})"],
            split_batch_norm=True,
        )
        seconds = time.process_time() - begin
        found.save(folder / f"front-{name}.svg")
        for share in (0.7, 0.5, 0.25, 0.15, 0.1, 0.07):
            budget = round(share * found.plain.peak_bytes)
            row: dict[str, Any] = {"model": name, "budget": share, "seconds": round(seconds, 1)}
            for kind, belongs in KINDS.items():
                best = choose(found, belongs, budget)
                row[kind] = None if best is None else [round(best.time, 3), str(best)]
            rows.append(row)
            print(row, flush=True)
    return rows


def format_fronts(rows: list[dict[str, Any]]) -> str:
    """The time at each budget, as a table."""

    def format_time(found: list[Any] | None) -> str:
        return "-" if found is None else f"{found[0]:.2f}"

    header = ("network", "budget", *KINDS)
    cells = [
        (row["model"], f"{row['budget']:.0%}", *(format_time(row[kind]) for kind in KINDS))
        for row in rows
    ]
    return format_table(header, cells) + "\n"


def is_whole(method: str, *reruns: str) -> Callable[[Way], bool]:
    return lambda way: (
        way.method == method and way.microbatches == 1 and (not reruns or way.rerun in reruns)
    )


KINDS: dict[str, Callable[[Way], bool]] = {
    "one level": is_whole("end_to_end", "no", "all", "stretches"),
    "nested": is_whole("end_to_end"),
    "micro-batches": lambda way: way.method == "end_to_end",
    "greedy": is_whole("greedy"),
    "greedy, linear heads": is_whole(f"greedy({SMALL_HEAD})"),
    "backlink, linear heads": is_whole(f"backlink({SMALL_HEAD})"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("replay", "budgets", "fronts"))
    parser.add_argument("--models", type=int, default=0, help="of replay (7) and budgets (20)")
    parser.add_argument("--first", type=int, default=0, help="the first of these models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    models = slice(args.first, args.first + args.models if args.models else None)
    if args.what == "replay":
        rows = compare_replays(models)
        errors = sorted(abs(row["error"]) for row in rows)
        within = sum(error <= 1e-3 for error in errors)
        print(f"{within} of {len(errors)} within 0.1%, the largest {errors[-1]:.3%}")
        args.out.write_text(json.dumps(rows, indent=0))
    elif args.what == "budgets":
        rows = execute_plans(models)
        kept = sum(row["kept"] for row in rows)
        over = [row for row in rows if not row["kept"]]
        print(f"{kept} of {len(rows)} within their budgets")
        print(format_table(("model", "way", "over"), [
            (row["model"], row["way"], format_size(row["executed_bytes"] - row["budget_bytes"]))
            for row in over
        ]))  # fmt: skip
        args.out.write_text(json.dumps(rows, indent=0))
    else:
        rows = draw_fronts(args.out)
        (args.out / "planner-fronts.json").write_text(json.dumps(rows, indent=0))
        (args.out / "planner-fronts.txt").write_text(format_fronts(rows))


if __name__ == "__main__":
    main()
