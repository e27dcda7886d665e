"""Weights from a file, read without running code, and given to a model by name or in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.models.libraries import import_library
from localprop.user_code import describe_error

_MAX_NAMES = 8  # names per problem; a wrong model differs in hundreds
# Entries of a file that hold the network, in checkpoints of localprop and of others.
_NETWORK = ("state_dict", "model")

Weights = dict[str, Tensor]


def read_weights(path: str | Path) -> Weights:
    """Read the tensors of a file, in the order of the file.

    Args:
        path: a file of safetensors, or a state_dict of torch.save. Of a checkpoint that holds a
            network as "state_dict" or "model", as localprop's does, the network alone counts.

    Raises:
        BadInput: the file is absent, damaged, or holds something else than named tensors, which
            would need code to be read.

    Example:
        >>> torch.save(nn.Linear(2, 3).state_dict(), "linear.pt")
        >>> list(read_weights("linear.pt"))
        ['weight', 'bias']
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        raise BadInput(f"There is no file {file}: check the path of init.")
    load_file: Any = import_library("safetensors.torch").load_file
    try:
        if _is_safetensors(file):
            content = _select_prefixed(load_file(file))
        else:
            content = torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # readers can raise anything on a foreign file
        # torch says how to run what is in the file: we do not.
        asks = isinstance(error, UnpicklingError)
        reason = "it asks for code to be run" if asks else describe_error(error)
        raise BadInput(
            f"{file} cannot be read as weights ({reason}): it is damaged, or holds "
            "more than tensors. Save model.state_dict() with torch.save, or as .safetensors."
        ) from error
    return _select_network(file, content)


def _is_safetensors(file: Path) -> bool:
    """Whether a file says so, or begins as such a file: with the length of a JSON object."""
    with file.open("rb") as content:
        return file.suffix == ".safetensors" or content.read(9)[8:] == b"{"


def _select_prefixed(weights: Weights) -> Weights:
    """The network's tensors of a checkpoint of localprop, which stand under "model/"."""
    prefixes = [f"{name}/" for name in _NETWORK]
    selected = {
        name.removeprefix(prefix): tensor
        for prefix in prefixes
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    return selected or weights


def _select_network(file: Path, content: Any) -> Weights:
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _NETWORK if key in content), content)
        content = inner if isinstance(inner, Mapping) else content
    others = [content]
    if isinstance(content, Mapping) and content:
        others = [value for value in content.values() if not isinstance(value, Tensor)]
    if others:
        kinds = ", ".join(dict.fromkeys(type(value).__name__ for value in others))
        raise BadInput(
            f"{file} holds {kinds} where named tensors should be: save model.state_dict()."
        )
    return {str(name): value for name, value in content.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, in_order: bool = False) -> str:
    """Give weights to a model.

    The classifier, which is the last module with parameters, stays as it is if only its number of
    outputs differs.

    Args:
        model: takes the weights in place, in its own dtypes.
        weights: by name.
        in_order: pair the tensors by position instead of by name. Counters of batches, which old
            files lack, are left out if only one side has them.

    Returns:
        What was done, in one sentence; in order, with a line for each tensor.

    Raises:
        BadInput: all names that are missing or unexpected, and all shapes that differ. The model is
            then unchanged.

    Example:
        >>> source, model = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, c)) for c in (5, 7))
        >>> load_weights(model, source.state_dict())
        '2 of 4 tensors are those of init; 1.weight, 1.bias stay untrained (7 outputs, not 5).'
    """
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    pair = _pair_in_order if in_order else _pair_by_name
    pairs, problems = pair(own, weights)
    resized = _find_resized_classifier(model, own, weights, pairs)
    for name in resized:
        del pairs[name]
    problems += _find_tensor_problems(own, weights, pairs)
    check(problems)
    model.load_state_dict({name: weights[source] for name, source in pairs.items()}, strict=False)
    note = f"{len(pairs)} of {len(own)} tensors are those of init"
    if resized:
        here, there = (len(tensors) for tensors in next(iter(resized.values())))
        stay = "stays" if len(resized) == 1 else "stay"
        note += f"; {', '.join(resized)} {stay} untrained ({here} outputs, not {there})"
    lines = [f"  {name} <- {source}" for name, source in pairs.items()] if in_order else []
    return "\n".join([f"{note}:" if lines else f"{note}.", *lines])


# --- pairs: names of the model with names of the file ---------------------------------------------

Pairs = dict[str, str]


def _pair_by_name(own: Weights, weights: Mapping[str, Tensor]) -> tuple[Pairs, list[str]]:
    pairs = {name: name for name in own if name in weights}
    # Files may hold tied tensors once, and lack counters, as torch accepts in old files.
    given = {own[name].data_ptr() for name in pairs}
    absent = [
        name
        for name, tensor in own.items()
        if name not in pairs and tensor.data_ptr() not in given and not _is_counter(tensor)
    ]
    unexpected = [name for name in weights if name not in own]
    fix = "name the model that the file is of, or give --init-order if only the names differ."
    problems = []
    if absent:
        problems.append(f"init lacks {_join_first(absent)}: {fix}")
    if unexpected:
        problems.append(f"init also has {_join_first(unexpected)}, which the model lacks: {fix}")
    return pairs, problems


def _pair_in_order(own: Weights, weights: Mapping[str, Tensor]) -> tuple[Pairs, list[str]]:
    names, sources = [*own], [*weights]
    if len(names) != len(sources):
        names = [name for name in names if not _is_counter(own[name])]
        sources = [name for name in sources if not _is_counter(weights[name])]
    problems = []
    if len(names) != len(sources):
        problems.append(
            f"init has {len(sources)} tensors, and the model {len(names)}: in order, both must "
            "have the same."
        )
    return dict(zip(names, sources, strict=False)), problems


def _is_counter(tensor: Tensor) -> bool:
    return tensor.ndim == 0 and not tensor.is_floating_point()


def _find_resized_classifier(
    model: nn.Module, own: Weights, weights: Mapping[str, Tensor], pairs: Pairs
) -> dict[str, tuple[Tensor, Tensor]]:
    """The classifier's tensors here and there, if they differ in the number of outputs alone."""
    owners = [name for name, m in model.named_modules() if [*m.parameters(recurse=False)]]
    prefix = f"{owners[-1]}." if owners and owners[-1] else ""
    found = {
        name: (own[name], weights[source])
        for name, source in pairs.items()
        if name.rpartition(".")[0] == prefix.rstrip(".")
    }
    resized = all(
        here.ndim == there.ndim > 0
        and here.shape[1:] == there.shape[1:]
        and len(here) != len(there)
        for here, there in found.values()
    )
    is_matrix = any(here.ndim > 1 for here, _ in found.values())
    return found if resized and is_matrix else {}


def _find_tensor_problems(
    own: Weights, weights: Mapping[str, Tensor], pairs: Pairs
) -> Iterator[str]:
    differing = [
        f"{name} {tuple(own[name].shape)} and {source} {tuple(weights[source].shape)}"
        for name, source in pairs.items()
        if own[name].shape != weights[source].shape
    ]
    if differing:
        yield (
            f"The shapes of the model and of init differ: {_join_first(differing)}: name the model "
            "that the file is of."
        )
    kinds = [
        f"{name} {own[name].dtype} and {source} {weights[source].dtype}"
        for name, source in pairs.items()
        if _kind_of(own[name]) != _kind_of(weights[source])
    ]
    if kinds:
        yield f"The model and init differ in kind: {_join_first(kinds)}: save the model's own."


def _kind_of(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _join_first(names: Iterable[str]) -> str:
    names = [*names]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
