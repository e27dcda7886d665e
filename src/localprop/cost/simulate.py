"""Simulated pipelines: what each rank does and what it waits for, computed from a cost per action.

The simulation assumes that all devices are equal, that messages travel while ranks compute, that
each pair of ranks has a link of its own in each direction, and that gradients are summed over
replicas by ring all-reduce over links of their own.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

from localprop.cost.timing import LinkModel
from localprop.errors import check
from localprop.schedule.schedule import (
    RECEIVES,
    REDUCES,
    SENDS,
    Action,
    ActionCost,
    Op,
    Schedule,
    unroll,
)
from localprop.schedule.turns import run_in_turns


class Event(NamedTuple):
    """An action that ran, or the postponed half of a backward.

    Attributes:
        rank: the rank that ran it.
        action: the action.
        step: the number of its batch.
        start_s: when it began.
        end_s: when it ended.
        weight_gradient: whether it is the postponed half of a backward, which computes the gradient
            with respect to the weights.
    """

    rank: int
    action: Action
    step: int
    start_s: float
    end_s: float
    weight_gradient: bool = False


class Wait(NamedTuple):
    """Time in which a rank did nothing.

    Attributes:
        rank: the rank that waited.
        action: the next action of that rank.
        start_s: when the wait began.
        end_s: when it ended.
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
        ranks: the number of ranks in one replica.
        steps: the number of batches.
        events: of all ranks; those of one rank are in order.
        waits: of all ranks, in the same order.
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
        """The time from the start to the last end; with one step, the latency of a single batch."""
        return max(event.end_s for event in self.events)

    @cached_property
    def seconds_per_step(self) -> float:
        """The time between the ends of two batches in the steady loop; the mean of few steps."""
        if self.steps < 4:
            return self.span_s / self.steps
        ends = [0.0] * self.steps
        for event in self.events:
            ends[event.step] = max(ends[event.step], event.end_s)
        # The first half fills the pipeline. No batch follows the last one and could delay it, so
        # it does not count either.
        first, last = (self.steps - 1) // 2, self.steps - 2
        return (ends[last] - ends[first]) / (last - first)

    @cached_property
    def idle_shares(self) -> tuple[float, ...]:
        """For each rank, the fraction of the steady loop in which it computes nothing."""
        busy = [0.0] * self.ranks
        for event in self.events:
            busy[event.rank] += (event.end_s - event.start_s) / self.steps
        return tuple(max(0.0, 1 - busy_s / self.seconds_per_step) for busy_s in busy)

    @property
    def idle_share(self) -> float:
        """The mean of `idle_shares`."""
        return statistics.fmean(self.idle_shares)

    @property
    def wire_bytes(self) -> float:
        """The bytes that one replica sends in a step."""
        return sum(self.sent_bytes.values()) + sum(self.reduced_bytes)


# --- the simulation ------------------------------------------------------------------------------


