"""Flags: one for each field of a config."""

from __future__ import annotations

import pytest

from localprop.cli.flags import collect_fields
from localprop.cli.main import _build_parser
from localprop.training.field_types import format_flag


def test_every_field_is_a_flag() -> None:
    values: dict[str, tuple[str, object]] = {
        "cuts": ("0,2", (0, 2)),
        "milestones": ("3", (3,)),
        "mean": ("0.5", (0.5,)),
        "std": ("1,2.5", (1.0, 2.5)),
        "clip_norm": ("2", 2),
        "limit": ("many", "many"),
        "phases": ("greedy() for 1", "greedy() for 1"),
        "lr": ("1e-3", 1e-3),
    }
    words = ["train"]
    for name, (text, _) in values.items():
        words += [format_flag(name), text]
    given = collect_fields(_build_parser().parse_args(words))
    assert given == {name: value for name, (_, value) in values.items()}


@pytest.mark.parametrize(
    ("words", "recompute"),
    [
        (["--recompute"], True),
        (["--recompute", "2"], 2),
        (["--recompute", "modules"], "modules"),
        (["--recompute", "blocks.1,blocks.2"], "blocks.1,blocks.2"),
        (["--recompute", "2", "--no-recompute"], False),
    ],
)
def test_recompute_is_a_switch_and_a_choice(words: list[str], recompute: object) -> None:
    given = collect_fields(_build_parser().parse_args(["train", *words]))
    assert given == {"recompute": recompute}
