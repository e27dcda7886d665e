"""What the page shows of a group of methods: charts, tables and sentences, for the template."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from localprop.report.gantt import KINDS, GanttStyle, draw_timelines
from localprop.report.page.anatomy import MICROBATCHES, Anatomy, list_credit_cells
from localprop.report.page.draw_alive import draw_alive
from localprop.report.page.draw_curves import Curve, average, draw_curves
from localprop.report.page.draw_front import draw_front, draw_swatch
from localprop.report.page.front import Point
from localprop.report.page.learned import list_analysis_notes, list_learned
from localprop.report.page.palette import NAMED, Palette
from localprop.report.page.results import Group, Method
from localprop.report.page.sentences import (
    describe_anatomy,
    describe_credit,
    list_main_sentences,
)
from localprop.report.page.tables import make_table
from localprop.training.config import Config
from localprop.training.scores import Score
from localprop.writing.tables import MIB

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_section(
    number: int, group: Group, anatomies: dict[Config, Anatomy], notes: dict[Config, str]
) -> dict[str, Any]:
    """What the template needs of a group.

    Args:
        number: of the group on the page.
        group: its methods.
        anatomies: how methods train, by config.
        notes: why that is unknown of others.
    """
    from localprop.report.page.svg import to_svg

    name = f"g{number}"

    def to_figure(figure: Figure, what: str, caption: str, title: str) -> dict[str, Any]:
        return {"svg": to_svg(figure, f"{name}-{what}", title), "caption": caption}

    fronts = [
        to_figure(draw(NAMED), f"front-{what}", caption, title)
        for what, caption, title, draw in list_fronts(group)
    ]
    curves = [
        to_figure(figure, f"curves-{what}", caption, title)
        for what, caption, title, figure in _list_curves(group)
    ]

    learned = [
        to_figure(each.figure, each.name, each.caption, each.title)
        | {"header": each.header, "rows": each.rows}
        for each in list_learned(group)
    ]

    def list_entries(place: str) -> list[dict[str, Any]]:
        return [
            {
                "letter": method.letter,
                "label": method.label,
                "swatch": to_svg(draw_swatch(k, NAMED), f"{name}-{place}-{k}", ""),
            }
            for k, method in enumerate(group.methods)
        ]

    details = list_entries("method")
    for k, method in enumerate(group.methods):
        details[k]["note"] = notes.get(method.config, "")
        if method.config in anatomies:
            details[k] |= _make_anatomy(f"{name}-m{k}", anatomies[method.config])
    config = group.config
    return {
        "name": group.name,
        "id": name,
        "config": config,
        "seeds": max((method.seeds for method in group.methods), default=0),
        "runs_left": group.comparison.runs_left if group.comparison else 0,
        "sentences": list_main_sentences(group),
        "compared": group.comparison is not None,
        "fronts": fronts,
        "legend": list_entries("legend"),
        "table": make_table(group),
        "curves": curves,
        "learned": learned,
        "learned_notes": list_analysis_notes(group),
        "methods": details,
        "notes": group.notes,
        "provenance": list(_list_provenance(group)),
    }


def list_fronts(group: Group) -> Iterator[tuple[str, str, str, Callable[..., Figure]]]:
    """The name, the caption, a description and the drawing of each front."""
    compared = group.comparison is not None
    axes: list[tuple[str, str, Callable[[Method], float | None]]] = [
        (
            "memory",
            "peak of a step, % of the plain loop" if compared else "peak of a step, MiB",
            lambda method: (
                method.peak_ratio and 100 * method.peak_ratio
                if compared
                else method.peak_bytes and method.peak_bytes / MIB
            ),
        ),
        (
            "time",
            "time of a step, ratio to the plain loop" if compared else "seconds per epoch",
            lambda method: method.time,
        ),
    ]
    quality = "bits per byte" if group.is_of_text else "test accuracy, %"
    for what, label, cost_of in axes:
        points = [
            Point(number, cost, method.quality)
            for number, method in enumerate(group.methods)
            if (cost := cost_of(method)) is not None and method.quality is not None
        ]
        if not points:
            continue

        def draw(
            palette: Palette,
            labels: Sequence[str] = (),
            points: Sequence[Point] = points,
            label: str = label,
            what: str = what,
        ) -> Figure:
            return draw_front(
                points,
                {k: m.quality_std for k, m in enumerate(group.methods) if m.quality_std},
                [method.letter for method in group.methods],
                palette,
                cost=label,
                quality=quality,
                larger_is_better=not group.is_of_text,
                reference=(100 if what == "memory" else 1) if compared else None,
                labels=labels,
            )

        words = "Bits per byte" if group.is_of_text else "Accuracy"
        listed = "; ".join(
            f"{group.methods[p.number].label}: {p.quality:.2f} at {p.cost:.2f}" for p in points
        )
        yield what, f"{words} against {what}", f"{words} against {label}. {listed}.", draw


def _list_curves(group: Group) -> Iterator[tuple[str, str, str, Figure]]:
    """The name, the caption, a description and the chart of curves: of all methods, and of each."""
    text = group.is_of_text
    quality = "validation, bits per byte" if text else "validation accuracy, %"
    curves = [
        average(number, method.letter, [list(_read_validation(run.epochs, text)) for run in runs])
        for number, method in enumerate(group.methods)
        if (runs := method.runs)
    ]
    curves = [curve for curve in curves if curve.epochs]
    if curves:
        yield (
            "all",
            "The network, epoch by epoch",
            f"{quality} after each epoch. {_describe_ends(curves)}",
            draw_curves(curves, NAMED, quality=quality),
        )
    yield from _list_settings(group)
    for number, method in enumerate(group.methods):
        own, label = _read_modules(method, text)
        if own:
            yield (
                f"m{number}",
                f"{method.letter}  {method.label}: each module",
                f"{label} of each module of {method.label}. {_describe_ends(own)}",
                draw_curves(own, NAMED, quality=label),
            )


def _list_settings(group: Group) -> Iterator[tuple[str, str, str, Figure]]:
    """The curves of learning rates and seconds."""
    for what, label in (("lr", "learning rate"), ("seconds", "seconds of training")):
        curves = []
        for number, method in enumerate(group.methods):
            runs = [[(each["epoch"], each[what]) for each in run.epochs] for run in method.runs]
            curves.append(average(number, method.letter, runs))
        curves = [curve for curve in curves if curve.epochs]
        if curves:
            ends = "; ".join(f"{curve.label} ends at {curve.values[-1]:.3g}" for curve in curves)
            yield (
                what,
                f"{label.capitalize()}, epoch by epoch",
                f"{label.capitalize()} in each epoch. {ends}.",
                draw_curves(curves, NAMED, quality=label),
            )


def _describe_ends(curves: Sequence[Curve]) -> str:
    ends = "; ".join(f"{curve.label} ends at {curve.values[-1]:.2f}" for curve in curves)
    return f"{ends}."


def _read_validation(epochs: Iterable[Any], text: bool) -> Iterator[tuple[int, float]]:
    for epoch in epochs:
        accuracy, loss = epoch.get("validation_accuracy"), epoch.get("validation_loss")
        if text and loss is not None:
            yield epoch["epoch"], Score(0.0, loss).bits
        elif not text and accuracy is not None:
            yield epoch["epoch"], 100 * accuracy


def _read_modules(method: Method, text: bool) -> tuple[list[Curve], str]:
    """The curves of a method's exits, or of its training losses where files have no others."""
    reports = [epoch for run in method.runs for epoch in run.epochs]
    if any(len(report.get("exits", ())) > 1 for report in reports):
        places, figures = "exits", "exit_losses" if text else "exit_accuracies"
        label = "validation, bits per byte" if text else "validation accuracy, %"
    elif any(len(report.get("modules", ())) > 1 for report in reports):
        places, figures, label = "modules", "losses", "training loss"
    else:
        return [], ""

    def convert(value: float) -> float:
        if places == "modules":
            return value
        return Score(0.0, value).bits if text else 100 * value

    modules = sorted({module for report in reports for module in report[places]})
    curves = [
        average(
            module,
            str(module),
            [
                [
                    (epoch["epoch"], convert(value))
                    for epoch in run.epochs
                    for place, value in zip(epoch[places], epoch[figures], strict=True)
                    if place == module and value is not None
                ]
                for run in method.runs
            ],
        )
        for module in modules
    ]
    return [curve for curve in curves if curve.epochs], label