def simulate(
    rank_schedules: Sequence[Schedule],
    cost: ActionCost,
    message_bytes: ActionCost = lambda action: 0,
    link: LinkModel = LinkModel(),  # noqa: B008 - frozen
    *,
    steps: int = 16,
    replicas: int = 1,
    max_in_flight: int = 2,
    weight_share: float = 0.0,
) -> Timeline:
    """Simulate the schedules of all ranks. Each rank runs its actions strictly in order.

    With `weight_share`, a part of each backward is postponed to fill waits, as in zero-bubble
    pipelines: the part that computes the gradients of the weights. Where these have an action of
    their own, W, that is all of W and nothing of the segment's backwards. It runs in a wait if it
    fills more of the wait than it delays what follows. It runs at the latest before its segment's
    step, and before a forward that would leave more micro-batches unfinished than there are ranks.
    So no rank holds more than the fullest rank of "1f1b" does. No engine of localprop runs this.

    Args:
        rank_schedules: of each rank, the steady loop. Deferred actions are left out of the first
            step and run after the last one.
        cost: the seconds of an action.
        message_bytes: the bytes of a message or a sum; see `localprop.cost.timing.message_bytes`.
        link: the model of every link.
        steps: the number of batches. With 1, `span_s` is the time of a step without streaming,
            where a batch begins after the previous one has ended on all ranks.
        replicas: the number of pipelines whose gradients are summed; all run alike.
        max_in_flight: messages of one kind between two ranks that may be sent but not received;
            the next send waits.
        weight_share: the fraction of a backward that computes the gradients of the weights.

    Raises:
        BadInput: fewer than one step.
        RuntimeError: the ranks wait for each other.

    Example:
        >>> cost = lambda action: 1.0 if action.op in (Op.F, Op.B) else 0.0
        >>> first = Schedule.parse("0F 0SEND_F>1 1RECV_B<1 0B 0S")
        >>> second = Schedule.parse("0RECV_F<0 1F 1L 1B 1SEND_B>0 1S")
        >>> timeline = simulate([first, second], cost)
        >>> timeline.seconds_per_step, timeline.idle_shares
        (4.0, (0.5, 0.5))

    Source: zero-bubble (ZB-H1): Qi, Wan, Huang, Lin, Zero Bubble Pipeline Parallelism, ICLR 2024,
    arXiv 2401.10241.
    """
    check([f"steps={steps} must be 1 or more."] if steps < 1 else [])
    shared = _SharedState(
        cache(cost),  # each is asked for once per step
        cache(message_bytes),
        link,
        replicas,
        max_in_flight,
        weight_share,
        max_unfinished=len(rank_schedules),
    )
    ranks = [
        _Rank(shared, number, rank_schedule, steps)
        for number, rank_schedule in enumerate(rank_schedules)
    ]
    run_in_turns(rank_schedules, lambda rank: ranks[rank].advance())
    if positions := [rank.describe_position() for rank in ranks if not rank.has_ended]:
        raise RuntimeError(f"Ranks wait for each other: {', '.join(positions)}.")
    return Timeline(
        len(ranks),
        steps,
        tuple(event for rank in ranks for event in rank.events),
        tuple(wait for rank in ranks for wait in rank.waits),
        {pair: nbytes / steps for pair, nbytes in shared.sent_bytes.items()},
        tuple(rank.reduced_bytes / steps for rank in ranks),
    )


@dataclass
class _SharedState:
    """What all ranks share: the costs, and the times of all messages.

    Attributes:
        max_unfinished: micro-batches of a rank that may lack gradients of weights.
        arrivals: when the messages of each channel (source, target, op) arrive.
        receptions: when their receivers took them.
        link_free_s: when each link (source, target) can take the next message; a rank's link to
            itself stands for the one to its replicas.
        sent_bytes: over each link.
    """

    cost: ActionCost
    message_bytes: ActionCost
    link: LinkModel
    replicas: int
    max_in_flight: int
    weight_share: float
    max_unfinished: int
    arrivals: dict[tuple[int, int, Op], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    receptions: dict[tuple[int, int, Op], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    link_free_s: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    sent_bytes: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))


