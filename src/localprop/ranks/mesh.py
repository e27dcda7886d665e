"""Where a process stands among the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from localprop.errors import check
from localprop.ranks import launch


@dataclass(frozen=True)
class Mesh:
    """The ranks of a run, numbered replica by replica::

        stage        0   1   2
        replica 0    0   1   2
        replica 1    3   4   5

    Attributes:
        stage: the stage of the pipeline that this process runs.
        stages: how many there are.
        replica: the replica of the pipeline that this process is part of.
        replicas: how many there are.
        replica_group: the process group of this stage in all replicas, if there are several.
    """

    stage: int
    stages: int
    replica: int = 0
    replicas: int = 1
    replica_group: Any = None

    def rank(self, stage: int, replica: int | None = None) -> int:
        """The number of a rank, of this replica by default.

        Example:
            >>> Mesh(stage=1, stages=3, replica=1, replicas=2).rank(stage=2)
            5
        """
        return (self.replica if replica is None else replica) * self.stages + stage

    def greetings(self) -> Iterator[tuple[int, int]]:
        """The pairs of ranks of which the first tells the second its batch: down each pipe, and from head to head."""
        for replica in range(self.replicas):
            for stage in range(self.stages - 1):
                yield self.rank(stage, replica), self.rank(stage + 1, replica)
        for replica in range(self.replicas - 1):
            yield self.rank(0, replica), self.rank(0, replica + 1)


def launched() -> int:
    """How many processes this one was launched with, by torchrun or by whoever made torch's default process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return launch.world()


def join(timeout_s: float) -> None:
    """Make torch's default process group, unless there is one.

    After a restart by torchrun the store still holds addresses of processes that are gone, so each attempt has its own names.

    Args:
        timeout_s: how long to wait for the others.
    """
    if dist.is_initialized():
        return
    from torch._C._distributed_c10d import PrefixStore  # some builds of torch lack them
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=timeout_s)
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(f"localprop attempt {launch.attempt()}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def mesh_of(replicas: int, device: torch.device) -> Mesh:
    """The mesh of all ranks, in so many replicas.

    Raises:
        BadInput: the ranks cannot be divided so.
    """
    world = dist.get_world_size()
    check(
        [f"replicas={replicas} of {world} ranks: the number of ranks must be a multiple."] if world % replicas else []
    )
    if replicas == 1:
        return Mesh(dist.get_rank(), world)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (replicas, world // replicas), mesh_dim_names=("replica", "stage"))
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    return Mesh(coordinate[1], world // replicas, coordinate[0], replicas, mesh.get_group("replica"))
