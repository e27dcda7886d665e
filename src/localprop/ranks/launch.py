"""What torchrun tells its processes; nothing heavy is imported."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process among those that were launched together, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def attempt() -> int:
    """How often torchrun has started these processes again after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def identity() -> str:
    """What the attempts of one launch have in common, and other launches have not."""
    words = (os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("MASTER_ADDR"), str(os.getppid()))
    return " ".join(word for word in words if word)


def world() -> int:
    """How many processes were launched together."""
    together = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if together else 1
