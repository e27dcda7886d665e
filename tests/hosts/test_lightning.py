"""Lightning: end_to_end() is its automatic optimisation to the bit, and local runs resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import localprop as lp
from localprop.hosts.lightning import LocalLearning

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES, PARTS, CLIP = 5, 3, 0.5


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def make_loader() -> DataLoader[Any]:
    """Five batches, in the order of every epoch; the last has one sample."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * BATCHES - 3, 6, generator=draw)
    return DataLoader(TensorDataset(inputs, torch.randint(3, (len(inputs),), generator=draw)), 4)


def configure(module: lightning.LightningModule) -> Any:
    """Momentum, a scheduler of steps and one of epochs."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    by_step = {"scheduler": StepLR(optimizer, 1, 0.9), "interval": "step", "frequency": 3}
    return [optimizer], [by_step, StepLR(optimizer, 1, 0.5)]


class Host(lightning.LightningModule):
    """What a user has."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return configure(self)


class Ours(LocalLearning):
    """The same, by a rule."""

    def __init__(self, rule: lp.Rule, **options: Any) -> None:
        super().__init__()
        self.model = make_model()
        usual = {"accumulate_grad_batches": PARTS, "gradient_clip_val": CLIP, "modules": 2}
        sample = next(iter(make_loader()))
        self.learn_locally(self.model, rule, sample=sample, **usual | options)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step_locally(batch, batch_idx).task
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return configure(self)


def fit(
    module: lightning.LightningModule, folder: Path, resume: str | None = None, **options: Any
) -> Any:
    usual = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if isinstance(module, Host):
        usual |= {"accumulate_grad_batches": PARTS, "gradient_clip_val": CLIP}
    saves = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    callbacks = [saves, *options.pop("callbacks", [])]
    trainer = lightning.Trainer(**usual | options, callbacks=callbacks)
    trainer.fit(module, make_loader(), ckpt_path=resume)
    return trainer


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not left[name].equal(right[name])] == []


def make_scaler() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))


WAYS: dict[str, Any] = {
    "fp32": dict,
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fp16 with a scaler": lambda: {"plugins": [make_scaler()]},
}


@pytest.mark.parametrize("way", WAYS)
def test_end_to_end_is_automatic_optimisation(way: str, tmp_path: Path) -> None:
    """With accumulation, a last step of two batches, clipping and two schedulers."""
    ends = []
    for name, module in (("host", Host()), ("ours", Ours(lp.end_to_end()))):
        before = state_of(module.model)
        trainer = fit(module, tmp_path / name, **WAYS[way]())
        assert trainer.global_step == 4
        assert not any(before[n].equal(value) for n, value in state_of(module.model).items())
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        ends.append((state_of(module.model), rates, float(trainer.callback_metrics["loss"])))
    assert_equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize("name", ["host", "end_to_end", "backlink"])
def test_a_resumed_run_equals_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    def make() -> lightning.LightningModule:
        rules = {"end_to_end": lp.end_to_end, "backlink": lambda: lp.backlink(layers=1)}
        return Host() if name == "host" else Ours(rules[name]())

    whole, again = make(), make()
    fit(whole, tmp_path)
    fit(again, tmp_path / "again", resume=str(tmp_path / "step=3.ckpt"))
    assert_equal(state_of(whole), state_of(again))
    if name == "backlink":
        assert any(key.startswith("learner_state.heads") for key in state_of(again))
        assert again.learner.steps == 2 * BATCHES
