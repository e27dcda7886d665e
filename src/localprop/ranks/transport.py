"""Tensors between ranks, over torch.distributed.

Each pair of ranks has a process group of its own for each kind of message, so that no message can
be taken for another: the messages of one channel arrive in the order in which they were sent.
Receives are posted ahead. A sent tensor is kept until it is delivered. ::

    stage 0  ══ SEND_F ══►  stage 1  ══ SEND_F ══►  stage 2
             ◄═ SEND_B ═══           ◄═ SEND_B ═══
             ──────────── SEND_C ──────────────────►     a context, straight from its owner
             ─ handshake ─►          ─ handshake ─►      step and batch are compared, once a step

A message is one tensor, or the few that a module returns. Headers with their layouts precede the
first message of each kind. From then on the receiver knows the layouts, and posts receives before
the messages are sent.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from localprop.ranks.heartbeat import ANY_RANK, Heartbeat
from localprop.ranks.layout import (
    HEADER_SIZE,
    Layout,
    check_handshake,
    decode_header,
    encode_header,
    flatten_memory,
    make_handshake,
)
from localprop.ranks.mesh import Mesh
from localprop.schedule.schedule import RECEIVES, REDUCES, SENDS, Action, Op, Schedule
from localprop.tasks.batch import Batch


class Channel(NamedTuple):
    """One kind of message from one stage to another."""

    source: int
    target: int
    op: Op  # of the sender


class MessageKind(NamedTuple):
    """Messages whose tensors have the same layouts.

    Evaluation may use another dtype than training, so its messages are of another kind; so are
    those of batches of another shape.
    """

    op: Op
    segment: int
    flow: int | None
    peer: int | None  # a context may go to several stages, each of which needs the header
    training: bool
    signature: tuple[object, ...]
    samples: int


class PeerLost(RuntimeError):
    """A message did not arrive or could not be sent, since another rank has ended or hangs.

    Attributes:
        peer: the rank that does not answer; None if it is unknown.
    """

    def __init__(self, peer: int | None, message: str) -> None:
        super().__init__(message)
        self.peer = peer


class PendingReceive(NamedTuple):
    """A message that this rank has yet to receive, and its number of samples."""

    kind: MessageKind
    samples: int


class Transfer(NamedTuple):
    """A message under way.

    Attributes:
        tensors: what is sent, or received into; None in the place of what there is not.
        works: of torch.distributed, one for each tensor that there is.
    """

    tensors: Sequence[Tensor | None]
    works: list[Any]


class Transport:
    """Sends tensors between the ranks of a mesh; implements `localprop.engine.communicator`.

    All ranks must create theirs at the same time, from the same schedules.

    Args:
        mesh: the position of this process among the ranks.
        rank_schedules: the schedules of all stages.
        max_in_flight: messages of one channel that may be sent but not yet delivered.
        device: of the tensors.
        timeout_s: how long to wait for a message, after which the other rank counts as lost.
        heartbeat: is told which message this rank has begun, and for whom it waits.
    """

    def __init__(
        self,
        mesh: Mesh,
        rank_schedules: Sequence[Schedule],
        *,
        max_in_flight: int,
        device: torch.device,
        timeout_s: float,
        heartbeat: Heartbeat,
    ) -> None:
        self.mesh = mesh
        self.heartbeat = heartbeat
        self.device = device
        self.max_in_flight = max_in_flight
        self._timeout = timedelta(seconds=timeout_s)
        self._groups = self._make_channel_groups(rank_schedules)
        self._handshake_groups = {
            pair: self._make_group(list(pair)) for pair in mesh.iterate_handshakes()
        }
        self._layouts: dict[MessageKind, list[Layout | None]] = {}
        self._pending: dict[Channel, deque[PendingReceive]] = defaultdict(deque)
        self._posted: dict[Channel, deque[Transfer]] = defaultdict(deque)
        # Headers are kept for good: they are few, and nobody waits for their delivery.
        self._headers: list[tuple[Tensor, Any]] = []
        self._sent: dict[object, deque[tuple[int, Transfer]]] = defaultdict(deque)
        self._sums: dict[tuple[Op, int, int | None], tuple[Any, Tensor, list[Tensor]]] = {}
        self._training = True

    def _make_group(self, ranks: list[int]) -> Any:
        return dist.new_group(ranks, timeout=self._timeout)

    def _make_channel_groups(self, rank_schedules: Sequence[Schedule]) -> dict[Channel, Any]:
        """Make a process group for each channel, and return those of this replica.

        torch.distributed wants every rank to take part in making every group, in one order.
        """
        channels = {
            _channel_of(stage, action)
            for stage, rank_schedule in enumerate(rank_schedules)
            for action in rank_schedule
            if action.op in SENDS
        }
        groups: dict[Channel, Any] = {}
        for replica in range(self.mesh.replicas):
            for channel in sorted(channels):
                source = self.mesh.rank(channel.source, replica)
                target = self.mesh.rank(channel.target, replica)
                group = self._make_group([source, target])
                if replica == self.mesh.replica:
                    groups[channel] = group
        return groups

    # --- messages --------------------------------------------------------------------------------

    def begin(
        self,
        number: int,
        batch: Batch,
        parts: Sequence[Batch],
        rank_schedule: Schedule,
        *,
        training: bool,
    ) -> None:
        """Begin a step: compare it with the neighbours', and post the first receives.

        Args:
            number: of the step.
            batch: of all replicas, the same on all ranks.
            parts: the micro-batches of this replica.
            rank_schedule: the actions of this rank.
            training: False for a prediction.

        Raises:
            BadInput: two ranks are at different steps, or their loaders give different batches.
            PeerLost: the rank before does not answer.
        """
        self.heartbeat.action = next(a for a in rank_schedule if not a.deferred)
        self._exchange_handshakes(make_handshake(number, batch, training=training))
        self._training = training
        # Deferred actions run during the next batch, so their messages come last in a channel.
        for action in sorted(rank_schedule, key=lambda action: action.deferred):
            if action.op in RECEIVES:
                channel = _channel_of(self.mesh.stage, action)
                part = parts[action.microbatch]
                kind = self._kind_of(action, part)
                self._pending[channel].append(PendingReceive(kind, part.samples))
                self._post_receives(channel)

    def _exchange_handshakes(self, ours: Tensor) -> None:
        """Check the handshakes of the ranks before, then send ours to the ranks after.

        In this order a rank that refuses sends none, so that the ranks after it stop as well.
        """
        our_rank = self.mesh.rank(self.mesh.stage)
        for (source, target), group in self._handshake_groups.items():
            if target == our_rank:
                theirs = torch.empty_like(ours)
                self._wait(source, [self._irecv(source, theirs, group)])
                check_handshake(source, theirs.tolist(), our_rank, ours.tolist())
        for (source, target), group in self._handshake_groups.items():
            if source == our_rank:
                self._send((source, target), target, [ours], group)

    def send(self, action: Action, tensors: Sequence[Tensor | None], batch: Batch) -> None:
        """Send a message. Waits if too many of its channel are in flight.

        Args:
            action: says what is sent, and to which stage.
            tensors: kept until they are delivered; nobody may write to them any more.
            batch: their micro-batch.

        Raises:
            PeerLost: the peer does not answer.
            RuntimeError: the layout of a tensor differs from that in the first message of its kind.
        """
        self.heartbeat.action = action
        channel, kind = _channel_of(self.mesh.stage, action), self._kind_of(action, batch)
        target, group = self.mesh.rank(channel.target), self._groups[channel]
        layouts = [each if each is None else Layout.of(each, batch.samples) for each in tensors]
        if kind not in self._layouts:
            self._layouts[kind] = layouts
            for header in map(encode_header, layouts):
                self._headers.append((header, self._isend(target, header, group)))
        for layout, first in zip(layouts, self._layouts[kind], strict=True):
            if layout != first:
                raise RuntimeError(f"the tensor to send is {layout}, but the first one was {first}")
        self._send(channel, target, tensors, group)

    def receive(self, action: Action, count: int) -> list[Tensor | None]:
        """Wait for the next message of a channel.

        Args:
            action: says which channel.
            count: the number of its tensors.

        Raises:
            PeerLost: the peer does not answer.
        """
        self.heartbeat.action = action
        channel = _channel_of(self.mesh.stage, action)
        if not self._posted[channel]:  # the first message of its kind
            self._read_headers(channel, count)
            self._post_receives(channel)
        message = self._posted[channel].popleft()
        self._wait(self.mesh.rank(channel.source), message.works)
        self._post_receives(channel)
        return [*message.tensors]

    def _read_headers(self, channel: Channel, count: int) -> None:
        source, layouts = self.mesh.rank(channel.source), []
        for _ in range(count):
            header = torch.empty(HEADER_SIZE, dtype=torch.int64)
            self._wait(source, [self._irecv(source, header, self._groups[channel])])
            layouts.append(decode_header(header))
        self._layouts[self._pending[channel][0].kind] = layouts

    def _post_receives(self, channel: Channel) -> None:
        """Post receives ahead, up to the first message whose layouts are unknown."""
        pending, posted = self._pending[channel], self._posted[channel]
        source, group = self.mesh.rank(channel.source), self._groups[channel]
        while pending and len(posted) < self.max_in_flight and pending[0].kind in self._layouts:
            kind, samples = pending.popleft()
            tensors = [
                each if each is None else each.allocate(samples, self.device)
                for each in self._layouts[kind]
            ]
            parts = [flatten_memory(each) for each in tensors if each is not None]
            works = [self._irecv(source, part, group) for part in parts]
            posted.append(Transfer(tensors, works))

    def _kind_of(self, action: Action, batch: Batch) -> MessageKind:
        op = RECEIVES.get(action.op, action.op)  # both sides use the sender's
        shape = batch.signature, batch.samples
        return MessageKind(op, action.segment, action.flow, action.peer, self._training, *shape)

    # --- sums over replicas ----------------------------------------------------------------------

    def start_reduce(self, action: Action, gradients: list[Tensor]) -> None:
        """Start to sum gradients over the replicas, as one tensor."""
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        work = dist.all_reduce(flat, group=self.mesh.replica_group, async_op=True)
        self._sums[REDUCES[action.op], action.segment, action.flow] = (work, flat, gradients)

    def finish_reduce(self, action: Action) -> None:
        """Wait for a sum, and write it into the gradients.

        Raises:
            PeerLost: another replica does not answer.
        """
        started = self._sums.pop((action.op, action.segment, action.flow), None)
        if started is None:
            return
        self.heartbeat.action = action
        work, flat, gradients = started
        others = [r for r in range(self.mesh.replicas) if r != self.mesh.replica]
        # Of several replicas nobody knows which one is missing.
        peer = self.mesh.rank(self.mesh.stage, others[0]) if len(others) == 1 else None
        self._wait(peer, [work], self._timeout)
        sums = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))

    # --- waiting ---------------------------------------------------------------------------------

    def _send(
        self, queue: object, target: int, tensors: Sequence[Tensor | None], group: Any
    ) -> None:
        """Send a message, which is kept until it is delivered; wait for the oldest if there are too
        many.
        """
        parts = [flatten_memory(each) for each in tensors if each is not None]
        works = [self._isend(target, part, group) for part in parts]
        in_flight = self._sent[queue]
        in_flight.append((target, Transfer(tensors, works)))
        while len(in_flight) > self.max_in_flight:
            peer, oldest = in_flight.popleft()
            self._wait(peer, oldest.works)

    def wait_for_sends(self) -> None:
        """Wait until all messages are delivered.

        Raises:
            PeerLost: a peer does not answer.
        """
        for in_flight in self._sent.values():
            while in_flight:
                peer, message = in_flight.popleft()
                self._wait(peer, message.works)

    @staticmethod
    def _isend(target: int, tensor: Tensor, group: Any) -> Any:
        with raising_peer_lost(target):
            return dist.isend(tensor, target, group=group)

    @staticmethod
    def _irecv(source: int, tensor: Tensor, group: Any) -> Any:
        with raising_peer_lost(source):
            return dist.irecv(tensor, source, group=group)

    def _wait(self, peer: int | None, works: list[Any], *timeout: timedelta) -> None:
        with waiting_for(peer, self.heartbeat):
            for work in works:
                work.wait(*timeout)


@contextmanager
def raising_peer_lost(peer: int | None) -> Iterator[None]:
    """Raise `PeerLost` for a RuntimeError inside; `peer` is None if it may concern any rank."""
    try:
        yield
    except RuntimeError as error:
        # gloo's messages begin with a position in its source code, and end with advice, or with
        # the frames of its stack, which must not come before what we have to say.
        message = re.sub(r"^\[[^]]*\] ", "", str(error).strip() or repr(error))
        reason = message.splitlines()[0].split(". ")[0]
        who = "some rank" if peer is None else f"rank {peer}"
        raise PeerLost(peer, f"{who} does not answer: {reason}") from None


@contextmanager
def waiting_for(peer: int | None, heartbeat: Heartbeat | None) -> Iterator[None]:
    """`raising_peer_lost`, while the heartbeat tells the others for whom this rank waits."""
    if heartbeat is not None:
        heartbeat.awaited = ANY_RANK if peer is None else peer
    with raising_peer_lost(peer):
        yield
    if heartbeat is not None:
        heartbeat.awaited = None


def _channel_of(stage: int, action: Action) -> Channel:
    """The channel of a message, given the stage that sends or receives it."""
    assert action.peer is not None
    if action.op in SENDS:
        return Channel(stage, action.peer, action.op)
    return Channel(action.peer, stage, RECEIVES[action.op])
