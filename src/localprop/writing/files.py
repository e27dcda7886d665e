"""Write files atomically: a file is either complete or unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from localprop.errors import RunFailed


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
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise RunFailed(
            f"{path} cannot be written ({error.strerror}): check the disk and its permissions."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
