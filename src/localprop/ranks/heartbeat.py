"""Each rank watches the others, on sockets of its own.

A thread tells the others at short intervals that this process runs, and for whom it waits. A rank
that has not been heard for the time-out is stopped, swapped out or cut off; one whose socket ends
without a farewell has died. Collectives and stores find out late, or never: where the rank that
hosts the store is stopped, every call of it blocks.

Messages are lines of JSON: the number of the rank that the sender waits for, or null; a record of a
failure (`localprop.ranks.faults`); and "bye" from a rank whose program ends.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

Record = dict[str, Any]

ANY_RANK = -1  # is awaited in a collective

# torch.distributed counts in milliseconds and in whole seconds, and adds them to its clock.
SHORTEST_TIMEOUT_S, LONGEST_TIMEOUT_S = 1.0, 1e8
_LONGEST_INTERVAL_S = 1.0
_BEATS = 10  # in a time-out


def find_timeout_problems(timeout_s: object) -> Iterator[str]:
    """What is wrong with a time-out.

    Example:
        >>> list(find_timeout_problems(0))
        ['timeout_s=0 must be a number of seconds from 1 to 1e+08: try 300.']
    """
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not (is_number and SHORTEST_TIMEOUT_S <= timeout_s <= LONGEST_TIMEOUT_S):  # type: ignore[operator]
        yield (
            f"timeout_s={timeout_s!r} must be a number of seconds from {SHORTEST_TIMEOUT_S:g} to "
            f"{LONGEST_TIMEOUT_S:g}: try 300."
        )


class Heartbeat:
    """Watches the other ranks in a thread of its own.

    Args:
        connections: a socket to each other rank.
        timeout_s: seconds without a word after which a rank counts as lost.
        on_loss: called in the thread again and again, from a loss to `close`.

    Attributes:
        awaited: the rank that this one waits for now, or `ANY_RANK`; None while it works.
        action: the message that this rank has begun last, if any.
    """

    def __init__(
        self,
        connections: Mapping[int, socket.socket],
        timeout_s: float,
        on_loss: Callable[[], object] = lambda: None,
    ) -> None:
        self.awaited: int | None = None
        self.action: Any = None
        self.on_loss = on_loss
        self._timeout_s = timeout_s
        self._interval_s = min(_LONGEST_INTERVAL_S, timeout_s / _BEATS)
        self._connections = dict(connections)
        self._lock = threading.Lock()  # of sends
        self._unread = dict.fromkeys(connections, b"")
        self._heard = dict.fromkeys(connections, time.monotonic())
        self._lost: dict[int, str] = {}
        self._left: set[int] = set()
        self._awaited_by: dict[int, int | None] = dict.fromkeys(connections)
        self._records: dict[int, Record] = {}
        self._open = True
        for connection in connections.values():
            connection.setblocking(False)
        _opened.add(self)
        threading.Thread(target=self._watch, name="localprop heartbeat", daemon=True).start()

    # --- what the others are up to ---------------------------------------------------------------

    @property
    def lost(self) -> dict[int, str]:
        """The ranks that are lost and why, in the order in which that was noticed."""
        return dict(self._lost)

    @property
    def left(self) -> frozenset[int]:
        """The ranks whose programs have ended in good order."""
        return frozenset(self._left)

    @property
    def records(self) -> dict[int, Record]:
        """What other ranks have told last, by rank."""
        return dict(self._records)

    @property
    def running(self) -> frozenset[int]:
        """The other ranks that are neither lost nor have left."""
        return frozenset(self._connections) - self._lost.keys() - self._left

    @property
    def awaited_by(self) -> dict[int, int | None]:
        """For each other rank the one that it waits for, or None, as it has said last."""
        return dict(self._awaited_by)

    # --- what this rank says ---------------------------------------------------------------------

    def tell(self, record: Record) -> None:
        """Tell the other ranks about a failure; an empty record takes the last one back."""
        self._send(record)

    def close(self) -> None:
        """Say farewell: the program goes on, or ends, without the others."""
        if self._open:
            self._send("bye")
            self._open = False
            for connection in self._connections.values():
                with suppress(OSError):  # the other side has ended it
                    # Unlike `close`, this also ends it where a forked child has a copy.
                    connection.shutdown(socket.SHUT_WR)

    def forget(self) -> None:
        """Close the copies of the sockets that a forked child has, without a word."""
        self._open = False
        for connection in self._connections.values():
            connection.close()

    def _send(self, message: object) -> None:
        line = f"{json.dumps(message)}\n".encode()
        with self._lock:
            for rank in self.running:
                with suppress(OSError):  # reading tells whether the other has ended
                    self._connections[rank].sendall(line)

    # --- the thread ------------------------------------------------------------------------------

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            due = time.monotonic()
            while self._open:
                ready = selector.select(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                self._excuse(now - due - self._interval_s)
                for key, _ in ready:
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                if now >= due:
                    self._send(self.awaited)
                    due = now + self._interval_s
                self._find_silent(now)
                if self._lost:
                    self.on_loss()
        for connection in self._connections.values():
            connection.close()

    def _read(self, rank: int) -> bool:
        """Read what a rank has sent. Returns whether more may come."""
        try:
            received = self._connections[rank].recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionResetError:  # it has ended without reading all
            received, reason = b"", f"rank {rank} has ended"
        except OSError as error:
            received, reason = b"", f"the connection to rank {rank} is lost: {error.strerror}"
        else:
            reason = f"rank {rank} has ended"
        if not received:
            if rank not in self._left and self._open:
                self._lost.setdefault(rank, reason)
            return False
        self._heard[rank] = time.monotonic()
        *lines, self._unread[rank] = (self._unread[rank] + received).split(b"\n")
        for line in lines:
            self._take(rank, json.loads(line))
        return True

    def _take(self, rank: int, message: object) -> None:
        match message:
            case "bye":
                self._left.add(rank)
            case dict():
                self._records[rank] = message
                if not message:
                    del self._records[rank]
            case int() | None:
                self._awaited_by[rank] = message

    def _excuse(self, late_s: float) -> None:
        """Count nobody's silence while this process itself did not run."""
        if late_s > 0:
            self._heard = {rank: heard + late_s for rank, heard in self._heard.items()}

    def _find_silent(self, now: float) -> None:
        for rank in self.running:
            if now - self._heard[rank] > self._timeout_s:
                reason = (
                    f"rank {rank} has not answered for {self._timeout_s:g} s: stopped, swapped out "
                    "or cut off"
                )
                self._lost.setdefault(rank, reason)


# A forked child, such as a worker of a DataLoader, has copies of the sockets. They would stay open
# when its parent is killed, and nobody would notice.
_opened: weakref.WeakSet[Heartbeat] = weakref.WeakSet()


def _forget_all() -> None:
    for heartbeat in [*_opened]:
        heartbeat.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
