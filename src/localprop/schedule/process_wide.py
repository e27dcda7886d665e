"""What all threads of a process share: torch's random generators, and autograd's own threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from localprop.errors import BadInput

_lock = threading.RLock()
_has_trained = False
_is_fork_of_trained = False


@contextmanager
def owning_generators() -> Iterator[None]:
    """Seed torch's default generators and draw from them while other threads wait.

    Example:
        >>> with owning_generators():
        ...     torch.manual_seed(0).initial_seed()
        0
    """
    with _lock:
        yield


@contextmanager
def training() -> Iterator[None]:
    """Run a step while the steps of other threads wait: all draw from the same generators."""
    global _has_trained
    with owning_generators():
        _has_trained = True
        yield


def check_fork() -> None:
    """Check that autograd works in this process.

    Raises:
        BadInput: it was forked from one that has trained, whose threads are not here.
    """
    if _is_fork_of_trained:
        raise BadInput(
            "This process was forked from one that has trained, and torch's threads do not "
            "outlive a fork: start processes by multiprocessing.get_context('spawn'), or before "
            "the first step."
        )


def _begin_fork() -> None:
    global _lock, _is_fork_of_trained
    _lock = threading.RLock()  # another thread of the parent's may hold the old one for ever
    _is_fork_of_trained = _has_trained


os.register_at_fork(after_in_child=_begin_fork)
