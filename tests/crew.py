"""Four processes that run functions as ranks: one launch for all tests."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZE = 4


class Crew:
    """A pool of ranks; :meth:`run` calls a function on the first few of them, in a process group of their own."""

    def __init__(self) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(SIZE)]
        self.pipes = [ours for ours, _ in pairs]
        self.members = [
            context.Process(target=_serve, args=(rank, self.store.port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for member in self.members:
            member.start()
        self.tasks = 0

    def run(self, ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What function(*args) returns on each rank; an exception is returned as itself."""
        self.tasks += 1
        for pipe in self.pipes[:ranks]:
            pipe.send((self.tasks, ranks, function, args))
        return [pipe.recv() for pipe in self.pipes[:ranks]]

    def close(self) -> None:
        for member in self.members:
            member.kill()


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    while True:
        task, ranks, function, args = pipe.recv()
        dist.init_process_group("gloo", store=dist.PrefixStore(str(task), store), rank=rank, world_size=ranks)
        try:
            answer: Any = function(*args)
        except Exception as error:
            traceback.print_exc()
            answer = error if len(getattr(error, "args", ())) <= 1 else RuntimeError(str(error))
        dist.destroy_process_group()
        pipe.send(answer)
