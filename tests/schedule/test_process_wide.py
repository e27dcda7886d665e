"""Learners in threads, and in forked and spawned processes: the same bits, or a refusal."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import torch
from torch import nn

import localprop as lp
from tests.helpers.reference import sgd

BATCH = (torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4))


def make_learner() -> lp.Learner:
    """Dropout draws from torch's generator, of which a process has one."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5)) for _ in range(4)]
    model = nn.Sequential(*layers, nn.Linear(6, 4))
    return lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=BATCH)


def train(learner: lp.Learner, steps: int = 30) -> list[list[float]]:
    return [[float(loss) for loss in learner.step(BATCH)] for _ in range(steps)]


def test_learners_in_threads_train_as_alone() -> None:
    expected = train(make_learner())
    learners = [make_learner() for _ in range(4)]
    with ThreadPoolExecutor(len(learners)) as pool:
        found = list(pool.map(train, learners))
    assert found == [expected] * len(learners)


def answer(pipe: Connection, learner: lp.Learner | None) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send(train(learner or make_learner(), steps=2))
    except lp.BadInput as error:
        pipe.send(str(error))


def ask(method: str, learner: lp.Learner | None) -> object:
    """What a process answers, which starts in this way."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(there, learner))  # type: ignore[attr-defined]
    process.start()
    assert here.poll(300)
    received: object = here.recv()
    process.join()
    return received


def test_a_spawned_process_trains_as_this_one() -> None:
    assert ask("spawn", None) == train(make_learner(), steps=2)


def test_a_fork_of_a_process_that_has_trained_is_refused() -> None:
    train(make_learner(), steps=1)
    assert "was forked from one that has trained" in str(ask("fork", make_learner()))
