"""The learner: a model, a rule and a partition, ready to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput, check
from localprop.network.contextual import ContextNetwork, Inlet
from localprop.network.layers import layers_of
from localprop.network.partition import Partition
from localprop.rule.losses import Batch, CrossEntropy, LossBuilder
from localprop.rule.rule import Rule
from localprop.step.engine import Engine
from localprop.step.explain import explain
from localprop.step.flops import flops_of
from localprop.step.memory import MemoryReading, predict
from localprop.step.schedule import Op, Schedule
from localprop.step.state import Backward, Losses, Observer
from localprop.step.wiring import Wiring, wire

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]
_PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


class Learner:
    """Trains a model by a rule.

    Args:
        model: any module whose forward maps one tensor to one tensor; it is trained in place and stays the plain model.
        rule: the training rule, of :mod:`localprop.methods` or composed of parts.
        modules: the number of local modules, cut uniformly; or give `partition`.
        partition: the cuts.
        optimizer: a factory, called once per segment and once per objective with their parameters; or an optimizer that
            exists, which gains the heads' and encoders' parameters as groups and steps once, after the last backward.
        sample: a batch as the loader gives it, (inputs, targets); its shapes and dtypes are what every batch must have.
        task: the last module's loss, on the model's own output.
        recompute: run segments again before their backward instead of keeping their activations.
        microbatches: parts that a batch is run in; gradients accumulate.
        precision: "fp32" (the model's own dtype) or "bf16" (autocast).
        seed: of heads, encoders and every random draw of a step.

    Raises:
        BadInput: whatever cannot be trained, with the reason and the fix.

    Example:
        >>> import torch, localprop as lp
        >>> batch = (torch.randn(8, 3, 8, 8), torch.randint(10, (8,)))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
        >>> learner = lp.Learner(lp.models.resnet8(), lp.backlink(layers=1), modules=4, optimizer=sgd, sample=batch)
        >>> len(learner.step(batch))
        4
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        *,
        optimizer: OptimizerFactory | Optimizer,
        sample: Tensor | tuple[Tensor, ...] | list[Tensor],
        modules: int | None = None,
        partition: Partition | None = None,
        task: LossBuilder = CrossEntropy(),  # noqa: B008 - parts are frozen
        recompute: bool = False,
        microbatches: int = 1,
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        check(_problems(model, modules, partition, precision, optimizer))
        self.model = model
        self.rule = rule
        self.seed = seed
        self.steps = 0
        self._sample = _like_sample(_tensors(sample))
        self.partition = partition or Partition.uniform(layers_of(model, tuple(_tensors(sample))), modules or 1)
        self.wiring = self._wired(task)
        self.heads = self.wiring.heads
        self.encoders = self.wiring.encoders
        self.network: nn.Module = self._deployed()
        self.schedule = Schedule.of(self.wiring, microbatches, self._recomputed() if recompute else frozenset())
        self._trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._shared = optimizer if isinstance(optimizer, Optimizer) else None
        self._by_segment: dict[int, Optimizer] = {}
        self._by_objective: dict[int, Optimizer] = {}
        self._make_optimizers(optimizer)
        self.engine = Engine(
            model,
            self.wiring,
            self.schedule,
            self._by_segment,
            self._by_objective,
            device=self.device,
            autocast=_PRECISIONS[precision],
            seed=seed,
        )

    # --- building ---------------------------------------------------------------------------------------------------

    def _wired(self, task: LossBuilder) -> Wiring:
        frozen = frozenset(name for name, parameter in self.model.named_parameters() if not parameter.requires_grad)
        wiring = wire(self.rule, self.partition, task=task, frozen=frozen, seed=self.seed)
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        for built in (wiring.heads, wiring.encoders):
            built.to(device=like.device, dtype=like.dtype)
        if not any(flows for flows in wiring.flows):
            raise BadInput(["Every parameter of the model is frozen: there is nothing to train."])
        return wiring

    def _deployed(self) -> nn.Module:
        if not len(self.encoders):
            return self.model
        starts = [module.start for module in self.partition.modules]
        inlets = [
            Inlet(
                m, self.partition.layers.names[starts[m] - 1], tuple(source.module for source in self.wiring.sources[m])
            )
            for m in range(1, len(starts))
        ]
        return ContextNetwork(self.model, self.encoders, inlets)

    def _recomputed(self) -> frozenset[int]:
        """All segments that learn but the last, whose backward follows its forward at once."""
        return frozenset(s for s, flows in enumerate(self.wiring.flows[:-1]) if flows)

    def _make_optimizers(self, optimizer: OptimizerFactory | Optimizer) -> None:
        named = dict(self.model.named_parameters())
        segments, objectives = dict[int, list[nn.Parameter]](), dict[int, list[nn.Parameter]]()
        for s, segment in enumerate(self.wiring.segments):
            encoders = (
                self.encoders[str(segment.module)] if segment.inlet and str(segment.module) in self.encoders else None
            )
            segments[s] = [named[name] for name in segment.parameters] + list(encoders.parameters() if encoders else ())
        for objective in self.wiring.objectives:
            objectives[objective.segment] = list(self.heads[str(objective.loss)].parameters())
        if isinstance(optimizer, Optimizer):
            self._adopt(optimizer, chain(*segments.values(), *objectives.values()))
            return
        for table, owned in ((self._by_segment, segments), (self._by_objective, objectives)):
            for place, parameters in owned.items():
                if parameters:
                    table[place] = _checked(optimizer(parameters), parameters)

    def _adopt(self, optimizer: Optimizer, trained: Iterable[nn.Parameter]) -> None:
        """Give an existing optimizer what was born later: heads and encoders, as one more group."""
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = {id(p) for p in self.model.parameters()}
        missing = [n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in known]
        check(
            [
                f"The optimizer lacks parameters of the model ({', '.join(missing[:5])}): build it from model.parameters()."
            ]
            if missing
            else []
        )
        born_later = [p for p in trained if id(p) not in own]
        if born_later:
            optimizer.add_param_group({"params": born_later})

    # --- stepping ---------------------------------------------------------------------------------------------------

    def step(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor], *, observe: Observer | None = None) -> Losses:
        """One training step: losses of each module, every parameter updated once.

        Args:
            batch: (inputs, targets) as the sample; moved to the model's device.
            observe: called with every action of the schedule before it runs.

        Raises:
            BadInput: a batch of another shape or dtype, labels out of range.
            StepFailed: an action failed; what had been stepped before stays stepped.
        """
        losses = self.engine.step(self._checked(batch), number=self.steps, observe=observe)
        if self._shared is not None:
            self._shared.step()
            self._shared.zero_grad(set_to_none=True)
        self.steps += 1
        return losses

    def backward(
        self, batch: Tensor | tuple[Tensor, ...] | list[Tensor], *, backward: Backward = Tensor.backward
    ) -> Losses:
        """Like :meth:`step`, but leaves all gradients in `.grad` and steps nothing, for loops that others own.

        Args:
            batch: (inputs, targets).
            backward: the host's backward (`accelerator.backward`, `fabric.backward`); called on each local loss.
        """
        losses = self.engine.step(self._checked(batch), number=self.steps, stepping=False, backward=backward)
        self.steps += 1
        return losses

    def _checked(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Batch:
        tensors = _tensors(batch)
        check(self._batch_problems(tensors))
        inputs, targets = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        return Batch(inputs, targets)

    def _batch_problems(self, tensors: list[Tensor]) -> Iterator[str]:
        if any(parameter.requires_grad is not trainable for parameter, trainable in self._trainable):
            yield "requires_grad of some parameters has changed since the Learner was made: make a new Learner."
        if len(tensors) != 2:
            yield f"A batch must be (inputs, targets), but this one has {len(tensors)} part(s)."
            return
        inputs, targets = tensors
        layers = self.partition.layers
        if inputs.shape[1:] != layers.input_shape[1:] or inputs.ndim == 0:
            yield f"Inputs have shape {tuple(inputs.shape)}, but the sample was (N, {_comma(layers.input_shape[1:])})."
        elif len(inputs) == 0:
            yield "The batch is empty."
        if inputs.dtype != layers.input_dtype:
            yield f"Inputs are {inputs.dtype}, but the sample was {layers.input_dtype}: convert one of them."
        if inputs.ndim and (targets.ndim == 0 or len(targets) != len(inputs)):
            yield f"{len(inputs)} inputs, but targets of shape {tuple(targets.shape)}: there must be one per input."
        elif (
            targets.device.type == "cpu" and targets.numel()
        ):  # elsewhere a look at the values would wait for the device
            yield from _label_problems(targets, layers.output_shape[-1])

    # --- costs --------------------------------------------------------------------------------------------------------

    def memory(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor] | None = None) -> MemoryReading:
        """The predicted memory of a step, in bytes; nothing is run.

        Args:
            batch: of which only shapes count; by default one like the sample.
        """
        return predict(self.engine, self._outside(), self._like(batch))

    def flops(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor] | None = None) -> int:
        """The floating-point operations of a step: convolutions and matrix products, forward and backward.

        Args:
            batch: of which only shapes count; by default one like the sample.
        """
        return flops_of(self.engine, self._outside(), self._like(batch))

    def explain(self) -> str:
        """The credit table, the schedule, and what each module holds and needs."""
        return explain(self.wiring, self.schedule, self.memory())

    def _outside(self) -> list[Optimizer]:
        return [] if self._shared is None else [self._shared]

    def _like(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor] | None) -> Batch:
        return self._checked(self._sample if batch is None else batch)

    # --- what others need -------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimizers, in the order of the forward; for learning rate schedulers and inspection."""
        if self._shared is not None:
            return [self._shared]
        steps = [action for action in self.schedule if action.op in (Op.S, Op.H)]
        tables = {Op.S: self._by_segment, Op.H: self._by_objective}
        return [tables[a.op][a.segment] for a in sorted(steps, key=lambda a: (a.segment, a.op))]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained: the model's parameters by their own names, then `heads.` and `encoders.`."""
        yield from self.model.named_parameters()
        yield from self.heads.named_parameters("heads")
        yield from self.encoders.named_parameters("encoders")

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained: of the model, the heads and the encoders."""
        return (parameter for _, parameter in self.named_parameters())


def _problems(
    model: object, modules: int | None, partition: Partition | None, precision: str, optimizer: object
) -> Iterator[str]:
    if not isinstance(model, nn.Module):
        yield f"The model is a {type(model).__name__}, but must be a torch.nn.Module."
    if (modules is None) == (partition is None):
        yield "Give either modules=K (cut uniformly) or partition=Partition.at(...)."
    if precision not in _PRECISIONS:
        yield f"precision={precision!r} must be one of {', '.join(_PRECISIONS)}."
    if not isinstance(optimizer, Optimizer) and not callable(optimizer):
        yield f"optimizer is a {type(optimizer).__name__}, but must be a function of parameters, or a torch optimizer."


def _checked(made: Any, parameters: list[nn.Parameter]) -> Optimizer:
    """What the factory made, if it is an optimizer of all the parameters that it was given."""
    hint = "write optimizer=lambda params: torch.optim.SGD(params, lr=0.1)."
    if not isinstance(made, Optimizer):
        raise BadInput(
            [f"The optimizer factory returned a {type(made).__name__}, but must return an optimizer: {hint}"]
        )
    owned = {id(p) for group in made.param_groups for p in group["params"]}
    wanted = {id(p) for p in parameters}
    if owned != wanted:
        raise BadInput(
            [
                f"The optimizer factory was given {len(wanted)} parameters, but its optimizer owns {len(owned & wanted)} of "
                f"them and {len(owned - wanted)} others: it must own just those it is given; {hint}"
            ]
        )
    return made


def _like_sample(sample: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of zeros in the shape of the sample, which itself is not kept."""
    inputs, *rest = sample
    targets = rest[0] if rest else torch.empty(len(inputs), dtype=torch.long)
    return torch.zeros_like(inputs, device="cpu"), torch.zeros_like(targets, device="cpu")


def _tensors(batch: object) -> list[Tensor]:
    parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, (tuple, list)) else []
    odd = [type(part).__name__ for part in parts if not isinstance(part, Tensor)]
    if odd or not parts:
        raise BadInput(
            [f"A batch must be a tuple of tensors (inputs, targets), not {', '.join(odd) or type(batch).__name__}."]
        )
    return [part for part in parts if isinstance(part, Tensor)]


def _label_problems(targets: Tensor, classes: int) -> Iterator[str]:
    if targets.is_floating_point():
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        yield f"Labels run from {low} to {high}, but the model has {classes} outputs: labels must lie in 0..{classes - 1}."


def _comma(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
