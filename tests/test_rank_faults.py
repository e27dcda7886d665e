"""What ranks refuse, and what they say when one of them dies, hangs, raises or changes its mind. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
from crew import Blocks, Crew, attempt, forkserver, join, noise
from torch import Tensor, nn

import localprop as lp
from localprop.step.schedule import Action, Op

pytestmark = pytest.mark.xdist_group("ranks")
TIMEOUT_S = 3.0
Place = tuple[int, int, Op]  # rank, step, kind of action


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


# --- refusals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one rank does; ranks of one run may differ."""

    rule: lp.Rule = field(default_factory=lp.end_to_end)
    options: dict[str, Any] = field(default_factory=dict)
    weights: int = 0  # the seed of the weights
    noise: int = 0  # how much is added to the images of step 1
    sizes: tuple[int, ...] = (12, 12, 7)


def carry_out(*plans: Plan) -> str:
    """Train as planned for this rank, then predict; what is refused."""
    plan = plans[min(dist.get_rank(), len(plans) - 1)]
    torch.manual_seed(plan.weights)
    batches = noise(plan.sizes)
    options = {"modules": 4, "optimizer": sgd, "ranks": lp.Ranks(timeout_s=TIMEOUT_S)} | plan.options
    learner = lp.Learner(Blocks(), plan.rule, sample=batches[0], **options)
    for step, (images, labels) in enumerate(batches):
        learner.step((images + plan.noise if step == 1 else images, labels))
    learner.predict(batches[0][0])
    return "nothing was refused"


DIFFERENCES = {
    "weights": (Plan(weights=1), "The initial weights of rank(s) 1 differ from rank 0's"),
    "method": (Plan(lp.interlocking()), "The plan (model, method, modules, micro-batches) of rank(s) 1 differ"),
    "modules": (Plan(options={"modules": 5}), "The plan (model, method, modules, micro-batches) of rank(s) 1 differ"),
    "seed": (Plan(options={"seed": 7}), "The seed of rank(s) 1 differ from rank 0's (7 against 0)"),
}


@pytest.mark.parametrize(("plan", "message"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_plans_that_differ_are_refused_by_all(crew: Crew, plan: Plan, message: str) -> None:
    for answer in crew.run(3, carry_out, Plan(), plan, Plan()):
        assert isinstance(answer, lp.BadInput), answer
        assert message in str(answer)
        assert "run the same program on all ranks" in str(answer)


def test_other_numbers_of_micro_batches_are_refused_by_all(crew: Crew) -> None:
    """They ask for other channels, too, which nobody may wait for."""
    answers = crew.run(2, carry_out, Plan(), Plan(lp.greedy(), {"microbatches": 4}))
    assert all(isinstance(answer, lp.BadInput) for answer in answers), answers


LOADERS = {
    "other values": (Plan(noise=1), "In step 1 rank 0 has a batch of 12 ", "but rank 1 one of 12 "),
    "another size": (Plan(sizes=(12, 11, 7)), "In step 1 rank 0 has a batch of 12 ", "but rank 1 one of 11 "),
    "fewer steps": (Plan(sizes=(12, 12)), "Rank 0 is at step 2 of training", "but rank 1 at step 2 of prediction"),
    "more steps": (Plan(sizes=(12, 12, 7, 7)), "Rank 0 is at step 3 of prediction", "but rank 1 at step 3 of training"),
}


@pytest.mark.parametrize(("plan", "there", "here"), LOADERS.values(), ids=LOADERS)
def test_loaders_that_differ_are_refused(crew: Crew, plan: Plan, there: str, here: str) -> None:
    first, second = crew.run(2, carry_out, Plan(), plan)
    assert isinstance(second, lp.BadInput), second
    assert there in str(second)
    assert here in str(second)
    assert isinstance(first, lp.StepFailed), first  # who waits for the one that has refused learns of it
    assert first.record is not None
    assert first.record["rank"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": 2}, "3 ranks, but 2 module(s): each rank needs a module of its own"),
        ({"ranks": lp.Ranks(cuts=(1,))}, "cuts=(1,) make 2 stages for 3 ranks"),
        ({"ranks": lp.Ranks(cuts=(2, 9))}, "Stages begin at the modules (2, 9), which must increase and lie in 1..3"),
    ],
)
def test_stages_that_do_not_fit(crew: Crew, options: dict[str, Any], message: str) -> None:
    for answer in crew.run(3, carry_out, Plan(options=options)):
        assert isinstance(answer, lp.BadInput)
        assert message in str(answer)


class Sharded(nn.Parameter):
    """What a DTensor looks like from outside."""

    placements = ()


def use_in_one_process(what: str) -> str:
    """Things that ranks cannot do."""
    model, batch = Blocks(), noise()[0]
    if what == "sharded":
        model.head.weight = Sharded(model.head.weight.detach())
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1) if what == "optimizer" else sgd
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=optimizer, sample=batch)
    learner.backward(batch)
    return "nothing was refused"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("optimizer", "On several ranks each segment is stepped on its own: give a factory"),
        ("sharded", "Parameter 'head.weight' is sharded already"),
        ("backward", "learner.backward runs in one process: on several ranks call learner.step"),
    ],
)
def test_what_works_in_one_process_only(crew: Crew, what: str, message: str) -> None:
    for answer in crew.run(2, use_in_one_process, what):
        assert isinstance(answer, lp.BadInput), answer
        assert message in str(answer)


