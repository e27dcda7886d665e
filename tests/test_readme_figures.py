"""The figures of README and guides: each stands in a result of a command, or follows from one."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from localprop.report.comparison import Comparison, format_comparison

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
TEXT = " ".join(README.split())
SUBSET = "cifar10-subset-resnet8.json"


def read_result(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return values


def read_comparison(name: str) -> Comparison:
    return Comparison.from_json(read_result(name))


def table_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", ["digits-resnet14.json", "cifar10-subset-resnet8.json"])
def test_tables_of_compare(name: str) -> None:
    comparison = read_comparison(name)
    rows = table_of(format_comparison(comparison))
    assert len(rows) > 8
    assert "\n".join(rows) in README
    if comparison.config.data == "digits":
        baseline = comparison.baseline
        peak, milliseconds = baseline.peak_bytes / 2**20, 1000 * baseline.step_seconds
        assert f"({peak:.1f} MiB, {milliseconds:.1f} ms)" in TEXT


def test_the_table_of_bench_memory() -> None:
    assert "\n".join(table_of((RESULTS / "memory-resnet110.txt").read_text())) in README


@pytest.mark.parametrize(
    ("result", "page"),
    [
        ("fine-tune-efficientnet.txt", "benchmarks/README.md"),
        ("fine-tune-sentences.txt", "benchmarks/README.md"),
        ("fine-tune-sentences.txt", "docs/hosts.md"),
    ],
)
def test_the_tables_of_fine_tuning(result: str, page: str) -> None:
    rows = table_of((RESULTS / result).read_text())
    assert len(rows) > 5
    assert "\n".join(rows) in (ROOT / page).read_text()


def test_the_fronts_of_plans() -> None:
    page = (ROOT / "docs" / "will-it-fit.md").read_text()
    text = " ".join(page.split())
    assert "\n".join(table_of((RESULTS / "planner-fronts.txt").read_text())) in page
    times: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((RESULTS / "planner-fronts.json").read_text()):
        times.setdefault(row["model"], []).append(row)

    def list_leads(model: str, kind: str) -> list[float]:
        """By how much a kind of way is ahead of checkpointing, where both fit."""
        return [
            row["nested"][0] - row[kind][0] for row in times[model] if row["nested"] and row[kind]
        ]

    leads = list_leads("vit_l", "greedy, linear heads")
    assert f"ahead of checkpointing of a whole batch by up to {max(leads):.2f}" in text
    leads = list_leads("resnet152", "greedy, linear heads")
    assert f"ahead of checkpointing by {min(leads):.2f} to {max(leads):.2f}" in text
    assert max(list_leads("resnet152", "greedy")) < 0.005  # level at best
    for kind in ("greedy", "greedy, linear heads", "backlink, linear heads"):
        assert min(list_leads("resnet110", kind)) > 0
    below = times["resnet110"][-1]
    assert below["budget"] < 0.1
    assert below["nested"] is below["backlink, linear heads"] is None
    assert below["micro-batches"]
    assert below["greedy, linear heads"]
    free = [row["budget"] for row in times["vit_l"] if row["micro-batches"][0] == 1]
    assert f"cost no operations down to {round(100 * min(free))} %" in text


def test_what_it_costs() -> None:
    """The paragraph of the first screen follows from the tables."""
    peaks = {
        row.split("|")[1].strip(): row.split("|")[3].strip()
        for row in table_of((RESULTS / "memory-resnet110.txt").read_text())
    }
    names = ("greedy()", "greedy() with recompute", "end_to_end() with recompute=modules")
    greedy, again, recompute = (round(float(peaks[name].rstrip("%"))) for name in names)
    assert f"greedy training needs {greedy} % less memory than the plain PyTorch loop" in TEXT
    assert f"{again} % less if layers run again" in TEXT
    assert f"gradient checkpointing {recompute} % less" in TEXT
    rows = {row.method: row for row in read_comparison("cifar10-subset-resnet8.json").rows}
    first = rows["end_to_end()"]
    assert first.accuracy_mean is not None
    gaps = {
        name: row.accuracy_mean - first.accuracy_mean
        for name, row in rows.items()
        if row.accuracy_mean is not None
    }
    assert round(gaps["greedy()"]) == -3
    assert "greedy training loses three points of accuracy" in TEXT
    named = ["auglocal(depth=1)", "contsup()", "interlocking(wise=2)"]
    for name in named:
        spread = max(first.accuracy_std or 0, rows[name].accuracy_std or 0)
        assert abs(gaps[name]) < spread
        assert rows[name].peak_ratio > 1  # "need more memory than the plain loop"
    flops = [rows[name].flops_ratio for name in named]
    assert f"do {min(flops):.1f} to {max(flops):.1f} times the arithmetic" in TEXT


def test_the_step_times_of_greedy_training() -> None:
    """From the table of benchmarks/README.md, which has three runs at 32x32."""
    rows = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    ratios = [
        float(row.split("|")[3])
        for row in rows
        if row.startswith("| greedy(") and "| 3x32x32 |" in row
    ]
    assert len(ratios) == 3
    less = sorted(100 * (1 - ratio) for ratio in ratios)
    assert f"takes {less[0]:.0f}-{less[-1]:.0f} % less time than the plain loop" in TEXT


def read_shares_of_time() -> dict[str, float]:
    """The time of each method with `fast`, of its own without, in the same rounds."""
    first = (RESULTS / "speed.jsonl").read_text().splitlines()[0]
    ratios = {row["method"]: row["timing"]["ratio"] for row in json.loads(first)["rows"]}
    fast = (name.removesuffix(" with fast") for name in ratios if name.endswith(" with fast"))
    return {name: ratios[f"{name} with fast"] / ratios[name] for name in fast}


def test_fast_takes_about_half_the_time() -> None:
    """As README says of every method."""
    shares = read_shares_of_time()
    assert "every method then takes about half its time on a CPU with bf16" in TEXT
    assert len(shares) == 9
    assert all(0.4 < share < 0.6 for share in shares.values())


def test_how_times_grow() -> None:
    """Each row has the ratios of a setting."""
    page = (ROOT / "benchmarks" / "README.md").read_text()
    methods = ["torch.utils.checkpoint", "end_to_end()", "end_to_end() with recompute"]
    methods += ["greedy(aux=Head(convs=0, linears=1))", "greedy()", "backlink()"]
    settings = [json.loads(line) for line in (RESULTS / "speed.jsonl").read_text().splitlines()]
    grown = [each for each in settings if each["varied"] != "all methods"]
    assert len(grown) == 12
    for each in grown:
        ratios = {row["method"]: row["timing"]["ratio"] for row in each["rows"]}
        cells = " | ".join(f"{ratios[method]:.2f}" for method in methods)
        assert f" | {each['setting']['batch_size']} | {cells} |\n" in page


def test_the_times_with_one_optimizer() -> None:
    page = (ROOT / "docs" / "around-the-step.md").read_text()
    ratios = read_ratios("one-optimizer.json")
    named = ["greedy(aux=Head(convs=0, linears=1))", "greedy, one optimizer"]
    named += ["greedy, one fused optimizer", "plain loop, fused optimizer"]
    found = re.search(
        r"at batch 1 takes (\S+) times .* (\S+) with `torch.* and (\S+) with `fused.*"
        r"plain loop with `fused=True` (\d\.\d\d);",
        page.replace("\n", " "),
    )
    assert found
    assert list(found.groups()) == [f"{ratios[name]:.2f}" for name in named]


def test_what_is_slower_than_the_goals() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    runs = [json.loads(line) for line in (RESULTS / "speed-goals.jsonl").read_text().splitlines()]
    deep, usual, single = (
        {row["method"]: row["timing"]["ratio"] for row in run["rows"]} for run in runs
    )
    linear = "greedy(aux=Head(convs=0, linears=1))"
    again, torchs = "end_to_end() with recompute", "torch.utils.checkpoint"
    for setting, what, ratio in (
        ("110, 128", "greedy, linear heads", deep[linear]),
        ("110, 128", "`greedy()`", deep["greedy()"]),
        ("110, 128", "recompute, of torch's checkpoint", deep[again] / deep[torchs]),
        ("32, 128", "recompute, of torch's checkpoint", usual[again] / usual[torchs]),
        ("32, 128", "`end_to_end()` by the engine", usual["end_to_end()"]),
        ("32, 128", "`contsup()`", usual["contsup()"]),
        ("32, 1", "greedy, linear heads", single[linear]),
        ("32, 1", "recompute, of torch's checkpoint", single[again] / single[torchs]),
    ):
        (row,) = (r for r in page.splitlines() if r.startswith(f"| {setting} | {what} | "))
        assert row.split(" | ")[3] == f"{ratio:.2f}"


def compare_accuracies(name: str) -> dict[str, tuple[str, str, str]]:
    """Of each method its accuracies, those with what `fast` takes, and their differences by seed.

    The machine has no instructions for bf16, so that the rows name it.
    """
    comparison = read_comparison(name)
    rows = {row.method: row for row in comparison.rows}
    assert len(comparison.seeds) == 5
    found = {}
    for method, row in rows.items():
        fast = rows.get(f"{method} with bf16 with fast")
        if fast is None:
            continue
        pairs = list(zip(fast.accuracies, row.accuracies, strict=True))
        changes = [new - old for new, old in pairs if new is not None and old is not None]
        mean, spread = round(statistics.mean(changes), 2) + 0.0, statistics.stdev(changes)
        # Within the noise of the seeds.
        assert abs(mean) < max(row.accuracy_std or 0, fast.accuracy_std or 0)
        cells = [f"{each.accuracy_mean:.2f} +- {each.accuracy_std:.2f}" for each in (row, fast)]
        found[method] = (cells[0], cells[1], f"{mean:+.2f} +- {spread:.2f}")
    return found


def test_accuracies_with_fast() -> None:
    shares, digits = read_shares_of_time(), compare_accuracies("digits-fast.json")
    assert list(digits) == ["end_to_end()", "greedy()", "backlink()"]
    for method, cells in digits.items():
        assert f"| `{method}` | {' | '.join(cells)} | {shares[method]:.2f} |" in README
    page = (ROOT / "benchmarks" / "README.md").read_text()
    cifar = compare_accuracies("cifar10-subset-fast.json")
    assert list(cifar) == list(digits)
    for method, cells in (*digits.items(), *cifar.items()):
        assert f"| `{method}` | {' | '.join(cells)} |" in page


def read_ratios(name: str) -> dict[str, float]:
    rows = read_result(name)["rows"]
    return {row["method"]: row["timing"]["ratio"] for row in rows}


def test_the_times_of_fast_parts() -> None:
    page = (ROOT / "docs" / "fast.md").read_text()
    fused = read_ratios("fused-optimizers.json")
    share = fused["greedy, fused AdamW"] / fused["greedy, AdamW"]
    assert f"Fused AdamW takes {share:.2f} of AdamW's time" in page
    compiled = read_ratios("compiled.json")
    eager = {
        "plain loop": 1.0,
        "greedy": compiled["greedy(aux=Head(convs=0, linears=1))"],
        "backlink": compiled["backlink()"],
    }
    for name, ratio in eager.items():
        other = compiled[f"{name}, compiled blocks"]
        assert f"| {name} | {ratio:.2f} | {other:.2f} | {other / ratio:.2f} |" in page
        assert other > ratio  # "slower"


def test_the_figures_of_the_guides() -> None:
    """Memory, accuracy and operations that not-good-for.md and which-method.md name."""
    peaks = {
        row.split("|")[1].strip(): round(float(row.split("|")[3].strip().rstrip("%")))
        for row in table_of((RESULTS / "memory-resnet110.txt").read_text())[3:]
    }
    page = " ".join((ROOT / "docs" / "not-good-for.md").read_text().split())
    assert f"greedy training needs {peaks['greedy()']} % less memory than the plain loop" in page
    again = peaks["end_to_end() with recompute=modules"]
    assert f"gradient checkpointing by modules {again} % less" in page
    rows = {row.method: row.accuracy_mean for row in read_comparison(SUBSET).rows}
    assert f"`greedy()` reached {rows['greedy()']:.2f} %" in page
    assert f"end-to-end training reached {rows['end_to_end()']:.2f} %" in page
    costs = read_result("method-costs.json")["costs"]
    times = {name: cost["operations"] for name, cost in costs.items()}
    assert f"`backlink()` does {times['backlink']:.2f} times" in page
    assert f"`auglocal()` {times['auglocal']:.2f} times" in page
    page = (ROOT / "docs" / "which-method.md").read_text()
    near = {f"{times[name]:.1f}" for name in ("backlink", "interlocking")}
    assert near == {"1.5"}
    assert "losses reach into the module before; 1.5 times the operations" in page
    least, most = sorted((times["contsup"], times["auglocal"]))
    assert f"or context; {least:.1f} to {most:.1f} times the operations" in page
