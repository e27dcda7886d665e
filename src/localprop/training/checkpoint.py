"""Save a learner's state to a file, and go on from it later."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from localprop.arguments import check_arguments
from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.state import find_state_problems, restore, state_of
from localprop.state_problems import COMPONENTS, find_name_problems
from localprop.training.identity import describe_learner, find_identity_problems
from localprop.training.state_file import StateFile, write_state
from localprop.user_code import describe_error

__all__ = ["load", "save"]

NO_LEARNERS: Mapping[str, Learner] = MappingProxyType({})
NOTHING: Mapping[str, Any] = MappingProxyType({})

_MAX_NAMES = 4  # tensors that are named


@check_arguments
def save(
    path: str | Path,
    learner: Learner,
    epoch: int = 0,
    others: Mapping[str, Learner] = NO_LEARNERS,
    *,
    extra: Mapping[str, Any] = NOTHING,
) -> None:
    """Write everything that a learner's next step depends on to a file.

    The file is in the format of safetensors, with a hash of each tensor and of all the rest. It is
    complete on the disk before it takes the name, so that a failure, a kill or a power cut leaves
    the old file unchanged. On several ranks all must call this, and rank 0 writes. To use a network
    without training it further, `learner.network.state_dict()` is enough.

    Args:
        path: the file.
        learner: the learner to save.
        epoch: the number of epochs done.
        others: in a run in phases, the learners of the other methods, by method.
        extra: what else travels along, by names of your own: objects with a `state_dict`, such as
            schedulers and averages of weights, or values of tensors, numbers, texts, lists and
            dictionaries. `load` takes the same.

    Raises:
        BadInput: an extra value that a file cannot hold.
        RunFailed: the file cannot be written, or the state has NaN or infinity, and would take the
            place of an older file.

    Example:
        >>> save("last.safetensors", learner, epoch=3)
    """
    path = Path(path)
    content = collect_content(learner, epoch, others, extra)
    if content is None:
        return
    poisoned = find_nonfinite(content) if os.path.exists(path) else []
    if poisoned:
        raise RunFailed(
            f"The state has NaN or infinity in {join_first(poisoned)}, so {path} keeps the state "
            "that it has: lower the learning rate, or save under another name."
        )
    write_state(path, content)


@check_arguments
def load(
    path: str | Path,
    learner: Learner,
    others: Mapping[str, Learner] = NO_LEARNERS,
    *,
    extra: Mapping[str, Any] | None = NOTHING,
) -> int:
    """Restore a learner from a file of `save`, and in a run in phases the other learners.

    Everything is checked before anything is changed: the hashes of the file, the names, shapes and
    dtypes of all tensors, and the rule, the seed and the optimizers that the state was trained by.

    Args:
        path: the file.
        learner: the learner to restore.
        others: in a run in phases, the learners of the other methods, by method.
        extra: what `save` took as extra: objects, each of which gets its state by
            `load_state_dict`, or dictionaries, which are filled. None leaves them out.

    Returns:
        The number of epochs done.

    Raises:
        BadInput: the file is absent, damaged, no checkpoint, or of another learner. Learners and
            extra objects are then unchanged.

    Example:
        >>> save("last.safetensors", learner, epoch=3)
        >>> load("last.safetensors", learner)
        3
    """
    epoch: int = load_file(StateFile(Path(path)), learner, others, extra=extra)["epoch"]
    return epoch


# --- shared with the directory of a run -----------------------------------------------------------


def collect_content(
    learner: Learner,
    epoch: int,
    others: Mapping[str, Learner] = NO_LEARNERS,
    extra: Mapping[str, Any] = NOTHING,
) -> dict[str, Any] | None:
    """Collect what a checkpoint holds; None on ranks other than 0.

    Example:
        >>> collect_content(learner, epoch=3)["epoch"]
        3
    """
    own = _collect_learner(learner)
    rest = {method: _collect_learner(other) for method, other in others.items()}
    if own is None:
        return None
    # All learners share the network, which the file keeps once.
    shared = {method: (state or {}) | {"model": {}} for method, state in rest.items()}
    return own | {"epoch": epoch, "others": shared, "extra": _ask_for_states(extra)}


def load_file(
    file: StateFile,
    learner: Learner,
    others: Mapping[str, Learner] = NO_LEARNERS,
    *,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Restore learners and extra objects from an open file, as `load` does.

    Returns:
        The content of the file.
    """
    problems = _find_problems(file.about, learner, others, extra)
    try:
        # A rank that refused alone would leave the others waiting.
        (learner.pipeline.check_on_all if learner.pipeline else check)(problems)
    except BadInput as error:
        raise BadInput([f"{file.path}: {problem}" for problem in error.problems]) from error
    content = file.read()
    _restore_extra(file.path, extra or {}, content["extra"])
    restore(learner, content)
    for method, other in others.items():
        restore(other, _complete(content, method))
    return content


