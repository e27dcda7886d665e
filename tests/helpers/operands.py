"""Operands as text: what actions read and write, one line per action."""

from __future__ import annotations

import localprop as lp
from localprop.schedule.liveness import Liveness
from localprop.schedule.lowering import lower
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import Schedule
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from tests.helpers.schedules import mlp_layers


def wire_rule(rule: lp.Rule, count: int, modules: int, *, weight_gradients: str = "each") -> Wiring:
    """The wiring of an MLP of `count` layers."""
    partition = lp.Partition.uniform(mlp_layers(count), modules)
    return wire(rule, partition, weight_gradients=weight_gradients)


def split_lines(text: str) -> list[str]:
    """The lines of a text, with single spaces."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def select(lines: list[str], *actions: str) -> list[str]:
    """The lines of some actions."""
    return [line for line in lines if line.split()[0] in actions]


def print_liveness(wiring: Wiring, microbatches: int = 1) -> list[str]:
    """One line per action of one process: what it reads, and what it writes."""
    return split_lines(str(Liveness(wiring, Schedule.compile(wiring, microbatches))))


def print_ranks(wiring: Wiring, cut: int) -> list[list[str]]:
    """The same for each of two ranks."""
    rank_schedules = lower(wiring, Placement.at(wiring, (cut,)))
    return [split_lines(str(Liveness(wiring, schedule))) for schedule in rank_schedules]
