"""Lightning: end_to_end() is its automatic optimisation to the bit, and local runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
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


class StatefulLoader(DataLoader[Any]):
    """The same, which goes on where a checkpoint was saved, as Lightning asks it to."""

    _done = _skipped = 0

    def __iter__(self) -> Any:
        first, self._skipped = self._skipped, 0
        for number, batch in enumerate(super().__iter__()):
            self._done = number + 1
            if number >= first:
                yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches are done."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave those out, once."""
        self._skipped = state["done"]


def configure(module: lightning.LightningModule) -> Any:
    """Momentum, a scheduler of steps and one of epochs."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    by_step = {"scheduler": StepLR(optimizer, 1, 0.9), "interval": "step", "frequency": 3}
    return [optimizer], [by_step, StepLR(optimizer, 1, 0.5)]


class Host(lightning.LightningModule):  # type: ignore[misc]
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
    loader = options.pop("loader", make_loader())
    usual = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if isinstance(module, Host):
        usual |= {"accumulate_grad_batches": PARTS, "gradient_clip_val": CLIP}
    steps = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    epochs = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    callbacks = [steps, epochs, *options.pop("callbacks", [])]
    trainer = lightning.Trainer(**usual | options, callbacks=callbacks)
    trainer.fit(module, loader, ckpt_path=resume)
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


RULES: dict[str, lp.Rule | None] = {
    "host": None,
    "end_to_end": lp.end_to_end(),
    "backlink": lp.backlink(layers=1),
}


def make(name: str) -> Any:
    rule = RULES[name]
    return Host() if rule is None else Ours(rule)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, Path]]:
    """A run of each, with an average of the weights: its module, its average and its folder."""
    found = {}
    for name in RULES:
        module, average, folder = make(name), WeightAveraging(), tmp_path_factory.mktemp(name)
        fit(module, folder, callbacks=[average])
        found[name] = module, average, folder
    return found


@pytest.mark.parametrize("name", RULES)
def test_a_resumed_run_equals_the_undisturbed_one(
    name: str, runs: dict[str, Any], tmp_path: Path
) -> None:
    whole, _, folder = runs[name]
    again = make(name)
    fit(again, tmp_path, str(folder / "epoch=0.ckpt"), callbacks=[WeightAveraging()])
    assert_equal(state_of(whole), state_of(again))
    if name == "backlink":
        assert any(key.startswith("learner_state.heads") for key in state_of(again))
        assert again.learner.steps == whole.learner.steps == 2 * BATCHES


@pytest.mark.parametrize("way", ["bf16", "fp16 with a scaler"])
def test_a_resumed_run_in_mixed_precision(way: str, tmp_path: Path) -> None:
    whole, again = make("backlink"), make("backlink")
    fit(whole, tmp_path / "whole", **WAYS[way]())
    fit(again, tmp_path / "again", str(tmp_path / "whole" / "epoch=0.ckpt"), **WAYS[way]())
    assert_equal(state_of(whole), state_of(again))
    assert whole.learner.steps == again.learner.steps == 2 * BATCHES


def test_a_run_resumes_in_an_epoch_if_the_loader_does(tmp_path: Path) -> None:
    whole, again = make("backlink"), make("backlink")
    for module, resume in ((whole, None), (again, str(tmp_path / "whole" / "step=1.ckpt"))):
        loader = StatefulLoader(make_loader().dataset, 4)
        fit(module, tmp_path / ("again" if resume else "whole"), resume, loader=loader)
    assert_equal(state_of(whole), state_of(again))
    assert whole.learner.steps == again.learner.steps == 2 * BATCHES


def test_end_to_end_resumes_in_an_epoch_as_lightning_does(
    runs: dict[str, Any], tmp_path: Path
) -> None:
    """Lightning begins the epoch's data anew, so neither equals its undisturbed run."""
    ends = []
    for name in ("host", "end_to_end"):
        again = make(name)
        resume = str(runs[name][2] / "step=1.ckpt")
        fit(again, tmp_path / name, resume, callbacks=[WeightAveraging()])
        ends.append(state_of(again.model))
    assert_equal(*ends)


