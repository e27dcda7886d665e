"""The values of a config: types, ranges, and values that do not fit each other."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from localprop.data import LoadingOptions
from localprop.training.config import Config, find_accepted_types


def test_the_defaults_are_valid() -> None:
    assert Config().find_problems() == []
    assert find_accepted_types().keys() == {field.name for field in fields(Config)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("microbatches", 65),
        ("modules", 0),
        ("lr", float("nan")),
        ("lr", 0.0),
        ("lr", "0.1"),
        ("momentum", 1.0),
        ("momentum", 0.0),
        ("weight_decay", -1.0),
        ("lr_schedule", "step"),
        ("warmup_epochs", 20),
        ("warmup_epochs", -1),
        ("warmup_from", 0.2),
        ("warmup_from", -0.01),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", True),
        ("device", "toaster"),
        ("device", "meta"),
        ("precision", "fp8"),
        ("method", "nothing"),
        ("method", None),
        ("recompute", 0.5),
        ("epochs", None),
        ("optimizer", "adagrad"),
        ("clip_norm", 0.0),
        ("label_smoothing", 1.0),
        ("milestones", (3,)),
        ("milestones", [3]),
        ("milestones", (0.5,)),
        ("lr_factor", 0.0),
        ("cuts", (3, 1)),
        ("cuts", (-1,)),
        ("mean", "0.5"),
        ("phases", "greedy for two"),
    ],
)
def test_each_bad_value_is_one_problem(name: str, value: object) -> None:
    problems = Config(**{name: value}).find_problems()  # type: ignore[arg-type]
    assert len(problems) == 1
    assert name in problems[0] or "nothing" in problems[0] or name == "phases"


def test_one_epoch_of_a_cosine_is_refused_and_of_a_constant_is_not() -> None:
    assert Config(epochs=1).find_problems() == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "adam", "momentum": 0.5}, "adam has none"),
        ({"lr_schedule": "multistep"}, "give one or more"),
        ({"lr_schedule": "multistep", "milestones": (5, 20)}, "between 1 and 19"),
        ({"lr_schedule": "multistep", "milestones": (5, 5)}, "increase"),
        ({"cuts": (0, 2), "modules": 2}, "make 3"),
    ],
)
def test_values_that_do_not_fit_each_other_are_one_problem(
    values: dict[str, Any], words: str
) -> None:
    (problem,) = Config(**values).find_problems()
    assert words in problem


def test_values_that_fit_each_other_are_accepted() -> None:
    config = Config(
        optimizer="adamw",
        clip_norm=1,
        mean=(1, 0.5),
        std=(1.0,),
        lr_schedule="multistep",
        milestones=(5, 19),
        cuts=(0, 2),
        modules=3,
    )
    assert config.find_problems() == []


def test_data_options_are_fields_of_a_config() -> None:
    shared = {field.name: field.default for field in fields(LoadingOptions)}
    assert shared == {name: getattr(Config(), name) for name in shared}
