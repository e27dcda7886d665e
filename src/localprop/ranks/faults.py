"""Failures on ranks.

All ranks report the same record. It names the rank that failed, its action and its layer.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch.distributed as dist

from localprop.errors import StepFailed
from localprop.ranks.transport import PeerLost
from localprop.schedule.wiring import Wiring

_GRACE_S = 2.0  # ranks that hang for the same reason all time out within this time


def make_record(error: Exception, rank: int, wiring: Wiring, key: str) -> dict[str, Any]:
    """Describe a failure as one rank sees it.

    Args:
        error: the exception that this rank raised.
        rank: the number of this rank.
        wiring: gives the names of layers.
        key: prefix of the pipeline's records in the store.

    Returns:
        "rank" (the one that failed, None if unknown), "seen_by", "action", "layer", "error".
    """
    action = error.action if isinstance(error, StepFailed) else None
    cause: BaseException = error
    if isinstance(error, StepFailed) and error.__cause__ is not None:
        cause = error.__cause__
    return {
        "rank": _find_failed_rank(cause, rank, key) if isinstance(cause, PeerLost) else rank,
        "seen_by": rank,
        "action": None if action is None else str(action),
        "layer": None if action is None else wiring.span_name(action.segment),
        "error": f"{type(cause).__name__}: {cause}",
    }


def _find_failed_rank(lost: PeerLost, rank: int, key: str) -> int | None:
    """Find the rank that failed, starting from the peer that does not answer.

    A peer that hangs may itself wait for another rank. So each rank that times out writes to the
    store for whom it waits, and reads who waits for whom until it meets a rank that waits for
    nobody: that one hangs.
    """
    peer = lost.peer
    if peer is None or not lost.hangs:
        return peer
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{key}: waits {rank}", str(peer))
        time.sleep(_GRACE_S)  # the other ranks need time to write theirs
        visited = {rank}
        while peer not in visited and store.check([f"{key}: waits {peer}"]):
            visited.add(peer)
            peer = int(store.get(f"{key}: waits {peer}"))
    except RuntimeError:  # the process that kept the store is gone
        pass
    return peer


def publish_record(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Publish a record to all ranks, unless another rank has published one first.

    Returns:
        The record that was published first, or this rank's own if the store does not answer.
    """
    text = json.dumps(record)
    try:
        # Atomic: the text is stored only if the key is new. All ranks read back the same record.
        first = dist.distributed_c10d._get_default_store().compare_set(key, "", text)
    except RuntimeError:  # the process that kept the store is gone
        return record
    published: dict[str, Any] = json.loads(first)
    return published


def format_record(record: dict[str, Any]) -> str:
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
