"""The actions of a step as ranges in torch's profiler.

::

    network   ──► segment 0 ──►┐               ┌──► segment 1 ──►┐
    hook                       └─ L ── B ── S ─┘                 └─ L ── B ── S
    ranges    [ 0F            ][0L ][0B ][0S  ][ 1F             ][1L ][1B ][1S ]

F begins in one hook and ends in the next one, so no `with` can span it. Therefore each range ends
where the next one begins, and at most one is open::

    with torch.profiler.profile() as p:
        learner.step(batch)
    print(p.key_averages().table(sort_by="cpu_time_total"))
"""

from __future__ import annotations

from contextlib import ExitStack

from torch.profiler import record_function

from localprop.engine.store import Observer
from localprop.schedule.schedule import Action
from localprop.schedule.wiring import Wiring


class ActionRanges:
    """An observer that shows each action as a range, named like `localprop 3B.0 blocks.4 ..
    blocks.6`: the action as the schedule prints it, and its layers.

    Args:
        wiring: names the layers.
        observe: another observer, called between two ranges, so that its time is in none.
    """

    def __init__(self, wiring: Wiring, observe: Observer | None) -> None:
        self._wiring, self._observe = wiring, observe
        self._open = ExitStack()  # of the one range that is open, or of none

    def __call__(self, action: Action) -> None:
        """End the range of the action before, and begin that of this one."""
        self.close()
        if self._observe is not None:
            self._observe(action)
        name = f"localprop {action} {self._wiring.span_name(action.segment)}"
        self._open.enter_context(record_function(name))

    def close(self) -> None:
        """End the range that is open, if one is."""
        self._open.close()
