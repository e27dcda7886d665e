"""Find the differences between a checkpoint and the learner that is to be restored from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from localprop.engine.optimizers import values_equal

# The modules of a learner whose state dicts a checkpoint has.
COMPONENTS = ("model", "heads", "encoders")

# For each parameter its "state", and as "group" the hyperparameters of its group.
OptimizerStates = dict[str, dict[str, dict[str, Any]]]

_MAX_NAMES = 8  # names per problem; a wrong model differs in hundreds


def find_form_problems(state: Mapping[str, Any]) -> Iterator[str]:
    """Find the entries that a state lacks."""
    if not isinstance(state, Mapping):
        yield f"The state is a {type(state).__name__}: pass one of state_of(learner)."
        return
    for name in (*COMPONENTS, "optimizer"):
        if not isinstance(state.get(name), Mapping):
            yield f"The entry {name!r} is missing from the state: pass one of state_of(learner)."
    steps = state.get("steps")
    if type(steps) is not int or steps < 0:
        yield (
            f"The number of steps is missing from the state (steps={steps!r}): pass one of "
            "state_of(learner)."
        )


def find_scaler_problems(scaler: GradScaler, saved: Any) -> Iterator[str]:
    """Find whether a state lacks the scale of losses that a learner goes on with."""
    # A disabled scaler has no values.
    wanted = {key: type(value) for key, value in scaler.state_dict().items()}
    found = saved if isinstance(saved, Mapping) else {}
    if any(type(found.get(key)) is not kind for key, kind in wanted.items()):
        yield (
            "scaler: the state has no scale of losses, so it is not of precision='fp16': build the "
            "learner with the precision of the state."
        )


def find_tensor_problems(
    component: str, module: nn.Module, saved: Mapping[str, Any]
) -> Iterator[str]:
    """Find names, shapes and dtypes in which a saved state dict differs from a module."""
    expected = module.state_dict()
    yield from find_name_problems(component, expected, saved)
    yield from find_kind_problems(component, saved)
    for name in [name for name in expected if name in saved]:
        here = tuple(getattr(expected[name], "shape", ()))
        there = tuple(getattr(saved[name], "shape", ()))
        if here != there:
            yield (
                f"{component}: {name} has shape {there} in the checkpoint, but {here} here: build "
                "the same model."
            )
        dtype, saved_dtype = (_name_dtype(each[name]) for each in (expected, saved))
        if dtype != saved_dtype:
            yield (
                f"{component}: {name} is {saved_dtype} in the checkpoint, but {dtype} here: build "
                "the same model."
            )


def _name_dtype(value: Any) -> str:
    return str(getattr(value, "dtype", "no tensor")).removeprefix("torch.")


def find_kind_problems(component: str, saved: Mapping[str, Any]) -> Iterator[str]:
    """Find tensors that are sparse or have no data."""
    found = [
        name
        for name, value in saved.items()
        if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided)
    ]
    if found:
        yield (
            f"{component}: {_join_first(found)} are sparse or meta tensors, whose values cannot be "
            "restored: make them dense."
        )


def find_name_problems(
    component: str, expected: Iterable[str], saved: Iterable[str]
) -> Iterator[str]:
    """Find names that the checkpoint lacks, and names that only the checkpoint has."""
    expected, saved = dict.fromkeys(expected), dict.fromkeys(saved)
    missing = [name for name in expected if name not in saved]
    unexpected = [name for name in saved if name not in expected]
    fix = "resume with the model, modules and method that it was saved with."
    if missing:
        yield f"{component}: the checkpoint lacks {_join_first(missing)}: {fix}"
    if unexpected:
        yield (
            f"{component}: the checkpoint also has {_join_first(unexpected)}, which are not "
            f"here: {fix}"
        )


def find_optimizer_problems(
    optimizers: Iterable[Optimizer], names: Mapping[int, str], saved: OptimizerStates
) -> Iterator[str]:
    """Find what the optimizers need and the checkpoint lacks.

    Args:
        optimizers: the learner's.
        names: the names of parameters, by `id`.
        saved: the checkpoint's entries.
    """
    missing: list[str] = []
    lacking: dict[str, dict[str, None]] = {}  # by type of optimizer, in order of discovery
    mixed: dict[str, None] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            wanted = [names[id(p)] for p in group["params"] if p.requires_grad]
            entries = [saved.get(name, {}).get("group", {}) for name in wanted]
            missing += [name for name, entry in zip(wanted, entries, strict=True) if not entry]
            found = [entry for entry in entries if entry]
            lacking.setdefault(type(optimizer).__name__, {}).update(
                dict.fromkeys(_find_lacking_keys(optimizer, found))
            )
            mixed |= dict.fromkeys(_find_mixed_keys(found))
    yield from _describe_optimizer_problems(missing, lacking, mixed)


def _describe_optimizer_problems(
    missing: list[str], lacking: Mapping[str, Iterable[str]], mixed: Iterable[str]
) -> Iterator[str]:
    if missing:
        yield (
            f"optimizer: the checkpoint lacks {_join_first(missing)}: let the same parameters "
            "require gradients."
        )
    for optimizer_type, keys in lacking.items():
        if keys:
            yield (
                f"optimizer: the checkpoint has no {_join_first(keys)}, which {optimizer_type} "
                "needs: resume with the optimizer of its run."
            )
    if mixed:
        yield (
            f"optimizer: parameters of one group here had different values of "
            f"{_join_first(mixed)}: give each value a group, as in its run."
        )


def _find_lacking_keys(optimizer: Optimizer, entries: list[dict[str, Any]]) -> Iterator[str]:
    for entry in entries:
        for key in optimizer.defaults:
            if key not in entry:
                yield key


def _find_mixed_keys(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Find hyperparameters that differ among the parameters of one group."""
    for entry in entries:
        for key, value in entry.items():
            if not values_equal(value, entries[0].get(key)):
                yield key


def _join_first(names: Iterable[str]) -> str:
    names = [*names]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
