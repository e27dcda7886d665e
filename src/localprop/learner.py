"""The learner: a model, a rule and a partition, ready to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.checks import (
    PRECISIONS,
    find_argument_problems,
    find_batch_problems,
    find_rank_problems,
    find_wiring_problems,
    make_zero_batch,
    unpack_batch,
)
from localprop.cost.explain import explain
from localprop.cost.flops import count_flops
from localprop.cost.memory import MemoryReading, predict_memory
from localprop.data.dataset import Normalization
from localprop.engine.engine import Engine
from localprop.engine.optimizers import Optimizers, check_optimizer, extend_optimizer
from localprop.engine.step_context import Backward, Losses, Observer
from localprop.errors import BadInput, check
from localprop.network.contextual import ContextNetwork, ContextPoint
from localprop.network.layers import layers_of
from localprop.network.modes import evaluation_mode
from localprop.network.partial_forward import check_isolated
from localprop.network.partition import Partition
from localprop.ranks.pipeline import Pipeline, Ranks, load_tensors
from localprop.rule.losses import Batch, CrossEntropy, LossBuilder
from localprop.rule.rule import Rule
from localprop.schedule.schedule import Action, Op, Schedule
from localprop.schedule.stage import release_parameters
from localprop.schedule.wiring import Wiring, wire

__all__ = ["Learner"]

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]


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
        normalised: how the inputs were made from pixels, for losses that look at those (InfoPro's); `Normalization()` if they
            are pixels in 0..1.
        ranks: how the processes are used that this one was launched with. Under torchrun each becomes a stage of a pipeline,
            with the same results to the bit; all of them must make the same calls, with the same batches.

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
        normalization: Normalization | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> None:
        check(
            find_argument_problems(
                model, rule, modules, partition, precision, optimizer, microbatches, task
            )
        )
        check(find_rank_problems(model, optimizer) if ranks.is_used() else ())
        self.model = model
        self.rule = rule
        self.seed = seed
        self.steps = 0
        self.partition = self._cut(unpack_batch(sample), modules, partition)
        self._sample = make_zero_batch(unpack_batch(sample))
        self.wiring = self._wired(task, normalization)
        check(
            find_wiring_problems(
                self.wiring, recompute=recompute, one_optimizer=isinstance(optimizer, Optimizer)
            )
        )
        check(self._find_batch_problems(list(self._sample)))
        self.heads = self.wiring.heads
        self.encoders = self.wiring.encoders
        self.network: nn.Module = self._deployed(model, self.encoders)
        recomputed = self._recomputed() if recompute else frozenset()
        if not ranks.is_used():
            microbatches *= ranks.replicas  # one process runs the replicas' shares as micro-batches
        self.pipeline: Pipeline | None = None
        if ranks.is_used():
            self.pipeline = Pipeline(
                ranks,
                self.wiring,
                microbatches,
                recomputed,
                self.device,
                trained_modules=self.trained_modules(),
                seed=seed,
            )
            with self.report_failures():
                check_isolated(
                    model,
                    self.partition.layers,
                    self.wiring.layers_in(self.pipeline.stage.segments),
                    self._sample[0],
                )
            release_parameters(self.wiring, self.pipeline.stage, model)
        self.schedule = (
            self.pipeline.schedule
            if self.pipeline
            else Schedule.compile(self.wiring, microbatches, recomputed)
        )
        self._trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._shared = optimizer if isinstance(optimizer, Optimizer) else None
        owned = self._owned()
        self.engine = Engine(
            model,
            self.wiring,
            self.schedule,
            Optimizers(_one_each(optimizer, owned)),
            device=self.device,
            autocast=PRECISIONS[precision],
            seed=seed,
            stage=self.pipeline.stage if self.pipeline else None,
            link=self.pipeline.transport if self.pipeline else None,
        )
        self.engine.loss_inputs.copy_first()
        if self._shared is not None:  # last, so that a refusal leaves the optimizer as it was
            extend_optimizer(self._shared, model, chain(*owned.values()))

    # --- building ---------------------------------------------------------------------------------------------------

    def _cut(
        self, sample: list[Tensor], modules: int | None, partition: Partition | None
    ) -> Partition:
        if partition is None:
            assert modules is not None
            return Partition.uniform(layers_of(self.model, tuple(sample)), modules)
        known = {name for name, _ in self.model.named_parameters()}
        strange = sorted({name for own in partition.layers.parameters for name in own} - known)
        check(
            [
                f"The partition is of another model: this one has no parameter {strange[0]!r}. Call layers_of on this model."
            ]
            if strange
            else []
        )
        return partition

    def _wired(self, task: LossBuilder, normalization: Normalization | None) -> Wiring:
        frozen = frozenset(
            name for name, parameter in self.model.named_parameters() if not parameter.requires_grad
        )
        wiring = wire(
            self.rule,
            self.partition,
            task=task,
            frozen=frozen,
            seed=self.seed,
            normalization=normalization,
        )
        layers, modules = self.partition.layers, self.partition.modules
        for k, head in wiring.heads.items():
            head.to(
                device=self.device,
                dtype=layers.dtypes[modules[wiring.table.module_of_loss[int(k)]][-1]],
            )
        for k, encoders in wiring.encoders.items():
            encoders.to(device=self.device, dtype=layers.dtypes[modules[int(k)].start - 1])
        if not any(
            flows or wiring.has_second_order_loss(s) for s, flows in enumerate(wiring.flows)
        ):
            raise BadInput(["Every parameter of the model is frozen: there is nothing to train."])
        return wiring

    def _deployed(self, model: nn.Module, encoders: nn.ModuleDict) -> nn.Module:
        if not len(encoders):
            return model
        layers, sources = self.partition.layers, self.wiring.sources
        before = {m: module.start - 1 for m, module in enumerate(self.partition.modules) if m}
        points = [
            ContextPoint(
                m,
                layers.names[end],
                tuple(source.module for source in sources[m]),
                layers.modified_in_place[end],
            )
            for m, end in before.items()
        ]
        return ContextNetwork(model, encoders, points)

    def _recomputed(self) -> frozenset[int]:
        """All segments that learn but the last, whose backward follows its forward at once."""
        return frozenset(s for s, flows in enumerate(self.wiring.flows[:-1]) if flows)

    def _owned(self) -> dict[Action, list[nn.Parameter]]:
        """The parameters that each step updates, of a segment (S) or an objective (H)."""
        named = dict(self.model.named_parameters())
        here = self.pipeline.stage.segments if self.pipeline else range(len(self.wiring.segments))
        owned = {Action(Op.S, s): self.wiring.trained(named, s) for s in here}
        for objective in self.wiring.objectives:
            if objective.segment in here:
                owned[Action(Op.H, *objective.key)] = list(self.wiring.head(objective).parameters())
        return {step: parameters for step, parameters in owned.items() if parameters}

    # --- stepping ---------------------------------------------------------------------------------------------------

    def step(
        self, batch: Tensor | tuple[Tensor, ...] | list[Tensor], *, observe: Observer | None = None
    ) -> Losses:
        """One training step: losses of each module, every parameter updated once.

        On several ranks the losses are those of the rank's own modules; with replicas, this replica's part of their mean
        (:meth:`total` adds them up).

        Args:
            batch: (inputs, targets) as the sample; moved to the model's device.
            observe: called with every action of the schedule before it runs.

        Raises:
            BadInput: a batch of another shape or dtype, labels out of range.
            StepFailed: an action failed; what had been stepped before stays stepped.
        """
        checked = self._checked(batch)  # outside: what is wrong with a batch all ranks see
        with self.report_failures():
            losses = self.engine.step(checked, number=self.steps, observe=observe)
        if self._shared is not None:
            self._shared.step()
            self._shared.zero_grad(set_to_none=True)
        self.steps += 1
        return losses

    def backward(
        self,
        batch: Tensor | tuple[Tensor, ...] | list[Tensor],
        *,
        backward: Backward = Tensor.backward,
    ) -> Losses:
        """Like :meth:`step`, but leaves all gradients in `.grad` and steps nothing, for loops that others own.

        Gradients add to those that are there; a failure drops all of them. Averages that heads keep move once per call.

        Args:
            batch: (inputs, targets).
            backward: the host's backward (`accelerator.backward`, `fabric.backward`); called on each local loss.

        Raises:
            BadInput: on several ranks, where a segment's step may come during the next batch; a rule that borrows parameters
                right after their step.
        """
        if self.pipeline:
            raise BadInput(
                "learner.backward runs in one process: on several ranks call learner.step, or use each process for itself "
                "with ranks=Ranks(alone=True)."
            )
        check(find_wiring_problems(self.wiring, recompute=False, one_optimizer=True))
        losses = self.engine.step(
            self._checked(batch), number=self.steps, stepping=False, backward=backward
        )
        self.steps += 1
        return losses

    def flush(self) -> None:
        """Run what is still to come of the last batch. On several ranks a segment that waits for another rank's error is
        stepped during the next batch; call this before you look at parameters. In one process there is nothing to do."""
        with self.report_failures():
            self.engine.flush()
            if self.pipeline:
                self.pipeline.transport.wait_for_sends()

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """The deployed network's outputs (N, ...) in evaluation mode, on all ranks.

        Args:
            inputs: (N, ...) as in the sample; moved to the model's device.
        """
        self.flush()
        inputs = inputs.to(self.device)
        with evaluation_mode(self.network), self.report_failures():
            if self.pipeline is None:
                outputs: Tensor = self.network(inputs)
                return outputs
            return self.pipeline.broadcast_output(
                self._predictor().predict(Batch(inputs, inputs[:0]), number=self.steps)
            )

    def _predictor(self) -> Engine:
        """An engine that only runs forwards."""
        assert self.pipeline is not None
        wiring = replace(self.wiring, flows=((),) * len(self.wiring.segments))
        stage, link = self.pipeline.stage._replace(replica=0, replicas=1), self.pipeline.transport
        return Engine(
            self.model,
            wiring,
            self.pipeline.prediction_schedule,
            Optimizers({}),
            device=self.device,
            stage=stage,
            link=link,
        )

    def gather(self) -> nn.Module | None:
        """The whole trained network: in one process itself; on several ranks a copy on rank 0, and None on the others."""
        self.flush()
        if self.pipeline is None:
            return self.network
        trained = {"model": self.model, "encoders": self.encoders}
        own = {
            (part, name): value.cpu()
            for part, module in trained.items()
            for name, value in self.pipeline.select_owned_entries(part, module).items()
            if isinstance(value, Tensor)
        }
        state = self.merge(own)
        if state is None:
            return None
        model, encoders = deepcopy((self.model, self.encoders))
        load_tensors({"model": model, "encoders": encoders}, state, self.device)
        return self._deployed(model, encoders)

    def trained_modules(self) -> dict[str, nn.Module]:
        """All that is trained: "model", "heads" and "encoders"."""
        return {"model": self.model, "heads": self.heads, "encoders": self.encoders}

    def merge(self, part: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any] | None:
        """On rank 0 the union of what all ranks give, None on the others; in one process the part itself."""
        with self.report_failures():
            return self.pipeline.merge(part) if self.pipeline else dict(part)

    def total(self, sums: Mapping[int, float]) -> dict[int, float]:
        """For each module the sum of what all ranks know of it; in one process the sums themselves."""
        self.flush()
        with self.report_failures():
            return self.pipeline.total(sums) if self.pipeline else dict(sums)

    @contextmanager
    def report_failures(self) -> Iterator[None]:
        """On several ranks, a failure inside is reported to all, and raised as the first one of all, a StepFailed."""
        try:
            yield
        except BadInput as error:
            if self.pipeline:
                error.record = self.pipeline.record_failure(error)
            raise
        except RuntimeError as error:
            if self.pipeline is None:
                raise
            raise self.pipeline.make_failure(error) from error

    def _checked(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Batch:
        tensors = unpack_batch(batch)
        if any(
            parameter.requires_grad is not trainable for parameter, trainable in self._trainable
        ):
            raise BadInput(
                [
                    "requires_grad of some parameters has changed since the Learner was made: make a new Learner."
                ]
            )
        check(self._find_batch_problems(tensors))
        inputs, targets = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        return Batch(inputs, targets)

    def _find_batch_problems(self, tensors: list[Tensor]) -> Iterator[str]:
        return find_batch_problems(
            tensors, self._sample, self.wiring.task, self.partition.layers.output_shape
        )

    # --- costs --------------------------------------------------------------------------------------------------------

    def memory(
        self, batch: Tensor | tuple[Tensor, ...] | list[Tensor] | None = None
    ) -> MemoryReading:
        """The predicted memory of a step, in bytes; nothing is run.

        Args:
            batch: of which only shapes count; by default one like the sample.
        """
        return predict_memory(self.engine, [*filter(None, [self._shared])], self._like(batch))

    def flops(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor] | None = None) -> int:
        """The floating-point operations of a step: convolutions and matrix products, forward and backward.

        Args:
            batch: of which only shapes count; by default one like the sample.
        """
        return count_flops(self.engine, [*filter(None, [self._shared])], self._like(batch))

    def explain(self) -> str:
        """The credit table, the schedule, and what each module holds and needs."""
        return explain(self.wiring, self.schedule, self.memory())

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
        made = self.engine.optimizers.by_action
        return [
            made[step]
            for step in sorted(made, key=lambda step: (step.segment, step.op, step.flow or 0))
        ]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained: the model's parameters by their own names, then `heads.` and `encoders.`."""
        for part, module in self.trained_modules().items():
            yield from module.named_parameters("" if part == "model" else part)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained: of the model, the heads and the encoders."""
        return (parameter for _, parameter in self.named_parameters())


def _one_each(
    optimizer: OptimizerFactory | Optimizer, owned: dict[Action, list[nn.Parameter]]
) -> dict[Action, Optimizer]:
    """An optimizer for each of the owners, made by the factory; none if one exists that serves them all."""
    if isinstance(optimizer, Optimizer):
        return {}
    return {
        step: check_optimizer(optimizer(parameters), parameters)
        for step, parameters in owned.items()
    }
