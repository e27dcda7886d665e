"""Training in one process and on several ranks gives the same bits, for every rule and method.

`tests.helpers.ranks` has the runs and what is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.rule.attach import AttachPoint
from localprop.rule.local_loss import LocalLoss, LossInputs
from tests.helpers.language_models import RotaryLanguageModel, make_padded_batches
from tests.helpers.methods import REFUSED, Method, each_method
from tests.helpers.ranks import (
    COMBINED,
    Batches,
    Blocks,
    RankPool,
    Run,
    assert_same_tensors,
    compare_on_ranks,
    noise,
    return_or_catch,
    sgd,
    train_on_ranks,
)

pytestmark = pytest.mark.xdist_group("ranks")


class Forks(Blocks):
    """What block 2 returns goes around blocks 3 and 4."""

    def forward(self, x: Tensor) -> Tensor:
        x = kept = self.stem(x)
        for number, block in enumerate(self.blocks):
            # BatchNorm of a block reads its input, which nobody writes into.
            x = block(x + kept if number == 5 else x)
            kept = x if number == 2 else kept
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


# --- rules ---------------------------------------------------------------------------------------


class Reconstruction(LocalLoss):
    """Cross-entropy, plus the error of reconstructing the network's input from the features.

    Like InfoPro's loss, it has a decoder of its own.
    """

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(chans, 3, 1)

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        reconstruction = functional.mse_loss(self.decoder(features), inputs.network_input)
        return functional.cross_entropy(aux(features), inputs.targets) + reconstruction


def build_reconstruction(point: AttachPoint) -> LocalLoss:
    return Reconstruction(point.features[1])


COMBINATIONS = {
    "combined": COMBINED,
    "longer than a module": lp.backlink(layers=3, weight=0.5),
    "wise=3": lp.interlocking(wise=3),
    "wise=3, summed": lp.interlocking(wise=3, combine="sum"),
    "context that skips ranks": lp.Rule(
        lp.InterlockingCredit(2), context=lp.ContextSupply(previous=4)
    ),
    "a loss that reads the input": lp.Rule(lp.BackwardLinks(1), loss=build_reconstruction),
}


@pytest.mark.parametrize("rule", COMBINATIONS.values(), ids=COMBINATIONS)
@pytest.mark.parametrize("microbatches", [1, 3])
def test_combinations(pool: RankPool, rule: lp.Rule, microbatches: int) -> None:
    options = {"modules": 6, "microbatches": microbatches}
    compare_on_ranks(pool, Run(rule, options=options), 2, 4)


def test_several_layers_a_module_recomputed(pool: RankPool) -> None:
    options = {"modules": 3, "microbatches": 2, "recompute": True}
    compare_on_ranks(pool, Run(COMBINATIONS["longer than a module"], options=options), 2, 3)


def test_stages_where_the_user_wants_them(pool: RankPool) -> None:
    compare_on_ranks(pool, Run(COMBINED, ranks={"cuts": (1, 5)}), 3)
    seconds = (9.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    compare_on_ranks(pool, Run(lp.backlink(), ranks={"seconds": seconds}), 2)


def load_digits() -> Batches:
    """Two batches of an epoch, and its last one, which is smaller."""
    data = lp.data.load("digits")
    loader = lp.data.Batches(data, "train", 256, shuffle=True, augment=True, seed=3)
    first, second, *_, last = [(images, labels) for images, labels in loader.epoch(0)]
    return [first, second, last]


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(
    "rule",
    [lp.greedy(), lp.backlink(), lp.interlocking(), lp.end_to_end()],
    ids=lambda r: str(r.credit),
)
def test_batches_of_digits(pool: RankPool, rule: lp.Rule, microbatches: int) -> None:
    assert len(load_digits()[-1][0]) % 4  # the last batch is uneven
    options = {"modules": 4, "microbatches": microbatches}
    compare_on_ranks(pool, Run(rule, partial(Blocks, 1), options, batches=load_digits), 2)


# --- methods -------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize(
    ("order", "counts"),
    [
        ("1f1b", (2, 4)),
        ("gpipe", (3,)),
        pytest.param("1f1b", (3,), marks=pytest.mark.long),
        pytest.param("gpipe", (2, 4), marks=pytest.mark.long),
    ],
)
def test_every_method(pool: RankPool, method: Method, order: str, counts: tuple[int, ...]) -> None:
    """The same bits, or the reason why not on all ranks.

    Some runs recompute segments, and all are inspected between two steps.
    """
    recompute = order == "gpipe" and method.__name__ not in REFUSED
    options = {
        "modules": 6,
        "microbatches": 3,
        "recompute": recompute,
        "normalization": lp.Normalization(),
    }
    run = Run(method(), options=options, ranks={"order": order}, inspect_after=(1,))
    if method.__name__ not in REFUSED:
        compare_on_ranks(pool, run, *counts)
        return
    for refusal in pool.run(2, train_on_ranks, run):
        assert isinstance(refusal, lp.BadInput)
        assert re.search(REFUSED[method.__name__], str(refusal))


def test_a_parameter_copy_within_one_rank(pool: RankPool) -> None:
    """MAN's copies of the next module's first layer, where one rank has both modules."""
    rule = lp.Rule(lp.LocalCredit(), aux=_OnlyFirst())
    compare_on_ranks(pool, Run(rule, options={"modules": 4, "microbatches": 2}), 2)


@dataclass(frozen=True)
class _OnlyFirst:
    """A head with parameter copies at the first module, plain heads at the others."""

    def __call__(self, point: lp.AttachPoint) -> nn.Module:
        return lp.NextLayerHead()(point) if point.module == 0 else lp.Head()(point)


@pytest.mark.parametrize(
    "credit", [lp.LocalCredit(), lp.BackwardLinks(layers=1)], ids=["local", "links"]
)
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_inner_outputs_of_recomputed_segments(
    pool: RankPool, credit: lp.LocalCredit | lp.BackwardLinks, order: str
) -> None:
    """Under gpipe an earlier micro-batch runs again while a later one is current."""
    rule = lp.Rule(credit, penalty=lp.KineticPenalty(plain=True))
    options = {"modules": 4, "microbatches": 2, "recompute": True}
    compare_on_ranks(pool, Run(rule, options=options, ranks={"order": order}), 2)


def test_a_frozen_read_out_on_another_rank_is_refused(pool: RankPool) -> None:
    run = Run(lp.solo(blocks=0), build=build_with_frozen_readout, options={"modules": 4})
    for refusal in pool.run(2, train_on_ranks, run):
        assert isinstance(refusal, lp.BadInput)
        assert "copies 'head.weight', which is on another rank" in str(refusal)


def build_with_frozen_readout() -> nn.Module:
    model = Blocks()
    model.head.weight.requires_grad_(False)
    return model


# --- optimizers ----------------------------------------------------------------------------------


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def test_another_optimizer(pool: RankPool) -> None:
    compare_on_ranks(pool, Run(lp.backlink(), optimizer=adamw), 2)


class CountingSGD(torch.optim.SGD):
    """Counts its steps among its hyperparameters, as schedule-free optimizers do."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for parameter in group["params"]:
                parameter.grad.div_(group["count"])
        loss: float | None = super().step(closure)
        return loss


