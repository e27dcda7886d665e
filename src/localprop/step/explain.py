"""A wiring in words and tables: what `localprop show` prints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from localprop.step.memory import MemoryReading
from localprop.step.schedule import Schedule
from localprop.step.wiring import Wiring

_MIB = 2**20


def explain(wiring: Wiring, schedule: Schedule, reading: MemoryReading) -> str:
    """The credit table, the schedule, and for each module its layers, parameters and predicted bytes."""
    batch = wiring.layers.input_shape[0]
    return "\n".join(
        [
            "Credit: which loss trains which layers (T trained, p the error passes, . no error, | a cut)",
            str(wiring.table),
            "",
            "Schedule: F forward, L loss, H step of its head, B backward of a flow, S step, P copy of what a head borrows; "
            "by segment",
            str(schedule),
            "",
            *_modules(wiring, reading),
            "",
            f"Predicted peak of a step at batch {batch}: {reading.peak_bytes / _MIB:.1f} MiB; "
            f"between steps {reading.resting_bytes / _MIB:.1f} MiB (parameters, optimizer state, batch).",
        ]
    )


def _modules(wiring: Wiring, reading: MemoryReading) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("module", "segments", "layers", "output", "parameters", "head", "context", "peak MiB")
    ]
    rows += [_module(wiring, reading, module) for module in range(len(wiring.table.sizes))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        yield "  ".join([*left, *right])


def _module(wiring: Wiring, reading: MemoryReading, module: int) -> tuple[str, ...]:
    segments = wiring.segments_of(module)
    layers = [layer for s in segments for layer in wiring.segments[s].layers]
    names = [wiring.layers.names[layer] for layer in layers]
    owned = {name: size for layer in layers for name, size in wiring.layers.sizes_of(layer)}
    key = str(module)
    return (
        key,
        f"{segments[0]}-{segments[-1]}" if len(segments) > 1 else str(segments[0]),
        names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}",
        "x".join(map(str, wiring.layers.shapes[layers[-1]][1:])),
        f"{sum(owned.values()):,}",
        f"{sum(_count(wiring.head(o)) for o in wiring.objectives if o.segment == segments[-1]):,}",
        f"{_count(wiring.encoders[key]) if key in wiring.encoders else 0:,}",
        f"{reading.module_bytes.get(module, 0) / _MIB:.1f}",
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