# --- failures -----------------------------------------------------------------------------------------------------------


@dataclass
class Ending:
    """How a rank ended: its answer, None if it was killed, and the seconds since the fault."""

    answer: Any
    seconds: float


def endings(ranks: int, scenario: Callable[..., Any], limit_s: float, stopped: int | None = None) -> list[Ending]:
    """Start ranks that run a scenario; each calls its `now` at the moment of the fault, if it has one.

    Args:
        ranks: how many.
        scenario: called with `now`.
        limit_s: seconds from the fault to the end of all.
        stopped: a rank that will hang, and is killed at last.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = forkserver()
    pipes = [context.Pipe() for _ in range(ranks)]
    members = [
        context.Process(target=_end, args=(rank, ranks, store.port, theirs, scenario), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for member in members:
        member.start()
    for _, theirs in pipes:
        theirs.close()
    found: list[Ending] = []
    try:
        store.wait(["fault"])
        fault = float(store.get("fault"))
        for rank, (ours, _) in enumerate(pipes):
            if rank == stopped:
                found.append(Ending(None, 0.0))
                continue
            assert ours.poll(max(0.0, fault + limit_s - time.time())), f"rank {rank} has not stopped in {limit_s} s"
            try:
                found.append(Ending(*ours.recv()))
            except EOFError:
                found.append(Ending(None, 0.0))
            else:
                found[-1].seconds -= fault
        return found
    finally:
        for member in members:
            member.kill()
            member.join()


def _end(rank: int, ranks: int, port: int, pipe: Connection, scenario: Callable[..., Any]) -> None:
    """Report, and end as a program with an uncaught exception does: at once, connections and all."""
    join(rank, ranks, port, "run")
    answer = attempt(scenario, lambda: _tell(port))
    pipe.send((answer, time.time()))
    pipe.close()
    os._exit(1)


def _tell(port: int) -> None:
    dist.TCPStore("127.0.0.1", port, is_master=False).set("fault", str(time.time()))


def signalled(rule: lp.Rule, place: Place, kind: int, now: Callable[[], None], *, replicas: int = 1) -> str:
    """Train; at an action of a step one rank gets a signal."""
    torch.manual_seed(0)
    batches, step = noise((12,) * 6), 0
    ranks = lp.Ranks(replicas, timeout_s=TIMEOUT_S if kind == signal.SIGSTOP else 60)
    learner = lp.Learner(Blocks(), rule, modules=4, optimizer=sgd, sample=batches[0], ranks=ranks)

    def observe(action: Action) -> None:
        if (dist.get_rank(), step, action.op) == place:
            now()
            os.kill(os.getpid(), kind)

    for step, batch in enumerate(batches):  # noqa: B007 - observe reads it
        learner.step(batch, observe=observe)
    learner.flush()
    return "no failure"


@pytest.mark.parametrize(
    ("rule", "place", "ranks"),
    [
        (lp.end_to_end(), (1, 2, Op.F), 3),
        (lp.end_to_end(), (2, 2, Op.B), 3),
        (lp.backlink(), (1, 2, Op.L), 3),
        (lp.interlocking(), (0, 1, Op.F), 2),
    ],
    ids=["end_to_end-middle", "end_to_end-last", "backlink-middle", "interlocking-first"],
)
def test_a_rank_is_killed(rule: lp.Rule, place: Place, ranks: int) -> None:
    """The others stop within 5 s, and say the same: which rank, seen at which action, on which layer."""
    found = endings(ranks, partial(signalled, rule, place, signal.SIGKILL), limit_s=8)
    assert found[place[0]].answer is None
    others = [ending for rank, ending in enumerate(found) if rank != place[0]]
    assert max(ending.seconds for ending in others) < 5
    records = [_record(ending) for ending in others]
    assert all(record == records[0] for record in records)
    assert records[0]["rank"] == place[0]
    assert records[0]["seen_by"] != place[0]
    assert records[0]["action"]
    assert records[0]["layer"]


@pytest.mark.parametrize("rule", [lp.end_to_end(), lp.backlink()], ids=["end_to_end", "backlink"])
def test_a_rank_hangs(rule: lp.Rule) -> None:
    """The others stop after the time-out, and blame the one that hangs."""
    scenario = partial(signalled, rule, (2, 2, Op.L), signal.SIGSTOP)
    found = endings(3, scenario, limit_s=TIMEOUT_S + 8, stopped=2)
    for ending in found[:2]:
        assert ending.seconds < TIMEOUT_S + 7
        assert _record(ending)["rank"] == 2


def _record(ending: Ending) -> dict[str, Any]:
    assert isinstance(ending.answer, lp.StepFailed), ending.answer
    assert ending.answer.record is not None
    return ending.answer.record


class Faulty(Blocks):
    """Once it is broken, block 2 does something to its output."""

    def __init__(self, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.broken = False
        self.blocks[2].register_forward_hook(lambda block, args, output: fault(output) if self.broken else output)


def raising(output: Tensor) -> Tensor:
    raise ValueError("no more memory")


def halved(output: Tensor) -> Tensor:
    return output[:, :4].contiguous()


def faulty(fault: Callable[[Tensor], Tensor], now: Callable[[], None]) -> str:
    """Train a model that breaks on rank 1 of 3, where block 2 ends the stage."""
    torch.manual_seed(0)
    model, batches = Faulty(fault), noise((12,) * 6)
    ranks = lp.Ranks(timeout_s=60, cuts=(1, 2))
    learner = lp.Learner(model, lp.end_to_end(), modules=4, optimizer=sgd, sample=batches[0], ranks=ranks)
    for step, batch in enumerate(batches):
        if step == 3 and dist.get_rank() == 1:
            model.broken = True
            now()
        learner.step(batch)
    return "no failure"


@pytest.mark.parametrize(
    ("fault", "action", "error"),
    [
        (raising, "1F", "ValueError: no more memory"),
        (halved, "1SEND_F>2", "RuntimeError: the tensor to send is Layout"),
    ],
)
def test_a_layer_fails_on_one_rank(fault: Callable[[Tensor], Tensor], action: str, error: str) -> None:
    """All ranks report the same: the rank, its action, its layers, and what it raised."""
    for ending in endings(3, partial(faulty, fault), limit_s=8):
        record = _record(ending)
        assert ending.seconds < 5
        assert (record["rank"], record["seen_by"], record["action"]) == (1, 1, action)
        assert record["layer"] == "blocks.1 .. blocks.2"
        assert record["error"].startswith(error)
        assert f"Rank 1 failed (at action {action}, on " in str(ending.answer)
