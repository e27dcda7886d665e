"""The environment variables that torchrun sets. This module imports nothing heavy."""

from __future__ import annotations

import os


def get_rank() -> int:
    """Return the number of this process among those launched together, from 0."""
    return int(os.environ["RANK"]) if get_world_size() > 1 else 0


def get_attempt() -> int:
    """Return how often torchrun has restarted these processes (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def get_launch_id() -> str:
    """Return a text that all attempts of one launch share and that differs between launches."""
    words = (
        os.environ.get("TORCHELASTIC_RUN_ID"),
        os.environ.get("MASTER_ADDR"),
        str(os.getppid()),
    )
    return " ".join(word for word in words if word)


def get_world_size() -> int:
    """Return how many processes were launched together; 1 without torchrun."""
    # WORLD_SIZE alone proves nothing: some clusters set it for every job.
    launched_together = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if launched_together else 1
