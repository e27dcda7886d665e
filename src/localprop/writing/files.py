"""Write files so that a file is either complete or unchanged, whatever stops the process.

A file is written under a name of its own beside its target, which follows no links, is flushed to
the disk, and takes the place of the target in one step. Then the directory is flushed as well.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from localprop.errors import RunFailed

# Names of files that are not complete yet. A process that is killed leaves one behind.
_PREFIX, _SUFFIX = ".localprop-", ".tmp"


def to_json(value: Any, indent: int | None = 2) -> str:
    """Format a value as JSON with a final newline.

    Raises:
        ValueError: a number is not finite.

    Example:
        >>> to_json({"a": 1}, indent=None)
        '{"a": 1}\\n'
    """
    return json.dumps(value, indent=indent, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file. A failure leaves the old file unchanged.

    Raises:
        RunFailed: the file cannot be written.

    Example:
        >>> write_text(Path("summary.json"), to_json({"a": 1}))
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file. A failure leaves the old file unchanged.

    Raises:
        RunFailed: the file cannot be written.

    Example:
        >>> write_bytes(Path("chart.png"), b"...")
    """
    with replace_file(path) as file:
        file.write(content)


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of a path when the block ends without an exception.

    Raises:
        RunFailed: the file cannot be written. What the path had before is unchanged.

    Example:
        >>> with replace_file(Path("numbers.bin")) as file:
        ...     _ = file.write(bytes(8))
    """
    try:
        with _make_temporary(path.parent) as (temporary, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunFailed(
            f"{path} cannot be written ({error.strerror or error}): check the disk and its "
            "permissions."
        ) from error


def link_file(source: Path, path: Path) -> None:
    """Give a file a second name, in place of what had that name; a copy where links are unknown.

    Raises:
        RunFailed: the file cannot be written.

    Example:
        >>> write_bytes(Path("last.bin"), bytes(8))
        >>> link_file(Path("last.bin"), Path("best.bin"))
    """
    temporary = path.with_name(_make_name())
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError:  # a file system without links
        with replace_file(path) as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
    finally:
        # `replace` leaves both names if they are of one file already.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a directory, so that names in it outlive a power cut, where it can be flushed."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what a killed process had not finished writing.

    Example:
        >>> is_leftover("last.safetensors")
        False
    """
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes had not finished writing into a folder.

    Raises:
        OSError: the folder cannot be read or changed.

    Example:
        >>> clear_leftovers(Path("."))
    """
    for entry in folder.iterdir():
        if is_leftover(entry.name):
            entry.unlink(missing_ok=True)


def _make_name() -> str:
    return f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"


@contextmanager
def _make_temporary(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    path = folder / _make_name()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield path, file
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
