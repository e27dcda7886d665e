"""Tensors between ranks, over torch.distributed.

Each pair of ranks has a process group of its own per kind of message, so that nothing is matched by chance: messages of one
channel arrive in the order of their sending. Receives are posted ahead; a sent tensor is kept until it is delivered. ::

    stage 0  ══ SEND_F ══►  stage 1  ══ SEND_F ══►  stage 2
             ◄═ SEND_B ═══           ◄═ SEND_B ═══
             ──────────── SEND_C ──────────────────►            a context, straight from its owner
             ── greeting ─►          ── greeting ─►             step, size and checksum of the batch, once a step
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

from localprop.ranks.mesh import Mesh
from localprop.ranks.messages import HEADER, Layout, check_greeting, flat, greeting_of
from localprop.rule.losses import Batch
from localprop.step.schedule import RECEIVES, REDUCES, SENDS, Action, Op, Schedule


class Channel(NamedTuple):
    """One kind of message from one stage to another."""

    source: int
    target: int
    op: Op  # of the sender


class Kind(NamedTuple):
    """Messages that look alike but for the number of samples; in evaluation they may have another dtype than in training."""

    op: Op
    segment: int
    flow: int | None
    peer: int | None  # a context may go to several stages, each of which must be told how it looks
    training: bool


class Lost(RuntimeError):
    """A message that did not come, or could not be sent, since another rank has ended or hangs."""

    def __init__(self, peer: int | None, error: Exception) -> None:
        # gloo's messages begin with a place in its source, and end with advice
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).strip() or repr(error)).splitlines()[0].split(". ")[0]
        super().__init__(f"{'some rank' if peer is None else f'rank {peer}'} does not answer: {reason}")
        self.peer = peer  # None: nobody knows which
        self.hangs = "timed out" in reason.lower()


class Awaited(NamedTuple):
    """A message that is still to be received, and how many samples it has."""

    kind: Kind
    samples: int


class Transport:
    """A link between the ranks of a mesh; see :class:`localprop.step.link.Link`.

    All ranks must make theirs at the same time, from the same programmes.

    Args:
        mesh: where this process stands.
        programmes: of all stages.
        allowed: messages of one channel that may be under way at once.
        device: of the tensors.
        timeout_s: how long to wait for a message; then the other rank is taken for lost.
    """

    def __init__(
        self, mesh: Mesh, programmes: Sequence[Schedule], *, allowed: int, device: torch.device, timeout_s: float
    ) -> None:
        self.mesh = mesh
        self.device = device
        self.allowed = allowed
        self._timeout = timedelta(seconds=timeout_s)
        self._groups = self._channel_groups(programmes)
        self._greeting_groups = {pair: self._group(list(pair)) for pair in mesh.greetings()}
        self._layouts: dict[Kind, Layout] = {}
        self._awaited: dict[Channel, deque[Awaited]] = defaultdict(deque)
        self._posted: dict[Channel, deque[tuple[Tensor, Any]]] = defaultdict(deque)
        self._headers: list[tuple[Tensor, Any]] = []
        self._outgoing: dict[object, deque[tuple[int, Tensor, Any]]] = defaultdict(deque)
        self._sums: dict[tuple[Op, int, int | None], tuple[Any, Tensor, list[Tensor]]] = {}
        self._training = True

    def _group(self, ranks: list[int]) -> Any:
        return dist.new_group(ranks, timeout=self._timeout)

    def _channel_groups(self, programmes: Sequence[Schedule]) -> dict[Channel, Any]:
        """A group for each channel of each replica; every rank takes part in the making of all of them, in one order."""
        channels = sorted(
            {c for i, own in enumerate(programmes) for a in own if (c := _channel(i, a)) and a.op in SENDS}
        )
        made: dict[Channel, Any] = {}
        for replica in range(self.mesh.replicas):
            for channel in channels:
                ranks = [self.mesh.rank(channel.source, replica), self.mesh.rank(channel.target, replica)]
                group = self._group(ranks)
                if replica == self.mesh.replica:
                    made[channel] = group
        return made

    # --- a step -----------------------------------------------------------------------------------------------------

    def begin(self, number: int, batch: Batch, parts: Sequence[Batch], programme: Schedule, *, training: bool) -> None:
        """Agree with the rank before on step and batch, tell the rank after, and post the first receives.

        Raises:
            BadInput: two ranks are at different steps, or their loaders give different batches.
            Lost: the rank before does not answer.
        """
        self._greet(greeting_of(number, batch, training=training))
        self._training = training
        for action in sorted(programme, key=lambda action: action.late):  # the others' late messages come last
            if action.op in RECEIVES:
                channel = _channel(self.mesh.stage, action)
                assert channel is not None
                self._awaited[channel].append(Awaited(self._kind(action), len(parts[action.microbatch].inputs)))
                self._post(channel)

    def _greet(self, own: Tensor) -> None:
        here = self.mesh.rank(self.mesh.stage)
        for (source, target), group in self._greeting_groups.items():
            if target == here:
                theirs = torch.empty_like(own)
                self._wait(source, self._irecv(source, theirs, group))
                check_greeting(source, theirs.tolist(), here, own.tolist())
        for (source, target), group in self._greeting_groups.items():
            if source == here:
                self._keep((source, target), target, own, self._isend(target, own, group))

    def send(self, action: Action, tensor: Tensor, samples: int) -> None:
        """Send a tensor, which is kept until it is delivered; waits if too many of its channel are under way.

        Args:
            action: what is sent, and to which stage.
            tensor: nobody may write to it any more.
            samples: of the micro-batch that made it.

        Raises:
            Lost: the peer does not answer.
            RuntimeError: the tensor looks unlike the first one of its kind.
        """
        channel = _channel(self.mesh.stage, action)
        assert channel is not None
        to, kind, group = self.mesh.rank(channel.target), self._kind(action), self._groups[channel]
        layout = Layout.of(tensor, samples)
        if kind not in self._layouts:
            self._layouts[kind] = layout
            header = layout.encoded()
            # which does not count as a message under way
            self._headers.append((header, self._isend(to, header, group)))
        if layout != self._layouts[kind]:
            raise RuntimeError(f"the tensor to send is {layout}, but the first one was {self._layouts[kind]}")
        self._keep(channel, to, tensor, self._isend(to, flat(tensor), group))

    def receive(self, action: Action) -> Tensor:
        """The next tensor of a channel; waits for it.

        Raises:
            Lost: the peer does not answer.
        """
        channel = _channel(self.mesh.stage, action)
        assert channel is not None
        if not self._posted[channel]:
            self._read_header(channel)
            self._post(channel)
        tensor, work = self._posted[channel].popleft()
        self._wait(self.mesh.rank(channel.source), work)
        self._post(channel)
        return tensor

    def _read_header(self, channel: Channel) -> None:
        source = self.mesh.rank(channel.source)
        header = torch.empty(HEADER, dtype=torch.int64)
        self._wait(source, self._irecv(source, header, self._groups[channel]))
        self._layouts[self._awaited[channel][0].kind] = Layout.decoded(header)

    def _post(self, channel: Channel) -> None:
        """Post receives ahead, up to the first one of a kind that has not been seen."""
        awaited, posted, source = self._awaited[channel], self._posted[channel], self.mesh.rank(channel.source)
        while awaited and len(posted) < self.allowed and awaited[0].kind in self._layouts:
            kind, samples = awaited.popleft()
            tensor = self._layouts[kind].empty(samples, self.device)
            posted.append((tensor, self._irecv(source, flat(tensor), self._groups[channel])))

    def _kind(self, action: Action) -> Kind:
        return Kind(RECEIVES.get(action.op, action.op), action.segment, action.flow, action.peer, self._training)

    # --- sums over replicas -----------------------------------------------------------------------------------------

    def reduce(self, action: Action, gradients: list[Tensor]) -> None:
        """Begin to sum gradients over the replicas, as one tensor."""
        if not gradients:
            return
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        work = dist.all_reduce(whole, group=self.mesh.replica_group, async_op=True)
        self._sums[REDUCES[action.op], action.segment, action.flow] = (work, whole, gradients)

    def reduced(self, action: Action) -> None:
        """Wait for a sum, and put it in the place of the gradients.

        Raises:
            Lost: another replica does not answer.
        """
        found = self._sums.pop((action.op, action.segment, action.flow), None)
        if found is not None:
            work, whole, gradients = found
            others = [r for r in range(self.mesh.replicas) if r != self.mesh.replica]
            peer = self.mesh.rank(self.mesh.stage, others[0]) if len(others) == 1 else None
            self._wait(peer, work, self._timeout)
            for gradient, total in zip(gradients, torch.split(whole, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(total.view_as(gradient))

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _keep(self, queue: object, to: int, tensor: Tensor, work: Any) -> None:
        """Own a sent tensor until it is delivered."""
        waiting = self._outgoing[queue]
        waiting.append((to, tensor, work))
        while len(waiting) > self.allowed:
            peer, _, oldest = waiting.popleft()
            self._wait(peer, oldest)

    def settle(self) -> None:
        """Wait until all that was sent is delivered.

        Raises:
            Lost: a peer does not answer.
        """
        for waiting in self._outgoing.values():
            while waiting:
                peer, _, work = waiting.popleft()
                self._wait(peer, work)

    @staticmethod
    def _isend(to: int, tensor: Tensor, group: Any) -> Any:
        with answering(to):
            return dist.isend(tensor, to, group=group)

    @staticmethod
    def _irecv(source: int, tensor: Tensor, group: Any) -> Any:
        with answering(source):
            return dist.irecv(tensor, source, group=group)

    @staticmethod
    def _wait(peer: int | None, work: Any, *timeout: timedelta) -> None:
        with answering(peer):
            work.wait(*timeout)


@contextmanager
def answering(peer: int | None) -> Iterator[None]:
    """What needs another rank (None: all others) raises :class:`Lost` if it fails."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(peer, error) from error


def _channel(stage: int, action: Action) -> Channel | None:
    """The channel of a message, as one of its two stages sees it."""
    if action.peer is None:
        return None
    if action.op in SENDS:
        return Channel(stage, action.peer, action.op)
    return Channel(action.peer, stage, RECEIVES[action.op])
