"""Failures on ranks.

All ranks report the same record. It names the rank that failed, its action and its layer. Ranks
agree on it by their heartbeats, which go on where torch.distributed does not.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from localprop.errors import BadInput, StepFailed
from localprop.ranks.heartbeat import ANY_RANK, Heartbeat, Record
from localprop.ranks.transport import PeerLost
from localprop.schedule.wiring import Wiring

_GRACE_S = 2.0  # ranks that fail for the same reason all know it within this time
_SHORT_GRACE_S = 0.3
_PATIENCE_S = 1.5  # how long a rank that waits may go on after another one was lost


class FailureReports:
    """What this rank tells of failures, and hears from others.

    Args:
        rank: the number of this rank.
        wiring: gives the names of layers.
        heartbeat: carries the records, and knows which ranks are lost.

    Attributes:
        has_told: whether the last call on this rank has failed.
    """

    def __init__(self, rank: int, wiring: Wiring, heartbeat: Heartbeat) -> None:
        self.has_told = False
        self._rank = rank
        self._wiring = wiring
        self._heartbeat = heartbeat
        self._is_working = False
        self._lost_at: float | None = None
        heartbeat.on_loss = self._end_if_blocked

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report a failure inside to all ranks, and raise the first one of all as a StepFailed."""
        if self.has_told:
            self._heartbeat.tell({})
            self.has_told = False
        self._is_working = True
        try:
            for rank, reason in self._heartbeat.lost.items():
                raise PeerLost(rank, reason)
            yield
        except BadInput as error:
            self._is_working = False
            error.record = self._agree(error)
            raise
        except RuntimeError as error:
            self._is_working = False
            raise self._make_failure(error) from error
        finally:
            self._is_working = False

    def _make_failure(self, error: Exception) -> StepFailed:
        """Build the exception to raise on this rank: it reports the first failure of all ranks."""
        first = self._agree(error)
        message = format_record(first)
        if first["seen_by"] == self._rank:
            message = f"{message}\n{error}"
        return StepFailed(message, record=first)

    # --- agreement -------------------------------------------------------------------------------

    def _agree(self, error: Exception) -> Record:
        """Tell the others what this rank has seen, and return the record that all report.

        A rank that has seen another one fail waits a moment for what the others have seen. What is
        then concluded is told as final, for ranks that fail later.
        """
        self.has_told = True
        concluded = self._find_final()
        if concluded is None:
            seen = make_record(error, self._rank, self._wiring)
            is_first_hand = seen["rank"] == self._rank
            self._heartbeat.tell({**seen, "final": is_first_hand})
            if is_first_hand:  # the others may refuse the same batch, and all report one record
                self._wait_for_records(_SHORT_GRACE_S)
                concluded = self._find_final(seen)
            else:
                self._wait_for_records(_GRACE_S, or_final=True)
                concluded = self._find_final() or self._conclude(seen)
        assert concluded is not None
        self._heartbeat.tell({**concluded, "final": True})
        return concluded

    def _wait_for_records(self, limit_s: float, *, or_final: bool = False) -> None:
        begin = time.monotonic()
        # Once it is certain who is lost, only the place is left to agree on. Those who wait for
        # this rank cannot tell anything before it ends.
        while time.monotonic() - begin < (_SHORT_GRACE_S if self._heartbeat.lost else limit_s):
            if self._heartbeat.running <= self._heartbeat.records.keys():
                return
            if or_final and self._find_final():
                return
            time.sleep(0.02)

    def _find_final(self, *own: Record) -> Record | None:
        """The record that was concluded before, with those of this rank; the first if several."""
        others = [each for each in self._heartbeat.records.values() if each["final"]]
        return _strip(min([*own, *others], key=_order)) if own or others else None

    def _conclude(self, seen: Record) -> Record:
        """Conclude which rank has failed from what all have seen, and who waits for whom."""
        records = {**self._heartbeat.records, self._rank: seen}
        record = _strip(min(records.values(), key=_order))
        for lost, reason in self._heartbeat.lost.items():  # the first that was lost
            return {**record, "rank": lost, "error": f"PeerLost: {reason}"}
        awaited = {r: each["rank"] for r, each in records.items()}
        rank = _follow(record["rank"], {**self._heartbeat.awaited_by, **awaited})
        if rank in (None, ANY_RANK):  # a collective waits for whoever works on
            idle = [r for r in self._heartbeat.running if r not in records and self._works(r)]
            rank = idle[0] if len(idle) == 1 else None
        error = record["error"]
        if rank in self._heartbeat.left:
            error = f"PeerLost: the program of rank {rank} has ended"
        elif rank not in (None, record["rank"]):
            error = f"PeerLost: rank {rank} does not answer"
        return {**record, "rank": rank, "error": error}

    def _works(self, rank: int) -> bool:
        return self._heartbeat.awaited_by[rank] is None

    # --- blocked ranks ---------------------------------------------------------------------------

    def _end_if_blocked(self) -> None:
        """End the process if it does not end by itself after another rank was lost.

        Nobody can wake a main thread that waits for a message, or for a store whose host is
        stopped.
        """
        now = time.monotonic()
        if not self._is_working:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at > _PATIENCE_S:
            self._lost_at = math.inf
            # The heartbeat's thread, which runs this, has to go on listening.
            threading.Thread(target=self._end_blocked, daemon=True).start()

    def _end_blocked(self) -> None:
        rank, reason = next(iter(self._heartbeat.lost.items()))
        action = self._heartbeat.action
        error = StepFailed("", action)
        error.__cause__ = PeerLost(rank, reason)
        concluded = self._agree(error)
        if self._is_working:
            end_process(f"{format_record(concluded)}\nThis rank would wait for ever, and ends.")


