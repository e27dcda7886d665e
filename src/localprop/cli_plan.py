"""The command `plan`: what each method would give on a pipeline of many devices, from seconds measured on this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from localprop.cli_compare import contenders_of
from localprop.errors import BadInput, check
from localprop.network import Layers
from localprop.report.contender import Contender, suited
from localprop.report.gantt import FORMATS, gantt, require_matplotlib
from localprop.report.plan import END_TO_END, PIPELINES, Row, Setting, Way, measured, on_paper
from localprop.report.tables import markdown
from localprop.training.config import noting
from localprop.training.expression import rule_of
from localprop.training.rundir import environment

_MIB = 2**20


def run_plan(
    setting: Setting,
    methods: Sequence[str],
    *,
    strict: bool = True,
    out: str | None = None,
) -> dict[str, Any]:
    """Plan; print nothing, return the figures and the table's text under `table`.

    Args:
        setting: what is planned.
        methods: expressions; end-to-end pipelines are added.
        strict: whether a method that the network does not suit is bad input; else it is left out, and named.
        out: a file for the Gantt chart.

    Raises:
        BadInput: of the values, a method, the network or the file.
    """
    layers, contenders = _checked(setting, methods, out)
    contenders, unfit = suited(contenders, lambda contender: setting.try_out(contender, layers))
    check(unfit if strict else [])
    baseline, *others = measured(setting, layers, [END_TO_END, *contenders], _say)
    plain_s = sum(baseline.seconds.per_segment(baseline.learner.wiring, setting.microbatches))
    ways = [(baseline, way) for way in PIPELINES] + [(other, Way()) for other in others]
    drawn = [on_paper(setting, each, way, plain_s) for each, way in ways]
    rows, assumptions = [row for row, _ in drawn], _assumptions(setting, baseline.learner.device)
    if out is not None:
        gantt({_title(row): timeline for row, timeline in drawn}, out, f"{setting.model}. {' '.join(assumptions)}")
    return {
        "rows": [asdict(row) for row in rows],
        "one_process_seconds": plain_s,
        "left_out": unfit,
        "assumptions": assumptions,
        "setting": asdict(setting),
        "environment": environment(),
        "table": "\n".join(
            [_table(rows), "", _legend(plain_s), *assumptions, *(f"Left out: {each}" for each in unfit)]
        ),
    }


# --- what is asked for ----------------------------------------------------------------------------------------------


def _checked(setting: Setting, methods: Sequence[str], out: str | None) -> tuple[Layers, list[Contender]]:
    """The layers and the methods; BadInput for all that is wrong, before anything is measured."""
    problems, contenders = setting.problems(), list[Contender]()
    with noting(problems):
        contenders = contenders_of(methods)
    for contender in contenders:
        with noting(problems):
            rule_of(contender.method)
    with noting(problems):
        _check_chart(out)
    check(problems)
    return setting.layers(), contenders


def _check_chart(out: str | None) -> None:
    if out is None:
        return
    path = Path(os.path.expanduser(out))
    if path.suffix not in FORMATS:
        raise BadInput(f"out={out!r} is no chart: its name must end in {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise BadInput(f"out={out!r}: there is no folder {path.parent}, make it first.")
    require_matplotlib()


# --- what is told ---------------------------------------------------------------------------------------------------


def _assumptions(setting: Setting, device: torch.device) -> list[str]:
    with_ = f" with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    sums = f", gradients of {setting.replicas} replicas summed by ring all-reduce" if setting.replicas > 1 else ""
    return [
        f"Measured here: every action, on {device}{with_}, {setting.batch // setting.microbatches} random samples of "
        f"{'x'.join(map(str, setting.input_shape))}, medians of {setting.rounds} rounds, modules of equal {setting.cuts}.",
        f"Assumed: {setting.ranks * setting.replicas} devices equal to this one; links of {setting.link} and {setting.latency} "
        f"between any two, used while devices compute{sums}; half of a backward in zero-bubble is gradients of weights.",
    ]


_HEAD = ("method", "samples/s", "ratio", "idle %", "one batch ms", "wire MiB", "peak MiB")


def _table(rows: Sequence[Row]) -> str:
    return markdown(_HEAD, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    peak = "-" if row.memory_bytes is None else f"{max(row.memory_bytes.values()) / _MIB:.1f}"
    return [
        row.method,
        f"{row.samples_per_second:.0f}",
        f"{row.ratio:.2f}",
        f"{100 * row.idle_share:.1f}",
        f"{1000 * row.one_batch_seconds:.1f}",
        f"{row.wire_bytes / _MIB:.1f}",
        peak,
    ]


def _legend(plain_s: float) -> str:
    return (
        f"ratio: of samples/s to end-to-end in one process ({1000 * plain_s:.1f} ms per batch); idle: share of the devices' "
        "time in the steady loop; one batch: if none begins before the one before has ended everywhere; wire: sent by all "
        "in a step; peak: of the fullest rank, predicted, with messages."
    )


def _title(row: Row) -> str:
    return f"{row.method}: {row.samples_per_second:.0f} samples/s, idle {row.idle_share:.0%}"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
