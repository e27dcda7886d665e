"""The learner: a model, a rule and a partition, ready to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop import argument_checks, checks
from localprop.cost.explain import describe_briefly
from localprop.cost.predicted import Predicted
from localprop.data.dataset import Normalization
from localprop.engine.early_exit import predict_at
from localprop.engine.loss import Losses
from localprop.engine.shared_optimizer import exchange_parameters, extend_optimizer
from localprop.engine.store import Backward, Observer
from localprop.engine.user_optimizers import OptimizerFactory
from localprop.errors import BadInput, NotFinite, check
from localprop.network.contextual import add_contexts
from localprop.network.fast import choose_fast_steps, find_memory_format
from localprop.network.find_layers import layers_of
from localprop.network.modes import evaluation_mode
from localprop.network.partition import Partition
from localprop.network.recomputed import RecomputeChoice
from localprop.planning.budget import choose_within, find_budget_problems, summarise
from localprop.planning.plan import Plan
from localprop.ranks.own_engine import make_own_engine
from localprop.ranks.pipeline import Ranks
from localprop.ranks.stages import gather_network, predict_on_ranks
from localprop.rule.rule import Rule
from localprop.schedule.check_wiring import find_wiring_problems
from localprop.schedule.notes import find_notes
from localprop.schedule.wire import wire
from localprop.state import carry_over, collect_by_name, restore, state_of
from localprop.tasks.batch import Batch, unwrap
from localprop.tasks.task import Task

__all__ = ["Learner"]

# Arguments that a learner which looks at its model again is given anew.
_NOT_KEPT = ("self", "model", "rule", "sample", "modules", "partition", "budget")


class Learner(Predicted):
    """Trains a model by a rule.

    Args:
        model: any module. It is trained in place and stays the plain model.
        rule: the training rule, from `localprop.methods` or composed of parts.
        modules: the number of local modules, cut uniformly; or give `partition`.
        partition: the cuts.
        budget: instead of both, the bytes that a step may take, such as "8GB": then modules,
            recompute and microbatches are those of the fastest way of the rule that fits
            (`lp.plan`), and `learner.plan` has the others.
        optimizer: a factory, called with the parameters of each segment and of each local loss, or
            with (name, parameter) pairs if its argument is called `named`; or an existing
            optimizer, whose groups gain the parameters of heads and encoders, and which steps once,
            after the last backward (`optimizer_groups`).
        sample: a batch as the loader gives it. Others may differ in size and shape, as far as the
            model lets them.
        task: how a batch enters the model, and the loss of its output: a `Task`, a loss such as
            nn.MSELoss(), or a function (output, targets); by default the usual (`lp.check`).
        batch_dims: the dimensions with the samples, if not 0: a number, or numbers in the structure
            of the batch; None for what all samples share.
        recompute: run layers again in their backward instead of keeping what they have computed:
            True for all, n for every n-th, names ("blocks.*"), stretches "first..last", which keep
            only their input, with inner ones "first..last(a..b,c)", or "modules", one for each.
        offload: keep what forwards save in the host's memory; on CUDA pinned, beside the kernels.
        microbatches: the number of parts that a batch is run in; gradients accumulate.
        weight_gradients: where several flows of gradients train layers, "once" makes the gradients
            of the weights of their sum, which is faster; "each" makes them for each flow, and needs
            less memory. Both are equal but for rounding.
        precision: "fp32" (the model's own dtype), "bf16" (autocast), or "fp16" (autocast, and
            losses scaled by `learner.scaler`, a GradScaler: a step that overflows is left out).
        fast: take what gains on the model's device, which changes rounding alone: channels last,
            for good, and bf16; `explain()` says what was taken and why.
        on_nonfinite: what a loss or gradient of NaN or infinity does: "raise" `NotFinite` before a
            parameter changes; "skip" the batch, and count it in `learner.skipped`; or "ignore".
        atomic: optimizers step after the last backward, and a step that fails leaves all as it was:
            parameters, buffers, state of optimizers, draws. Gradients then live until the end, and
            copies of what is stepped: `learner.memory()` has both. By default where there is one
            process, and room for it in a budget.
        seed: of heads, encoders and every random draw of a step.
        normalization: how the inputs were made from pixels, for losses that look at those
            (InfoPro); `Normalization()` if they are pixels in 0..1.
        ranks: how to distribute training over the launched processes. Under torchrun, each process
            runs one pipeline stage, with the same results to the bit. All processes must make the
            same calls with the same batches.

    Raises:
        BadInput: something cannot be trained; with all reasons and fixes.

    Example:
        >>> import torch, localprop as lp
        >>> batch = (torch.randn(8, 3, 8, 8), torch.randint(10, (8,)))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
        >>> model, rule = lp.models.resnet8(), lp.backlink(layers=1)
        >>> learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)
        >>> len(learner.step(batch))
        4
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        *,
        optimizer: OptimizerFactory | Optimizer,
        sample: Any,
        modules: int | None = None,
        partition: Partition | None = None,
        budget: int | str | None = None,
        task: Task | Callable[..., Any] | None = None,
        batch_dims: Any = ...,
        recompute: RecomputeChoice = False,
        offload: bool = False,
        microbatches: int = 1,
        weight_gradients: str = "once",
        precision: str = "fp32",
        fast: bool = False,
        on_nonfinite: str = "raise",
        atomic: bool | None = None,
        seed: int = 0,
        normalization: Normalization | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> None:
        given = dict(locals())
        check(argument_checks.find_argument_problems(given))
        chosen = modules, partition, recompute, offload, microbatches, optimizer, ranks
        check(find_budget_problems(*chosen) if budget is not None else ())
        self.fast = choose_fast_steps(model, precision, fast=fast)
        if self.fast.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.rule = model, rule
        self.seed, self.steps, self.skipped = seed, 0, 0
        sample = checks.add_targets(unwrap(sample))
        task = checks.resolve_task(task, model, sample, batch_dims)
        self.plan: Plan | None = None
        if budget is not None:
            network = budget, model, rule, sample, task, batch_dims, optimizer
            self.plan, partition, recompute, microbatches, atomic = choose_within(
                *network, self.fast.precision, weight_gradients, atomic
            )
        atomic = not ranks.is_used() if atomic is None else atomic
        cuts = modules if partition is None else partition
        self.partition = checks.make_partition(model, rule, sample, task, batch_dims, cuts)
        saving = {"recompute": recompute, "microbatches": microbatches, "atomic": atomic}
        kept = {name: value for name, value in given.items() if name not in _NOT_KEPT}
        self._arguments: dict[str, Any] = kept | saving | {"task": task}
        own = Batch.of(sample, task.targets(sample), batch_dims).clone().to(torch.device("cpu"))
        self._sample = own.forget_classes().data
        self.wiring = wire(
            rule,
            self.partition,
            task=task,
            frozen=frozenset(n for n, p in model.named_parameters() if not p.requires_grad),
            seed=seed,
            normalization=normalization,
            weight_gradients=weight_gradients,
            atomic=atomic,
        )
        self.wiring.to(self.device, find_memory_format(model))
        self._shared = optimizer if isinstance(optimizer, Optimizer) else None
        self._outside = [] if self._shared is None else [self._shared]
        check(
            find_wiring_problems(
                self.wiring,
                recompute=bool(recompute),
                offload=offload,
                one_optimizer=self._shared is not None,
                on_ranks=ranks.is_used(),
            )
        )
        self._check_batch = checks.BatchCheck(model, own, self.wiring, batch_dims)
        self._check_batch(own.data)
        self.heads, self.encoders = self.wiring.heads, self.wiring.encoders
        self.network = add_contexts(model, self.encoders, self.partition, self.wiring.sources)
        self.engine, self.pipeline = make_own_engine(
            model,
            rule,
            self.wiring,
            own,
            optimizer,
            recompute=recompute,
            offload=offload,
            microbatches=microbatches,
            autocast=argument_checks.PRECISIONS[self.fast.precision],
            seed=seed,
            ranks=ranks,
            checks_numbers=on_nonfinite != "ignore" and self.fast.precision != "fp16",
        )
        self.schedule = self.engine.schedule
        if self._shared is not None:  # last, so that a refusal leaves the optimizer as it was
            unreached = self.partition.layers.unreached
            extend_optimizer(self._shared, model, self.wiring, unreached)
        self._named = list(self.named_parameters())

    def rebuild(self, *, modules: int | None = None, partition: Partition | None = None) -> None:
        """Look at the model again, after layers were frozen, unfrozen, moved or replaced.

        Heads, encoders, the state of optimizers and their hyperparameters stay, by name, where the
        shapes are the same; what is new begins as in a new learner. The cuts stay where they were.
        In an optimizer that came from outside, new parameters take the places of the old by name.

        Args:
            modules: cut anew, into so many modules.
            partition: the new cuts.

        Raises:
            BadInput: on several ranks; or something cannot be trained, and all is as before.
        """
        if self.pipeline:
            raise BadInput("learner.rebuild runs in one process: make a new learner on each rank.")
        self.flush()
        if modules is None and partition is None:
            dims, task = self._arguments["batch_dims"], self.wiring.task
            layers = layers_of(self.model, self._sample, task=task, batch_dims=dims)
            partition = Partition.at(layers, [own[-1] for own in self.partition.modules[:-1]])
        before = collect_by_name(self, self._named)
        arguments = {**self._arguments, "modules": modules, "partition": partition}
        with exchange_parameters(self._shared, self._named, self.model):
            rebuilt = Learner(self.model, self.rule, sample=self._sample, **arguments)
        carry_over(before, rebuilt)
        rebuilt.skipped = self.skipped
        self.__dict__ = rebuilt.__dict__

    def try_rule(self, rule: Rule, partition: Partition, optimizer: OptimizerFactory) -> Learner:
        """A learner of the same model and arguments, but for these: to look, not to step both."""
        arguments = {**self._arguments, "partition": partition, "optimizer": optimizer}
        return Learner(self.model, rule, sample=self._sample, **arguments)

    # --- stepping -------------------------------------------------------------------------------

    def step(self, batch: Any, *, observe: Observer | None = None) -> Losses:
        """Run one training step, which updates every parameter once.

        On several ranks the losses are those of the rank's own modules. With replicas they are this
        replica's part of their mean; `total` adds them up.

        Args:
            batch: (inputs, targets) as the sample; moved to the model's device.
            observe: called with every action of the schedule before it runs.

        Returns:
            The losses; `.items()` gives each with its place: row, module and layer.

        Raises:
            BadInput: a batch of another shape or dtype, labels out of range.
            StepFailed: an action failed; all is as before, unless steps are not `atomic`.
            NotFinite: a loss or a gradient is NaN or infinite; likewise.
        """
        checks.check_surroundings()
        undo = self.engine.undo
        try:
            with self.report_failures(), self.engine.undoing():
                checked = self._check_batch(batch)
                losses = self.engine.step(checked, number=self.steps, observe=observe)
                if self._shared is not None:
                    if undo is not None:
                        undo.keep_optimizer(self._shared)
                    self.engine.optimizers.step_shared(self._shared)
                if undo is not None:
                    undo.keep_attribute(self, "steps")
                self.steps += 1
        except NotFinite as error:
            if self._arguments["on_nonfinite"] != "skip":
                raise
            self.skipped += 1
            losses = error.losses
        return losses

    def backward(self, batch: Any, *, backward: Backward = Tensor.backward) -> Losses:
        """Leave all gradients in `.grad`, and step nothing; for training loops of others.

        Gradients add to those that are there. A failure drops all of them. Averages of parameters
        that heads hold move once per call.

        Args:
            batch: (inputs, targets).
            backward: called on each local loss; the host's (`accelerator.backward`,
                `fabric.backward`).

        Raises:
            BadInput: on several ranks, where a segment's step may come during the next batch; or a
                rule that copies parameters right after their step; or losses that nobody scales,
                with precision="fp16".
        """
        on_ranks = self.pipeline is not None
        unscaled = self.scaler.is_enabled() and backward is Tensor.backward
        check(
            argument_checks.find_backward_problems(
                self.wiring, on_ranks=on_ranks, unscaled=unscaled
            )
        )
        checks.check_surroundings()
        checked = self._check_batch(batch)
        losses = self.engine.step(checked, number=self.steps, stepping=False, backward=backward)
        self.steps += 1
        return losses

    def flush(self) -> None:
        """Run what is still to come of the last batch.

        On several ranks, a segment that waits for a gradient of another rank is stepped during the
        next batch: call this before you look at parameters. In one process there is nothing to do.
        """
        with self.report_failures():
            self.engine.flush()
            if self.pipeline:
                self.pipeline.transport.wait_for_sends()

    @torch.no_grad()
    def predict(self, batch: Any, *, module: int | None = None) -> Tensor:
        """The deployed network's outputs (N, ...) in evaluation mode, on all ranks.

        Args:
            batch: as in the sample, or only its inputs; moved to the model's device.
            module: leave the network at the end of this module, through its trained head.

        Raises:
            BadInput: the module has no such head; or on several ranks, which have no early exits.
        """
        self.flush()
        entered = Batch.of(batch, self.wiring.task.targets(batch)).to(self.device)
        with evaluation_mode(self.network), self.report_failures():
            if self.pipeline is None:
                return predict_at(module, self.network, self.model, self.wiring, entered)
            known, number = (self.pipeline, self.model, self.wiring), self.steps
            return predict_on_ranks(*known, entered, number=number, module=module)

    # --- several ranks --------------------------------------------------------------------------

    def gather(self) -> nn.Module | None:
        """The whole trained network; on several ranks a copy of it on rank 0, None on others."""
        self.flush()
        if self.pipeline is None:
            return self.network
        with self.report_failures():
            return gather_network(
                self.pipeline, self.model, self.wiring, self.partition, self.device
            )

    def merge(self, entries: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any] | None:
        """Collect entries of all ranks on rank 0, None on others; in one process a copy."""
        with self.report_failures():
            return self.pipeline.merge(entries) if self.pipeline else dict(entries)

    def total(self, sums: Mapping[int, float]) -> dict[int, float]:
        """Add up what all ranks know of each module; in one process a copy of the sums."""
        self.flush()
        with self.report_failures():
            return self.pipeline.total(sums) if self.pipeline else dict(sums)

    def report_failures(self) -> AbstractContextManager[None]:
        """Report a failure inside to all ranks, and raise the first one of all as a StepFailed."""
        return self.pipeline.reports.reporting() if self.pipeline else nullcontext()

    def state_dict(self) -> dict[str, Any] | None:
        """Copy to the CPU all that the next step depends on, for `torch.save`.

        Returns:
            The state dicts of "model", "heads" and "encoders"; "optimizer", by names of parameters;
            "steps"; "scaler" of fp16. On several ranks all must call this; rank 0 gets the state
            and others None.
        """
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`: the next step is equal to the bit.

        Raises:
            BadInput: the state is of another learner; this one is then unchanged.
        """
        restore(self, state)

    def summary(self) -> str:
        """One sentence: the predicted peak; with a budget also what end-to-end training takes."""
        modules = len(self.partition.modules)
        arguments = {**self._arguments, "precision": self.fast.precision}
        return summarise(self.memory(), self._like(None), self.plan, modules, arguments)

    def __repr__(self) -> str:
        return describe_briefly(self.engine, self.model, self.rule)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each argument that this network or device caps or ignores."""
        idle = self.engine.offload is not None and self.device.type == "cpu"
        on_host = ["offload=True saves no memory here: the device is the host itself."] * idle
        return (*find_notes(self.rule, self.partition), *on_host)

    def _like(self, batch: Any | None) -> Batch:
        return self._check_batch(self._sample if batch is None else batch)
