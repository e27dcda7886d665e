"""A step calls functions in few files: a plain method does not pay for what it does not use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import localprop as lp
from tests.helpers.reference import network, sgd

PACKAGE = Path(lp.__file__).parent


def list_visited_files(run: Callable[[], object]) -> set[str]:
    """The files of the package in which functions are called, relative to it."""
    visited: set[str] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            visited.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    paths = [Path(name) for name in visited]
    return {path.relative_to(PACKAGE).as_posix() for path in paths if PACKAGE in path.parents}


BARE: dict[str, Any] = {"atomic": False, "on_nonfinite": "ignore"}
# Looks for layers that were replaced, frozen, cast or moved, in every step.
LOOK = {"network/snapshot.py"}
# What watches over a step.
WATCH = {"engine/finite.py", "engine/interrupts.py", "engine/undo.py"}
WATCH |= {"network/attributes.py", "network/copied_values.py", "network/module_state.py"}


def visit_step(rule: lp.Rule, **options: Any) -> set[str]:
    """The files that a step visits after the first one, with a ResNet-8 in four modules."""
    model, batches = network("resnet8")
    learner = lp.Learner(
        model, rule, modules=4, optimizer=sgd, sample=batches[0], **(BARE | options)
    )
    learner.step(batches[0])
    return list_visited_files(lambda: learner.step(batches[1]))


def select_engine(files: set[str]) -> set[str]:
    return {name for name in files if name.split("/")[0] in ("engine", "schedule")}


def test_a_greedy_step_visits_few_files() -> None:
    files = visit_step(lp.greedy())
    assert len(select_engine(files)) <= 6, sorted(files)
    assert len(files - LOOK) <= 15, sorted(files)


def test_watching_over_a_step_is_in_files_of_its_own() -> None:
    watched = visit_step(lp.greedy(), atomic=True, on_nonfinite="raise")
    assert watched - visit_step(lp.greedy()) == WATCH


def test_a_greedy_step_pays_for_no_other_method() -> None:
    """Nothing of recomputes, copies of parameters, ranks, autocast and the profiler is called."""
    unused = ("recompute", "copies", "communicator", "precision", "ranges")
    assert visit_step(lp.greedy()) & {f"engine/{name}.py" for name in unused} == set()


def test_a_recomputed_end_to_end_step_visits_few_files() -> None:
    files = visit_step(lp.end_to_end(), recompute=True)
    assert len(files - LOOK) <= 20, sorted(files)  # stretches made one more of three
    assert "engine/recompute.py" in files


@pytest.mark.parametrize("name", ["engine/loss.py", "engine/backward.py", "engine/optimizers.py"])
def test_the_search_for_files_finds_them(name: str) -> None:
    assert name in visit_step(lp.greedy())
