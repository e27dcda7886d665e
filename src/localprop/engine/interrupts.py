"""Ctrl-C in a step: it stops the actions, and waits while the step begins, ends or is taken back.

What prepares an action or cleans up after it is no step that could be taken back: a hook whose
handle is lost, for example, would stay on the model for ever::

    waits           hooks are put on
    stops the step      F L B F L B F L B H S H S H S P
    waits           hooks are taken off; all is put back
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _State(threading.local):
    """Of the main thread; no other gets a signal."""

    waits = False  # whether a step runs
    stops = False  # whether it runs actions now


_state = _State()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the end, except where `interruptible` lets it stop the step."""
    handler = signal.getsignal(signal.SIGINT)
    if _state.waits or threading.current_thread() is not threading.main_thread():
        stopped, _state.stops = _state.stops, False
        yield
        _state.stops = stopped  # not after a failure: there is more to clean up
        return
    if not callable(handler):
        yield
        return
    waiting: list[int] = []

    def handle(number: int, frame: object) -> None:
        if not _state.stops:
            waiting.append(number)
            return
        _state.stops = False  # a second Ctrl-C must not disturb what the first one has begun
        handler(number, frame)  # type: ignore[arg-type]
        _state.stops = True

    _state.waits, _state.stops = True, False
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        _state.waits = False
        signal.signal(signal.SIGINT, handler)
        if waiting:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C stop what runs, once."""
    _state.stops = True
    try:
        yield
    finally:
        _state.stops = False
