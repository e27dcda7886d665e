"""What each method would give on a pipeline of many devices: what `localprop simulate` prints."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from localprop.cost.simulate import Timeline
from localprop.errors import check, collect_problems
from localprop.network.layers import Layers
from localprop.report.gantt import draw_gantt
from localprop.report.method_spec import (
    Methods,
    MethodSpec,
    filter_trainable,
    parse_and_check_methods,
)
from localprop.report.pipeline_setting import END_TO_END, PipelineSetting
from localprop.report.pipelines import (
    PIPELINES,
    PipelineOrder,
    PipelineRow,
    measure_methods,
    simulate_method,
)
from localprop.training.environment import describe_environment
from localprop.writing.charts import check_path
from localprop.writing.tables import MIB, format_table


@contextmanager
def without_collections() -> Iterator[None]:
    """Pause Python's collector: learners and timelines stay to the end of a simulation, and it
    would look through them for a third of the time, and find little to free.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@without_collections()
def run_simulation(
    setting: PipelineSetting,
    methods: Methods,
    *,
    strict: bool = True,
    out: str | None = None,
    progress: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Measure methods on this device and simulate them on a pipeline.

    Args:
        setting: network, batch and devices.
        methods: expressions. End-to-end pipelines are added.
        strict: whether a method that this network or a pipeline does not support is bad input. If
            not, it is left out and named under the table.
        out: a file for the Gantt chart, or None.
        progress: called with what is being measured.

    Returns:
        The figures, and the table's text as `table`.

    Raises:
        BadInput: all problems with values, methods, network and file.
    """
    layers, specs = _find_layers_and_methods(setting, methods, out)
    specs, left_out = filter_trainable(specs, lambda spec: setting.check_method(spec, layers))
    check(left_out if strict else [])
    baseline, *others = measure_methods(setting, layers, [END_TO_END, *specs], progress)
    segment_seconds = baseline.seconds.per_segment(baseline.learner.wiring, setting.microbatches)
    plain_seconds = sum(segment_seconds)
    runs = [(baseline, order) for order in PIPELINES]
    runs += [(other, PipelineOrder()) for other in others]
    rows, timelines = list[PipelineRow](), dict[str, Timeline]()
    for method, order in runs:
        row, timeline = simulate_method(setting, method, order, plain_seconds)
        rows.append(row)
        if out is not None:
            timelines[_format_title(row)] = timeline
    assumptions = _list_assumptions(setting, baseline.learner.device)
    if out is not None:
        draw_gantt(timelines, out, f"{setting.model}. {' '.join(assumptions)}")
    lines = [_format_rows(rows), "", _format_legend(plain_seconds), *assumptions]
    lines += [f"Left out: {problem}" for problem in left_out]
    return {
        "rows": [asdict(row) for row in rows],
        "one_process_seconds": plain_seconds,
        "left_out": left_out,
        "assumptions": assumptions,
        "setting": asdict(setting),
        "environment": describe_environment(),
        "table": "\n".join(lines),
    }


# --- input ----------------------------------------------------------------------------------------


def _find_layers_and_methods(
    setting: PipelineSetting, methods: Methods, out: str | None
) -> tuple[Layers, list[MethodSpec]]:
    """Find the layers and parse the methods, after a check of all values."""
    problems = setting.find_problems()
    specs = parse_and_check_methods(methods, problems)
    if out is not None:
        with collect_problems(problems):
            check_path(out)
    check(problems)
    return setting.find_layers(), specs


# --- output ---------------------------------------------------------------------------------------

_HEADER = ("method", "samples/s", "ratio", "idle %", "one batch ms", "wire MiB", "peak MiB")


def _list_assumptions(setting: PipelineSetting, device: torch.device) -> list[str]:
    """What is measured, and what is assumed without a measurement."""
    threads = f" with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    shape = "x".join(map(str, setting.input_shape))
    all_reduce = ""
    if setting.replicas > 1:
        all_reduce = f"; ring all-reduce sums the gradients of {setting.replicas} replicas"
    return [
        f"Measured: every action, on {device}{threads}, with {setting.microbatch_size} random "
        f"samples of {shape}; medians of {setting.rounds} rounds; modules of equal {setting.cuts}.",
        f"Assumed: {setting.ranks * setting.replicas} devices equal to this one; links of "
        f"{setting.link} and {setting.latency} between any two, which work while devices compute"
        f"{all_reduce}; half of a backward in zero-bubble computes gradients of weights.",
    ]


def _format_rows(rows: Sequence[PipelineRow]) -> str:
    return format_table(_HEADER, [_format_cells(row) for row in rows])


def _format_cells(row: PipelineRow) -> list[str]:
    peak = "-" if row.memory_bytes is None else f"{max(row.memory_bytes.values()) / MIB:.1f}"
    return [
        row.method,
        f"{row.samples_per_second:.0f}",
        f"{row.ratio:.2f}",
        f"{100 * row.idle_share:.1f}",
        f"{1000 * row.one_batch_seconds:.1f}",
        f"{row.wire_bytes / MIB:.1f}",
        peak,
    ]


def _format_legend(plain_seconds: float) -> str:
    return (
        "ratio: samples/s relative to end-to-end training in one process "
        f"({1000 * plain_seconds:.1f} ms per batch); idle: fraction of the steady loop in which "
        "devices wait; one batch: time of a batch that starts after the previous one has finished "
        "on all devices; wire: sent by all devices in a step; peak: predicted for the fullest "
        "rank, including messages."
    )


def _format_title(row: PipelineRow) -> str:
    return f"{row.method}: {row.samples_per_second:.0f} samples/s, idle {row.idle_share:.0%}"
