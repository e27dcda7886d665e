"""Accuracies of ways that were trained: what `accuracies.json` has of `benchmarks/results`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from localprop.methods.parse import parse_rule
from localprop.planning.candidates import Way
from localprop.planning.made_for import MadeFor
from localprop.rule.rule import Rule

_CLASSES = 10  # of all data sets there


class Accuracy(NamedTuple):
    """A figure of `benchmarks/results`.

    Attributes:
        percent: of the test images, after the last epoch; the mean of the seeds.
        seeds: their number.
        modules: what was trained; a plan may have more or fewer.
        data: the data set, the training images and the epochs.
    """

    percent: float
    seeds: int
    modules: int
    data: str

    def __str__(self) -> str:
        where = f" at {self.modules} modules" if self.modules > 1 else ""
        return f"{self.percent:.1f}{where}"


def find_accuracies(made_for: MadeFor | None, ways: Iterable[Way]) -> dict[Way, Accuracy]:
    """The accuracies of ways that were trained.

    A network of the library is known by its name on the command line. Any other is unknown, though
    its class has that name, and so are ways whose BatchNorm sees less of a batch.

    Args:
        made_for: the network and its input.
        ways: those of a table.
    """
    if made_for is None or made_for.classes != _CLASSES:
        return {}
    known = dict(_read_figures(made_for.model, made_for.input_shape))
    return {way: known[way.rule] for way in ways if way.rule in known and not way.splits_batch_norm}


@cache
def _read_figures(model: str, input_shape: tuple[int, ...]) -> tuple[tuple[Rule, Accuracy], ...]:
    entries = json.loads(Path(__file__).with_name("accuracies.json").read_text("utf-8"))
    return tuple(
        (
            parse_rule(each["method"]),
            Accuracy(each["percent"], each["seeds"], each["modules"], each["data"]),
        )
        for each in entries
        if (each["model"], tuple(each["input_shape"])) == (model, input_shape)
    )


def describe_figures(accuracies: Iterable[Accuracy]) -> list[str]:
    """What the figures are of: a sentence, if there are any."""
    data = dict.fromkeys(each.data for each in accuracies)
    return [
        f"accuracy: of runs on {each}, with as many modules as stand there (benchmarks/results); "
        "other budgets of epochs give others."
        for each in data
    ]
