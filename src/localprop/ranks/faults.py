"""What a run says when a rank is lost: one record for all ranks, which names the rank, the action and the layer."""

from __future__ import annotations

import json
import time
from typing import Any

import torch.distributed as dist

from localprop.errors import StepFailed
from localprop.ranks.transport import Lost
from localprop.step.wiring import Wiring

_GRACE_S = 2.0  # within which ranks that hang for the same reason all run out of time


def record_of(error: Exception, rank: int, wiring: Wiring, key: str) -> dict[str, Any]:
    """What happened, as one rank saw it.

    Args:
        error: what it saw.
        rank: which one.
        wiring: names the layers.
        key: of the pipeline's records in the store.

    Returns:
        "rank": the one that is to blame, None if nobody knows; "seen_by"; "action"; "layer"; "error".
    """
    action = error.action if isinstance(error, StepFailed) else None
    cause = error.__cause__ if isinstance(error, StepFailed) and error.__cause__ is not None else error
    return {
        "rank": _to_blame(cause, rank, key) if isinstance(cause, Lost) else rank,
        "seen_by": rank,
        "action": None if action is None else str(action),
        "layer": None if action is None else wiring.span_name(action.segment),
        "error": f"{type(cause).__name__}: {cause}",
    }


def _to_blame(lost: Lost, rank: int, key: str) -> int | None:
    """The rank that does not answer. If that one waits for another, too, it is the other: follow who waits for whom."""
    peer = lost.peer
    if peer is None or not lost.hangs:
        return peer
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{key}: waits {rank}", str(peer))
        time.sleep(_GRACE_S)
        seen = {rank}
        while peer not in seen and store.check([f"{key}: waits {peer}"]):
            seen.add(peer)
            peer = int(store.get(f"{key}: waits {peer}"))
    except RuntimeError:  # the process that kept the store is gone
        pass
    return peer


def claim(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Put a record before all ranks, unless another one has been first.

    Returns:
        The record that was first; this rank's own if the others cannot be asked.
    """
    text = json.dumps(record)
    try:
        first = dist.distributed_c10d._get_default_store().compare_set(key, "", text)
    except RuntimeError:  # the process that kept the store is gone
        return record
    found: dict[str, Any] = json.loads(first)
    return found


def sentence(record: dict[str, Any]) -> str:
    """A record in words.

    Example:
        >>> sentence({"rank": 1, "seen_by": 0, "action": "3RECV_B0<1", "layer": "blocks.7", "error": "Lost: no answer"})
        'Rank 1 failed (seen by rank 0 at action 3RECV_B0<1, on blocks.7): Lost: no answer'
    """
    seen = f"seen by rank {record['seen_by']} " if record["seen_by"] != record["rank"] else ""
    where = f"at action {record['action']}, on {record['layer']}" if record["action"] else "between two steps"
    who = "Some rank" if record["rank"] is None else f"Rank {record['rank']}"
    return f"{who} failed ({seen}{where}): {record['error']}"
