"""Local learning in Lightning, by manual optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from localprop.engine.loss import Losses
from localprop.errors import BadInput, check
from localprop.hosts.learner_state import LearnerState, find_context_problems
from localprop.learner import Learner
from localprop.ranks.pipeline import Ranks
from localprop.rule.rule import Rule

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.strategies import SingleDeviceStrategy
except ImportError as error:
    raise BadInput(
        f"LocalLearning needs Lightning ({error}): pip install 'localprop[lightning]'."
    ) from error

__all__ = ["LocalLearning"]


class LocalLearning(LightningModule):  # type: ignore[misc]
    """A LightningModule whose model is trained by local losses.

    Call `learn_locally` in `__init__`, and `step_locally` in `training_step`. The loop, the device,
    precision, callbacks, loggers and checkpoints stay Lightning's. The heads are parameters of the
    module, so that `configure_optimizers` gets them by `self.parameters()`, and checkpoints resume
    them. Schedulers that `configure_optimizers` returns are stepped as in automatic optimisation.

    Accumulation and clipping are arguments of `learn_locally`, since Lightning's Trainer refuses
    its own in manual optimisation.

    Raises:
        BadInput: when training is set up: the module is optimised automatically, there are several
            optimizers or devices, or an optimizer lacks what is trained.

    Example:
        >>> class Net(LocalLearning):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = lp.models.resnet8()
        ...         batch = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
        ...         self.learn_locally(self.model, lp.backlink(), modules=4, sample=batch)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return self.step_locally(batch, batch_idx).task
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> net = Net()
        >>> net.configure_model()  # Lightning does this, when it has chosen a device
        >>> len(net.learner.partition.modules)
        4
    """

    learner: Learner

    def learn_locally(
        self,
        model: nn.Module,
        rule: Rule,
        *,
        sample: Any,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        **options: Any,
    ) -> None:
        """Say how a model of the module is trained.

        Args:
            model: a network, such as `self.model`.
            rule: the training rule.
            sample: a batch as the loader gives it.
            accumulate_grad_batches: the number of batches whose gradients make a step.
            gradient_clip_val: the largest norm or value of gradients, heads included.
            gradient_clip_algorithm: "norm" or "value".
            options: other arguments of `Learner`: modules, partition, task, recompute, seed.

        Raises:
            BadInput: the rule has contexts, whose encoders `self.model` would lack; or an argument
                of the learner that Lightning decides.
        """
        check(_find_argument_problems(rule, accumulate_grad_batches, options))
        self.automatic_optimization = False
        self._accumulate = accumulate_grad_batches
        self._clipping = gradient_clip_val, gradient_clip_algorithm
        self._learner_arguments = {"rule": rule, "sample": sample, **options}
        # In a tuple: the model is a part of the module already, under the user's name.
        self._learned = (model,)

    def configure_model(self) -> None:
        """Make the learner, on the device of the Trainer."""
        super().configure_model()
        trainer = getattr(self, "_trainer", None)  # none where a checkpoint is loaded without one
        check(_find_setup_problems(self, trainer))
        if trainer is not None:
            self.to(trainer.strategy.root_device)
        (model,) = self._learned
        if not hasattr(self, "learner"):
            self.learner = Learner(
                model,
                optimizer=_make_unused_optimizer,
                ranks=Ranks(alone=True),
                **self._learner_arguments,
            )
        elif self.learner.engine.device != self.learner.device:
            self.learner.rebuild()
        else:
            return
        self.learner_state = LearnerState(self.learner)

    def on_fit_start(self) -> None:
        """Check the optimizer."""
        super().on_fit_start()
        check(_find_optimizer_problems(self))

    def step_locally(self, batch: Any, batch_idx: int) -> Losses:
        """Run a batch, then the optimizer and the schedulers if they are due.

        Args:
            batch: as the sample.
            batch_idx: its number in the epoch.

        Returns:
            The local losses; `.task` is that of the model's own output.
        """
        optimizer, parts, last = self.optimizers(), self._accumulate, self.trainer.is_last_batch
        if batch_idx % parts == 0:
            optimizer.zero_grad()

        def backward(loss: Tensor) -> None:
            self.manual_backward(loss / parts)

        losses = self.learner.backward(batch, backward=backward)
        if (batch_idx + 1) % parts == 0 or last:
            optimizer.step()
            self._step_schedulers(batch_idx, last)
        return losses

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, when a scaler has unscaled them."""
        super().on_before_optimizer_step(optimizer)
        if self._clipping[0] is not None:
            self.clip_gradients(optimizer, *self._clipping)

    def _step_schedulers(self, batch_idx: int, last: bool) -> None:
        """As Lightning does in automatic optimisation alone."""
        for config in self.trainer.lr_scheduler_configs:
            by_step = config.interval == "step"
            number = 1 + (batch_idx if by_step else self.current_epoch)
            if (by_step or last) and number % config.frequency == 0:
                self.lr_scheduler_step(config.scheduler, None)


def _make_unused_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A learner has one, but in a host's loop it never steps."""
    return torch.optim.SGD(parameters, lr=0.0)


def _find_argument_problems(rule: Rule, parts: int, options: dict[str, Any]) -> Iterator[str]:
    yield from find_context_problems(rule)
    if parts < 1:
        yield f"accumulate_grad_batches={parts} must be 1 or more."
    instead = {
        "optimizer": "configure_optimizers",
        "microbatches": "accumulate_grad_batches=...",
        "precision": "Trainer(precision='bf16-mixed')",
        "ranks": "Trainer(devices=1)",
        "budget": "lp.plan(model, batch, budget=...), and what it says: modules and recompute",
    }
    for name in instead.keys() & options.keys():
        yield f"learn_locally has {name}, but Lightning decides that: {instead[name]}."


def _find_setup_problems(module: LocalLearning, trainer: Any) -> Iterator[str]:
    name = type(module).__name__
    if not hasattr(module, "_learned"):
        yield (
            f"{name} has no learner: call self.learn_locally(self.model, rule, modules=..., "
            "sample=batch) in __init__."
        )
    elif module.automatic_optimization:
        yield (
            f"{name} has automatic_optimization=True, but local losses need manual optimisation: "
            "leave the line out; learn_locally sets it."
        )
    if trainer is not None and trainer.world_size > 1:
        yield (
            f"Lightning runs {trainer.world_size} processes, which would train different heads: "
            "use Trainer(devices=1), without strategy=."
        )
    elif trainer is not None and not isinstance(trainer.strategy, SingleDeviceStrategy):
        yield (
            f"Lightning's {type(trainer.strategy).__name__} wraps the model, which then cannot be "
            "cut: leave strategy= out of the Trainer."
        )


def _find_optimizer_problems(module: LocalLearning) -> Iterator[str]:
    optimizers = module.trainer.optimizers
    if len(optimizers) != 1:
        yield (
            f"configure_optimizers returns {len(optimizers)} optimizers, but local losses share "
            "one: return one, with a group of parameters for each of them."
        )
        return
    owned = {id(p) for group in optimizers[0].param_groups for p in group["params"]}
    lacking = [
        name
        for name, parameter in module.learner.named_parameters()
        if parameter.requires_grad and id(parameter) not in owned
    ]
    if lacking:
        yield (
            f"The optimizer lacks {len(lacking)} parameters that are trained "
            f"({', '.join(lacking[:3])}): build it from self.parameters(), which has the heads."
        )
    configs = module.trainer.lr_scheduler_configs
    if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in configs):
        yield (
            "ReduceLROnPlateau needs a metric that is known after the batch: return the optimizer "
            "alone, and step the scheduler in on_train_epoch_end."
        )
