"""Liveness: when each value of a step dies.

One rule: the last action that reads a value takes it. One pass over the actions of a batch finds
that action, before the first step. On several ranks some actions of a batch are deferred into the
next one's loop; each batch has a store of its own, and its actions run in the order prompt ones,
then deferred ones, so that one pass per batch holds for them, too::

    printed      0F 1B.1' 1S' 1F 1L 1B.0 0B 0S ...        ' belongs to the batch before
    one batch    0F 1F 1L 1B.0 0B 0S | 1B.1 1S            the order of the pass

What exists only once and is shared by two batches, `.grad` and parameters, is no value of a store;
the hazards of these are looked for in the unrolled loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from localprop.schedule.operands import Operands, find_operands
from localprop.schedule.schedule import BACKWARDS, Action, Op, Schedule, unroll
from localprop.schedule.values import ACCUMULATORS, ROOTS, Value
from localprop.schedule.wiring import Wiring


class Liveness:
    """The operands of a rank's schedule, and the last reader of each value.

    Args:
        wiring: segments, flows and objectives.
        schedule: of one process, or of one rank.
        replicas: of the pipeline.

    Attributes:
        schedule: the schedule.
        operands: of each action.
        order: the actions of one batch in the order in which they run.
        last_reader: of each value, the action that takes it.
        written: of each value, the place in the order of the action that writes it.

    Raises:
        RuntimeError: an action reads what no action has written, or two batches would share what
            exists once; this is an error of localprop's.
    """

    def __init__(self, wiring: Wiring, schedule: Schedule, replicas: int = 1) -> None:
        self.wiring = wiring
        self.schedule = schedule
        self.operands: dict[Action, Operands] = find_operands(wiring, schedule, replicas)
        # The sort is stable: within the prompt and within the deferred actions the order stays.
        self.order: list[Action] = sorted(schedule, key=lambda action: action.deferred)
        self.last_reader: dict[Value, Action] = {}
        self.written: dict[Value, int] = {}
        self._find_last_readers()
        check_hazards(schedule, wiring.steps_of)

    def _find_last_readers(self) -> None:
        for place, action in enumerate(self.order):
            for value in self.operands[action].reads:
                if value not in self.written and value.kind not in ROOTS:
                    raise RuntimeError(f"{action} reads {value}, which nothing has written.")
                # Each reader overwrites the one before, so the last one remains.
                self.last_reader[value] = action
            self.written |= dict.fromkeys(self.operands[action].writes, place)

    def takes(self, action: Action, value: Value) -> bool:
        """Whether an action is the last to read a value."""
        return self.last_reader.get(value) == action

    def alive(self) -> Iterator[tuple[Action, tuple[Value, ...]]]:
        """The values that are alive after each action of a batch, in the order in which they were
        written.
        """
        now: dict[Value, None] = {}
        for action in self.order:
            # Sums live outside of the store, in `.grad` and in what the step returns.
            now |= dict.fromkeys(
                v for v in self.operands[action].writes if v.kind not in ACCUMULATORS
            )
            for value in self.operands[action].reads:
                if self.takes(action, value):
                    now.pop(value, None)
            yield action, tuple(now)

    def __str__(self) -> str:
        """A line per action: what it reads, `†` where it takes it, and what it writes."""
        lines = []
        for action in self.order:
            reads, writes = self.operands[action]
            read = " ".join(f"{value}{self._cross(action, value)}" for value in reads)
            lines.append(f"{action!s:<12} {read:<40} -> {' '.join(map(str, writes))}".rstrip())
        return "\n".join(lines)

    def _cross(self, action: Action, value: Value) -> str:
        taken = self.takes(action, value) and value.kind not in (*ROOTS, *ACCUMULATORS)
        return "†" if taken else ""


def check_hazards(
    schedule: Schedule, steps_of: Callable[[int], Iterable[int]] = lambda segment: (segment,)
) -> None:
    """Check that no two batches meet in what exists once: parameters and `.grad`.

    Parameters must stay between a forward and its last backward, which may run layers again; a
    step must find the gradients of its own batch, and of no other. Three rounds of the loop are
    looked at, which is one more than any action is deferred by.

    Args:
        schedule: of one process, or of one rank.
        steps_of: of a segment, the segments whose steps update what it trains.

    Raises:
        RuntimeError: they do.
    """
    # By step: micro-batches between their forward and their last backward, of all segments that
    # use what the step updates.
    graphs: Counter[int] = Counter()
    backwards = Counter((a.segment, a.microbatch) for a in schedule if a.op in BACKWARDS)
    done: Counter[tuple[int, int, int]] = Counter()
    steps = {(a.op, a.segment, a.flow) for a in schedule if a.op in (Op.S, Op.H)}
    # Steps whose gradients have begun to add up, and of which batch.
    owed: dict[tuple[Op, int, int | None], int] = {}
    for batch, action in unroll(schedule, 3):
        op, segment = action.op, action.segment
        # The graph has saved the parameters, and calls that run again read them: until the last
        # backward of this micro-batch they must not change.
        if op is Op.F and backwards[segment, action.microbatch]:
            graphs.update(steps_of(segment))
        if op in BACKWARDS:
            done[batch, segment, action.microbatch] += 1
            if done[batch, segment, action.microbatch] == backwards[segment, action.microbatch]:
                graphs.subtract(steps_of(segment))
        if op is Op.S and graphs[segment]:
            raise RuntimeError(f"{action} would change parameters that a backward still needs.")
        for step in {*_find_steps(action, steps_of)} & steps:
            # The first gradient after a step opens `.grad` for its batch, and the step closes it.
            if owed.setdefault(step, batch) != batch:
                raise RuntimeError(f"{action} would add gradients of two batches.")
        if op in (Op.S, Op.H) and owed.pop((op, segment, action.flow), batch) != batch:
            raise RuntimeError(f"{action} would step with gradients of another batch.")


def _find_steps(
    action: Action, steps_of: Callable[[int], Iterable[int]]
) -> Iterator[tuple[Op, int, int | None]]:
    """The steps for which an action adds up gradients."""
    if action.op in BACKWARDS:
        for segment in steps_of(action.segment):
            yield Op.S, segment, None
    if action.op is Op.L:
        yield Op.H, action.segment, action.flow