def _make_anatomy(name: str, anatomy: Anatomy) -> dict[str, Any]:
    from localprop.report.page.svg import to_svg

    cells = list(list_credit_cells(anatomy.table))
    peak = anatomy.values.peak
    entry: dict[str, Any] = {
        "sentences": list(describe_anatomy(anatomy)),
        "credit": {
            "cells": cells,
            "ends": anatomy.table.ends,
            "losses": len(anatomy.table.rows),
            "layers": sum(anatomy.table.sizes),
            "words": describe_credit(cells),
        },
        "schedule": anatomy.schedule,
        "alive": to_svg(
            draw_alive(anatomy, NAMED),
            f"{name}-alive",
            f"Bytes that are alive after each action. The peak, {peak.peak_bytes / MIB:.1f} MiB, "
            f"is at {peak.action}.",
        ),
        "gantt": None,
        "microbatches": MICROBATCHES,
        "no_gantt": anatomy.no_timeline,
    }
    if anatomy.timeline is not None:
        series = NAMED.series
        colours = (series[0], series[6], series[2], series[5], NAMED.muted, NAMED.line)
        style = GanttStyle(
            width=5.2,
            colours=dict(zip(KINDS, colours, strict=True)),
            ink=NAMED.ink,
            ground=NAMED.ground,
            on_waits=NAMED.ink,
            unit="time, in steps of one device",
            scale=1,
            columns=2,
        )
        entry["gantt"] = to_svg(
            draw_timelines({"": anatomy.timeline}, style=style),
            f"{name}-gantt",
            f"What each of {anatomy.timeline.ranks} ranks does in two batches. They wait "
            f"{anatomy.timeline.idle_share:.0%} of the time.",
        )
    return entry


def _list_provenance(group: Group) -> Iterator[tuple[str, str]]:
    environment, config = group.environment, group.config
    commit = environment.get("commit")
    if commit:
        changed = commit.endswith("+")
        state = "with changes that are not committed" if changed else "clean"
        yield "commit", f"{commit.rstrip('+')[:12]}, {state}"
    commits = {run.environment.get("commit") for method in group.methods for run in method.runs}
    if len(commits) > 1:
        yield "commits of runs", ", ".join(sorted(str(each)[:12] for each in commits))
    for name in ("localprop", "torch", "python", "platform", "processor", "accelerator", "threads"):
        if environment.get(name) not in (None, "None"):
            yield name, str(environment[name])
    yield "device", config.device
    for split in ("train", "validation", "test"):
        if split in group.data:
            yield f"{split} data", str(group.data[split])
    if environment.get("command"):
        yield "command", shlex.join(environment["command"])