def find_nonfinite(content: Any, place: str = "") -> list[str]:
    """Find the tensors with NaN or infinity by the names of their places.

    Minus infinity is what attention masks hold, and no sign of a failure.

    Example:
        >>> find_nonfinite({"heads": {"0.bias": torch.tensor([0.0, torch.nan])}})
        ['heads/0.bias']
    """
    if isinstance(content, Mapping):
        places = ((f"{place}/{key}" if place else str(key), each) for key, each in content.items())
        return [name for inner, each in places for name in find_nonfinite(each, inner)]
    return [place] if isinstance(content, Tensor) and _is_nonfinite(content) else []


def join_first(names: Iterable[str]) -> str:
    """Join the first few names.

    Example:
        >>> join_first("abcdef")
        'a, b, c, d and 2 more'
    """
    names = [*names]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _is_nonfinite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    # The largest of values with a NaN is NaN.
    return not bool((tensor if tensor.itemsize > 1 else tensor.float()).max() < torch.inf)


def _collect_learner(learner: Learner) -> dict[str, Any] | None:
    state, trained_by = state_of(learner), describe_learner(learner)
    return None if state is None else state | {"trained_by": trained_by}


def _complete(content: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The state of the learner of another method, with the network that all share."""
    return {**content["others"][method], "model": content["model"]}


# --- checks ---------------------------------------------------------------------------------------


def _find_problems(
    content: Mapping[str, Any],
    learner: Learner,
    others: Mapping[str, Learner],
    extra: Mapping[str, Any] | None,
) -> Iterator[str]:
    missing = {*COMPONENTS, "epoch", "others", "extra", "trained_by"} - content.keys()
    if missing:
        yield f"It lacks {', '.join(sorted(missing))}: name a file of lp.save, or of a run."
        return
    if type(content["epoch"]) is not int or content["epoch"] < 0:
        yield f"epoch={content['epoch']!r} is no number of epochs: name another checkpoint."
    yield from find_name_problems("phases", others, content["others"])
    if extra is not None:
        yield from _find_extra_problems(extra, content["extra"])
    states = {
        method: _complete(content, method) for method in others if method in content["others"]
    }
    for each, state in (
        (learner, content),
        *((others[method], states[method]) for method in states),
    ):
        yield from find_state_problems(each, state)
        yield from find_identity_problems(each, state["trained_by"])


def _find_extra_problems(extra: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in extra if name not in saved]
    unexpected = [name for name in saved if name not in extra]
    fixed = [
        name
        for name, taker in extra.items()
        if not hasattr(taker, "load_state_dict") and not isinstance(taker, MutableMapping)
    ]
    if missing:
        yield f"extra: the checkpoint lacks {join_first(missing)}: leave it out."
    if unexpected:
        yield (
            f"extra: the checkpoint also has {join_first(unexpected)}: give extra={{name: object}} "
            "to restore it, or extra=None to leave all out."
        )
    if fixed:
        yield (
            f"extra: {join_first(fixed)} has no load_state_dict and is no dictionary, so that it "
            "cannot take a state: give a dictionary, which is filled."
        )


# --- extra ----------------------------------------------------------------------------------------


def _ask_for_states(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: each.state_dict() if hasattr(each, "state_dict") else each
        for name, each in extra.items()
    }


def _restore_extra(path: Path, extra: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Give objects their states; if one refuses, those before it get back what they had."""
    before = deepcopy(_ask_for_states(extra))
    state = deepcopy({name: saved[name] for name in extra})  # not the memory of the file
    done: list[str] = []
    try:
        for name, taker in extra.items():
            done.append(name)
            _give_state(taker, state[name])
    except Exception as error:  # code of the user's
        for name in done:
            with suppress(Exception):
                _give_state(extra[name], before[name])
        raise BadInput(
            f"{path}: extra: {done[-1]} does not take its state ({describe_error(error)}): build "
            "it as it was, or leave it out with extra=None."
        ) from error


def _give_state(taker: Any, state: Any) -> None:
    if hasattr(taker, "load_state_dict"):
        taker.load_state_dict(state)
    else:
        taker.clear()
        taker.update(state)
