"""Programs that end, or drop their learner, without a flush."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import localprop as lp
from tests.helpers.ranks import Blocks, RankPool, noise, sgd

pytestmark = pytest.mark.xdist_group("ranks")

CUT = 3  # blocks.2 begins the stage of rank 1


def train_and_drop(rule: lp.Rule, *, flush: bool) -> dict[str, str]:
    """Train, drop the learner, and hash the parameters of this rank's stage."""
    torch.manual_seed(0)
    model, batches = Blocks(), noise((12, 12, 12))
    learner = lp.Learner(
        model,
        rule,
        modules=9,
        optimizer=sgd,
        sample=batches[0],
        ranks=lp.Ranks(timeout_s=20, cuts=(CUT,)),
    )
    for batch in batches:
        learner.step(batch)
    if flush:
        learner.flush()
    del learner
    return dict(iterate_hashes(model))


def iterate_hashes(model: nn.Module) -> Any:
    names = [f"blocks.{i}" for i in (range(CUT - 1) if dist.get_rank() == 0 else range(CUT, 8))]
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(names)):
            yield name, hashlib.blake2b(parameter.detach().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("rule", [lp.end_to_end(), lp.backlink()], ids=["end_to_end", "backlink"])
def test_a_dropped_learner_finishes_its_last_batch(pool: RankPool, rule: lp.Rule) -> None:
    flushed = pool.run(2, train_and_drop_flushed, rule)
    dropped = pool.run(2, train_and_drop_unflushed, rule)
    assert dropped == flushed
    assert all(len(each) >= 8 for each in flushed)


def train_and_drop_flushed(rule: lp.Rule) -> dict[str, str]:
    return train_and_drop(rule, flush=True)


def train_and_drop_unflushed(rule: lp.Rule) -> dict[str, str]:
    return train_and_drop(rule, flush=False)
