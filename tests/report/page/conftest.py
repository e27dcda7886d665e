"""Results for the tests of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import localprop as lp

METHODS = ["end_to_end()", "greedy()", "mine: backlink(weight=0.5)"]
SMALL: dict[str, Any] = {"model": "mlp:8", "epochs": 2, "limit": 60, "device": "cpu"}


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a comparison of three methods with two seeds, which was analysed."""
    folder = tmp_path_factory.mktemp("results") / "compared"
    lp.compare(METHODS, seeds=2, rounds=2, out=str(folder), on_note=lambda note: None, **SMALL)
    lp.analyse(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a single run."""
    folder = tmp_path_factory.mktemp("results") / "trained"
    lp.train(method="greedy()", out=str(folder), on_note=lambda note: None, **SMALL)
    return folder
