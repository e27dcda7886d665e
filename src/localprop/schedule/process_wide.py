"""What all threads of a process share: torch's random generators, and autograd's own threads."""

from __future__ import annotations

import os
import threading

# Whoever seeds torch's default generators and draws from them holds it, while other threads wait.
generators_lock = threading.RLock()
has_trained = False  # in this process
is_fork_of_trained = False


def _begin_fork() -> None:
    global generators_lock, is_fork_of_trained
    generators_lock = threading.RLock()  # a thread of the parent's may hold the old one for ever
    is_fork_of_trained = has_trained


os.register_at_fork(after_in_child=_begin_fork)
