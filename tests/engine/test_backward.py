"""Gradients are summed in one order, so that the bits do not depend on which comes first."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest
import torch

import localprop as lp
from localprop.engine.backward import GradientPart
from localprop.engine.engine import Engine
from localprop.engine.plan import StepPlan
from localprop.engine.precision import Precision
from localprop.engine.store import Store
from localprop.rule.table import PASS, T
from localprop.schedule.liveness import Liveness
from localprop.schedule.randomness import SeededGenerators
from localprop.schedule.schedule import BACKWARDS, Action, Op, Schedule, find_dependencies
from localprop.schedule.stage import Stage
from localprop.schedule.values import name_gradient
from localprop.schedule.wiring import Wiring
from tests.helpers.reference import assert_same_state, batches_of, sgd, tanh_mlp
from tests.helpers.schedules import wiring_of

BIG, TINY = 1e8, 1.0  # in float32 (BIG + TINY) - BIG is 0, and (BIG - BIG) + TINY is 1
# Three losses whose gradients meet at one segment: of a loss there and of two later flows.
THREE_MAKERS = lp.CreditTable((1, 1, 1), ((T, None, None), (T, T, None), (T, PASS, T)))


def plan_of(wiring: Wiring, schedule: Schedule) -> StepPlan:
    device = torch.device("cpu")
    return StepPlan(
        wiring=wiring,
        liveness=Liveness(wiring, schedule),
        stage=Stage(range(len(wiring.segments))),
        parameters={},
        scalar=torch.zeros(()),
        precision=Precision(device, None),
        generators=SeededGenerators(device),
        first=0,
        microbatches=1,
        second_order=frozenset(),
    )


@pytest.mark.parametrize("order", list(permutations(("0L", "1B.0", "1B.1"))))
def test_gradients_are_summed_in_the_order_of_their_makers(order: tuple[str, ...]) -> None:
    wiring = wiring_of(THREE_MAKERS)
    schedule = Schedule.parse(f"0F 1F 2F 1L 2L 2B {' '.join(order)} 0B 0S 1S 2S")
    plan = plan_of(wiring, schedule)
    values = {"0L": BIG, "1B.0": -BIG, "1B.1": TINY}
    store: Store = {}
    for maker in order:
        part = GradientPart(plan, name_gradient(wiring, Action.parse(maker)))
        part.write(store, torch.tensor(values[maker]))
    assert [float(total) for total in store.values()] == [TINY]


def test_no_more_parts_wait_than_must() -> None:
    """The loss's part and that of flow 0 are one tensor before that of flow 1 has come."""
    wiring = wiring_of(THREE_MAKERS)
    plan = plan_of(wiring, Schedule.parse("0F 1F 2F 1L 2L 2B 0L 1B.0 1B.1 0B 0S 1S 2S"))
    store: Store = {}
    held = []
    for maker in ("0L", "1B.0", "1B.1"):
        part = GradientPart(plan, name_gradient(wiring, Action.parse(maker)))
        part.write(store, torch.tensor(1.0))
        held.append(len(store))
    assert held == [1, 1, 1]


def shuffle(wiring: Wiring, microbatches: int, seed: int) -> Schedule:
    """A schedule in which backwards come in any order that their dependencies allow, as on ranks.

    Each flow's micro-batches stay in order, and those of weights.
    """
    whole = (range(len(wiring.segments)),)
    waits = find_dependencies(wiring, microbatches, whole)
    for action in waits:
        if action.op in BACKWARDS and action.microbatch:
            waits[action].add(action._replace(microbatch=action.microbatch - 1))
    random, done, order = Random(seed), set[Action](), list[Action]()
    while len(order) < len(waits):
        ready = [
            action for action, before in waits.items() if action not in done and before <= done
        ]
        steps = [action for action in ready if action.op in (Op.S, Op.H)]
        order.append(random.choice(steps or ready))
        done.add(order[-1])
    return Schedule(order)


@pytest.mark.parametrize("weight_gradients", ["once", "each"])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_bits_do_not_depend_on_the_order_of_backwards(
    microbatches: int, weight_gradients: str
) -> None:
    """A segment that three flows train: each later flow is summed apart."""

    def train(seed: int | None) -> lp.Learner:
        torch.manual_seed(0)
        batches = batches_of((6,), 3)
        model = tanh_mlp().float()
        learner = lp.Learner(
            model,
            lp.interlocking(wise=3, combine="sum"),
            modules=5,
            microbatches=microbatches,
            weight_gradients=weight_gradients,
            optimizer=sgd,
            sample=(batches[0][0].float(), batches[0][1]),
        )
        if seed is not None:
            learner.engine = Engine(
                model,
                learner.wiring,
                shuffle(learner.wiring, microbatches, seed),
                learner.engine.optimizers,
                device=torch.device("cpu"),
            )
        for inputs, targets in batches:
            learner.step((inputs.float(), targets))
        return learner

    plain = train(None)
    for seed in range(5):
        assert_same_state(train(seed).network, plain.network)
