"""What a learner trains: a model, its heads and encoders, and their optimizers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from localprop.engine.engine import Engine
from localprop.engine.optimizer_groups import OptimizerGroup, list_groups


class Trained:
    """All that is trained, by name.

    Attributes:
        model: the user's.
        heads: the auxiliary networks with their losses.
        encoders: of contexts.
        engine: runs the steps.
    """

    model: nn.Module
    heads: nn.ModuleDict
    encoders: nn.ModuleDict
    engine: Engine
    _shared: Optimizer | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimizers, in the order of the forward; for schedulers and inspection."""
        return self.engine.optimizers.all() if self._shared is None else [self._shared]

    @property
    def scaler(self) -> GradScaler:
        """Scales the losses of precision="fp16"; disabled with others."""
        return self.engine.optimizers.scaler.scaler

    def optimizer_groups(self) -> list[OptimizerGroup]:
        """Which parameter sits in which group of which optimizer, with which options."""
        return list(list_groups(self.optimizers, self.named_parameters()))

    def trained_modules(self) -> dict[str, nn.Module]:
        """All that is trained: "model", "heads" and "encoders"."""
        return {"model": self.model, "heads": self.heads, "encoders": self.encoders}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters by their own names, then those of `heads.` and `encoders.`."""
        for kind, module in self.trained_modules().items():
            yield from module.named_parameters("" if kind == "model" else kind)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that are trained: of the model, the heads and the encoders."""
        return (parameter for _, parameter in self.named_parameters())
