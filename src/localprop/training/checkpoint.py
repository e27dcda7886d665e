"""Save a learner's state to a file, and go on from it later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.state import restore, state_of
from localprop.state_problems import find_name_problems

__all__ = ["load", "save"]

FORMAT = "localprop checkpoint"
VERSION = 1

StateDict = dict[str, Any]


def save(
    path: str | Path,
    learner: Learner,
    epoch: int = 0,
    others: Mapping[str, Learner] = MappingProxyType({}),
) -> None:
    """Write everything that a learner's next step depends on to a file.

    A failure leaves the old file unchanged. On several ranks all must call this, and rank 0 writes.
    To use a network without training it further, `learner.network.state_dict()` is enough.

    Args:
        path: the file.
        learner: the learner to save.
        epoch: the number of epochs done.
        others: in a run in phases, the learners of the other methods, by method.

    Raises:
        RunFailed: the file cannot be written.

    Example:
        >>> save("last.pt", learner, epoch=3)
    """
    state = state_of(learner)
    if state is None:
        return
    content = {"format": FORMAT, "version": VERSION, "epoch": epoch} | state
    if others:  # all learners share the network, which the file keeps once
        content["others"] = {
            method: (state_of(other) or {}) | {"model": {}} for method, other in others.items()
        }
    _write(Path(path), content)


def load(
    path: str | Path, learner: Learner, others: Mapping[str, Learner] = MappingProxyType({})
) -> int:
    """Restore a learner from a file of `save`, and in a run in phases the other learners.

    Returns:
        The number of epochs done.

    Raises:
        BadInput: the file is absent, damaged, no checkpoint, or of another learner. The learner is
            then unchanged.

    Example:
        >>> save("last.pt", learner, epoch=3)
        >>> load("last.pt", learner)
        3
    """
    path = Path(path)
    content = _read(path)
    states = content.get("others", {})
    try:
        check(find_name_problems("phases", others, states))
        restore(learner, content)
        for method, other in others.items():
            restore(other, states[method] | {"model": content["model"]})
    except BadInput as error:
        raise BadInput([f"{path}: {problem}" for problem in error.problems]) from error
    epoch: int = content["epoch"]
    return epoch


# --- files ----------------------------------------------------------------------------------------


def _write(path: Path, content: StateDict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError when the disk is full
        raise RunFailed(
            f"The checkpoint {path} cannot be written ({_first_line_of(error)}): check the disk."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> StateDict:
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise anything on a foreign file
        raise BadInput(
            f"{path} cannot be read as a checkpoint ({_first_line_of(error)}): it is damaged, or "
            "not a file of localprop."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInput(
            f"{path} is no checkpoint of a localprop run: name a file that localprop.training "
            "saved."
        )
    if content.get("version") != VERSION or not isinstance(content.get("epoch"), int):
        raise BadInput(
            f"{path} has version {content.get('version')!r}, but this localprop reads version "
            f"{VERSION}: use the localprop that wrote it."
        )
    return content


def _first_line_of(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
