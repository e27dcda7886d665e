"""What a plan holds for: another network, batch or optimizer takes other bytes."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from localprop.engine.user_optimizers import OptimizerFactory
from localprop.tasks.batch import Batch


class MadeFor(NamedTuple):
    """What a plan holds for.

    Attributes:
        model: the model's class, or the name that the command line knows it by.
        batch_size: samples.
        input_shape: the shape of one of them.
        optimizer: its class, in small letters.
        precision: as for `Learner`.
        classes: outputs of the network, where the command line was told.
        ranks: processes that share the network.
    """

    model: str
    batch_size: int
    input_shape: tuple[int, ...]
    optimizer: str
    precision: str
    classes: int | None = None
    ranks: int = 1

    @classmethod
    def of(
        cls, model: nn.Module, batch: Batch, optimizer: OptimizerFactory, precision: str
    ) -> MadeFor:
        """What a plan of these holds for."""
        shape, samples_dim = batch.inputs.shape, batch.dims[batch.input]
        made = optimizer([next(model.parameters())])
        return cls(
            type(model).__name__,
            batch.samples,
            tuple(size for dim, size in enumerate(shape) if dim != samples_dim),
            type(made).__name__.lower(),
            precision,
        )
