"""Accelerate and Fabric: end_to_end() through the host's backward is the plain loop to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import localprop as lp

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES, PARTS, CLIP = 5, 3, 0.5
PRECISIONS = ("fp32", "bf16", "fp16 with a scaler")
Batch = tuple[Tensor, Tensor]


class Run:
    """A loop of two epochs, whose last step of an epoch has two batches: without us if no rule."""

    def __init__(self, rule: lp.Rule | None) -> None:
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
        self.model: Any = nn.Sequential(*layers, nn.Linear(6, 3))
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(4 * BATCHES - 3, 6, generator=draw)
        labels = torch.randint(3, (len(inputs),), generator=draw)
        self.loader: Any = DataLoader(TensorDataset(inputs, labels), 4)
        self.learner = None
        if rule is not None:
            self.learner = lp.Learner(
                self.model,
                rule,
                modules=2,
                optimizer=self.optimizer,
                sample=next(iter(self.loader)),
            )
        self.trained = (
            self.model if self.learner is None else nn.ParameterList(self.learner.parameters())
        )
        self.average = AveragedModel(self.model)
        self.raw = self.model
        self.scheduler: Any = StepLR(self.optimizer, 1, 0.9)

    def differentiate(self, batch: Batch, backward: Callable[[Tensor], object]) -> None:
        """What a learner changes in the user's loop."""
        if self.learner is not None:
            self.learner.backward(batch, backward=backward)
            return
        backward(functional.cross_entropy(self.model(batch[0]), batch[1]))

    def state(self) -> dict[str, Tensor]:
        ema = {f"ema.{name}": value for name, value in self.average.state_dict().items()}
        heads = {} if self.learner is None else self.learner.heads.state_dict()
        state = ema | dict(self.raw.state_dict()) | dict(heads)
        return {name: value.clone() for name, value in state.items()}


def accelerate_run(
    rule: lp.Rule | None, precision: str, folder: Path, stop: int = 99, start: int = 0
) -> Run:
    """Run the steps from `start` to `stop`, both saved and loaded by Accelerate."""
    AcceleratorState._reset_state(True)
    mixed = "bf16" if precision == "bf16" else "no"
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PARTS, mixed_precision=mixed)
    if precision.startswith("fp16"):  # Accelerate itself has a scaler on accelerators alone
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    run = Run(rule)
    prepared = run.model, run.optimizer, run.loader, run.scheduler
    run.model, run.optimizer, run.loader, run.scheduler = accelerator.prepare(*prepared)
    if run.learner is not None:
        accelerator.register_for_checkpointing(run.learner)
    if start:
        accelerator.load_state(str(folder))
    for number in range(start, min(stop, 2 * BATCHES)):
        batch = [*run.loader][number % BATCHES]
        last = (number + 1) % BATCHES == 0
        accelerator.gradient_state._set_sync_gradients(last or (number % BATCHES + 1) % PARTS == 0)
        with accelerator.autocast():
            run.differentiate(tuple(batch), accelerator.backward)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(run.trained.parameters(), CLIP)
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad()
        if accelerator.sync_gradients:
            run.average.update_parameters(run.raw)
    if stop < 99:
        accelerator.save_state(str(folder))
    return run
