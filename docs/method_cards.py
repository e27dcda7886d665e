"""The card of a method: its docstring, its costs, what was measured, and what its paper reports."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import localprop as lp
from localprop import experiments

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
COSTS = RESULTS / "method-costs.json"
SIGNS = """In the equations h_k is the output of module k = 1..K, f_k its layers, a_k its auxiliary
network, sg a stop-gradient, y the target and L_k = loss(a_k(h_k), y). L_K is the task's loss of the
network's own classifier. In the credit table a row is a loss and a column a layer: T, or a filled
square, means that the loss trains the layer; p, or an empty square, that its gradient passes
through; and a dot, or a line, that no gradient reaches it."""


class Cost(NamedTuple):
    """What a method costs.

    Attributes:
        modules: that have a loss of their own.
        peak_share: the predicted peak of a step, of end-to-end training's.
        operations: of a step, in those of end-to-end training.
        head_parameters: of auxiliary networks, those that are trained.
        context_parameters: of context encoders.
        sent_kib: what two ranks send per image, down and up; None in one process only.
    """

    modules: int
    peak_share: float
    operations: float
    head_parameters: int
    context_parameters: int
    sent_kib: tuple[float, float] | None

    def format_cells(self) -> list[str]:
        sent = self.sent_kib
        return [
            str(self.modules),
            f"{self.peak_share:.0%}",
            f"{self.operations:.2f}",
            f"{self.head_parameters:,}",
            f"{self.context_parameters:,}",
            f"{sent[0]:.0f} / {sent[1]:.0f}" if sent else "one process only",
        ]


class Accuracies(NamedTuple):
    """What a method reached in one setting, in percent, seed by seed."""

    file: str
    data: str
    method: str
    values: tuple[float, ...]

    def format_mean(self) -> str:
        if len(self.values) == 1:
            return f"{self.values[0]:.2f}"
        return f"{mean(self.values):.2f} +- {stdev(self.values):.2f}"


@cache
def read_costs() -> dict[str, Cost]:
    values = json.loads(COSTS.read_text())["costs"]
    return {name: Cost(**cost) for name, cost in values.items()}


@cache
def read_accuracies() -> tuple[Accuracies, ...]:
    """All accuracies of comparisons in benchmarks/results."""
    found = []
    for file in ("digits-resnet14.json", "cifar10-subset-resnet8.json"):
        values = json.loads((RESULTS / file).read_text())
        for row in values["rows"]:
            data = describe_data(values["config"])
            found.append(Accuracies(file, data, row["method"], tuple(row["accuracies"])))
    for file in ("cifar10-resnet14-10000.jsonl", "cifar10-resnet8-2000.jsonl"):
        runs = [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]
        for method in dict.fromkeys(run["method"] for run in runs):
            own = [run for run in runs if run["method"] == method]
            accuracies = tuple(100 * run["test_accuracy"] for run in own)
            found.append(Accuracies(file, describe_data(own[0]["config"]), method, accuracies))
    return tuple(found)


def describe_data(config: dict[str, Any]) -> str:
    names = {"digits": "scikit-learn's digits", "cifar10.npz": "CIFAR-10 (JPEG copy)"}
    limit = f", {config['limit']:,} images" if config["limit"] else ""
    return f"{names[config['data']]}{limit}, {config['model']}, {config['epochs']} epochs"


def format_card(name: str, make: Callable[..., lp.Rule], credit: str) -> str:
    """The card of a method as Markdown.

    Args:
        name: of the method.
        make: its function.
        credit: its credit table in words.
    """
    doc = to_markdown(inspect.getdoc(make) or "")
    first, _, rest = doc.partition("\n\n")
    rest = re.sub(r"\n\nReference:.*?(?=\n\n|$)", "", rest, flags=re.DOTALL)  # it stands above
    parts = [
        f"# {name}",
        " ".join(first.split()),
        f"**Paper**: {find_reference(make)}",
        f"**Call**: `{name}({', '.join(map(format_parameter, list_parameters(make)))})`",
        f"![{credit}](images/{name}.svg)",
        "## What it does",
        rest,
        SIGNS,
        f"Parts: `{make()!r}`",
        "## What it costs",
        *format_costs(name),
        "## What was measured here",
        *format_accuracies(name),
        "## Suggested values",
        *format_values(name),
        "## What the paper reports",
        *format_figures(name),
        "## What is our reading",
        *format_readings(name, make),
    ]
    return "\n\n".join(parts) + "\n"


def list_parameters(make: Callable[..., lp.Rule]) -> list[inspect.Parameter]:
    return list(inspect.signature(make).parameters.values())


def format_parameter(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def find_reference(make: Callable[..., lp.Rule]) -> str:
    """What stands behind "Reference:" in a docstring, up to the end of its paragraph."""
    _, _, after = (inspect.getdoc(make) or "").partition("Reference:")
    return " ".join(after.partition("\n\n")[0].split())


def to_markdown(doc: str) -> str:
    """A docstring of this package as Markdown.

    Literal blocks stay indented, arguments become a list, and examples become code.
    """
    lines, heading = [], ""
    for line in doc.splitlines():
        match = re.fullmatch(r"(Args|Example|Raises):", line)
        if match:
            heading = match[1]
            lines += [line, ""]
        elif heading in ("Args", "Raises") and re.match(r" {4}\w+: ", line):
            word, _, rest = line.strip().partition(": ")
            lines.append(f"- `{word}`: {rest}")
        elif heading in ("Args", "Raises") and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            if not line.startswith(" "):
                heading = ""
            lines.append(re.sub("::$", ":", line))
    return "\n".join(lines)


def is_call_of(text: str, name: str) -> bool:
    """Whether a method as text is a call of a function, and of no other one."""
    return text.startswith(f"{name}(") and " with " not in text


def format_costs(name: str) -> Iterator[str]:
    cost = read_costs()[name]
    setting = json.loads(COSTS.read_text())["setting"]
    sent = "It trains in one process only."
    if cost.sent_kib:
        down, up = cost.sent_kib
        sent = f"Two ranks send {down:.0f} KiB per image down, and {up:.0f} up."
    yield (
        f"Predicted for {setting['model']} in {cost.modules} modules, images of 3x32x32, a batch "
        f"of {setting['batch']} and SGD with momentum: {cost.peak_share:.0%} of end-to-end "
        f"training's peak memory, and {cost.operations:.2f} times its operations. Heads have "
        f"{cost.head_parameters:,} parameters, context encoders {cost.context_parameters:,}. "
        f"{sent} (benchmarks/results/{COSTS.name})"
    )
    values = json.loads((RESULTS / "speed.jsonl").read_text().splitlines()[0])
    rows = [row for row in values["rows"] if is_call_of(row["method"], name)]
    if not rows:
        yield "The time of its step has not been measured."
        return
    (plain,) = (row["peak_bytes"] for row in values["rows"] if row["method"] == "end_to_end()")
    yield (
        "Measured with the same network: the time of a step, in that of the plain PyTorch loop "
        "(median and quartiles), and the peak of live bytes, of `end_to_end()`'s "
        "(benchmarks/results/speed.jsonl, first line)."
    )
    lines = ["| method | time | quartiles | peak |", "|---|--:|--:|--:|"]
    for row in rows:
        timing = row["timing"]
        lines.append(
            f"| `{row['method']}` | {timing['ratio']:.2f} | {timing['low']:.2f}-"
            f"{timing['high']:.2f} | {row['peak_bytes'] / plain:.0%} |"
        )
    yield "\n".join(lines)


def format_accuracies(name: str) -> Iterator[str]:
    rows = [each for each in read_accuracies() if is_call_of(each.method, name)]
    if not rows:
        yield "Its accuracy has not been measured."
        return
    yield (
        "Accuracy on test images after the last epoch, in percent, beside our own end-to-end "
        "training in the same setting. None of these is a full training: they show an order, and "
        "no figure of a paper. One seed says little."
    )
    lines = [
        "| setting | method | seeds | accuracy | end to end | file |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        (base,) = (
            each
            for each in read_accuracies()
            if (each.file, each.method) == (row.file, "end_to_end()")
        )
        plain = f"{base.format_mean()} ({len(base.values)})"
        lines.append(
            f"| {row.data} | `{row.method}` | {len(row.values)} | {row.format_mean()} | {plain} | "
            f"{row.file} |"
        )
    yield "\n".join(lines)
    yield "In brackets the seeds of end-to-end training. The files are in benchmarks/results."


@cache
def list_recipes() -> tuple[lp.Recipe, ...]:
    return tuple(map(experiments.find, experiments.names()))


def find_recipes(name: str) -> list[lp.Recipe]:
    """The recipes whose method is a call of this function."""
    return [each for each in list_recipes() if is_call_of(str(each.config.method), name)]


def format_values(name: str) -> Iterator[str]:
    yield "The defaults are those of the call above."
    counts = Counter(str(recipe.config.method) for recipe in find_recipes(name))
    if not counts:
        yield "No recipe calls it, so there are no published values to begin with."
        return
    yield "The recipes of published experiments call it so:"
    yield "\n".join(
        f"- `{method}`, {count} recipe{'s' * (count > 1)}" for method, count in counts.most_common()
    )


def format_figures(name: str) -> Iterator[str]:
    recipes = [recipe for recipe in find_recipes(name) if recipe.published]
    if not recipes:
        yield "No recipe of this method quotes a figure of a paper."
        return
    yield (
        "Figures that papers report, by the recipe that trains the same. A recipe claims the "
        "figure only if nothing in it is our reading. None has been trained to its end here."
    )
    lines = ["| recipe | figure | claimed |", "|---|---|---|"]
    for recipe in recipes:
        claimed = "no" if recipe.readings else "yes"
        figure = recipe.published.replace("|", "\\|")
        lines.append(f"| `{recipe.name}` | {figure} | {claimed} |")
    yield "\n".join(lines)


def format_readings(name: str, make: Callable[..., lp.Rule]) -> Iterator[str]:
    if "our reading" in (inspect.getdoc(make) or "").lower():
        yield 'What the paper leaves open is told above, as "our reading".'
    else:
        yield "The description above names no reading of ours."
    readings = dict.fromkeys(r.readings for r in find_recipes(name) if r.readings)
    if readings:
        yield "In its recipes:"
        yield "\n".join(f"- {' '.join(reading.split())}" for reading in readings)
