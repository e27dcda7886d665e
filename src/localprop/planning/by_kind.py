"""What the bytes at a way's peak are for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import storages_of
from localprop.planning.candidates import Candidates, Way


class BytesByKind(NamedTuple):
    """The bytes of a peak.

    Attributes:
        weights: parameters and buffers of the network, its heads and encoders.
        optimizer: the state of the optimizers.
        batch: inputs and targets.
        gradients: of parameters; None where no replay has told, and they are among activations.
        activations: what else a step needs, with workspaces of kernels.
    """

    weights: int
    optimizer: int
    batch: int
    gradients: int | None
    activations: int


def split_peak(candidates: Candidates, way: Way) -> BytesByKind:
    """Split the peak of a way."""
    network, wiring = candidates.network, candidates.wire(way.rule, way.modules)
    batch = _count_bytes(network.batch.tensors)
    modules = network.model, wiring.heads, wiring.encoders
    weights = _count_bytes(list_held_tensors(modules, [], network.batch)) - batch
    optimizer = max(0, way.resting_bytes - weights - batch)
    rest = way.peak_bytes - weights - batch - optimizer
    gradients = way.gradient_bytes
    return BytesByKind(weights, optimizer, batch, gradients, rest - (gradients or 0))


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    storages = {s._cdata: s.nbytes() for tensor in tensors for s in storages_of(tensor)}
    return sum(storages.values())
