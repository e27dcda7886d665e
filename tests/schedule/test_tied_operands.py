"""What backwards and steps of tied parameters read and write, written out by hand."""

from __future__ import annotations

from localprop.rule.table import CreditTable, T
from localprop.schedule.operands import find_operands
from localprop.schedule.schedule import Action, Schedule
from localprop.schedule.wiring import Wiring
from tests.helpers.schedules import wiring_of


def list_operands(wiring: Wiring, schedule: Schedule, *actions: str) -> str:
    """The operands of some actions."""
    operands = find_operands(wiring, schedule)
    return " | ".join(f"{action}: {operands[Action.parse(action)]}" for action in actions)


def test_uses_of_a_tied_parameter_are_summed_apart() -> None:
    """Only its own gradients are, and not those of the segments that use it."""
    table = CreditTable((1, 1, 1), ((T, None, None), (None, T, None), (None, None, T)))
    wiring = wiring_of(table, [(0, 2)])
    schedule = Schedule.compile(wiring)
    assert list_operands(wiring, schedule, "0B", "0S", "2B", "2S") == (
        "0B: graph0 g0<0L -> G0 G2 | 0S: G0 -> | 2B: graph2 g2<2L -> G2 | 2S: G2 ->"
    )
    table = CreditTable((1, 1, 1), ((None,) * 3, (None,) * 3, (T, T, T)))
    wiring = wiring_of(table, [(0, 2)])
    schedule = Schedule.compile(wiring, microbatches=2)
    assert list_operands(wiring, schedule, "0B", "2B", "2S", "0S") == (
        "0B: graph0 g0<1B -> G0 | 2B: graph2 g2<2L leaf2 -> G2 G0.0<2B g1<2B | 2S: G2 -> | "
        "0S: G0 G0.0<2B ->"
    )


def test_weights_made_once_are_summed_apart_as_one() -> None:
    """Two flows train segment 1, which shares a parameter with segment 0."""
    table = CreditTable((1, 1, 1), ((T, None, None), (T, T, None), (None, T, T)))
    wiring = wiring_of(table, [(0, 1)])
    schedule = Schedule.compile(wiring, microbatches=2)
    assert list_operands(wiring, schedule, "0B", "1B.0", "1W", "1S") == (
        "0B: graph0 g0<0L g0<1B.0 -> G0 G1 | 1B.0: graph1 g1.0<1L leaf1 -> gw1.0 g0<1B.0 | "
        "1W: graph1 gw1.0 g1.1<2B -> G1.0<1W | 1S: G1 G1.0<1W ->"
    )
