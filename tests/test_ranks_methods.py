"""Every function of methods on several ranks: the same bits as in one process, or the reason why not."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from crew import Blocks, Crew, Run
from test_battery import Method, each_method
from test_ranks import compare, train_on_ranks
from torch import nn

import localprop as lp

pytestmark = pytest.mark.xdist_group("ranks")

REFUSED = {
    "man": "borrows '.*', which another rank has",
    "man_plus": "borrows '.*', which another rank has",
    "solo": "borrows 'head.weight', which another rank has",
    "sgr": "is of second order",
}


@each_method
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_every_method(crew: Crew, method: Method, order: str) -> None:
    """The same bits, also with segments that run again, and looked at in mid-training; or the reason why not, on all ranks."""
    recompute = order == "gpipe" and method.__name__ not in REFUSED
    options = {"modules": 6, "microbatches": 3, "recompute": recompute, "normalised": lp.Normalised()}
    run = Run(method(), options=options, ranks={"order": order}, pause=(1,))
    if method.__name__ not in REFUSED:
        compare(crew, run, 2, 3, 4)
        return
    for refusal in crew.run(2, train_on_ranks, run):
        assert isinstance(refusal, lp.BadInput)
        assert re.search(REFUSED[method.__name__], str(refusal))


def test_what_a_rank_borrows_from_itself(crew: Crew) -> None:
    """MAN's copies of the next module's first layer, where both modules share a rank."""
    rule = lp.Rule(lp.Own(), aux=_OnlyFirst())
    compare(crew, Run(rule, options={"modules": 4, "microbatches": 2}), 2)


@dataclass(frozen=True)
class _OnlyFirst:
    """A borrowing head at the first module, plain ones at the others."""

    def __call__(self, site: lp.Site) -> nn.Module:
        return lp.NextLayerHead()(site) if site.module == 0 else lp.Head()(site)


@pytest.mark.parametrize("credit", [lp.Own(), lp.BackwardLinks(layers=1)], ids=["own", "links"])
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_inner_outputs_of_segments_that_run_again(crew: Crew, credit: lp.Own, order: str) -> None:
    """Under gpipe an earlier micro-batch runs again while a later one is current."""
    rule = lp.Rule(credit, penalty=lp.Kinetic(plain=True))
    options = {"modules": 4, "microbatches": 2, "recompute": True}
    compare(crew, Run(rule, options=options, ranks={"order": order}), 2)


def test_a_frozen_read_out_on_another_rank_is_refused(crew: Crew) -> None:
    run = Run(lp.solo(blocks=0), build=frozen_readout, options={"modules": 4})
    for refusal in crew.run(2, train_on_ranks, run):
        assert isinstance(refusal, lp.BadInput)
        assert "borrows 'head.weight', which another rank has" in str(refusal)


def frozen_readout() -> nn.Module:
    model = Blocks()
    model.head.weight.requires_grad_(False)
    return model
