"""What ranks refuse: plans, weights, loaders and stages that do not fit together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

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
        labels: added to the labels of step 1.
        sizes: of the batches.
        sample: added to the images of the sample.
    """

    rule: lp.Rule = field(default_factory=lp.end_to_end)
    options: dict[str, Any] = field(default_factory=dict)
    weights: int = 0
    noise: int = 0
    labels: int = 0
    sizes: tuple[int, ...] = (12, 12, 7)
    sample: int = 0


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
    sample = batches[0][0] + plan.sample, batches[0][1]
    learner = lp.Learner(Blocks(), plan.rule, sample=sample, **options)
    for step, (images, labels) in enumerate(batches):
        changed = step == 1
        learner.step((images + plan.noise * changed, labels + plan.labels * changed))
    learner.predict(batches[0][0])
    return "nothing was refused"


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)


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
    "kind of optimizer": (
        Plan(options={"optimizer": adam}),
        "Rank(s) 1 differ from rank 0 in the optimizer (Adam for segment 0 against SGD for segment "
        "0)",
    ),
    "hyperparameter": (
        Plan(options={"optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9)}),
        "in the optimizer (SGD(lr=0.01) for segment 0 against SGD(lr=0.1) for segment 0)",
    ),
    "a setting of the method": (
        Plan(lp.end_to_end(), {"task": lp.Classification(label_smoothing=0.1)}),
        "Rank(s) 1 differ from rank 0 in the task (Classification(label_smoothing=0.1",
    ),
    "precision": (
        Plan(options={"precision": "bf16"}),
        "Rank(s) 1 differ from rank 0 in the precision (torch.bfloat16 against fp32)",
    ),
    "sample": (Plan(sample=1), "Rank(s) 1 differ from rank 0 in the sample ("),
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


def return_nothing(parameters: list[nn.Parameter]) -> None:
    """A factory that makes no optimizer."""


def test_an_optimizer_that_one_rank_cannot_make_is_told_by_all(pool: RankPool) -> None:
    wrong = Plan(options={"optimizer": return_nothing})
    for answer in pool.run(2, carry_out, Plan(), wrong):
        assert isinstance(answer, lp.BadInput), answer
        assert "The optimizer factory returned a NoneType" in str(answer)


def test_labels_that_are_bad_on_one_rank_are_told_by_all(pool: RankPool) -> None:
    first, second = pool.run(2, carry_out, Plan(), Plan(labels=100))
    assert isinstance(second, lp.BadInput), second
    (problem,) = second.problems
    assert "must lie in 0..9" in problem
    assert isinstance(first, lp.StepFailed), first
    assert str(first) == f"Rank 1 failed (between two steps): BadInput: {problem}"
    assert second.record == first.record


def skip_bad_batches() -> tuple[Any, list[str]]:
    """Train on batches of which one has bad labels on all ranks, and go on without it."""
    torch.manual_seed(0)
    learner = lp.Learner(Blocks(), lp.end_to_end(), modules=4, optimizer=sgd, sample=noise()[0])
    refused = []
    for step, (images, labels) in enumerate(noise()):
        try:
            learner.step((images, labels + 100 * (step == 1)))
        except lp.BadInput as error:
            refused.append(str(error))
    learner.gather()
    return learner.steps, refused


def test_a_batch_that_all_ranks_refuse_can_be_skipped(pool: RankPool) -> None:
    for steps, refused in pool.run(2, skip_bad_batches):
        assert steps == len(noise()) - 1
        assert len(refused) == 1


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
