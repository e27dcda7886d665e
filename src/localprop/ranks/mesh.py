"""The position of a process among the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from localprop.errors import BadInput, RunFailed
from localprop.ranks import launch

SHORTEST_MEETING_S = 60.0


@dataclass(frozen=True)
class Mesh:
    """The ranks of a run, numbered replica by replica::

        stage        0   1   2
        replica 0    0   1   2
        replica 1    3   4   5

    Attributes:
        stage: the pipeline stage that this process runs.
        stages: the number of stages.
        replica: the replica of the pipeline that this process belongs to.
        replicas: the number of replicas.
        replica_group: the process group of this stage in all replicas; None with one replica.
    """

    stage: int
    stages: int
    replica: int = 0
    replicas: int = 1
    replica_group: Any = None

    def rank(self, stage: int, replica: int | None = None) -> int:
        """The rank that runs a stage, in this process's replica by default.

        Example:
            >>> Mesh(stage=1, stages=3, replica=1, replicas=2).rank(stage=2)
            5
        """
        return (self.replica if replica is None else replica) * self.stages + stage

    def iterate_handshakes(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs of ranks whose batches are compared: the first sends, the second checks.

        The pairs lie along each pipeline and between the first stages of neighbouring replicas, so
        that they connect all ranks.
        """
        for replica in range(self.replicas):
            for stage in range(self.stages - 1):
                yield self.rank(stage, replica), self.rank(stage + 1, replica)
        for replica in range(self.replicas - 1):
            yield self.rank(0, replica), self.rank(0, replica + 1)


def count_processes() -> int:
    """Count the processes of this launch, in torch's default process group if there is one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return launch.get_world_size()


def join_process_group(timeout_s: float) -> None:
    """Initialise torch's default process group, unless it exists.

    Args:
        timeout_s: how long to wait for a message. The ranks wait for each other's start at least
            `SHORTEST_MEETING_S`.

    Raises:
        RunFailed: some have not come.
    """
    if dist.is_initialized():
        return
    from torch._C._distributed_c10d import PrefixStore  # some builds of torch lack it
    from torch.distributed.rendezvous import rendezvous

    patience = timedelta(seconds=max(timeout_s, SHORTEST_MEETING_S))
    try:
        store, rank, world = next(rendezvous("env://", timeout=patience))
        # After a restart by torchrun the store still holds the addresses of dead processes. A
        # prefix for each attempt keeps them apart.
        store = PrefixStore(f"localprop attempt {launch.get_attempt()}", store)
        _meet(store, rank, world, patience)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunFailed(f"The ranks do not meet: {reason}") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def _meet(store: Any, rank: int, world: int, patience: timedelta) -> None:
    """Wait until all ranks have come: they import and build networks for different times."""
    keys = {other: f"rank {other} is here" for other in range(world)}
    store.set(keys[rank], "")
    try:
        store.wait([*keys.values()], patience)
    except RuntimeError:
        missing = [str(other) for other, key in keys.items() if not store.check([key])]
        message = f"rank(s) {', '.join(missing)} have not come in {patience.total_seconds():g} s"
        raise RuntimeError(message) from None


def make_mesh(replicas: int, device: torch.device) -> Mesh:
    """Arrange all ranks in replicas of equal size.

    Raises:
        BadInput: the number of ranks is not a multiple of `replicas`.
    """
    world = dist.get_world_size()
    if world % replicas:
        raise BadInput(
            f"replicas={replicas} of {world} ranks: the number of ranks must be a multiple."
        )
    if replicas == 1:
        return Mesh(dist.get_rank(), world)
    from torch.distributed.device_mesh import init_device_mesh

    stages = world // replicas
    mesh = init_device_mesh(device.type, (replicas, stages), mesh_dim_names=("replica", "stage"))
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    replica, stage = coordinate
    return Mesh(stage, stages, replica, replicas, mesh.get_group("replica"))
