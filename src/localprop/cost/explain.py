"""A wiring as text and tables, as `localprop show` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from localprop.arguments import check_arguments
from localprop.cost.alive import ActionReading, ValueReading
from localprop.cost.memory import MemoryReading
from localprop.engine.engine import Engine
from localprop.methods.names import format_method
from localprop.rule.rule import Rule
from localprop.schedule.schedule import Action, Op
from localprop.schedule.wiring import Wiring

_MIB = 2**20
_HEADINGS = ("module", "segments", "layers", "output", "parameters", "head", "context", "peak MiB")
_LARGEST = 5  # values that are named
_TEXT_COLUMNS = 4  # the first columns hold text, the others numbers


def describe_briefly(engine: Engine, model: nn.Module, rule: Rule) -> str:
    """What a learner is, in one line: its model, rule, modules and parameters.

    Example:
        >>> describe_briefly(learner.engine, learner.model, learner.rule)
        'Learner(..., Rule(), modules=..., parameters=...'
    """
    wiring = engine.wiring
    added = {"heads": wiring.heads, "contexts": wiring.encoders}
    counts = {name: _count_parameters(module) for name, module in added.items()}
    parameters = f"{_count_parameters(model):,}" + "".join(
        f" + {count:,} of {name}" for name, count in counts.items() if count
    )
    method = format_method(replace(rule, reference=""))
    modules = len(wiring.table.sizes)
    return f"Learner({type(model).__name__}, {method}, modules={modules}, parameters={parameters})"


def explain(engine: Engine, reading: MemoryReading) -> str:
    """Describe the credit table, the schedule, and each module's layers and predicted memory.

    Args:
        engine: knows the network's modules, segments and heads, and the schedule.
        reading: the predicted memory of a step.
    """
    wiring = engine.wiring
    batch = wiring.layers.input_shape[0]
    return "\n".join(
        [
            "Credit: which loss trains which layers "
            "(T trained, p the gradient passes, . no gradient, | a cut)",
            str(wiring.table),
            *_format_ties(wiring),
            "",
            "Schedule: F forward, L loss, H step of its head, B backward of a flow, W gradients of "
            "weights for all flows at once, S step, P update of parameter copies; by segment",
            str(engine.schedule),
            *_format_recomputed(engine),
            "",
            *_format_modules(wiring, reading),
            "",
            f"Predicted peak of a step at batch {batch}: {reading.peak_bytes / _MIB:.1f} MiB; "
            f"between steps {reading.resting_bytes / _MIB:.1f} MiB "
            "(parameters, optimizer state, batch).",
        ]
    )


def _format_recomputed(engine: Engine) -> Iterator[str]:
    """Yield a line for the layers that run again."""
    recomputed, names = engine.recomputed, engine.wiring.layers.names
    if recomputed.layers:
        which = ", ".join(stretch.format(names) for stretch in recomputed.stretches)
        if len(recomputed.stretches) == len(names):
            which = "all layers"
        how = ", one by one" if all(len(s.layers) == 1 for s in recomputed.stretches) else ""
        if recomputed.by_module:
            how = ", those of a module together"
        yield f"In the backward run again, as far as that saves memory: {which}{how}."


def _format_ties(wiring: Wiring) -> Iterator[str]:
    """Yield a line for each trained parameter that several layers use."""
    for name, (step, layers) in wiring.tied.items():
        users = ", ".join(f"{layer} {wiring.layers.names[layer]!r}" for layer in layers)
        yield (
            f"tied: {name!r}, used by the layers {users}; stepped once, by {Action(Op.S, step)}, "
            "after the last backward of them all"
        )


@check_arguments
def explain_values(reading: ValueReading, *, every: bool) -> str:
    """Name the action that makes the peak, and the values that are alive then.

    Args:
        reading: of a step.
        every: whether to list the values that are alive after each action, too.
    """
    peak = reading.peak
    alive = reading.before(peak) | peak.values
    largest = sorted(alive.items(), key=lambda entry: -entry[1])[:_LARGEST]
    named = ", ".join(f"{value} {nbytes / _MIB:.1f}" for value, nbytes in largest if nbytes)
    lines = [
        f"The peak is at {peak.action}. Values alive before or after it, largest first, in MiB: "
        f"{named or 'none'} (h output, f features, c context, graph, g gradient, ...)."
    ]
    if every:
        lines += ["", f"{'action':<12} {'peak MiB':>8}  alive after it (MiB; no number: shared)"]
        lines += [_format_action(each) for each in reading.actions]
    return "\n".join(lines)


def _format_action(reading: ActionReading) -> str:
    alive = (f"{v} {n / _MIB:.1f}" if n else str(v) for v, n in reading.values.items())
    peak = f"{reading.peak_bytes / _MIB:.1f}"
    return f"{reading.action!s:<12} {peak:>8}  {', '.join(alive)}".rstrip()


def _format_modules(wiring: Wiring, reading: MemoryReading) -> Iterator[str]:
    """Yield the lines of a table with one row for each module."""
    modules = range(len(wiring.table.sizes))
    rows = [_HEADINGS, *(_make_row(wiring, reading, module) for module in modules)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )


def _make_row(wiring: Wiring, reading: MemoryReading, module: int) -> tuple[str, ...]:
    """Make the cells of a module's row, in the order of the headings."""
    segments = wiring.segments_of(module)
    layers = [layer for s in segments for layer in wiring.segments[s].layers]
    names = [wiring.layers.names[layer] for layer in layers]
    # A dict, since a parameter that several layers share counts once.
    sizes = {name: size for layer in layers for name, size in wiring.layers.sizes_of(layer)}
    heads = [wiring.head(o) for o in wiring.objectives if o.segment == segments[-1]]
    key = str(module)
    encoders = [wiring.encoders[key]] if key in wiring.encoders else []
    return (
        key,
        f"{segments[0]}-{segments[-1]}" if len(segments) > 1 else str(segments[0]),
        names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}",
        "x".join(map(str, wiring.layers.shapes[layers[-1]][1:])),
        f"{sum(sizes.values()):,}",
        f"{sum(map(_count_parameters, heads)):,}",
        f"{sum(map(_count_parameters, encoders)):,}",
        f"{reading.module_bytes.get(module, 0) / _MIB:.1f}",
    )


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