class _Rank:
    """One rank: its clock, and the actions that it has yet to run.

    The order of turns does not matter: each rank has a clock of its own, and messages carry the
    time of their arrival.
    """

    def __init__(
        self, shared: _SharedState, number: int, rank_schedule: Schedule, steps: int
    ) -> None:
        self.shared = shared
        self.number = number
        self._actions = unroll(rank_schedule, steps)
        self._next = next(self._actions, None)
        self.events: list[Event] = []
        self.waits: list[Wait] = []
        self.reduced_bytes = 0.0
        self._clock = 0.0
        self._sums: dict[tuple[Op, int, int | None], float] = {}  # when sums are complete
        self._first_segment = min((a.segment for a in rank_schedule if a.op is Op.F), default=0)
        self._with_weights = {a.segment for a in rank_schedule if a.op is Op.W}
        self._backwards = Counter(a.microbatch for a in rank_schedule if self._has_weights(a))
        # Halves of backwards that are postponed, with their seconds; and how many of each
        # (step, micro-batch) have not run yet.
        self._postponed: deque[tuple[int, Action, float]] = deque()
        self._unfinished: Counter[tuple[int, int]] = Counter()

    def describe_position(self) -> str:
        assert self._next is not None
        return f"rank {self.number} at {self._next[1]}"

    @property
    def has_ended(self) -> bool:
        return self._next is None

    def advance(self) -> bool:
        """Run actions until one needs another rank; return whether any ran."""
        before = self._next
        while self._next is not None and self._try_action(*self._next):
            self._next = next(self._actions, None)
        return self._next is not before

    def _try_action(self, step: int, action: Action) -> bool:
        """Run an action; return False if another rank must advance first."""
        if action.op in SENDS:
            return self._send(action)
        if action.op in RECEIVES:
            return self._receive(action)
        if action.op in REDUCES:
            self._reduce(step, action)
        else:
            self._compute(step, action)
        return True

    # --- messages --------------------------------------------------------------------------------

    def _send(self, action: Action) -> bool:
        assert action.peer is not None
        shared, pair = self.shared, (self.number, action.peer)
        arrivals = shared.arrivals[*pair, action.op]
        receptions = shared.receptions[*pair, action.op]
        # This message may leave once the one max_in_flight places before it has been received.
        earlier = len(arrivals) - shared.max_in_flight
        if earlier >= len(receptions):
            return False
        if earlier >= 0:
            self._wait(receptions[earlier], action, action.peer)
        nbytes = shared.message_bytes(action)
        start = max(self._clock, shared.link_free_s[pair])
        arrivals.append(start + shared.link.seconds(nbytes))
        # The sender does not wait. The link is free again when the last byte has left.
        shared.link_free_s[pair] = start + nbytes / shared.link.bytes_per_second
        shared.sent_bytes[pair] += nbytes
        return True

    def _receive(self, action: Action) -> bool:
        assert action.peer is not None
        channel = (action.peer, self.number, RECEIVES[action.op])
        arrivals, receptions = self.shared.arrivals[channel], self.shared.receptions[channel]
        if len(receptions) == len(arrivals):
            return False
        self._wait(arrivals[len(receptions)], action, action.peer)
        receptions.append(self._clock)
        return True

    def _reduce(self, step: int, action: Action) -> None:
        """Start a sum over the replicas. The step of the same parameters waits for its end."""
        shared = self.shared
        self._finish_backwards(step, action.segment)
        cost = shared.link.ring_all_reduce(shared.message_bytes(action), shared.replicas)
        to_replicas = (self.number, self.number)
        end = max(self._clock, shared.link_free_s[to_replicas]) + cost.seconds
        shared.link_free_s[to_replicas] = end
        self._sums[REDUCES[action.op], action.segment, action.flow] = end
        self.reduced_bytes += cost.sent_bytes

    def _wait(self, until: float, action: Action, peer: int) -> None:
        """Wait for a moment, and fill the wait with postponed halves of backwards.

        A half runs if more than half of it fits, so that it fills more than it delays.
        """
        while self._postponed and self._clock + self._postponed[0][2] / 2 < until:
            self._run_postponed()
        if until > self._clock:
            self.waits.append(Wait(self.number, action, self._clock, until, peer))
            self._clock = until

    # --- computing -------------------------------------------------------------------------------

    def _compute(self, step: int, action: Action) -> None:
        seconds = self.shared.cost(action)
        if action.op in (Op.S, Op.H):
            self._finish_backwards(step, action.segment)
            sum_end = self._sums.pop((action.op, action.segment, action.flow), 0.0)
            self._wait(sum_end, action, self.number)
        if self.shared.weight_share:
            if action.op is Op.F and action.segment == self._first_segment:
                self._admit_microbatch(step, action.microbatch)
            if self._has_weights(action):
                share = 1.0 if action.op is Op.W else self.shared.weight_share
                self._postponed.append((step, action, seconds * share))
                seconds *= 1 - share
        self._record(step, action, seconds)

    def _has_weights(self, action: Action) -> bool:
        """Whether an action makes gradients of weights."""
        is_backward = action.op is Op.B and action.segment not in self._with_weights
        return is_backward or action.op is Op.W

    def _admit_microbatch(self, step: int, microbatch: int) -> None:
        """Start a micro-batch, after postponed halves have run where too many are unfinished."""
        while len(self._unfinished) >= self.shared.max_unfinished and self._postponed:
            self._run_postponed()
        self._unfinished[step, microbatch] = self._backwards[microbatch]

    def _finish_backwards(self, step: int, segment: int) -> None:
        """Run the postponed halves up to the last one of a segment in a step."""
        while any((s, a.segment) == (step, segment) for s, a, _ in self._postponed):
            self._run_postponed()

    def _run_postponed(self) -> None:
        step, action, seconds = self._postponed.popleft()
        key = (step, action.microbatch)
        self._unfinished[key] -= 1
        if self._unfinished[key] <= 0:
            del self._unfinished[key]
        self._record(step, action, seconds, weight_gradient=True)

    def _record(
        self, step: int, action: Action, seconds: float, *, weight_gradient: bool = False
    ) -> None:
        """Record that an action ran, and advance the clock; actions without cost leave no event."""
        if seconds:
            start, end = self._clock, self._clock + seconds
            self.events.append(Event(self.number, action, step, start, end, weight_gradient))
            self._clock = end
