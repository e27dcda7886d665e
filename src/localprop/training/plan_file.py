"""A saved plan, read again: the fields of a run that trains by its best way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from localprop.data import Dataset
from localprop.errors import BadInput, check, collect_problems
from localprop.methods.parse import imports_module
from localprop.models.create import names_function
from localprop.planning.plan import FORMAT
from localprop.ranks.launch import get_world_size
from localprop.training.changes import are_same
from localprop.training.config import Config

_MAX_BYTES = 2**24  # a plan has some hundred rows
_MADE_FOR = ("model", "batch_size", "optimizer", "precision")


class SavedPlan(NamedTuple):
    """What a file holds of a plan.

    Attributes:
        path: the file.
        fields: of `Config`: the best way, and what it was made for.
        input_shape: the shape of a sample.
        classes: outputs of the network, or None.
        ranks: processes that share the network.
    """

    path: Path
    fields: dict[str, Any]
    input_shape: tuple[int, ...]
    classes: int | None
    ranks: int = 1

    def merge(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a run: those of the plan, and what else is given.

        Raises:
            BadInput: given fields contradict the plan, all of them at once.
        """
        check(self._find_contradictions(given))
        return {**self.fields, **given}

    def check_data(self, dataset: Dataset) -> Dataset:
        """The same data set, if the plan was made for such data.

        Raises:
            BadInput: its samples have another shape, or there are more or fewer classes.
        """
        problems = []
        if dataset.shape != self.input_shape:
            problems.append(
                f"{self.path} was made for samples of {self.input_shape}, but those of "
                f"{dataset.name} are {dataset.shape}: plan again with "
                f"--input {','.join(map(str, dataset.shape))}."
            )
        if self.classes not in (None, dataset.num_classes):
            problems.append(
                f"{self.path} was made for {self.classes} classes, but {dataset.name} has "
                f"{dataset.num_classes}: plan again with --classes {dataset.num_classes}."
            )
        check(problems)
        return dataset

    def _find_contradictions(self, given: Mapping[str, Any]) -> Iterator[str]:
        for name, value in self.fields.items():
            if name in given and not are_same(name, given[name], value):
                kind = "was made for" if name in _MADE_FOR else "has"
                yield (
                    f"{name}={given[name]!r}, but {self.path} {kind} {name}={value!r}: leave it "
                    "out, or plan again."
                )
        if self.ranks not in (1, get_world_size()):
            yield (
                f"{self.path} was made for {self.ranks} ranks: launch them, torchrun "
                f"--nproc-per-node {self.ranks} -m localprop train ..., or plan again."
            )
        for name in ("cuts", "phases"):
            if given.get(name) is not None:
                yield f"{name}={given[name]!r}, but {self.path} has the modules: leave it out."
        if given.get("replicas", 1) != 1:
            yield f"replicas={given['replicas']}, but {self.path} has one pipeline: leave it out."
        # A file may come from anybody, so it imports nothing by itself.
        for name, is_imported in (("method", imports_module), ("model", names_function)):
            value = self.fields[name]
            if name not in given and is_imported(value):
                yield (
                    f"{self.path} names {value!r}, which would be imported: name it yourself, with "
                    f"--{name} {value!r}."
                )


def read_plan(path: str | Path) -> SavedPlan:
    """Read a plan that `Plan.save` has written.

    Raises:
        BadInput: the file cannot be read, is no plan, or has no best way.

    Example:
        >>> batch = torch.zeros(8, 1, 8, 8), torch.zeros(8).long()
        >>> found = lp.plan(lp.models.mlp(64), batch, budget="30MB", methods=["greedy"])
        >>> found.save("plan.json")
        >>> read_plan("plan.json").fields["batch_size"]
        8
    """
    path = Path(os.path.expanduser(path))
    content = _read_json(path)
    if content.get("format") != FORMAT:
        raise BadInput(
            f"{path} is no plan of this version of localprop (its format is "
            f"{str(content.get('format'))[:80]!r}, not {FORMAT!r}): write one with "
            "`localprop plan --budget 8GB --out plan.json`."
        )
    best: Any = content.get("best")
    made_for: Any = content.get("made_for")
    if best is None:
        raise BadInput(
            f"{path} has no best way, since nothing fitted or no budget was given: plan again with "
            "a larger --budget."
        )
    check(_find_form_problems(path, best, made_for))
    found = {"method": best["method"], **best["learner"]}
    found |= {name: made_for[name] for name in _MADE_FOR}
    if isinstance(found.get("recompute"), list):  # names of layers, which a flag has with commas
        found["recompute"] = ",".join(map(str, found["recompute"]))
    check(f"{path}: {problem}" for problem in _find_field_problems(found))
    return SavedPlan(
        path,
        found,
        tuple(made_for["input_shape"]),
        made_for.get("classes"),
        made_for.get("ranks", 1),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 20} MiB")
        content = json.loads(text)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): name a plan.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} is no plan, or is damaged ({str(error)[:80]}): plan again."
        ) from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} is no plan, but a {type(content).__name__}: plan again.")
    return content


def _find_form_problems(path: Path, best: Any, made_for: Any) -> Iterator[str]:
    wanted = {"best": (best, ("method", "learner")), "made_for": (made_for, _MADE_FOR)}
    for name, (part, keys) in wanted.items():
        missing = [key for key in keys if not isinstance(part, dict) or key not in part]
        if missing:
            yield f"{path} is damaged: {name} lacks {', '.join(missing)}. Plan again."
    if isinstance(best, dict) and not isinstance(best.get("learner"), dict):
        yield f"{path} is damaged: learner is {str(best.get('learner'))[:80]}. Plan again."
    if isinstance(made_for, dict):
        shape, classes = made_for.get("input_shape"), made_for.get("classes")
        ranks = made_for.get("ranks", 1)
        if type(ranks) is not int or ranks < 1:
            yield f"{path} is damaged: ranks is {str(ranks)[:80]}. Plan again."
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            yield f"{path} is damaged: input_shape is {str(shape)[:80]}. Plan again."
        if classes is not None and type(classes) is not int:
            yield f"{path} is damaged: classes is {str(classes)[:80]}. Plan again."


def _find_field_problems(found: Mapping[str, Any]) -> list[str]:
    known = {field.name for field in fields(Config)}
    problems = [
        f"its way has {str(name)[:80]}, for which train has no flag: train it with lp.Learner."
        for name in found
        if name not in known
    ]
    values = {name: value for name, value in found.items() if name in known}
    with collect_problems(problems):
        if isinstance(found["method"], str) and imports_module(found["method"]):
            del values["method"]  # it is imported only where the user names it
    return [*problems, *Config(**values).find_problems()]
