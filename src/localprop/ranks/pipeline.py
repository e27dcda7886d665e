"""A learner's place among ranks: which stage it runs, that all agree, and how what is scattered comes together again."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from localprop.errors import BadInput, StepFailed, check
from localprop.ranks.faults import claim, record_of, sentence
from localprop.ranks.lowering import ORDERS, in_flight, lower
from localprop.ranks.mesh import join, launched, mesh_of
from localprop.ranks.messages import HEADER, Layout, bytes_of
from localprop.ranks.placement import Placement, layer_costs, sight_problems
from localprop.ranks.transport import Transport, answering
from localprop.step.schedule import Op, Schedule
from localprop.step.stage import Stage
from localprop.step.wiring import Wiring

Key = tuple[str, str]  # "model", "heads" or "encoders", and a name in its state dict
_K = TypeVar("_K")
_V = TypeVar("_V")
_FORWARD = (Op.F, Op.SEND_F, Op.RECV_F, Op.SEND_C, Op.RECV_C)


@dataclass(frozen=True)
class Ranks:
    """How a learner uses the processes that it was launched with, by torchrun or otherwise.

    Attributes:
        replicas: how many pipelines there are; each works on its share of every batch, and gradients are summed.
        cuts: the modules at which the stages after the first begin; if not given, stages are balanced.
        seconds: what each module costs, as measured; if not given, all layers and all heads cost the same.
        order: "1f1b" (backwards as early as possible) or "gpipe" (all forwards first).
        timeout_s: seconds to wait for a message, after which the other rank is taken for lost.
        alone: use this process only, whatever it was launched with.

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
        check(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.replicas < 1:
            yield f"replicas={self.replicas} must be 1 or more."
        if self.order not in ORDERS:
            yield f"order={self.order!r} is unknown: choose {' or '.join(ORDERS)}."
        if not self.timeout_s > 0:
            yield f"timeout_s={self.timeout_s} must be positive."
        if self.cuts is not None and self.seconds is not None:
            yield "Give either cuts or seconds: stages are cut at the cuts, or balanced by seconds."

    def used(self) -> bool:
        """Whether there is more than this process to use."""
        return not self.alone and launched() > 1


_NUMBERS = itertools.count()  # of the pipelines of this process, which are made in one order on all ranks


class Pipeline:
    """The stage of a learner. All ranks must make theirs at the same time.

    Args:
        ranks: what the user wants.
        wiring: alike on all ranks.
        microbatches: of each replica.
        recomputed: segments that run again before their backward.
        device: of this rank.
        parts: "model", "heads" and "encoders", whose weights must be alike on all ranks.
        seed: likewise.

    Attributes:
        mesh: where this process stands.
        placement: the segments of each stage.
        programmes: the actions of each stage.
        transport: what carries tensors between the ranks.

    Raises:
        BadInput: ranks that cannot be divided, or are more than the modules; ranks whose plans, initial weights or seeds differ.
    """

    def __init__(
        self,
        ranks: Ranks,
        wiring: Wiring,
        microbatches: int,
        recomputed: frozenset[int],
        device: torch.device,
        *,
        parts: Mapping[str, nn.Module],
        seed: int,
    ) -> None:
        join(ranks.timeout_s)
        self._key = f"localprop failure {next(_NUMBERS)}"
        self.wiring = wiring
        self.device = device
        self.mesh = mesh_of(ranks.replicas, device)
        if ranks.cuts is not None:
            self.placement = Placement.at(wiring, ranks.cuts)
        else:
            self.placement = Placement.balanced(wiring, self.mesh.stages, ranks.seconds or layer_costs(wiring))
        if len(self.placement.stages) != self.mesh.stages:
            raise BadInput(f"cuts={ranks.cuts} make {len(self.placement.stages)} stages for {self.mesh.stages} ranks.")
        check(sight_problems(wiring, self.placement))
        self.programmes = lower(
            wiring, self.placement, microbatches, recomputed=recomputed, replicas=ranks.replicas, order=ranks.order
        )
        self._agree(parts, seed, microbatches)  # before any channel is made: other plans have other channels
        self.transport = Transport(
            self.mesh,
            self.programmes,
            allowed=in_flight(self.programmes),
            device=device,
            timeout_s=ranks.timeout_s,
        )

    @property
    def schedule(self) -> Schedule:
        """The actions of this rank."""
        return self.programmes[self.mesh.stage]

    @property
    def forwards(self) -> Schedule:
        """The actions of a prediction on this rank."""
        own = (a for a in self.schedule if a.op in _FORWARD and a.microbatch == 0 and not a.late)
        return Schedule(dict.fromkeys(own))  # once, also those that run again in training

    @property
    def stage(self) -> Stage:
        """The part of a step that runs here."""
        return Stage(self.placement.stages[self.mesh.stage], self.mesh.replica, self.mesh.replicas)

    # --- who owns what ----------------------------------------------------------------------------------------------

    def owner(self, part: str, name: str) -> int:
        """The stage that trains an entry of the state dict of "model", "heads" or "encoders"."""
        if part != "model":
            number = int(name.split(".")[0])
            module = self.wiring.table.at[number] if part == "heads" else number
            return self.placement.stage_of(self.wiring.segments_of(module)[-1 if part == "heads" else 0])
        return min(self._users(name), default=0)

    def _users(self, name: str) -> set[int]:
        """The stages whose layers use an entry of the model's state dict."""
        layers = self.wiring.layers
        used = {
            layer
            for layer in range(len(layers))
            if name in layers.parameters[layer]
            or any(name.startswith(f"{piece.name}.") for piece in layers.pieces[layer])
        }
        return {
            self.placement.stage_of(s) for s, segment in enumerate(self.wiring.segments) if used & set(segment.layers)
        }

    def holds(self, part: str, name: str) -> bool:
        """Whether this stage has an entry of a state dict, be it another's to train."""
        users = self._users(name) if part == "model" else {self.owner(part, name)}
        return not users or self.mesh.stage in users

    def own(self, part: str, module: nn.Module) -> dict[str, Any]:
        """The entries of a part's state dict that this stage trains."""
        return {name: value for name, value in module.state_dict().items() if self.owner(part, name) == self.mesh.stage}

    # --- agreement --------------------------------------------------------------------------------------------------

    def _agree(self, parts: Mapping[str, nn.Module], seed: int, microbatches: int) -> None:
        """Compare what all ranks are about to do."""
        wiring = self.wiring
        plan = repr((wiring.segments, wiring.flows, wiring.objectives, wiring.layers.shapes, microbatches))
        mine = {
            "plan (model, method, modules, micro-batches)": _digest(plan.encode()),
            "ranks=Ranks(...), or its cuts, seconds or order,": _digest(repr(self.programmes).encode()),
            "initial weights": _digest(*map(_bytes_of, parts.values())),
            "seed": str(seed),
            "PyTorch": torch.__version__,
        }
        all_of_them: list[Any] = [None] * dist.get_world_size()
        with answering(None):
            dist.all_gather_object(all_of_them, mine)
        check(_disagreements(all_of_them))

    # --- what is scattered ------------------------------------------------------------------------------------------

    def merged(self, part: Mapping[_K, _V]) -> dict[_K, _V] | None:
        """On rank 0 the union of the dictionaries that all stages of replica 0 give; None on other ranks."""
        parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        with answering(None):
            dist.gather_object(dict(part) if self.mesh.replica == 0 else {}, parts)
        return None if parts is None else {name: value for each in parts for name, value in each.items()}

    def total(self, sums: Mapping[int, float]) -> dict[int, float]:
        """For each module the sum over all ranks that have one."""
        parts: list[Any] = [None] * dist.get_world_size()
        with answering(None):
            dist.all_gather_object(parts, dict(sums))
        modules = sorted({module for each in parts for module in each})
        return {module: sum(each[module] for each in parts if module in each) for module in modules}

    def shared(self, output: Tensor | None) -> Tensor:
        """What the last stage has, on all ranks."""
        source = self.mesh.rank(self.mesh.stages - 1, replica=0)
        header = torch.zeros(HEADER, dtype=torch.int64)
        if dist.get_rank() == source:
            assert output is not None
            output = output.contiguous()
            header = Layout.of(output, samples=-1).encoded()
        with answering(source):
            dist.broadcast(header, source)
        if dist.get_rank() != source:
            output = Layout.decoded(header).empty(-1, self.device)
        assert output is not None
        with answering(source):
            dist.broadcast(output, source)
        return output

    # --- failures ---------------------------------------------------------------------------------------------------

    def failed(self, error: Exception) -> StepFailed:
        """The failure to report: the first one of all ranks."""
        first = self.record(error)
        own = first["seen_by"] == dist.get_rank()
        return StepFailed(f"{sentence(first)}\n{error}" if own else sentence(first), record=first)

    def record(self, error: Exception) -> dict[str, Any]:
        """Record a failure for all ranks; the record of the first one of all."""
        return claim(record_of(error, dist.get_rank(), self.wiring, self._key), self._key)


def fill(parts: Mapping[str, nn.Module], state: Mapping[Key, Tensor], device: torch.device) -> None:
    """Put tensors in the place of parameters and buffers, also of those that were released."""
    for part, module in parts.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if (part, name) in state:
                tensor.data = state[part, name].to(device)


def _digest(*parts: bytes) -> str:
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(part)
    return made.hexdigest()


def _bytes_of(module: nn.Module) -> bytes:
    made = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        made.update(name.encode())
        if isinstance(tensor, Tensor):
            made.update(bytes_of(tensor.cpu()))
    return made.digest()


def _disagreements(all_of_them: list[dict[str, str]]) -> Iterator[str]:
    for what, first in all_of_them[0].items():
        odd = [rank for rank, theirs in enumerate(all_of_them) if theirs[what] != first]
        if odd:
            yield (
                f"The {what} of rank(s) {', '.join(map(str, odd))} differ from rank 0's ({all_of_them[odd[0]][what]} against "
                f"{first}): run the same program on all ranks; seed torch alike (torch.manual_seed) before the model is made; "
                "measure seconds on one rank, and send them to all."
            )