def counting_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return CountingSGD(parameters, lr=0.1)


def adafactor(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=0.01)


def test_an_optimizer_that_counts(pool: RankPool) -> None:
    compare_on_ranks(pool, Run(lp.backlink(), optimizer=counting_sgd), 2)


def test_an_optimizer_with_products_in_bf16(pool: RankPool) -> None:
    options = {"modules": 6, "precision": "bf16"}
    compare_on_ranks(pool, Run(lp.backlink(), options=options, optimizer=adafactor), 2)


def test_fast_steps(pool: RankPool) -> None:
    """Messages keep the layout of channels last, whatever the precision of the CPU at hand."""
    run = Run(lp.backlink(), options={"modules": 6, "fast": True})
    compare_on_ranks(pool, run, 2)


# --- a batch that cannot be used -----------------------------------------------------------------


def step_with_refusals(alone: bool) -> tuple[list[str], dict[str, Any] | None]:
    """Make three steps, and after each two calls that are refused.

    Returns:
        The messages of the refusals, and the state of the gathered network.
    """
    torch.manual_seed(0)
    batches = noise()
    learner = lp.Learner(
        Blocks(),
        lp.backlink(),
        modules=4,
        microbatches=3,
        sample=batches[0],
        optimizer=sgd,
        ranks=lp.Ranks(alone=alone, timeout_s=20),
    )
    refusals = []
    for images, labels in batches[:3]:
        learner.step((images, labels))
        refusals.append(str(return_or_catch(learner.step, (images[:2], labels[:2]))))
        refusals.append(str(return_or_catch(learner.step, (images[:, :1], labels))))
    network = learner.gather()
    return refusals, None if network is None else dict(network.state_dict())


def test_a_refused_batch_leaves_no_trace(pool: RankPool) -> None:
    refusals, expected = step_with_refusals(alone=True)
    assert "A batch of 2 cannot be split into 3 micro-batches" in refusals[0]
    (on_rank_0, network), (on_rank_1, _) = pool.run(2, step_with_refusals, False)
    assert on_rank_0 == on_rank_1 == refusals
    assert expected is not None
    assert_same_tensors(network, expected)


# --- what modules beside the layers make ----------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [lp.greedy(), lp.backlink(), lp.end_to_end()], ids=lambda r: str(r.credit)
)
def test_a_skip_within_a_rank(pool: RankPool, rule: lp.Rule) -> None:
    run = Run(rule, Forks, {"modules": 9})
    compare_on_ranks(pool, run, 2, 3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "rule", [lp.greedy(), lp.backlink(), lp.end_to_end()], ids=lambda r: str(r.credit)
)
def test_masks_and_tables_of_positions(pool: RankPool, rule: lp.Rule, recompute: bool) -> None:
    """A padded language model with dropout: masks and tables run on every rank."""
    options = {"modules": 3, "microbatches": 2, "recompute": recompute}
    run = Run(rule, RotaryLanguageModel, options, batches=make_padded_batches)
    compare_on_ranks(pool, run, 2, 3)
