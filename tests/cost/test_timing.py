"""Measured seconds of actions, and the bytes of messages."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import localprop as lp
from localprop.cost.simulate import simulate
from localprop.cost.timing import ActionKind, LinkModel, Seconds, measure_seconds, message_bytes
from localprop.errors import BadInput
from localprop.schedule.lowering import lower
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import Action, Op
from localprop.tasks.batch import Batch
from tests.helpers.bundles import BundledLanguageModel
from tests.helpers.language_models import make_padded_batches
from tests.helpers.reference import sgd
from tests.helpers.timelines import make_cost, make_wiring

# --- measured seconds ----------------------------------------------------------------------------


def make_learner(
    rule: lp.Rule, modules: int, samples: int = 4, **options: Any
) -> tuple[lp.Learner, Batch]:
    torch.manual_seed(0)
    batch = Batch.of((torch.randn(samples, 3, 8, 8), torch.randint(10, (samples,))))
    model = lp.models.resnet8()
    learner = lp.Learner(model, rule, modules=modules, optimizer=sgd, sample=batch, **options)
    return learner, batch


def copy_state(learner: lp.Learner) -> list[Tensor]:
    modules = (learner.model, learner.heads, learner.encoders)
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize(
    "rule",
    [lp.end_to_end(), lp.backlink(), lp.contsup()],
    ids=["end_to_end", "backlink", "contsup"],
)
def test_measuring_leaves_everything_as_it_was(rule: lp.Rule) -> None:
    learner, batch = make_learner(rule, 2)
    other, _ = make_learner(rule, 2)
    before, random = copy_state(learner), torch.get_rng_state()
    measure_seconds(learner.engine, batch, rounds=1)
    assert all(torch.equal(a, b) for a, b in zip(before, copy_state(learner), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert not any(optimizer.state for optimizer in learner.optimizers)
    assert all(parameter.grad is None for parameter in learner.parameters())
    for each in (learner, other):
        each.step(batch)
        each.step(batch)
    states = zip(copy_state(other), copy_state(learner), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_every_action_is_timed_from_its_start_to_the_next_one() -> None:
    learner, batch = make_learner(lp.backlink(), 2)
    ticks = itertools.count()
    seconds = measure_seconds(
        learner.engine, batch, rounds=2, clock=lambda: float(next(ticks)) ** 2
    )
    n = len(learner.schedule)
    times = [[float(i + r * (n + 1)) ** 2 for i in range(n + 1)] for r in range(2)]
    for i, action in enumerate(learner.schedule):
        assert seconds(action) == sum(row[i + 1] - row[i] for row in times) / 2
    assert seconds.samples == 4


def test_micro_batches_are_timed_together() -> None:
    learner, batch = make_learner(lp.greedy(), 2, samples=8, microbatches=4)
    ticks = itertools.count()
    seconds = measure_seconds(learner.engine, batch, rounds=1, clock=lambda: float(next(ticks)))
    assert seconds.samples == 2
    assert {ActionKind.of(action) for action in learner.schedule} == set(seconds.by_kind)
    assert sum(seconds.per_module(learner.wiring, 4)) == len(learner.schedule)


def test_real_seconds_are_positive_and_of_this_machine() -> None:
    learner, batch = make_learner(lp.greedy(), 2)
    seconds = measure_seconds(learner.engine, batch)
    assert all(0 < seconds(action) < 10 for action in learner.schedule)


def test_no_rounds() -> None:
    learner, batch = make_learner(lp.greedy(), 2)
    with pytest.raises(BadInput, match="rounds=0"):
        measure_seconds(learner.engine, batch, rounds=0)


def test_seconds_by_segment_and_module() -> None:
    wiring = make_wiring(lp.backlink(), modules=2, layers=2)
    assert [segment.module for segment in wiring.segments] == [0, 0, 1]  # body and tail, module 1
    seconds_of = {
        (Op.F, 0): 1.0,
        (Op.B, 0): 2.0,
        (Op.S, 0): 0.5,
        (Op.F, 1): 4.0,
        (Op.H, 1): 0.25,
        (Op.L, 2): 8.0,
    }
    by_kind = {
        ActionKind(op, s, 0 if op is Op.B else None): spent for (op, s), spent in seconds_of.items()
    }
    seconds = Seconds(by_kind, samples=8)
    assert seconds.per_segment(wiring, microbatches=2) == [2 + 4 + 0.5, 8 + 0.25, 16]
    assert seconds.per_module(wiring) == [3 + 0.5 + 4 + 0.25, 8]
    half = seconds.scaled(4)
    assert half.samples == 4
    assert half.per_segment(wiring, microbatches=4) == seconds.per_segment(wiring, microbatches=2)
    assert seconds(Action(Op.SEND_F, 0, peer=1)) == 0


# --- messages ------------------------------------------------------------------------------------


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_bytes_of_messages() -> None:
    learner, _ = make_learner(lp.contsup(), 4)  # layers: 16x8x8, 16x8x8, 32x4x4, 64x2x2
    wiring = learner.wiring
    nbytes = message_bytes(wiring, samples=2)
    assert nbytes(Action(Op.SEND_F, 1, peer=2)) == 2 * 16 * 8 * 8 * 4
    assert nbytes(Action(Op.SEND_F, 2, peer=3)) == 2 * 32 * 4 * 4 * 4
    assert nbytes(Action(Op.SEND_B, 2, 0, peer=1)) == 2 * 16 * 8 * 8 * 4
    assert nbytes(Action(Op.SEND_C, 3, peer=3)) == 2 * 32 * 4 * 4 * 4
    stem = 3 * 16 * 9 + 2 * 16
    assert nbytes(Action(Op.REDUCE_S, 0)) == 4 * stem
    block = 2 * 16 * 16 * 9 + 4 * 16
    encoders = count_parameters(learner.encoders["1"])
    assert nbytes(Action(Op.REDUCE_S, 1)) == 4 * (block + encoders)
    assert nbytes(Action(Op.REDUCE_H, 0)) == 4 * count_parameters(wiring.heads["0"])
    assert nbytes(Action(Op.F, 0)) == 0


def test_bytes_of_messages_of_several_tensors() -> None:
    learner = lp.Learner(
        BundledLanguageModel(),
        lp.backlink(),
        modules=7,
        optimizer=sgd,
        sample=make_padded_batches()[0],  # words (6, 9)
    )
    nbytes = message_bytes(learner.wiring, samples=2)
    ends = [learner.wiring.end_name(s) for s in range(len(learner.wiring.segments) - 1)]
    pair, dictionary = (ends.index(name) for name in ("pairs.0", "dicts.0"))
    hidden = 2 * 9 * 4 * 4
    assert nbytes(Action(Op.SEND_F, pair, peer=1)) == 2 * hidden
    assert nbytes(Action(Op.SEND_B, pair + 1, peer=0)) == 2 * hidden
    # Hidden state, residual and penalty; count, mask and what was seen have no gradient.
    constants = 8 + 2 * 9 * 9 + hidden
    assert nbytes(Action(Op.SEND_F, dictionary, peer=1)) == 2 * hidden + 4 + constants
    assert nbytes(Action(Op.SEND_B, dictionary + 1, peer=0)) == 2 * hidden + 4


def test_reduced_bytes_are_those_of_all_parameters() -> None:
    learner, _ = make_learner(lp.contsup(), 3)
    wiring = learner.wiring
    ranks = lower(wiring, Placement.at(wiring, (1, 2)), replicas=2)
    nbytes = message_bytes(wiring, samples=4)
    reduces = [
        action for rank in ranks for action in rank if action.op in (Op.REDUCE_S, Op.REDUCE_H)
    ]
    expected = 4 * sum(parameter.numel() for parameter in learner.parameters())
    assert sum(map(nbytes, reduces)) == expected
    timeline = simulate(ranks, make_cost(), nbytes, LinkModel(1e6), replicas=2)
    assert sum(timeline.reduced_bytes) == pytest.approx(expected)