def test_averages_equal_those_of_automatic_optimisation(runs: dict[str, Any]) -> None:
    averages = [runs[name][1]._average_model.module.model for name in ("host", "end_to_end")]
    assert_equal(*map(state_of, averages))


def test_averages_are_of_heads_too(runs: dict[str, Any]) -> None:
    _, _, folder = runs["backlink"]
    saved = torch.load(folder / "epoch=1.ckpt", weights_only=True)
    average, last = saved["state_dict"], saved["current_model_state"]
    heads = [name for name in last if "heads" in name and last[name].is_floating_point()]
    assert heads
    assert not any(average[name].equal(last[name]) for name in heads)


def test_clipping_counts_the_heads(tmp_path: Path) -> None:
    """Values are clipped one by one, so that those of heads can be seen."""
    options = {"gradient_clip_algorithm": "value", "gradient_clip_val": 0.01}
    module, seen = Ours(lp.greedy(), **options), list[float]()

    class See(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            if args[-1] in (PARTS - 1, BATCHES - 1):  # a step
                parameters = module.learner.heads.parameters()
                seen.extend(float(p.grad.abs().max()) for p in parameters if p.grad is not None)

    fit(module, tmp_path, callbacks=[See()])
    assert max(seen) == pytest.approx(0.01)


def test_a_checkpoint_loads_without_a_trainer(runs: dict[str, Any]) -> None:
    """It has the averages, which the module has in the end."""
    whole, _, folder = runs["backlink"]
    loaded = Ours.load_from_checkpoint(folder / "epoch=1.ckpt", rule=lp.backlink(layers=1))
    assert_equal(state_of(loaded), state_of(whole))


def choose_automatic(module: Any) -> None:
    module.automatic_optimization = True


def forget_model(module: Any) -> None:
    del module._learned


def leave_heads_out(module: Any) -> None:
    module.configure_optimizers = lambda: torch.optim.SGD(module.model.parameters(), lr=0.1)


def give_two(module: Any) -> None:
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2)]
    module.configure_optimizers = lambda: optimizers


def use_plateau(module: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    found = {"scheduler": scheduler, "monitor": "loss"}
    module.configure_optimizers = lambda: {"optimizer": optimizer, "lr_scheduler": found}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (choose_automatic, "automatic_optimization=True"),
        (forget_model, "call self.learn_locally"),
        (leave_heads_out, r"The optimizer lacks .* \(heads\."),
        (give_two, "2 optimizers"),
        (use_plateau, "ReduceLROnPlateau"),
    ],
)
def test_what_is_refused_at_set_up(change: Any, message: str, tmp_path: Path) -> None:
    module = Ours(lp.greedy())
    if change in (give_two, use_plateau):
        module.configure_model()
    change(module)
    with pytest.raises(lp.BadInput, match=message):
        fit(module, tmp_path)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lightning.Trainer, "world_size", property(lambda self: 2))
    with pytest.raises(lp.BadInput, match=r"2 processes.*use Trainer\(devices=1\)"):
        fit(Ours(lp.greedy()), tmp_path)


@pytest.mark.parametrize(
    "strategy",
    [DDPStrategy, FSDPStrategy, DeepSpeedStrategy],
    ids=lambda strategy: strategy.__name__,
)
def test_strategies_that_wrap_the_model_are_refused(strategy: Any) -> None:
    """As Lightning asks in its set-up; FSDP and DeepSpeed need more than a CPU to get there."""
    module, trainer = Ours(lp.greedy()), lightning.Trainer(accelerator="cpu", logger=False)
    trainer._accelerator_connector.strategy = object.__new__(strategy)
    module.trainer = trainer
    with pytest.raises(lp.BadInput, match=rf"{strategy.__name__} wraps .* leave strategy= out"):
        module.configure_model()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": lp.contsup()}, "has contexts"),
        ({"microbatches": 2}, "accumulate_grad_batches"),
        ({"accumulate_grad_batches": 0}, "must be 1 or more"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], message: str) -> None:
    rule = options.pop("rule", lp.greedy())
    with pytest.raises(lp.BadInput, match=message):
        Ours(rule, **options)
