"""The pipeline that a learner trains in: its stage on this rank, and what all ranks do together."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.ranks.agreement import (
    Fact,
    find_disagreements,
    gather_from_all,
    list_facts_of_plan,
)
from localprop.ranks.connections import connect_ranks
from localprop.ranks.faults import FailureReports
from localprop.ranks.heartbeat import Heartbeat, find_timeout_problems
from localprop.ranks.layout import HEADER_SIZE, Layout
from localprop.ranks.mesh import count_processes, join_process_group, make_mesh
from localprop.ranks.transport import Transport, waiting_for
from localprop.schedule.lowering import ORDERS, find_max_in_flight, lower
from localprop.schedule.placement import Placement, estimate_module_costs, find_placement_problems
from localprop.schedule.schedule import Op, Schedule
from localprop.schedule.stage import Stage
from localprop.schedule.wiring import Wiring

__all__ = ["Ranks"]

EntryKey = tuple[str, str]  # "model", "heads" or "encoders", and a name in its state dict
_K = TypeVar("_K")
_V = TypeVar("_V")
_FORWARD_OPS = (Op.F, Op.SEND_F, Op.RECV_F, Op.SEND_C, Op.RECV_C)


@check_arguments
@dataclass(frozen=True)
class Ranks:
    """How to distribute training over the launched processes, started by torchrun or otherwise.

    Attributes:
        replicas: the number of pipelines. Each works on its share of every batch, and their
            gradients are summed.
        cuts: the modules at which the stages after the first begin. By default stages are balanced.
        seconds: the measured cost of each module. By default all layers and all heads cost the
            same.
        order: "1f1b" (backwards as early as possible) or "gpipe" (all forwards first).
        timeout_s: seconds to wait for a message, or for a sign of life, after which the other rank
            counts as lost; from 1 to 1e8.
        alone: use this process only, even if others were launched with it.

    Raises:
        BadInput: values out of range.

    Example:
        >>> Ranks(replicas=2, cuts=(8,))
        Ranks(replicas=2, cuts=(8,), seconds=None, order='1f1b', timeout_s=300.0, alone=False)
    """

    replicas: int = 1
    cuts: tuple[int, ...] | None = None
    seconds: tuple[float, ...] | None = None
    order: str = "1f1b"
    timeout_s: float = 300.0
    alone: bool = False

    def __post_init__(self) -> None:
        check(self._find_problems())

    def _find_problems(self) -> Iterator[str]:
        if self.replicas < 1:
            yield f"replicas={self.replicas} must be 1 or more."
        if self.order not in ORDERS:
            yield f"order={self.order!r} is unknown: choose {' or '.join(ORDERS)}."
        yield from find_timeout_problems(self.timeout_s)
        if self.cuts is not None and self.seconds is not None:
            yield (
                "Give either cuts or seconds: cuts= fixes where stages begin, seconds= balances "
                "them."
            )

    def is_used(self) -> bool:
        """Return whether training runs on more than this process."""
        return not self.alone and count_processes() > 1


class Pipeline:
    """The pipeline of a learner, as this rank sees it. All ranks must create theirs together.

    Args:
        ranks: the user's options.
        wiring: the same on all ranks.
        microbatches: micro-batches of each replica.
        device: the device of this rank.
        trained_modules: "model", "heads" and "encoders", with the same weights on all ranks.
        facts: what else must be equal on all ranks.
        problems: what this rank has found wrong before; all ranks refuse it.

    Attributes:
        mesh: the position of this process among the ranks.
        placement: the segments of each stage.
        rank_schedules: the actions of each stage.
        transport: sends tensors between the ranks.
        heartbeat: watches the other ranks.
        reports: reports failures to them.

    Raises:
        BadInput: the ranks do not divide into replicas, there are more stages than modules, or the
            plans, initial weights or other facts of the ranks differ.
        StepFailed: another rank is lost.
    """

    def __init__(
        self,
        ranks: Ranks,
        wiring: Wiring,
        microbatches: int,
        device: torch.device,
        *,
        trained_modules: Mapping[str, nn.Module],
        facts: Iterable[Fact],
        problems: Iterable[str],
    ) -> None:
        join_process_group(ranks.timeout_s)
        self.wiring = wiring
        self.device = device
        rank = dist.get_rank()
        # As early as possible: with a stopped rank, what follows would wait for ever.
        self.heartbeat = Heartbeat(connect_ranks(rank, gather_from_all), ranks.timeout_s)
        weakref.finalize(self, self.heartbeat.close).atexit = False
        self.reports = FailureReports(rank, wiring, self.heartbeat)
        with self.reports.reporting():
            self.check_on_all(problems)
            self.mesh = make_mesh(ranks.replicas, device)
            self.placement = self._place(ranks)
            self.rank_schedules = lower(
                wiring,
                self.placement,
                microbatches,
                replicas=ranks.replicas,
                order=ranks.order,
            )
            # This comes before any channel is made: other plans have other channels, and a rank
            # that asks for a channel alone waits for ever.
            plan = wiring, self.rank_schedules, microbatches, trained_modules
            own_facts = [*list_facts_of_plan(*plan), *facts]
            check(find_disagreements(gather_from_all(own_facts, self.heartbeat)))
            self.transport = Transport(
                self.mesh,
                self.rank_schedules,
                max_in_flight=find_max_in_flight(self.rank_schedules),
                device=device,
                timeout_s=ranks.timeout_s,
                heartbeat=self.heartbeat,
            )

    def _place(self, ranks: Ranks) -> Placement:
        """Place the modules on the stages."""
        wiring, stages = self.wiring, self.mesh.stages
        if ranks.cuts is not None:
            placement = Placement.at(wiring, ranks.cuts)
        else:
            costs = ranks.seconds or estimate_module_costs(wiring)
            placement = Placement.balanced(wiring, stages, costs)
        count = len(placement.stages)
        if count != stages:
            raise BadInput(f"cuts={ranks.cuts} make {count} stages for {stages} ranks.")
        check(find_placement_problems(wiring, placement))
        return placement

    @property
    def schedule(self) -> Schedule:
        """The actions of a training step on this rank."""
        return self.rank_schedules[self.mesh.stage]

    @property
    def prediction_schedule(self) -> Schedule:
        """The actions of a prediction on this rank."""
        forwards = (
            action
            for action in self.schedule
            if action.op in _FORWARD_OPS and action.microbatch == 0 and not action.deferred
        )
        return Schedule(forwards)

    @property
    def stage(self) -> Stage:
        """The segments that this rank runs, and its replica."""
        return Stage(self.placement.stages[self.mesh.stage], self.mesh.replica, self.mesh.replicas)

    # --- ownership -------------------------------------------------------------------------------

    def owner(self, key: str, name: str) -> int:
        """The stage that trains an entry of the state dict of "model", "heads" or "encoders"."""
        if key == "model":
            return min(self._find_users(name), default=0)
        number = int(name.split(".")[0])
        if key == "heads":  # numbered by loss, at the last segment of its module
            module = self.wiring.table.module_of_loss[number]
            return self.placement.stage_of(self.wiring.segments_of(module)[-1])
        return self.placement.stage_of(self.wiring.segments_of(number)[0])

    def _find_users(self, name: str) -> set[int]:
        """Find the stages whose layers use an entry of the model's state dict."""
        layers = self.wiring.layers
        used = {
            layer
            for layer in range(len(layers))
            if name in layers.parameters[layer]
            or any(name.startswith(f"{submodule.name}.") for submodule in layers.submodules[layer])
        }
        return {
            self.placement.stage_of(s)
            for s, segment in enumerate(self.wiring.segments)
            if used & set(segment.layers)
        }

    def holds(self, key: str, name: str) -> bool:
        """Return whether this stage has an entry of a state dict, even if another one trains it."""
        users = self._find_users(name) if key == "model" else {self.owner(key, name)}
        return not users or self.mesh.stage in users

    def select_owned_entries(self, key: str, module: nn.Module) -> dict[str, Any]:
        """Select the entries of a module's state dict that this stage trains.

        Args:
            key: "model", "heads" or "encoders".
            module: the module of that key.
        """
        return {
            name: value
            for name, value in module.state_dict().items()
            if self.owner(key, name) == self.mesh.stage
        }

    def check_on_all(self, problems: Iterable[str]) -> None:
        """Raise `BadInput` on all ranks if any of them has found a problem.

        A rank that refused alone would leave the others waiting for its messages.
        """
        check(dict.fromkeys(itertools.chain(*gather_from_all([*problems], self.heartbeat))))

    # --- exchange --------------------------------------------------------------------------------

    def merge(self, entries: Mapping[_K, _V]) -> dict[_K, _V] | None:
        """Merge the dictionaries of all stages of replica 0 on rank 0; None on other ranks."""
        on_rank_0 = dist.get_rank() == 0
        gathered: list[Any] | None = [None] * dist.get_world_size() if on_rank_0 else None
        with waiting_for(None, self.heartbeat):
            dist.gather_object(dict(entries) if self.mesh.replica == 0 else {}, gathered)
        if gathered is None:
            return None
        return {name: value for each in gathered for name, value in each.items()}

    def total(self, sums: Mapping[int, float]) -> dict[int, float]:
        """Sum the values of each module over all ranks that have one."""
        gathered = gather_from_all(dict(sums), self.heartbeat)
        modules = sorted({module for each in gathered for module in each})
        return {
            module: sum(each[module] for each in gathered if module in each) for module in modules
        }

    def broadcast_output(self, output: Tensor | None) -> Tensor:
        """Send the last stage's output to all ranks.

        Args:
            output: the network's output on the last stage of replica 0; ignored on other ranks.
        """
        source = self.mesh.rank(self.mesh.stages - 1, replica=0)
        header = torch.zeros(HEADER_SIZE, dtype=torch.int64)
        if dist.get_rank() == source:
            assert output is not None
            output = output.contiguous()
            # No size equals -1, so the header holds them all, that of the batch included.
            header = Layout.of(output, samples=-1).encode()
        with waiting_for(source, self.heartbeat):
            dist.broadcast(header, source)
        if dist.get_rank() != source:
            output = Layout.decode(header).allocate(-1, self.device)
        assert output is not None
        with waiting_for(source, self.heartbeat):
            dist.broadcast(output, source)
        return output

    def gather_tensors(
        self, modules: Mapping[str, nn.Module]
    ) -> dict[tuple[str, str], Tensor] | None:
        """Collect the trained tensors of all stages on rank 0, on the CPU; None on other ranks.

        Args:
            modules: by "model", "heads" or "encoders".
        """
        return self.merge(
            {
                (key, name): value.cpu()
                for key, module in modules.items()
                for name, value in self.select_owned_entries(key, module).items()
                if isinstance(value, Tensor)
            }
        )


def load_tensors(
    modules: Mapping[str, nn.Module], tensors: Mapping[EntryKey, Tensor], device: torch.device
) -> None:
    """Replace the values of parameters and buffers, including parameters that were released.

    `load_state_dict` cannot do it: a released parameter has no memory to copy into.

    Args:
        modules: by the first half of a key.
        tensors: the new values; others stay.
        device: where the new values go.
    """
    for key, module in modules.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if (key, name) in tensors:
                tensor.data = tensors[key, name].to(device)
