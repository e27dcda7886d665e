"""Hugging Face's Trainer: end_to_end() is its own run to the bit, and local runs resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import localprop as lp
from localprop.hosts.transformers import LocalTrainer
from tests.hosts.text import make_classifier, make_language_model, make_texts, pad

pytestmark = pytest.mark.filterwarnings("ignore")
Rows = list[dict[str, Tensor]]


def make_arguments(folder: Path, **options: Any) -> Any:
    """Five batches an epoch in steps of three, so that the last one has two; clipped, scheduled."""
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "warmup_steps": 1,
        "logging_steps": 1,
        "save_steps": 1,
        "seed": 3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(str(folder), **usual | options)


def make_trainer(
    folder: Path, model: nn.Module, rule: lp.Rule | None, rows: Rows, **options: Any
) -> Any:
    """The Trainer, or ours if there is a rule."""
    own = {"modules", "task", "learner_options", "compute_loss_func"}
    given = {name: options.pop(name) for name in own & options.keys()}
    arguments = make_arguments(folder, **options)
    common: dict[str, Any] = {"train_dataset": rows, "data_collator": pad}
    if rule is None:
        given = {name: value for name, value in given.items() if name == "compute_loss_func"}
        return transformers.Trainer(model, arguments, **common, **given)
    return LocalTrainer(model, arguments, rule=rule, **common, **{"modules": 2} | given)


def state_of(trainer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not left[name].equal(right[name])] == []


def list_logs(trainer: Any) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "learning_rate")
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [{name: log[name] for name in names} for log in logs]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "language model": make_language_model,  # divides by the number of labels of a whole step
    "classifier": make_classifier,  # computes a mean, whatever the Trainer tells it
}


@pytest.mark.parametrize("kind", MODELS)
def test_end_to_end_is_the_trainers_own_run(kind: str, tmp_path: Path) -> None:
    """Unequal numbers of labels, a last step of fewer batches, clipping, a warm-up, a scaler, and
    both resumed in the middle of an epoch.
    """
    rows = make_texts(10, classes=kind == "classifier")
    ends, logs = [], []
    for rule in (None, lp.end_to_end()):
        folder = tmp_path / ("host" if rule is None else "ours")
        trainer = make_trainer(folder, MODELS[kind](), rule, rows, modules=1)
        before = state_of(trainer)
        trainer.train()
        assert trainer.state.global_step == 4
        assert not any(before[name].equal(value) for name, value in state_of(trainer).items())
        again = make_trainer(folder, MODELS[kind](), rule, rows, modules=1)
        again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
        ends += [state_of(trainer), state_of(again)]
        logs += [list_logs(trainer)]
    for end in ends[1:]:
        assert_equal(ends[0], end)
    assert logs[0] == logs[1]
    assert logs[0][0]["grad_norm"] > 0.05  # or nothing was clipped


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    shifted = functional.pad(labels[:, 1:], (0, 1), value=-100)
    logits = outputs["logits"].flatten(0, 1)
    total = functional.cross_entropy(logits, shifted.flatten(), reduction="sum")
    loss: Tensor = total.sqrt() / num_items_in_batch
    return loss


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        {"label_smoothing_factor": 0.1},
        {"compute_loss_func": own_loss},
        {"activation_checkpointing": True},
        {"scaler": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    rows, ends = make_texts(6), []
    options = {"save_strategy": "no", "num_train_epochs": 1, "warmup_steps": 0, **options}
    scaled = options.pop("scaler", False)
    for rule in (None, lp.end_to_end()):
        trainer = make_trainer(tmp_path, make_language_model(), rule, rows, modules=1, **options)
        if scaled:  # Accelerate has one on accelerators alone
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        before = state_of(trainer)
        trainer.train()
        assert not any(before[name].equal(value) for name, value in state_of(trainer).items())
        ends.append((state_of(trainer), list_logs(trainer)))
    assert_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


class Average(transformers.TrainerCallback):
    """An average of the weights, as users keep one; and the norms of heads, before and after."""

    def __init__(self) -> None:
        self.average: Any = None
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the norm of all gradients that the optimizer will see."""
        groups = kwargs["optimizer"].param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.norms.append(float(nn.utils.get_total_norm(gradients)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Average."""
        if self.average is None:
            self.average = AveragedModel(kwargs["model"])
        self.average.update_parameters(kwargs["model"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with a rule whose heads and network depend on each other."""
    rows, average = make_texts(10), Average()
    folder = tmp_path_factory.mktemp("local")
    trainer = make_trainer(folder, make_language_model(), lp.backlink(layers=1), rows)
    trainer.add_callback(average)
    trainer.train()
    return trainer, average, rows, folder


def test_a_local_run_resumes_to_the_bit(run: Any) -> None:
    trainer, _, rows, folder = run
    again = make_trainer(folder, make_language_model(), lp.backlink(layers=1), rows)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert_equal(dict(trainer.learner.named_parameters()), dict(again.learner.named_parameters()))
    assert any(name.startswith("heads.") for name, _ in again.learner.named_parameters())
    assert trainer.learner.steps == again.learner.steps == 10


@pytest.mark.parametrize("precision", ["bf16", "fp16 with a scaler"])
def test_a_local_run_resumes_in_mixed_precision(precision: str, tmp_path: Path) -> None:
    """In the middle of the epoch, after its first step."""
    rows, trainers = make_texts(10), list[Any]()
    for checkpoint in (None, str(tmp_path / "checkpoint-1")):
        options = {"bf16": precision == "bf16", "num_train_epochs": 1}
        trainer = make_trainer(tmp_path, make_language_model(), lp.greedy(), rows, **options)
        if precision != "bf16":
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainers.append(trainer)
    assert_equal(*(dict(trainer.learner.named_parameters()) for trainer in trainers))
    assert [trainer.learner.steps for trainer in trainers] == [5, 5]


def test_checkpointed_activations_change_no_bit(tmp_path: Path) -> None:
    """Of a local rule, and by the older name of the option."""
    ends, options = [], {"num_train_epochs": 1, "save_strategy": "no"}
    for checkpointed in (False, True):
        model: Any = make_language_model()
        given = options | {"gradient_checkpointing": checkpointed}
        trainer = make_trainer(tmp_path, model, lp.greedy(), make_texts(6), **given)
        trainer.train()
        assert model.is_gradient_checkpointing is checkpointed
        ends.append(dict(trainer.learner.named_parameters()))
    assert_equal(*ends)


def test_clipping_counts_the_heads(run: Any) -> None:
    _, average, _, _ = run
    assert average.norms == pytest.approx([0.05] * 4, rel=1e-3)


def test_heads_start_each_step_without_gradients(run: Any) -> None:
    trainer, _, _, _ = run
    assert {p.grad for p in trainer.learner.parameters()} == {None}


def test_averages_are_of_the_plain_model(run: Any) -> None:
    trainer, average, _, _ = run
    names = {f"module.{name}" for name in state_of(trainer)} | {"n_averaged"}
    assert average.average.state_dict().keys() == names
    assert int(average.average.n_averaged) == 4


def test_the_saved_model_is_the_plain_one(run: Any, tmp_path: Path) -> None:
    trainer, _, rows, _ = run
    trainer.save_model(str(tmp_path))
    assert not (tmp_path / "localprop.pt").exists()
    loaded: Any = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    batch = pad(rows)
    assert loaded.eval()(**batch).logits.equal(trainer.model.eval()(**batch).logits)


def test_adapters_are_trained_and_saved_alone(tmp_path: Path) -> None:
    """LoRA: the network below is frozen, and equals the Trainer's own run."""
    peft = pytest.importorskip("peft")
    rows, ends = make_texts(10), list[dict[str, Tensor]]()
    for rule in (None, lp.end_to_end(), lp.greedy()):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
        model = peft.get_peft_model(make_language_model(), config)
        options = {"modules": 1 if rule == lp.end_to_end() else 2, "save_strategy": "epoch"}
        trainer = make_trainer(tmp_path / str(len(ends)), model, rule, rows, **options)
        before = state_of(trainer)
        trainer.train()
        after = state_of(trainer)
        changed = {name for name in before if not before[name].equal(after[name])}
        assert changed == {name for name in before if "lora_" in name}
        ends.append(after)
    assert_equal(ends[0], ends[1])
    assert not ends[0]["base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"].equal(
        ends[2]["base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"]
    )
    assert (tmp_path / "2" / "checkpoint-4" / "adapter_model.safetensors").is_file()


def test_a_given_task_counts_its_own_items(tmp_path: Path) -> None:
    """Two parts with unequal numbers of labels are the whole batch."""
    ends = []
    for parts in (1, 2):
        sizes = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        options: dict[str, Any] = {"optim": "sgd", "warmup_steps": 0, "max_grad_norm": 0.0}
        trainer = make_trainer(
            tmp_path,
            make_language_model(),
            lp.greedy(),
            make_texts(8),
            task=lp.CausalLM(class_weights=[0.5] * 8 + [2.0] * 8),
            **options | sizes | {"num_train_epochs": 1, "save_strategy": "no"},
        )
        trainer.train()
        ends.append(dict(trainer.learner.named_parameters()))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)


class OwnLoss(LocalTrainer):
    """A Trainer with a loss of its own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute it."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": lp.contsup()}, "has contexts"),
        ({"torch_compile": True}, "torch_compile=True"),
        ({"learner_options": {"microbatches": 2}}, "gradient_accumulation_steps"),
        ({"learner_options": {"modules": 2}}, "give modules="),
        ({"task": lp.CausalLM(), "label_smoothing_factor": 0.1}, "give one of them"),
        ({"task": lp.CrossEntropy()}, "Classification"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_trainer_refuses(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    rule = options.pop("rule", lp.greedy())
    with pytest.raises(lp.BadInput, match=message):
        make_trainer(tmp_path, make_language_model(), rule, make_texts(4), **options)


@pytest.mark.parametrize("found", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_wrappers_of_the_model_are_refused(
    found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the Trainer finds them in its set-up; they need more than a CPU to get there."""
    prepare = transformers.Trainer.create_accelerator_and_postprocess

    def find(trainer: Any) -> None:
        prepare(trainer)
        setattr(trainer, found, True)

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", find)
    name = found.split("_")[1]
    with pytest.raises(lp.BadInput, match=f"(?i){name} wraps the model.* leave {name}= out"):
        make_trainer(tmp_path, make_language_model(), lp.greedy(), make_texts(4))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(lp.BadInput, match=r"there are 2 processes .* and launch one"):
        make_trainer(tmp_path, make_language_model(), lp.greedy(), make_texts(4))


def test_a_loss_of_a_subclass_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lp.BadInput, match="OwnLoss has a compute_loss of its own"):
        OwnLoss(make_language_model(), make_arguments(tmp_path), rule=lp.greedy(), modules=2)


def test_checkpoints_of_others_are_refused(run: Any, tmp_path: Path) -> None:
    _, _, rows, folder = run
    other = make_trainer(folder, make_language_model(), lp.end_to_end(), rows, modules=1)
    with pytest.raises(lp.BadInput, match="heads of another rule"):
        other.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    plain = tmp_path / "checkpoint-3"
    shutil.copytree(folder / "checkpoint-3", plain)
    (plain / "localprop.pt").unlink()
    with pytest.raises(lp.BadInput, match=r"has no localprop\.pt"):
        other.train(resume_from_checkpoint=str(plain))
