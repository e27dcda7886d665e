"""Ranks as processes of their own, which tests may stop or kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from signal import SIGSTOP
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

import localprop as lp
from localprop.schedule.schedule import Action, Op
from tests.helpers.ranks import Blocks, forkserver, join_ranks, noise, return_or_catch, sgd

TIMEOUT_S = 3.0  # of messages to a rank that hangs

MarkFault = Callable[[], None]  # tells the test that the fault happens now


class FaultPoint(NamedTuple):
    """Where a rank fails: before its first action of a kind in a step."""

    rank: int
    step: int
    op: Op


@dataclass
class Ending:
    """How a rank ended.

    Attributes:
        answer: what its scenario returned or raised; None if it was killed.
        seconds: since the fault.
    """

    answer: Any
    seconds: float


def run_scenario(
    ranks: int, scenario: Callable[[MarkFault], object], limit_s: float, stopped: int | None = None
) -> list[Ending]:
    """Run a scenario on ranks, and wait until all have ended.

    Args:
        ranks: how many.
        scenario: runs on each rank; the one with the fault calls its argument at that moment.
        limit_s: seconds from the fault to the end of all ranks.
        stopped: a rank that will hang; it is killed at the end.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = forkserver()
    pipes = [context.Pipe() for _ in range(ranks)]
    processes = [
        context.Process(
            target=_run_and_report, args=(rank, ranks, store.port, theirs, scenario), daemon=True
        )
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, theirs in pipes:
        theirs.close()
    try:
        store.wait(["fault"])
        fault = float(store.get("fault"))
        return [
            Ending(None, 0.0) if rank == stopped else _read_ending(rank, ours, fault, limit_s)
            for rank, (ours, _) in enumerate(pipes)
        ]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _read_ending(rank: int, pipe: Connection, fault: float, limit_s: float) -> Ending:
    in_time = pipe.poll(max(0.0, fault + limit_s - time.time()))
    assert in_time, f"rank {rank} has not stopped in {limit_s} s"
    try:
        answer, end = pipe.recv()
    except EOFError:  # it was killed
        return Ending(None, 0.0)
    return Ending(answer, end - fault)


def _run_and_report(
    rank: int,
    ranks: int,
    port: int,
    pipe: Connection,
    scenario: Callable[[MarkFault], object],
) -> None:
    """Run a scenario and report, then end as a program with an uncaught exception does.

    It ends at once, without closing its connections in good order.
    """
    join_ranks(rank, ranks, port, "run")
    answer = return_or_catch(scenario, lambda: _mark_fault(port))
    pipe.send((answer, time.time()))
    pipe.close()
    os._exit(1)


def _mark_fault(port: int) -> None:
    TCPStore("127.0.0.1", port, is_master=False).set("fault", str(time.time()))


def train_with_signal(
    rule: lp.Rule, point: FaultPoint, signal: int, mark_fault: MarkFault, *, replicas: int = 1
) -> str:
    """Train until one rank gets a signal."""
    torch.manual_seed(0)
    batches, step = noise((12,) * 6), 0
    ranks = lp.Ranks(replicas, timeout_s=TIMEOUT_S if signal == SIGSTOP else 60)
    learner = lp.Learner(Blocks(), rule, modules=4, optimizer=sgd, sample=batches[0], ranks=ranks)

    def observe(action: Action) -> None:
        if (dist.get_rank(), step, action.op) == point:
            mark_fault()
            os.kill(os.getpid(), signal)

    for step, batch in enumerate(batches):  # noqa: B007 - observe reads it
        learner.step(batch, observe=observe)
    learner.flush()
    return "no failure"
