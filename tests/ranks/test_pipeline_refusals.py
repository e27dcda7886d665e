"""What ranks refuse: plans, weights, loaders and stages that do not fit together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist

import localprop as lp
from tests.helpers.processes import TIMEOUT_S
from tests.helpers.ranks import Blocks, RankPool, build_tied, noise, sgd

pytestmark = pytest.mark.xdist_group("ranks")


@dataclass(frozen=True)
class Plan:
    """What one rank does; ranks of one run may differ.

    Attributes:
        rule: the training rule.
        options: of the Learner.
        weights: the seed of the initial weights.
        noise: added to the images of step 1.
        sizes: of the batches.
    """

    rule: lp.Rule = field(default_factory=lp.end_to_end)
    options: dict[str, Any] = field(default_factory=dict)
    weights: int = 0
    noise: int = 0
    sizes: tuple[int, ...] = (12, 12, 7)


def carry_out(*plans: Plan) -> str:
    """Train by this rank's plan, then predict."""
    plan = plans[min(dist.get_rank(), len(plans) - 1)]
    torch.manual_seed(plan.weights)
    batches = noise(plan.sizes)
    options: dict[str, Any] = {
        "modules": 4,
        "optimizer": sgd,
        "ranks": lp.Ranks(timeout_s=TIMEOUT_S),
        **plan.options,
    }
    learner = lp.Learner(Blocks(), plan.rule, sample=batches[0], **options)
    for step, (images, labels) in enumerate(batches):
        learner.step((images + plan.noise if step == 1 else images, labels))
    learner.predict(batches[0][0])
    return "nothing was refused"


# --- plans and loaders that differ ---------------------------------------------------------------

OTHER_PLAN = (
    "Rank(s) 1 differ from rank 0 in the plan (model, method, modules, micro-batches, "
    "weight_gradients)"
)
DIFFERENCES = {
    "weights": (Plan(weights=1), "Rank(s) 1 differ from rank 0 in the initial weights"),
    "method": (Plan(lp.interlocking()), OTHER_PLAN),
    "modules": (Plan(options={"modules": 5}), OTHER_PLAN),
    "seed": (
        Plan(options={"seed": 7}),
        "Rank(s) 1 differ from rank 0 in the seed (7 against 0)",
    ),
}


@pytest.mark.parametrize(("plan", "message"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_plans_that_differ_are_refused_by_all(pool: RankPool, plan: Plan, message: str) -> None:
    for answer in pool.run(3, carry_out, Plan(), plan, Plan()):
        assert isinstance(answer, lp.BadInput), answer
        assert message in str(answer)
        assert "run the same program on all ranks" in str(answer)


def test_other_numbers_of_micro_batches_are_refused_by_all(pool: RankPool) -> None:
    """The plans also ask for different channels, and no rank may wait for those."""
    answers = pool.run(2, carry_out, Plan(), Plan(lp.greedy(), {"microbatches": 4}))
    assert all(isinstance(answer, lp.BadInput) for answer in answers), answers


LOADERS = {
    "other values": (Plan(noise=1), "In step 1 rank 0 has a batch of 12 ", "but rank 1 one of 12 "),
    "another size": (
        Plan(sizes=(12, 11, 7)),
        "In step 1 rank 0 has a batch of 12 ",
        "but rank 1 one of 11 ",
    ),
    "fewer steps": (
        Plan(sizes=(12, 12)),
        "Rank 0 is at step 2 of training",
        "but rank 1 at step 2 of prediction",
    ),
    "more steps": (
        Plan(sizes=(12, 12, 7, 7)),
        "Rank 0 is at step 3 of prediction",
        "but rank 1 at step 3 of training",
    ),
}


@pytest.mark.parametrize(("plan", "theirs", "ours"), LOADERS.values(), ids=LOADERS)
def test_loaders_that_differ_are_refused(
    pool: RankPool, plan: Plan, theirs: str, ours: str
) -> None:
    first, second = pool.run(2, carry_out, Plan(), plan)
    assert isinstance(second, lp.BadInput), second
    assert theirs in str(second)
    assert ours in str(second)
    # The other rank, which waits for the one that refused, reports its failure.
    assert isinstance(first, lp.StepFailed), first
    assert first.record is not None
    assert first.record["rank"] == 1


# --- stages and options that do not fit ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": 2}, "3 ranks, but 2 module(s): each rank needs a module of its own"),
        ({"ranks": lp.Ranks(cuts=(1,))}, "cuts=(1,) make 2 stages for 3 ranks"),
        (
            {"ranks": lp.Ranks(cuts=(2, 9))},
            "Stages begin at the modules (2, 9), which must increase and lie in 1..3",
        ),
    ],
)
def test_stages_that_do_not_fit(pool: RankPool, options: dict[str, Any], message: str) -> None:
    for answer in pool.run(3, carry_out, Plan(options=options)):
        assert isinstance(answer, lp.BadInput)
        assert message in str(answer)


def tie_on_ranks(cuts: tuple[int, ...]) -> str:
    """Train a network whose modules 3, 5 and 8 share a weight, with a rank's first at each cut."""
    model, batch = build_tied((2, 4, 7)), noise()[0]
    ranks = lp.Ranks(cuts=cuts)
    lp.Learner(model, lp.greedy(), modules=9, optimizer=sgd, sample=batch, ranks=ranks).step(batch)
    return "nothing was refused"


def test_parameters_that_two_ranks_train_are_refused(pool: RankPool) -> None:
    for answer in pool.run(2, tie_on_ranks, (5,)):
        assert isinstance(answer, lp.BadInput), answer
        assert str(answer) == (
            "Parameter 'blocks.2.conv.weight' is tied: blocks.2, blocks.4 and blocks.7 use it, on "
            "the ranks 0 and 1, which would train copies of it apart. Untie it (give each layer a "
            "parameter of its own); let no rank begin at the modules 4 to 8, "
            "ranks=Ranks(cuts=...); or train in one process, ranks=Ranks(alone=True)."
        )
    assert pool.run(2, tie_on_ranks, (1,)) == ["nothing was refused"] * 2


def use_in_one_process(what: str) -> str:
    """Do something that ranks cannot do."""
    model, batch = Blocks(), noise()[0]
    options: dict[str, Any] = {"optimizer": sgd}
    if what == "optimizer":
        options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    if what == "fp16":
        options = {"optimizer": sgd, "precision": "fp16"}
    learner = lp.Learner(model, lp.greedy(), modules=4, sample=batch, **options)
    learner.backward(batch)
    return "nothing was refused"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("optimizer", "On several ranks each segment is stepped on its own: give a factory"),
        ("backward", "learner.backward runs in one process: on several ranks call learner.step"),
        ("fp16", 'precision="fp16" trains in one process'),
    ],
)
def test_what_works_in_one_process_only(pool: RankPool, what: str, message: str) -> None:
    for answer in pool.run(2, use_in_one_process, what):
        assert isinstance(answer, lp.BadInput), answer
        assert message in str(answer)


def leave_early() -> None:
    batches = noise((12,))
    ranks = lp.Ranks(timeout_s=TIMEOUT_S)
    learner = lp.Learner(
        Blocks(), lp.greedy(), modules=4, optimizer=sgd, sample=batches[0], ranks=ranks
    )
    learner.predict(batches[0][0], module=0)


def test_early_exits_are_refused_by_all(pool: RankPool) -> None:
    for answer in pool.run(2, leave_early):
        assert isinstance(answer, lp.BadInput), answer
        assert "no early exits; load the checkpoint in one process" in str(answer)
