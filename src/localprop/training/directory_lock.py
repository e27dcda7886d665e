"""A lock on a directory that ends with its process, whatever ends that."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from localprop.errors import BadInput

_held: set[int] = set()  # descriptors of directories


class DirectoryLock:
    """The right of one process to write into a directory.

    The system gives the lock back when the process ends, also when it is killed: a lock of a dead
    process never has to be removed. No file is made.

    Example:
        >>> lock = DirectoryLock()
        >>> lock.take(Path("."))
        >>> DirectoryLock().take(Path("."))
        Traceback (most recent call last):
        localprop.errors.BadInput: Another process writes into .: wait until it has ended, or ...
        >>> lock.release()
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, folder: Path) -> None:
        """Take the lock of a directory, unless this object has it already.

        File systems that know no locks, as some networks' do not, are used without.

        Raises:
            BadInput: another process has the lock.
            OSError: the directory cannot be opened.
        """
        try:
            from fcntl import LOCK_EX, LOCK_NB, flock
        except ImportError:  # Windows
            return
        if self._descriptor is not None:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BadInput(
                f"Another process writes into {folder}: wait until it has ended, or choose another "
                "directory."
            ) from error
        except OSError:
            os.close(descriptor)
            return
        self._descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _close_all() -> None:
    """In a process that was forked, such as a reader of images: the lock stays with its parent.

    Otherwise a reader that outlives a killed run by seconds would keep the lock for as long.
    """
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
