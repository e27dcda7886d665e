"""Ranks that begin where a module returns more than a tensor have the bits of one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import localprop as lp
from tests.helpers.bundles import BundledLanguageModel
from tests.helpers.language_models import make_padded_batches
from tests.helpers.ranks import (
    RankPool,
    Run,
    assert_same,
    assert_same_tensors,
    train,
    train_on_ranks,
)

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize(
    "rule",
    [lp.greedy(), lp.backlink(layers=1), lp.end_to_end()],
    ids=lambda rule: str(rule.credit),
)
def test_pairs_and_dicts(pool: RankPool, rule: lp.Rule, microbatches: int) -> None:
    """Batches differ in length. With two micro-batches, layers run again."""
    options = {"modules": 7, "microbatches": microbatches, "recompute": microbatches > 1}
    run = Run(rule, BundledLanguageModel, options, batches=make_padded_batches)
    alone = train(run, alone=True)
    # A rank begins behind a dict; behind a pair, into which the next block writes, and a dict.
    for cuts in ((5,), (3, 6)):
        on_ranks = replace(run, ranks={"cuts": cuts})
        assert_same(alone, pool.run(1 + len(cuts), train_on_ranks, on_ranks))


def test_replicas(pool: RankPool) -> None:
    options = {"modules": 7, "microbatches": 2}
    run = Run(lp.backlink(), BundledLanguageModel, options, batches=make_padded_batches)
    alone = train(run, alone=True)
    ranks = {"replicas": 2, "cuts": (5,)}
    run = replace(run, options=options | {"microbatches": 1}, ranks=ranks)
    together = pool.run(4, train_on_ranks, run)
    assert alone.network is not None
    assert_same_tensors(together[0].network, alone.network)
    assert all(torch.equal(each.prediction, alone.prediction) for each in together)