def end_process(message: str) -> None:
    """Print a message and end this process with the exit code 1, whatever its threads wait for."""
    for stream in (sys.stdout, sys.stderr):
        # Another thread may hold the stream.
        flush = threading.Thread(target=stream.flush, daemon=True)
        flush.start()
        flush.join(1.0)
    os.write(2, f"{message}\n".encode())
    os._exit(1)


def make_record(error: Exception, rank: int, wiring: Wiring) -> Record:
    """Describe a failure as one rank sees it.

    Args:
        error: the exception that this rank raised.
        rank: the number of this rank.
        wiring: gives the names of layers.

    Returns:
        "rank" (the one that failed, None if unknown), "seen_by", "action", "layer", "error".
    """
    action = error.action if isinstance(error, StepFailed) else None
    cause: BaseException = error
    if isinstance(error, StepFailed) and error.__cause__ is not None:
        cause = error.__cause__
    return {
        "rank": cause.peer if isinstance(cause, PeerLost) else rank,
        "seen_by": rank,
        "action": None if action is None else str(action),
        "layer": None if action is None else wiring.span_name(action.segment),
        "error": f"{type(cause).__name__}: {cause}",
    }


def _order(record: Record) -> tuple[bool, bool, bool, int]:
    """First comes what a rank reports of itself, then what names a rank, then an action."""
    rank, seen_by = record["rank"], record["seen_by"]
    return rank != seen_by, rank is None, record["action"] is None, seen_by


def _follow(rank: int | None, awaited: Mapping[int, int | None]) -> int | None:
    """Follow who waits for whom, up to a rank that waits for nobody.

    Example:
        >>> _follow(1, {0: 1, 1: 2, 2: None})
        2
    """
    visited: set[int] = set()
    while rank is not None and rank not in visited and awaited.get(rank) is not None:
        visited.add(rank)
        rank = awaited[rank]
    return rank


def _strip(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "final"}


def format_record(record: Record) -> str:
    """Format a record as one sentence.

    Example:
        >>> record = {"rank": 1, "seen_by": 0, "action": "3RECV_B<1", "layer": "blocks.7"}
        >>> format_record(record | {"error": "PeerLost: no answer"})
        'Rank 1 failed (seen by rank 0 at action 3RECV_B<1, on blocks.7): PeerLost: no answer'
    """
    who = "Some rank" if record["rank"] is None else f"Rank {record['rank']}"
    where = "between two steps"
    if record["action"]:
        where = f"at action {record['action']}, on {record['layer']}"
    if record["seen_by"] != record["rank"]:
        where = f"seen by rank {record['seen_by']} {where}"
    return f"{who} failed ({where}): {record['error']}"
