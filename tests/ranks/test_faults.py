"""What ranks report when one of them dies, hangs or raises. Real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import localprop as lp
from localprop.schedule.schedule import Action, Op
from tests.helpers.processes import (
    TIMEOUT_S,
    Ending,
    FaultPoint,
    MarkFault,
    run_scenario,
    train_with_signal,
)
from tests.helpers.ranks import Blocks, noise, sgd

pytestmark = pytest.mark.xdist_group("ranks")


def record_of(ending: Ending) -> dict[str, Any]:
    assert isinstance(ending.answer, lp.StepFailed), ending.answer
    assert ending.answer.record is not None
    return ending.answer.record


@pytest.mark.parametrize(
    ("rule", "point", "ranks"),
    [
        (lp.end_to_end(), FaultPoint(1, 2, Op.F), 3),
        (lp.end_to_end(), FaultPoint(2, 2, Op.B), 3),
        (lp.backlink(), FaultPoint(1, 2, Op.L), 3),
        (lp.interlocking(), FaultPoint(0, 1, Op.F), 2),
    ],
    ids=["end_to_end-middle", "end_to_end-last", "backlink-middle", "interlocking-first"],
)
def test_a_rank_is_killed(rule: lp.Rule, point: FaultPoint, ranks: int) -> None:
    """The others stop within 5 s and report the same rank, action and layer."""
    scenario = partial(train_with_signal, rule, point, signal.SIGKILL)
    endings = run_scenario(ranks, scenario, limit_s=8)
    assert endings[point.rank].answer is None
    others = [ending for rank, ending in enumerate(endings) if rank != point.rank]
    assert max(ending.seconds for ending in others) < 5
    records = [record_of(ending) for ending in others]
    assert all(record == records[0] for record in records)
    assert records[0]["rank"] == point.rank
    assert records[0]["seen_by"] != point.rank
    assert records[0]["action"]
    assert records[0]["layer"]


@pytest.mark.parametrize("rule", [lp.end_to_end(), lp.backlink()], ids=["end_to_end", "backlink"])
def test_a_rank_hangs(rule: lp.Rule) -> None:
    """The others stop after the time-out and name the rank that hangs."""
    scenario = partial(train_with_signal, rule, FaultPoint(2, 2, Op.L), signal.SIGSTOP)
    endings = run_scenario(3, scenario, limit_s=TIMEOUT_S + 8, stopped=2)
    for ending in endings[:2]:
        assert ending.seconds < TIMEOUT_S + 7
        assert record_of(ending)["rank"] == 2


def train_until_asleep(mark_fault: MarkFault) -> str:
    """Train until rank 2 sleeps in an action, which its heartbeat does not."""
    torch.manual_seed(0)
    batches, ranks = noise((12,) * 6), lp.Ranks(timeout_s=TIMEOUT_S)
    learner = lp.Learner(
        Blocks(), lp.end_to_end(), modules=4, optimizer=sgd, sample=batches[0], ranks=ranks
    )

    def observe(action: Action) -> None:
        if (dist.get_rank(), learner.steps, action.op) == (2, 2, Op.L):
            mark_fault()
            time.sleep(60)

    for batch in batches:
        learner.step(batch, observe=observe)
    return "no failure"


def test_a_rank_sleeps_and_no_rank_that_waits_for_it_is_blamed() -> None:
    """Rank 0 waits for rank 1, which waits for rank 2."""
    first, second, _ = run_scenario(3, train_until_asleep, limit_s=TIMEOUT_S + 8, stopped=2)
    assert record_of(first) == record_of(second)
    assert record_of(first)["rank"] == 2


class BreakingBlocks(Blocks):
    """Once `broken` is set, block 2 does something to its output."""

    def __init__(self, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.broken = False
        block = self.blocks[2]
        whole = block.forward
        block.forward = lambda x: fault(whole(x)) if self.broken else whole(x)


def raise_error(output: Tensor) -> Tensor:
    raise ValueError("no more memory")


def halve_channels(output: Tensor) -> Tensor:
    return output[:, :4].contiguous()


def train_until_broken(fault: Callable[[Tensor], Tensor], mark_fault: MarkFault) -> str:
    """Train a model that breaks on rank 1 of 3, where block 2 ends the stage."""
    torch.manual_seed(0)
    model, batches = BreakingBlocks(fault), noise((12,) * 6)
    ranks = lp.Ranks(timeout_s=60, cuts=(1, 2))
    learner = lp.Learner(
        model, lp.end_to_end(), modules=4, optimizer=sgd, sample=batches[0], ranks=ranks
    )
    for step, batch in enumerate(batches):
        if step == 3 and dist.get_rank() == 1:
            model.broken = True
            mark_fault()
        learner.step(batch)
    return "no failure"


@pytest.mark.parametrize(
    ("fault", "action", "error"),
    [
        (raise_error, "1F", "ValueError: no more memory"),
        (halve_channels, "1SEND_F>2", "RuntimeError: the tensor to send is Layout"),
    ],
)
def test_a_layer_fails_on_one_rank(
    fault: Callable[[Tensor], Tensor], action: str, error: str
) -> None:
    """All ranks report the same: the rank, its action, its layers, and what it raised."""
    for ending in run_scenario(3, partial(train_until_broken, fault), limit_s=8):
        record = record_of(ending)
        assert ending.seconds < 5
        assert (record["rank"], record["seen_by"], record["action"]) == (1, 1, action)
        assert record["layer"] == "blocks.1 .. blocks.2"
        assert record["error"].startswith(error)
        assert f"Rank 1 failed (at action {action}, on " in str(ending.answer)


# --- whole programs ------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_ranks_end_together_and_say_why(tmp_path: Path) -> None:
    """One is killed, stopped, delayed, or gets other data; benchmarks/ has more of them."""
    out = tmp_path / "result.json"
    words = ["benchmarks/rank_faults.py", "--count", "6", "--jobs", "3", "--timeout-s", "2"]
    words += ["--out", str(out)]
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], cwd=root, env=environment, check=False)
    result = json.loads(out.read_text())
    assert result["failures"] == []
    assert len(result["rows"]) == 6
