"""Local learning in Hugging Face's Trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localprop.checks import is_builder, resolve_task
from localprop.errors import BadInput, check
from localprop.hosts.learner_state import LearnerState, find_context_problems
from localprop.hosts.trainer_task import HostLoss, TrainerTask
from localprop.learner import Learner
from localprop.network.own_loss import divides_by_items
from localprop.network.untouched import untouched
from localprop.ranks.pipeline import Ranks
from localprop.rule.rule import Rule
from localprop.tasks.batch import Batch
from localprop.tasks.classification import CausalLM

try:
    import accelerate  # noqa: F401 (transformers has a Trainer without it, which only refuses)
    from transformers import Trainer
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as error:
    raise BadInput(
        f"LocalTrainer needs transformers and accelerate ({error}): pip install 'localprop[hf]'."
    ) from error

__all__ = ["LocalTrainer"]

STATE_FILE = "localprop.pt"
# What else a learner takes stands in the Trainer's own arguments.
INSTEAD = {
    "optimizer": "optimizers=(optimizer, None), or TrainingArguments(optim=...)",
    "microbatches": "TrainingArguments(gradient_accumulation_steps=...)",
    "precision": "TrainingArguments(bf16=True) or fp16=True",
    "ranks": "one process",
    "budget": "lp.plan(model, batch, budget=...), and what it says: modules and recompute",
}


class LocalTrainer(Trainer):
    """Hugging Face's Trainer, whose model is trained by local losses.

    The loop stays the Trainer's: accumulation, clipping, mixed precision, schedulers, callbacks,
    evaluation and checkpoints. Each local loss goes through the Trainer's own `training_step`. The
    optimizer gains the heads, `max_grad_norm` counts them, and checkpoints hold them in the file
    `localprop.pt`, so that `resume_from_checkpoint=True` goes on with them. `save_model` writes the
    plain model. The loss that is logged is that of the model's own output.

    The last loss is the one that the model computes itself, with `label_smoothing_factor`,
    `compute_loss_func` and `num_items_in_batch` as the Trainer uses them. The others are the same
    of the outputs of heads, unless the rule says otherwise.

    Args:
        *args: as for `transformers.Trainer`.
        rule: the training rule.
        modules: the number of local modules, or give `partition`.
        sample: a batch as the data collator makes it; by default the first of the training data.
        task: how a batch enters the model and what is its loss, if not the model's own (`Learner`).
        learner_options: other arguments of `Learner`: partition, recompute, batch_dims, seed, by
            default that of the TrainingArguments.
        **kwargs: as for `transformers.Trainer`.

    Attributes:
        learner: the learner, from the time when the optimizer is made. To see it before training,
            call `trainer.create_optimizer()`.

    Raises:
        BadInput: the rule has contexts, which `save_pretrained` would leave out; several processes
            or devices; an argument of the learner that the Trainer has itself; or the class has a
            `compute_loss` of its own.

    Example:
        >>> import tempfile
        >>> import transformers
        >>> model = transformers.GPT2LMHeadModel(
        ...     transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=8)
        ... )
        >>> ids = torch.randint(16, (4, 8))
        >>> arguments = transformers.TrainingArguments(
        ...     tempfile.mkdtemp(), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        ... )
        >>> trainer = LocalTrainer(
        ...     model,
        ...     arguments,
        ...     train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        ...     rule=lp.greedy(),
        ...     modules=2,
        ... )
        >>> _ = trainer.create_optimizer()
        >>> len(trainer.learner.partition.modules)
        2
    """

    def __init__(
        self,
        *args: Any,
        rule: Rule,
        modules: int | None = None,
        sample: Any = None,
        task: Any = None,
        learner_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        options = dict(learner_options or {})
        check(_find_problems(self, rule, task, options))
        self.learner: Learner | None = None
        self._learner_options = {"rule": rule, "modules": modules, "seed": self.args.seed} | options
        self._sample, self._given_task = sample, task
        self._task: TrainerTask | None = None
        self._local_loss: Tensor | None = None

    # --- a step ---------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Leave the gradients of all local losses of a batch in `.grad`.

        Returns:
            The loss of the model's own output, divided as the Trainer divides it.
        """
        learner, task, host_step = self.learner, self._task, super().training_step
        assert learner is not None
        assert task is not None
        model.train()
        inputs = self._prepare_inputs(inputs)
        reported: list[Tensor] = []

        def backward(loss: Tensor) -> None:
            # The Trainer's own step divides, scales and differentiates whatever `compute_loss`
            # returns. So all that it does to its loss happens to each local one.
            self._local_loss = loss
            try:
                reported.append(host_step(model, inputs, num_items_in_batch))
            finally:
                self._local_loss = None

        # Accelerate puts autocast around the model alone, but heads are outside of it.
        with self.accelerator.autocast(), task.counting(num_items_in_batch):
            learner.backward(inputs, backward=backward)
        return reported[-1]

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The local loss within a step; else, as in evaluation, the loss of the model."""
        if self._local_loss is not None:
            return self._local_loss
        return super().compute_loss(model, inputs, *args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of a step, and their number of items: of a task that was given, its own."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        if self._given_task is None:
            return samples, items
        assert self._task is not None
        weights = [self._task.weight(sample) for sample in samples]
        return samples, None if any(weight is None for weight in weights) else sum(weights)

    # --- a run ----------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer and the learner, whose heads it gains."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        network: Any = self.model
        if self.learner is None or self.learner.model is not network:
            sample = self._take_sample(network)
            self._task = self._make_task(network, sample)
            self.learner = Learner(
                network,
                optimizer=optimizer,
                sample=sample,
                task=self._task,
                ranks=Ranks(alone=True),
                **self._learner_options,
            )
        return optimizer

    def _take_sample(self, network: nn.Module) -> Any:
        if self._sample is not None:
            return self._sample
        # The order of the data depends on random numbers, which this must not draw. Nor must
        # Accelerate know of a loader that is not read to its end.
        with untouched(network):
            loader = self.get_train_dataloader()
            return next(iter(getattr(loader, "base_dataloader", loader)))

    def _make_task(self, network: nn.Module, sample: Any) -> TrainerTask:
        dims = self._learner_options.get("batch_dims", ...)
        sample = self._prepare_inputs(sample)
        task = resolve_task(self._given_task, network, sample, dims)
        if self._given_task is not None:
            # The Trainer divides by the number of batches where nobody counts items.
            self.loss_is_scaled_for_ga = task.weight(sample) is not None
            return TrainerTask(task, by_items=self.loss_is_scaled_for_ga)
        batch = Batch.of(sample, task.targets(sample), dims)
        by_items = self.model_accepts_loss_kwargs and divides_by_items(network, batch)
        return TrainerTask(task, by_items=by_items, host_loss=self._find_host_loss(task))

    def _find_host_loss(self, task: Any) -> HostLoss | None:
        """The loss of the Trainer's own arguments, which comes before that of the model."""
        function, smoother = self.compute_loss_func, self.label_smoother
        if function is not None:
            # Nobody counts when the learner looks at its losses, before the first step.
            return lambda output, batch, items: function(
                CausalLMOutput(logits=output),
                batch["labels"],
                num_items_in_batch=torch.ones(()) if items is None else items,
            )
        if smoother is not None:
            shifts = isinstance(task, CausalLM)
            return lambda output, batch, items: smoother(
                {"logits": output}, batch["labels"], shift_labels=shifts, num_items_in_batch=items
            )
        return None

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, Any]:
        """The model of the loop has the heads, so that it clips and clears their gradients too."""
        model, loader = super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        assert self.learner is not None
        return nn.ModuleDict({"model": model, "heads": self.learner.heads}), loader

    # --- checkpoints ----------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        assert self.learner is not None
        torch.save(LearnerState(self.learner).state_dict(), Path(output_dir, STATE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._load_learner(Path(checkpoint, STATE_FILE))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_learner(self, path: Path) -> None:
        if not os.path.isfile(path):
            raise BadInput(
                f"{path.parent} has no {STATE_FILE}: it was not saved by a LocalTrainer, and has "
                "no heads. Train from its weights instead: from_pretrained(...), without "
                "resume_from_checkpoint."
            )
        assert self.learner is not None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            LearnerState(self.learner).load_state_dict(state)
        except RuntimeError as error:
            raise BadInput(
                f"{path} has the heads of another rule or partition ({error}): use the rule and "
                "the modules that it was trained with."
            ) from error


def _find_problems(
    trainer: LocalTrainer, rule: Rule, task: Any, options: dict[str, Any]
) -> Iterator[str]:
    args, name = trainer.args, type(trainer).__name__
    if type(trainer).compute_loss is not LocalTrainer.compute_loss:
        yield (
            f"{name} has a compute_loss of its own, which runs the model as a whole: give the loss "
            "as task=lp.task(loss=...) or compute_loss_func=..., and derive from LocalTrainer last."
        )
    yield from find_context_problems(rule)
    if args.world_size > 1 or args.n_gpu > 1:
        yield (
            f"LocalTrainer runs in one process on one device, but there are {args.world_size} "
            f"processes with {args.n_gpu} devices each: set CUDA_VISIBLE_DEVICES=0, and launch one."
        )
    for wrapper, found in {
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "FSDP": trainer.is_fsdp_enabled,
    }.items():
        if found:
            yield (
                f"{wrapper} wraps the model, which then cannot be cut: leave {wrapper.lower()}= "
                "out of the TrainingArguments, and launch without it."
            )
    if args.torch_compile:
        yield "torch_compile=True would compile a model that is cut: leave it out."
    if task is not None and is_builder(task):
        yield f"task={task!r} builds losses: give a task, such as lp.Classification()."
    if task is not None and (trainer.label_smoother or trainer.compute_loss_func):
        yield (
            "There is a task, and label_smoothing_factor or compute_loss_func, which are losses, "
            "too: give one of them."
        )
    for option in options.keys() & INSTEAD.keys():
        yield f"learner_options has {option}, but the Trainer decides that: {INSTEAD[option]}."
    for option in options.keys() & {"rule", "modules", "sample", "task"}:
        yield f"learner_options has {option}: give {option}=... to {name} itself."
