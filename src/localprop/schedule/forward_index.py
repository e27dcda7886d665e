"""A schedule split at the network's own forwards: what to do before the first, and when each of them is done."""

from __future__ import annotations

from localprop.schedule.schedule import Action, Op, Schedule


class ForwardIndex:
    """A schedule as the engine runs it.

    Args:
        schedule: of one process, or of one rank.

    Attributes:
        before: the actions before the first forward.
        after: for each (micro-batch, segment), the actions between its forward and the next one.
        deferred: the actions that belong to the batch before.
        recomputed: the segments that run a second time.
        microbatches: how many.
        sent_module_inputs: the segments at whose inlet a module's input is sent to another rank.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.before: list[Action] = []
        self.after: dict[tuple[int, int], list[Action]] = {}
        current, recomputed = self.before, set()
        for action in schedule:
            place = (action.microbatch, action.segment)
            if action.op is Op.F and not action.deferred and place not in self.after:
                current = self.after.setdefault(place, [])
            else:
                current.append(action)
                if action.op is Op.F:
                    recomputed.add(action.segment)
        self.deferred = [action for action in schedule if action.deferred]
        self.recomputed = frozenset(recomputed)
        self.microbatches = 1 + max(action.microbatch for action in schedule)
        self.sent_module_inputs = frozenset(
            action.segment for action in schedule if action.op is Op.SEND_C
        )
