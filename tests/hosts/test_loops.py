"""Loops that users write: end_to_end() through the host's backward is the host's own loop to the
bit, and a resumed run is the undisturbed one to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
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
        self.raw: Any = self.model
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


def plain_run(
    rule: lp.Rule | None, precision: str, folder: Path, first: int = 0, end: int = 2 * BATCHES
) -> Run:
    """Run the batches from `first` to `end` with torch alone; saves all that has a state there."""
    run = Run(rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision.startswith("fp16"))
    parts = [run.raw, run.optimizer, run.scheduler, run.average, scaler]
    if run.learner is not None:
        parts[:2] = [run.learner]  # it has the state of the optimizer, too
    if first:
        for part, state in zip(parts, torch.load(folder / "state.pt"), strict=True):
            part.load_state_dict(state)
    dtype = torch.float16 if precision.startswith("fp16") else torch.bfloat16
    for epoch in range(2):
        for number, batch in enumerate(run.loader, start=epoch * BATCHES):
            if not first <= number < end:
                continue
            with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
                run.differentiate(
                    tuple(batch), lambda loss: torch.autograd.backward(scaler.scale(loss) / PARTS)
                )
            place = number % BATCHES + 1
            if place % PARTS and place < BATCHES:
                continue
            scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.trained.parameters(), CLIP)
            scaler.step(run.optimizer)
            scaler.update()
            run.scheduler.step()
            run.optimizer.zero_grad()
            run.average.update_parameters(run.raw)
    folder.mkdir(exist_ok=True)
    torch.save([part.state_dict() for part in parts], folder / "state.pt")
    return run


def accelerate_run(
    rule: lp.Rule | None, precision: str, folder: Path, first: int = 0, end: int = 2 * BATCHES
) -> Run:
    """Run the batches from `first` to `end`; Accelerate saves there, and loads before."""
    AcceleratorState._reset_state(True)
    mixed = "bf16" if precision == "bf16" else "no"
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PARTS, mixed_precision=mixed)
    if precision.startswith("fp16"):  # Accelerate itself has one on accelerators alone
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    run = Run(rule)
    prepared = run.model, run.optimizer, run.loader, run.scheduler
    run.model, run.optimizer, run.loader, run.scheduler = accelerator.prepare(*prepared)
    accelerator.register_for_checkpointing(run.average)
    if run.learner is not None:
        accelerator.register_for_checkpointing(run.learner)
    if first:
        accelerator.load_state(str(folder))
    for epoch in range(2):
        for number, batch in enumerate(run.loader, start=epoch * BATCHES):
            if not first <= number < end:
                continue
            with accelerator.accumulate(run.model), accelerator.autocast():
                run.differentiate(tuple(batch), accelerator.backward)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(run.trained.parameters(), CLIP)
                run.optimizer.step()
                run.scheduler.step()
                run.optimizer.zero_grad()
            if accelerator.sync_gradients:
                run.average.update_parameters(run.raw)
    accelerator.save_state(str(folder))
    return run


def fabric_run(
    rule: lp.Rule | None, precision: str, folder: Path, first: int = 0, end: int = 2 * BATCHES
) -> Run:
    """Run the batches from `first` to `end`; Fabric saves there, and loads before."""
    options: dict[str, Any] = {"precision": "bf16-mixed" if precision == "bf16" else "32-true"}
    if precision.startswith("fp16"):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    run = Run(rule)
    run.model, run.optimizer = fabric.setup(run.model, run.optimizer)
    run.loader = fabric.setup_dataloaders(run.loader)
    state = {
        "model": run.model,
        "optimizer": run.optimizer,
        "scheduler": run.scheduler,
        "average": run.average,
    }
    if run.learner is not None:
        state["learner"] = run.learner
    if first:
        fabric.load(folder / "state.ckpt", state)
    for epoch in range(2):
        for number, batch in enumerate(run.loader, start=epoch * BATCHES):
            if not first <= number < end:
                continue
            with fabric.autocast():
                run.differentiate(tuple(batch), lambda loss: fabric.backward(loss / PARTS))
            place = number % BATCHES + 1
            if place % PARTS and place < BATCHES:
                continue
            fabric.clip_gradients(run.model, run.optimizer, max_norm=CLIP)
            run.optimizer.step()
            run.scheduler.step()
            run.optimizer.zero_grad()
            run.average.update_parameters(run.raw)
    fabric.save(folder / "state.ckpt", state)
    return run


HOSTS = {"plain": plain_run, "accelerate": accelerate_run, "fabric": fabric_run}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not left[name].equal(right[name])] == []


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_end_to_end_is_the_hosts_own_loop(host: str, precision: str, tmp_path: Path) -> None:
    """With accumulation, a last step of two batches, clipping, a scheduler and an average."""
    plain, ours = (HOSTS[host](rule, precision, tmp_path) for rule in (None, lp.end_to_end()))
    assert_equal(plain.state(), ours.state())
    assert not plain.raw[0][0].weight.equal(Run(None).raw[0][0].weight)
    if precision == "bf16":
        assert not plain.raw[3].weight.equal(HOSTS[host](None, "fp32", tmp_path).raw[3].weight)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_equals_the_undisturbed_one(
    host: str, precision: str, tmp_path: Path
) -> None:
    """In the middle of an epoch, with heads."""
    rule = lp.backlink(layers=1)
    whole = HOSTS[host](rule, precision, tmp_path / "whole")
    HOSTS[host](rule, precision, tmp_path / "half", end=PARTS)
    again = HOSTS[host](rule, precision, tmp_path / "half", first=PARTS)
    assert_equal(whole.state(), again.state())
    assert whole.learner is not None
    assert again.learner is not None
    assert whole.learner.steps == again.learner.steps == 2 * BATCHES


def test_several_processes_are_refused_at_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` and Fabric start them; nothing waits for the other process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(lp.BadInput, match=r"On several ranks .* give a factory"):
        Run(lp.greedy())
