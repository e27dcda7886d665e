"""Which values an annotation accepts, and what is said of others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import localprop as lp
from localprop.arguments import check_arguments, has_type


@pytest.mark.parametrize(
    ("value", "hint", "accepted"),
    [
        (1, int, True),
        (np.int64(1), int, True),
        (True, int, False),
        (1.0, int, False),
        (2**63 - 1, int, True),
        (2**63, int, False),
        (1, float, True),
        (np.float32(1), float, True),
        (Fraction(1, 2), float, False),
        (10**400, float, False),
        (1j, float, False),
        (torch.tensor(1.0), float, False),
        (1, bool, False),
        (None, int | None, True),
        ("a", str, True),
        ("a\0", str, False),
        ([1, 2], tuple[int, ...], True),
        ((1, "a"), tuple[int, ...], False),
        ((1.0, 2), tuple[float, float], True),
        ((1.0,), tuple[float, float], False),
        ("ab", Sequence[str], False),
        (np.ones(2), Sequence[float], True),
        (np.ones(()), Sequence[float], False),
        ({1, 2}, Collection[int], True),
        ({1, 2}, Sequence[int], False),
        ({}, Mapping[str, Any], True),
        (len, Callable[..., Any], True),
        ("len", Callable[..., Any], False),
        ("pad", Literal["conv", "pad"], True),
        (1, Literal["conv", "pad"], False),
        ("a", str | Path, True),
        (object(), Any, True),
    ],
)
def test_types(value: object, hint: Any, accepted: bool) -> None:
    assert has_type(value, hint) is accepted


def test_all_arguments_are_told_at_once() -> None:
    with pytest.raises(lp.BadInput) as caught:
        lp.Head(convs="x", hidden=0.5)  # type: ignore[arg-type]
    assert caught.value.problems == (
        "Head(convs='x'): convs must be a whole number.",
        "Head(hidden=0.5): hidden must be a whole number.",
    )


def test_the_signature_stays() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'conv'"):
        lp.Head(conv=1)  # type: ignore[call-arg]

    @check_arguments
    def join(first: int, *rest: int, sep: str = ",") -> str:
        return sep.join(map(str, (first, *rest)))

    assert join(1, 2, sep="-") == "1-2"
