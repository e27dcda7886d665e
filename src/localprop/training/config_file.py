"""Fields of a config from a file: TOML, or the config.json that every run writes."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from localprop.errors import BadInput, check
from localprop.training.config import Config


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read fields of `Config` from a file that ends in .toml or .json.

    Args:
        path: the file; a directory stands for its config.json.

    Raises:
        BadInput: the file cannot be read, or has a name that is no field.

    Example:
        >>> _ = Path("mine.toml").write_text('model = "mlp"\\nlr = 0.05')
        >>> read_config_file("mine.toml")
        {'model': 'mlp', 'lr': 0.05}
    """
    file = Path(os.path.expanduser(path))
    if file.is_dir():
        file = file / "config.json"
    if file.suffix not in (".toml", ".json"):
        raise BadInput(f"config={str(path)!r} must end in .toml or .json.")
    try:
        text = file.read_text("utf-8")
        values = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): check the path.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is damaged ({error}): correct it.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{file} holds no fields of a config: name another file.")
    known = [field.name for field in fields(Config)]
    check(_describe_unknown(file, name, known) for name in values if name not in known)
    return values


def _describe_unknown(file: Path, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "remove it."
    return f"{file} has {name!r}, which is no field of a config: {hint}"
