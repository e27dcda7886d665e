"""The engine: a schedule read as tensors. It knows the actions and no method.

The network runs its own forward. For the time of a step a hook sits on each module at whose return
a segment ends. When it fires, F of that segment is done; the engine runs the schedule's actions up
to the next F, and hands the network a detached output (plus context) to go on with::

    network   ──► segment 0 ──►┐           ┌──► segment 1 ──►┐             ┌──► ...
    hook                       └ L H B S ──┘                 └ L H B S  ───┘

Every action is an instruction made before the first step (program.py); in a step the engine only
calls them in order. What they hand to each other lies in one store per batch (store.py).

On a rank that owns some of the segments, the forward skips the layers before them and stops at the
end of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localprop.engine.backward_hooks import BackwardHooks
from localprop.engine.communicator import Communicator
from localprop.engine.compiled import find_compiled_parts
from localprop.engine.cut_hooks import CutHooks
from localprop.engine.failure import describe_failure, drop_everything
from localprop.engine.forward import KeepInnerOutput, canonical_layout
from localprop.engine.interrupts import interruptible, uninterrupted
from localprop.engine.loss import Losses, find_loss_places
from localprop.engine.offload import Host, make_offload
from localprop.engine.optimizers import Optimizers
from localprop.engine.program import Instructions, Program, make_plan
from localprop.engine.ranges import ActionRanges
from localprop.engine.recompute import make_recompute
from localprop.engine.saved_tensor_hooks import unhooked_saved_tensors
from localprop.engine.skips import cut_bundle, enter_bundle
from localprop.engine.store import Backward, Cursor, Observer, StepContext
from localprop.engine.weights import weigh_parts
from localprop.errors import BadInput, NotFinite, StepFailed
from localprop.network.partial_forward import StopForward, skip_layers
from localprop.network.recomputed import Recomputed
from localprop.rule.local_loss import LossInputs
from localprop.schedule.randomness import derive_seeds
from localprop.schedule.schedule import Action, Schedule
from localprop.schedule.stage import Stage
from localprop.schedule.values import Value
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch


class Engine:
    """Runs a schedule on a model.

    Args:
        model: the primary network; only its forward is called.
        wiring: segments, flows, objectives, with their heads and encoders on the model's device.
        schedule: the actions of a step.
        optimizers: of segments and objectives.
        device: where the model is.
        autocast: dtype of the forwards and losses, or None.
        seed: of all random draws.
        stage: the part of each step that runs here; by default all of it.
        communicator: carries tensors to and from the other ranks, if there are any.
        recomputed: the layers that run again in the backward.
        host: keeps what forwards save, if that is offloaded; no layer runs again then.
        checks_numbers: whether to look for NaN and infinity before parameters change.
    """

    def __init__(
        self,
        model: nn.Module,
        wiring: Wiring,
        schedule: Schedule,
        optimizers: Optimizers,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        seed: int = 0,
        stage: Stage | None = None,
        communicator: Communicator | None = None,
        recomputed: Recomputed = Recomputed(),  # noqa: B008
        host: Host | None = None,
        checks_numbers: bool = False,
    ) -> None:
        self.model = model
        self.wiring = wiring
        self.schedule = schedule
        self.optimizers = optimizers
        self.device = device
        self.autocast = autocast
        self.seed = seed
        self.stage = stage or Stage(range(len(wiring.segments)))
        self.communicator = communicator
        self.plan = make_plan(model, wiring, schedule, self.stage, device=device, autocast=autocast)
        self.checks_numbers = checks_numbers
        program = Program(self.plan, model, optimizers, communicator, checks_numbers)
        self._program, self.undo, self.undoing = program, program.undo, program.undoing
        self._uninterrupted: Callable[[], Any] = uninterrupted if wiring.atomic else nullcontext
        self._interruptible: Callable[[], Any] = interruptible if wiring.atomic else nullcontext
        self.recomputed = recomputed
        self.recompute = make_recompute(self.plan, model, recomputed)
        self.offload = make_offload(self.plan, model, host)
        self.saving = self.recompute or self.offload
        self._draws = self.plan.list_draws()
        self._loss_places = find_loss_places(wiring)
        last = len(wiring.segments) - 1
        # The network's last segment ends with the model's return: code may follow its last module.
        ends = {s: wiring.end_name(s) for s in self.stage.segments if s < last}
        self._cuts = CutHooks(model, ends, self._cut)
        # Where a segment ends at a tap, the tap must see the output before the next segment's input
        # takes its place, so its hook runs first: it comes last here (`_hooked`).
        taps = [(module, partial(self._keep_inner_output, t)) for module, t in self._program.taps]
        self.hooks: list[tuple[nn.Module, Callable[..., Any]]] = [*self._cuts, *taps]
        self._compiled = find_compiled_parts(model, self.hooks, wiring, recomputed)
        self._cursor = Cursor()
        self._running_step: StepContext | None = None
        # The batch before, while some of its actions are still to come.
        self._pending: StepContext | None = None

    # --- one step -------------------------------------------------------------------------------

    def step(
        self,
        batch: Batch,
        *,
        number: int = 0,
        stepping: bool = True,
        backward: Backward | None = None,
        observe: Observer | None = None,
    ) -> Losses:
        """Run the schedule once.

        Args:
            batch: inputs (N, ...) and targets on the model's device.
            number: the number of the step, which random draws depend on.
            stepping: whether to run H and S; without them gradients are left in `.grad`.
            backward: called on each local loss; by default scaled as the optimizers expect it.
            observe: called with every action before it runs.

        Returns:
            The losses, which know their places.

        Raises:
            StepFailed: says which action failed, where, and which segments had been stepped.
            NotFinite: a loss or a gradient is not.
        """
        plan, stage = self.plan, self.stage
        parts = batch.split(plan.microbatches * stage.replicas)
        here = slice(plan.first, plan.first + plan.microbatches)
        # Of the whole batch, those of other replicas included: gradients are summed over them.
        weights = [part.samples / batch.samples for part in parts]
        task_weights: list[Tensor | float] = [1.0]
        if len(parts) > 1:
            task_weights = weigh_parts(self.wiring, batch, parts, weights)
        inputs = [
            LossInputs(part.inputs, part.targets, batch=part.data, task_weight=weight)
            for part, weight in zip(parts[here], task_weights[here], strict=True)
        ]
        autocast = self.autocast is not None or torch.is_autocast_enabled(self.device.type)
        seeds = derive_seeds(self.seed, number, self._draws)
        run = backward or self.optimizers.backward
        step = StepContext(
            number, seeds, parts[here], weights[here], inputs, run, stepping, autocast
        )
        with self.undoing():
            self._run_step(step, batch, observe, training=True)
        if self._program.deferred:
            self._pending = step
            self.optimizers.keep_hyperparameters(action for action, _ in self._program.deferred)
        return Losses.of(step.losses, self._loss_places)

    def predict(self, batch: Batch, *, number: int = 0) -> Tensor | None:
        """Run an engine whose schedule has only forwards and messages.

        Returns:
            The network's output, where the last segment is; None elsewhere.
        """
        seeds = derive_seeds(self.seed, number, self._draws)
        step = StepContext(number, seeds, [batch], [1.0], [], Tensor.backward, False, False)
        return self._run_step(step, batch, None, training=False)

    def flush(self) -> None:
        """Run what is still to come of the last batch: what waits for gradients of other ranks."""
        if self._pending is not None:
            with self._running(self._pending, None), self._interruptible():
                self._run(self._pending, self._program.deferred)
            self._pending = None

    def list_values(self) -> list[tuple[Value, Any]]:
        """The values that are alive now, of the batch before and of this one."""
        steps = [step for step in (self._pending, self._running_step) if step is not None]
        return [entry for step in steps for entry in step.store.items()]

    def list_losses(self) -> list[Tensor]:
        """The losses of the step that runs, as far as they have been computed."""
        return [] if self._running_step is None else [*self._running_step.losses.values()]

    def initialise_copies(self) -> None:
        """Make the copies of network parameters that auxiliary networks hold."""
        for copies in self._program.copies:
            copies.initialise()

    def _run_step(
        self, step: StepContext, batch: Batch, observe: Observer | None, *, training: bool
    ) -> Tensor | None:
        self._running_step = step
        output = None
        with self._running(step, observe), self._interruptible():
            if self.communicator is not None:
                # A failure of the greeting is reported at the first action of this batch.
                self._cursor.action = next(a for a in self.schedule if not a.deferred)
                self.communicator.begin(
                    step.number, batch, step.batches, self.schedule, training=training
                )
            self._run(step, self._program.before)
            for microbatch in range(len(step.batches)):
                output = self._run_microbatch(step, microbatch, training=training)
        return output if self.stage.segments[-1] == len(self.wiring.segments) - 1 else None

    @contextmanager
    def _running(self, step: StepContext, observe: Observer | None) -> Iterator[None]:
        # torch has no public question for this. Should the name go, steps run without ranges.
        is_profiled = getattr(torch.autograd.profiler, "_is_profiler_enabled", False)
        ranges = ActionRanges(self.wiring, observe) if is_profiled else None
        self._cursor = Cursor(observe if ranges is None else ranges)
        # Segments switch the grad mode without a context manager; this one restores the caller's.
        preserved = self.plan.generators.preserved()
        with self._uninterrupted(), torch.enable_grad(), preserved, self._hooked():
            try:
                yield
            except BaseException as error:  # Ctrl-C too: the next step would add to what was left
                drop_everything(step, self.model, self.wiring)
                self._pending = None
                if isinstance(error, (BadInput, NotFinite)) or not isinstance(error, Exception):
                    raise
                text = describe_failure(step, self._cursor, self.wiring, self.schedule, error)
                raise StepFailed(text, self._cursor.action) from error
            finally:
                self.optimizers.end_step()
                self._running_step = None
                if ranges is not None:
                    ranges.close()

    # --- the network's forward ------------------------------------------------------------------

    def _run_microbatch(
        self, step: StepContext, microbatch: int, *, training: bool
    ) -> Tensor | None:
        """Run the forward of a micro-batch and, at each cut, the actions that follow.

        Returns:
            The output of the last segment here, detached; None in training, which holds no tensor
            that the store does not know.
        """
        first, last = self.stage.segments[0], self.stage.segments[-1]
        self._cursor.microbatch, self._cursor.expected = microbatch, first
        if self._cuts.wait:
            self._cuts.begin()
        precision = self.plan.precision
        with precision.forward() if precision.is_active else nullcontext():
            output = self._run_forward(step, first)
            self._program.leave[microbatch, last](step, output)
            returned = None if training else canonical_layout(output.detach())
            # From here on the store decides who lives. The actions run in no call that takes the
            # output: Python may let the caller hold arguments until the call returns.
            del output
            self._run(step, self._program.after[microbatch, last])
            return returned

    def _run_forward(self, step: StepContext, first: int) -> Tensor:
        """The output of the last segment that runs here; on the way, hooks end the others."""
        output = self._run_model(step, first, step.batches[self._cursor.microbatch])
        if self._cursor.expected != self.stage.segments[-1]:
            awaited = self.wiring.end_name(self._cursor.expected)
            raise RuntimeError(f"the forward ended before module {awaited!r} had run")
        return output

    def _run_model(self, step: StepContext, first: int, batch: Batch) -> Tensor:
        forward = self.wiring.task.forward
        try:
            if self.saving is not None:
                self.saving.begin_forward(batch)
            if first == 0:
                self._enter_segment(step, 0, batch.inputs)
                return forward(self.model, batch.data)
            layer = self.wiring.segments[first].layers[0]
            layers = self.wiring.layers.at(batch)
            enter = partial(self._enter_received, step, first)
            with skip_layers(self.model, layers, layer, batch, enter):
                return forward(self.model, batch.data)
        except StopForward as stop:
            return stop.output
        finally:
            if self._cuts.wait:
                self._cuts.end()
            if self.saving is not None:
                self.saving.end_forward()

    def _enter_received(self, step: StepContext, segment: int) -> dict[int, Tensor]:
        received = self._program.enter[self._cursor.microbatch, segment].take_received(step.store)
        layers, layer = self.wiring.layers, self.wiring.segments[segment].layers[0] - 1
        enter = partial(self._enter_segment, step, segment)
        return enter_bundle(step, layers, layer, received, enter)

    def _enter_segment(self, step: StepContext, segment: int, segment_input: Tensor) -> Tensor:
        entry = self._program.enter[self._cursor.microbatch, segment]
        self._begin(entry.action)
        return entry(step, segment_input)

    def _begin(self, action: Action) -> None:
        cursor = self._cursor
        cursor.action = action
        cursor.begun += 1
        if cursor.observe is not None:
            cursor.observe(action)

    def _run(self, step: StepContext, actions: Instructions) -> None:
        cursor = self._cursor
        for action, run in actions:
            # As `_begin` does; a call for each action would show in the time of a small network.
            cursor.action = action
            cursor.begun += 1
            if cursor.observe is not None:
                cursor.observe(action)
            if not action.deferred:
                run(step)
            elif self._pending is not None:  # in the first step there is no batch before
                run(self._pending)

    # --- hooks ----------------------------------------------------------------------------------

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        # Only for a step's time: hooks would cut the user's own calls, and go into deep copies.
        handles: list[Any] = []
        try:
            for module, hook in self.hooks:
                # Before all hooks that are there, such as those of Hugging Face's models, which
                # would keep outputs that are not cut.
                if module._compiled_call_impl is None:
                    handles.append(module.register_forward_hook(hook, prepend=True))
            if self._compiled is not None:
                handles.append(self._compiled.hook())
            if any(end._backward_hooks or end._backward_pre_hooks for end in self._cuts.segments):
                handles.append(BackwardHooks(self._cuts.segments))
            if self.saving is not None:
                handles += self.saving.hook()
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _cut(self, segment: int, module: nn.Module, args: object, output: Any) -> Any:
        """The hook at a segment's end: what it returns takes the place of the module's output."""
        # A model that checkpoints its own blocks calls them again in a backward.
        if torch._C._current_graph_task_id() != -1:
            return output
        if isinstance(output, Tensor):
            return self._cut_tensor(segment, output)
        assert self._running_step is not None
        layers, layer = self.wiring.layers, self.wiring.segments[segment].layers[-1]
        cut = partial(self._cut_tensor, segment)
        return cut_bundle(self._running_step, layers, layer, output, cut)

    def _cut_tensor(self, segment: int, output: Tensor) -> Tensor:
        """End a segment with its output, and begin the next one with what this returns."""
        cursor, step = self._cursor, self._running_step
        assert step is not None
        if cursor.expected != segment:
            ran, awaited = self.wiring.end_name(segment), self.wiring.end_name(cursor.expected)
            raise RuntimeError(f"the module {ran!r} ran before {awaited!r}")
        if segment == self.stage.segments[-1]:
            raise StopForward(output)
        cursor.expected = segment + 1
        place = cursor.microbatch, segment
        self._program.leave[place](step, output)
        # The network's own frames hold the output until the forward goes on.
        following = canonical_layout(output.detach())
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            # The uncut recomputation saves more where an input requires a gradient, so this must.
            if not (self.offload and self.offload.is_innermost()):
                following.requires_grad_(output.requires_grad)
            with unhooked_saved_tensors():
                self._run(step, self._program.after[place])
        else:
            self._run(step, self._program.after[place])
        return self._enter_segment(step, segment + 1, following)

    def _keep_inner_output(
        self, tap: KeepInnerOutput, module: nn.Module, args: object, output: Tensor
    ) -> Tensor:
        if torch._C._current_graph_task_id() != -1:
            return output
        assert self._running_step is not None
        return tap(self._running_step.store, self._cursor.microbatch, output)
