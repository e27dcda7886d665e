"""The schedule read as seconds: what the ranks of a pipeline do and what they wait for, worked out on paper.

The simulation assumes that all devices are equal, that messages travel while ranks compute, each pair of ranks over a link
of its own in each direction, and that gradients are summed over replicas by ring all-reduce over links of their own.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from localprop.errors import check
from localprop.step.schedule import RECEIVES, REDUCES, SENDS, Action, Op, Schedule, unrolled
from localprop.step.timing import Cost, Wire


class Event(NamedTuple):
    """An action as it ran, or the half of a backward that was put off until there was time.

    Attributes:
        rank: who ran it.
        action: what.
        step: of which batch.
        start_s: when it began.
        end_s: when it ended.
        put_off: whether it is the gradient of the weights of a backward that ran earlier.
    """

    rank: int
    action: Action
    step: int
    start_s: float
    end_s: float
    put_off: bool = False


class Wait(NamedTuple):
    """Time in which a rank did nothing.

    Attributes:
        rank: who waited.
        action: what it wanted to run.
        start_s: since when.
        end_s: until when.
        peer: the rank that it waited for; its own number if it waited for its replicas.
    """

    rank: int
    action: Action
    start_s: float
    end_s: float
    peer: int


@dataclass(frozen=True)
class Timeline:
    """What the ranks did, and when.

    Attributes:
        ranks: how many there are in one replica.
        steps: how many batches went through.
        events: of all ranks, those of one rank in order.
        waits: likewise.
        sent_bytes: per step, from one rank to another.
        reduced_bytes: per step, what each rank sends to its replicas.
    """

    ranks: int
    steps: int
    events: tuple[Event, ...]
    waits: tuple[Wait, ...]
    sent_bytes: Mapping[tuple[int, int], float]
    reduced_bytes: tuple[float, ...]

    @cached_property
    def span_s(self) -> float:
        """From the beginning to the end; with one step, the time of a batch that has all ranks to itself."""
        return max(event.end_s for event in self.events)

    @cached_property
    def seconds_per_step(self) -> float:
        """The time between the ends of two batches in the steady loop; of few steps, the mean."""
        if self.steps < 4:
            return self.span_s / self.steps
        ends = [0.0] * self.steps
        for event in self.events:
            ends[event.step] = max(ends[event.step], event.end_s)
        first, last = (self.steps - 1) // 2, self.steps - 2  # after the last batch, nothing comes that could delay it
        return (ends[last] - ends[first]) / (last - first)

    @cached_property
    def idle_shares(self) -> tuple[float, ...]:
        """For each rank, the share of the steady loop in which it computes nothing."""
        busy = [0.0] * self.ranks
        for event in self.events:
            busy[event.rank] += (event.end_s - event.start_s) / self.steps
        return tuple(max(0.0, 1 - own / self.seconds_per_step) for own in busy)

    @property
    def idle_share(self) -> float:
        """The mean over the ranks."""
        return statistics.fmean(self.idle_shares)

    @property
    def wire_bytes(self) -> float:
        """All that one replica sends in a step."""
        return sum(self.sent_bytes.values()) + sum(self.reduced_bytes)


# --- the simulation -------------------------------------------------------------------------------------------------


def simulate(
    programmes: Sequence[Schedule],
    cost: Cost,
    message_bytes: Cost = lambda action: 0,
    wire: Wire = Wire(),  # noqa: B008 - frozen
    *,
    steps: int = 16,
    replicas: int = 1,
    in_flight: int = 2,
    weight_share: float = 0.0,
) -> Timeline:
    """Run the programmes of all ranks on paper, each rank strictly in its own order.

    Args:
        programmes: of each rank, the steady loop; in the first step nothing is late, at the end what is late is run.
        cost: of an action, in seconds.
        message_bytes: of a message or a sum; see :func:`localprop.step.timing.message_bytes`.
        wire: every link.
        steps: how many batches; 1 is one batch at a time, where none begins before the one before has ended everywhere.
        replicas: how many pipelines are summed over; all run alike.
        in_flight: messages of one kind between two ranks that may be sent but not received; the next send waits.
        weight_share: the share of a backward that makes the gradients of weights and is put off to fill waits, as in
            zero-bubble pipelines: it then runs in a wait of which it fills more than it delays what comes after, before
            its segment's step, and before a forward that would leave more micro-batches unfinished than there are ranks,
            so that none holds more than the fullest rank of "1f1b" does. No engine of localprop's runs this.

    Raises:
        BadInput: fewer than one step.
        RuntimeError: the ranks wait for each other.

    Example:
        >>> unit = lambda action: 1.0 if action.op in (Op.F, Op.B) else 0.0
        >>> ranks = Schedule.parse("0F 0SEND_F>1 1RECV_B0<1 0B0 0S"), Schedule.parse("0RECV_F<0 1F 1L 1B0 1SEND_B0>0 1S")
        >>> timeline = simulate(ranks, unit)
        >>> timeline.seconds_per_step, timeline.idle_shares
        (4.0, (0.5, 0.5))

    Source: zero-bubble (ZB-H1): Qi, Wan, Huang, Lin, Zero Bubble Pipeline Parallelism, ICLR 2024, arXiv 2401.10241.
    """
    check([f"steps={steps} must be 1 or more."] if steps < 1 else [])
    world = _World(cost, message_bytes, wire, replicas, in_flight, weight_share, limit=len(programmes))
    ranks = [_Rank(world, i, programme, steps) for i, programme in enumerate(programmes)]
    going = list(ranks)
    while going:
        advanced = [rank.advance() for rank in going]
        if not any(advanced):
            raise RuntimeError(f"Ranks wait for each other: {', '.join(rank.place() for rank in going)}.")
        going = [rank for rank in going if rank.actions]
    return Timeline(
        len(ranks),
        steps,
        tuple(event for rank in ranks for event in rank.events),
        tuple(wait for rank in ranks for wait in rank.waits),
        {pair: nbytes / steps for pair, nbytes in world.sent.items()},
        tuple(rank.reduced_bytes / steps for rank in ranks),
    )


@dataclass
class _World:
    """What all ranks share: how things cost, and the messages that are under way."""

    cost: Cost
    message_bytes: Cost
    wire: Wire
    replicas: int
    in_flight: int
    weight_share: float
    limit: int
    arrivals: dict[tuple[int, int, Op], list[float]] = field(default_factory=lambda: defaultdict(list))
    taken: dict[tuple[int, int, Op], list[float]] = field(default_factory=lambda: defaultdict(list))
    link_free: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    sent: Counter[tuple[int, int]] = field(default_factory=Counter)


class _Rank:
    """One rank: its clock, and what it has still to do."""

    def __init__(self, world: _World, number: int, programme: Schedule, steps: int) -> None:
        self.world = world
        self.number = number
        self.actions = deque(unrolled(programme, steps))
        self.first = min((a.segment for a in programme if a.op is Op.F), default=0)
        self.backwards = Counter(action.microbatch for action in programme if action.op is Op.B)
        self.clock = 0.0
        self.reduced_bytes = 0.0
        self.sums: dict[tuple[Op, int, int | None], float] = {}
        self.unfinished: Counter[tuple[int, int]] = Counter()
        self.put_off: deque[tuple[int, Action, float]] = deque()
        self.events: list[Event] = []
        self.waits: list[Wait] = []

    def place(self) -> str:
        """Where it stands."""
        return f"rank {self.number} at {self.actions[0][1]}"

    def advance(self) -> bool:
        """Go on until another rank must; whether anything was done."""
        before = len(self.actions)
        while self.actions and self._goes(*self.actions[0]):
            self.actions.popleft()
        return len(self.actions) < before

    def _goes(self, step: int, action: Action) -> bool:
        if action.op in SENDS:
            return self._send(action)
        if action.op in RECEIVES:
            return self._receive(action)
        if action.op in REDUCES:
            self._reduce(step, action)
        else:
            self._compute(step, action)
        return True

    # --- messages ---------------------------------------------------------------------------------------------------

    def _send(self, action: Action) -> bool:
        assert action.peer is not None
        world, pair = self.world, (self.number, action.peer)
        channel = (*pair, action.op)
        first = len(world.arrivals[channel]) - world.in_flight  # the message that must have been received
        if first >= len(world.taken[channel]):
            return False
        if first >= 0:
            self._wait(world.taken[channel][first], action, action.peer)
        nbytes = world.message_bytes(action)
        begun = max(self.clock, world.link_free[pair])
        world.arrivals[channel].append(begun + world.wire.seconds(nbytes))
        world.link_free[pair] = begun + nbytes / world.wire.bytes_per_second
        world.sent[pair] += nbytes  # type: ignore[assignment]
        return True

    def _receive(self, action: Action) -> bool:
        assert action.peer is not None
        channel = (action.peer, self.number, RECEIVES[action.op])
        arrivals, taken = self.world.arrivals[channel], self.world.taken[channel]
        if len(taken) == len(arrivals):
            return False
        self._wait(arrivals[len(taken)], action, action.peer)
        taken.append(self.clock)
        return True

    def _reduce(self, step: int, action: Action) -> None:
        self._finish(step, action.segment)
        ring = self.world.wire.ring(self.world.message_bytes(action), self.world.replicas)
        to_replicas = (self.number, self.number)
        end = max(self.clock, self.world.link_free[to_replicas]) + ring.seconds
        self.sums[REDUCES[action.op], action.segment, action.flow] = self.world.link_free[to_replicas] = end
        self.reduced_bytes += ring.sent_bytes

    def _wait(self, until: float, action: Action, peer: int) -> None:
        while self.put_off and self.clock + self.put_off[0][2] / 2 < until:
            self._run_put_off()
        if until > self.clock:
            self.waits.append(Wait(self.number, action, self.clock, until, peer))
            self.clock = until

    # --- computing --------------------------------------------------------------------------------------------------

    def _compute(self, step: int, action: Action) -> None:
        place, seconds = (step, action.microbatch), self.world.cost(action)
        if action.op in (Op.S, Op.H):
            self._finish(step, action.segment)
            self._wait(self.sums.pop((action.op, action.segment, action.flow), 0.0), action, self.number)
        if self.world.weight_share:
            if action.op is Op.F and action.segment == self.first:
                while len(self.unfinished) >= self.world.limit and self.put_off:
                    self._run_put_off()
                self.unfinished[place] = self.backwards[action.microbatch]
            if action.op is Op.B:
                self.put_off.append((step, action, seconds * self.world.weight_share))
                seconds *= 1 - self.world.weight_share
        self._spend(step, action, seconds)

    def _finish(self, step: int, segment: int) -> None:
        """Run what was put off up to the last backward of a segment in a step."""
        while any((s, a.segment) == (step, segment) for s, a, _ in self.put_off):
            self._run_put_off()

    def _run_put_off(self) -> None:
        step, action, seconds = self.put_off.popleft()
        place = (step, action.microbatch)
        self.unfinished[place] -= 1
        if self.unfinished[place] <= 0:
            del self.unfinished[place]
        self._spend(step, action, seconds, put_off=True)

    def _spend(self, step: int, action: Action, seconds: float, *, put_off: bool = False) -> None:
        if seconds:
            self.events.append(Event(self.number, action, step, self.clock, self.clock + seconds, put_off))
            self.clock += seconds
