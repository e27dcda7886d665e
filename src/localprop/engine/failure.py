"""What a failed step tells."""

from __future__ import annotations

from torch import nn

from localprop.engine.store import Cursor, StepContext
from localprop.schedule.schedule import Action, Schedule
from localprop.schedule.wiring import Wiring

_SHOWN = 5  # actions on either side of the one that failed


def describe_failure(
    step: StepContext, cursor: Cursor, wiring: Wiring, schedule: Schedule, error: Exception
) -> str:
    """Which action failed, on which layers, the schedule around it, and which segments had been
    stepped before.
    """
    action = cursor.action
    if action is None:
        return f"The step failed before its first action: {error}"
    layers, segment = wiring.layers, wiring.segments[action.segment]
    shape = "x".join(map(str, layers.shapes[segment.layers[-1]][1:]))
    microbatch = step.batches[action.microbatch if action.microbatch < len(step.batches) else 0]
    updated = ", ".join(map(str, step.updated)) or "none"
    stepped = (
        "All is as before the step."
        if wiring.atomic
        else (f"Segments stepped already: {updated}. Gradients were dropped.")
    )
    return (
        f"Action {action} failed ({type(error).__name__}: {error}), "
        f"on {wiring.span_name(action.segment)} (module {segment.module}, output {shape} per "
        f"sample), batch of shape {tuple(microbatch.inputs.shape)}.\n"
        f"Schedule: {_quote(schedule, _find_place(schedule, action, cursor.begun - 1))}\n"
        f"{stepped}"
    )


def drop_everything(step: StepContext, model: nn.Module, wiring: Wiring) -> None:
    """Drop all gradients and values."""
    for module in (model, wiring.heads, wiring.encoders):
        for parameter in module.parameters():
            parameter.grad = None
    step.store.clear()


def _find_place(schedule: Schedule, action: Action, counted: int) -> int:
    """Where an action stands: as counted, unless only some actions of the schedule run."""
    is_there = 0 <= counted < len(schedule) and schedule[counted] == action
    return counted if is_there else schedule.index(action)


def _quote(schedule: Schedule, place: int) -> str:
    words = [f"{each} <-- here" if i == place else str(each) for i, each in enumerate(schedule)]
    before, after = max(place - _SHOWN, 0), place + _SHOWN + 1
    start, end = ["..."] if before else [], ["..."] if after < len(words) else []
    return " ".join([*start, *words[before:after], *end])
