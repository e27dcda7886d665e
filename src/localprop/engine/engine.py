"""The engine: a schedule read as tensors. It knows the ops and no method, and alone calls autograd.

The network runs its own forward. For the time of a step a hook sits on each module at whose return a segment ends; when it
fires, F of that segment is done, the engine runs the schedule's actions up to the next F, and hands the network a detached
output (plus context) to go on with::

    network   ──► segment 0 ──►┐            ┌──► segment 1 ──►┐              ┌──► ...
    hook                       └ L H B0 S ──┘                 └ L H B0 S  ───┘

On a rank that owns some of the segments, the forward skips the layers before them and stops at the end of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from localprop.engine.communicator import Communicator
from localprop.engine.contexts import ContextStore
from localprop.engine.flow_gradients import FlowGradients
from localprop.engine.gradient_sums import FlowKey, GradientPart, GradientSums, pop_gradient, scaled
from localprop.engine.loss_inputs import LossInputStore
from localprop.engine.messages import arrive, outgoing
from localprop.engine.optimizers import Optimizers
from localprop.engine.precision import Precision
from localprop.engine.recompute import Recompute
from localprop.engine.step_context import (
    Backward,
    InjectGradient,
    Losses,
    Observer,
    SegmentGraph,
    StepContext,
    canonical_layout,
    provenance,
    split,
)
from localprop.errors import BadInput, StepFailed
from localprop.network.partial_forward import StopForward, skip_layers
from localprop.rule.losses import Batch
from localprop.schedule.forward_index import ForwardIndex
from localprop.schedule.randomness import SeededGenerators
from localprop.schedule.schedule import RECEIVES, REDUCES, SENDS, Action, Op, Schedule
from localprop.schedule.stage import Stage
from localprop.schedule.wiring import Wiring


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
        link: what carries tensors to and from the other ranks, if there are any.
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
        link: Communicator | None = None,
    ) -> None:
        self.model = model
        self.wiring = wiring
        self.schedule = schedule
        self.device = device
        self.autocast = autocast
        self.seed = seed
        self.stage = stage or Stage(range(len(wiring.segments)))
        self.link = link
        self.optimizers = optimizers
        self._generators = SeededGenerators(device)
        self._precision = Precision(
            device,
            autocast,
            second_order=any(objective.second_order for objective in wiring.objectives),
        )
        self._index = ForwardIndex(schedule)
        self._read_wiring()
        self._pending: StepContext | None = (
            None  # the batch before, if some of its actions are still to come
        )
        self.recompute = (
            Recompute(model, wiring, self._index.recomputed) if self._index.recomputed else None
        )

    def _read_wiring(self) -> None:
        wiring, named, own = self.wiring, dict(self.model.named_parameters()), self.stage.segments
        last = len(wiring.segments) - 1
        self._ends = {s: self.model.get_submodule(wiring.end_name(s)) for s in own if s < last}
        self._contexts = ContextStore(
            wiring, own, self._index.sent_module_inputs, stay=bool(self._index.recomputed)
        )
        self._parameters: dict[int, list[Tensor]] = {}
        for s in own:
            self._parameters[s] = [
                parameter for parameter in wiring.trained(named, s) if parameter.requires_grad
            ]
        self._gradients = FlowGradients(
            self._parameters, wiring.flows, self._index.microbatches * self.stage.replicas
        )
        self._overwrites = [
            s > 0 and wiring.layers.modified_in_place[segment.layers[0] - 1]
            for s, segment in enumerate(wiring.segments)
        ]
        self._onward = [any(flow.onward is not None for flow in flows) for flows in wiring.flows]
        self._objectives = {o.key: o for o in wiring.objectives if o.segment in own}
        self.loss_inputs = LossInputStore(self.model, wiring, own)

    # --- one step ---------------------------------------------------------------------------------------------------

    def step(
        self,
        batch: Batch,
        *,
        number: int = 0,
        stepping: bool = True,
        backward: Backward = Tensor.backward,
        observe: Observer | None = None,
    ) -> Losses:
        """Run the schedule once.

        Args:
            batch: inputs (N, ...) and targets on the model's device.
            number: the number of the step, which random draws depend on.
            stepping: whether to run the actions H and S; without them gradients are left in `.grad`.
            backward: called on each local loss.
            observe: called with every action before it runs.

        Raises:
            StepFailed: an action failed; says which one, where, and which segments had been stepped already.
        """
        count = self._index.microbatches
        run = StepContext(
            number,
            backward,
            stepping,
            observe,
            batch,
            GradientSums(self.wiring),
            first=count * self.stage.replica,
        )
        run.batches = split(batch, count * self.stage.replicas)[run.first : run.first + count]
        self._whole(run, training=True)
        self._pending = run if self._index.deferred else None
        self.optimizers.keep_hyperparameters(self._index.deferred)
        return Losses.of(run.losses, self.wiring.table.module_of_loss)

    def predict(self, batch: Batch, *, number: int = 0) -> Tensor | None:
        """Run an engine whose schedule has only forwards and messages; the output, where the last segment is."""
        run = StepContext(
            number, Tensor.backward, False, None, batch, GradientSums(self.wiring), batches=[batch]
        )
        self._whole(run, training=False)
        return run.outgoing

    def _whole(self, run: StepContext, *, training: bool) -> None:
        with self._running(run), self._hooked(run):
            if self.link is not None:
                run.action = next(
                    action for action in self.schedule if not action.deferred
                )  # what the greeting is for
                self.link.begin(
                    run.number, run.batch, run.batches, self.schedule, training=training
                )
            whole = len(run.batch.inputs)
            self._run(run, self._index.before)
            for microbatch, part in enumerate(run.batches):
                self._microbatch(run, microbatch, part, len(part.inputs) / whole)

    def flush(self) -> None:
        """Run what is still to come of the last batch: actions that wait for errors of other ranks."""
        if self._pending is not None:
            run = self._pending
            run.begun = 0
            with self._running(run), self._hooked(run):
                self._run(run, self._index.deferred)
            self._pending = None

    @contextmanager
    def _running(self, run: StepContext) -> Iterator[None]:
        with torch.enable_grad(), self._generators.kept():
            try:
                yield
            except BaseException as error:  # Ctrl-C too: the next step would add to what was left
                self._drop_gradients()
                self._pending = None
                if self.recompute is not None:
                    self.recompute.forget()
                if isinstance(error, BadInput) or not isinstance(error, Exception):
                    raise
                raise StepFailed(
                    provenance(run, self.wiring, self.schedule, error), run.action
                ) from error

    def _microbatch(self, run: StepContext, microbatch: int, part: Batch, weight: float) -> None:
        first, last = self.stage.segments[0], self.stage.segments[-1]
        run.microbatch, run.batch, run.weight, run.expected = microbatch, part, weight, first
        with self._precision.forward():
            output = self._forward(run, first, part.inputs)
            if run.expected != last:
                raise RuntimeError(
                    f"the forward ended before module {self.wiring.end_name(run.expected)!r} had run"
                )
            self._leave(run, last, output)
        self._contexts.forget(microbatch, run.module_inputs)

    def _forward(self, run: StepContext, first: int, inputs: Tensor) -> Tensor:
        """The output of the last segment that is run here; on the way, hooks end the others."""
        try:
            if first == 0:
                output: Tensor = self.model(self._enter(run, 0, inputs))
                return output
            if self._contexts.reads_input():
                run.module_inputs[0, run.microbatch] = inputs
            layer = self.wiring.segments[first].layers[0]
            enter = partial(self._enter_received, run, first)
            with skip_layers(self.model, self.wiring.layers, layer, inputs, enter):
                output = self.model(inputs)
                return output
        except StopForward as reached:
            return reached.output

    def _enter_received(self, run: StepContext, s: int) -> Tensor:
        return self._enter(run, s, run.arrived.pop(run.microbatch))

    def _run(self, run: StepContext, actions: Iterable[Action]) -> None:
        for action in actions:
            of = self._pending if action.deferred else run
            self._begin(run, action)
            if of is not None:  # in the first step there is no batch before
                _RUN[action.op](self, of, action)

    @contextmanager
    def _hooked(self, run: StepContext) -> Iterator[None]:
        handles = [
            *self.loss_inputs.hooked(run),
            *(end.register_forward_hook(self._hook(run, s)) for s, end in self._ends.items()),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, run: StepContext, s: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            if self.recompute is not None and self.recompute.running is not None:
                return self.recompute.arrive(s, output)
            if run.expected != s:
                ran, awaited = self.wiring.end_name(s), self.wiring.end_name(run.expected)
                raise RuntimeError(f"the module {ran!r} ran before {awaited!r}")
            if s == self.stage.segments[-1]:
                raise StopForward(output)
            run.expected = s + 1
            self._leave(run, s, output)
            following = canonical_layout(output.detach())
            del output
            return self._enter(run, s + 1, following)

        return hook

    @staticmethod
    def _begin(run: StepContext, action: Action) -> None:
        run.action = action
        run.begun += 1
        if run.observe:
            run.observe(action)

    # --- F ----------------------------------------------------------------------------------------------------------

    def _enter(self, run: StepContext, s: int, segment_input: Tensor) -> Tensor:
        """Begin F of segment s: its leaf, its random state, and the contexts that it receives."""
        self._begin(run, Action(Op.F, s, None, run.microbatch))
        recomputed = s in self._index.recomputed
        torch.set_grad_enabled(
            (bool(self.wiring.flows[s]) or self.loss_inputs.second_order(s)) and not recomputed
        )
        self._generators.seed(self.seed, run.number, "F", s, run.first + run.microbatch)
        if recomputed:
            run.kept[s, run.microbatch] = segment_input
        run.leaf = segment_input.requires_grad_() if self._onward[s] and not recomputed else None
        segment_input = self.loss_inputs.segment_input(
            run, s, self._open_segment(run, s, run.microbatch, segment_input), self._overwrites[s]
        )
        self._contexts.keep(
            s,
            run.microbatch,
            segment_input,
            run.module_inputs,
            modified_in_place=self._overwrites[s],
        )
        return segment_input

    def _open_segment(self, run: StepContext, s: int, m: int, segment_input: Tensor) -> Tensor:
        """What segment s runs on: its input with its contexts added, or a copy where its layers write into their input."""
        added = self._contexts.added(s, m, segment_input, run.module_inputs)
        if added is not None:
            return added
        return segment_input.clone() if self._overwrites[s] else segment_input

    def _leave(self, run: StepContext, s: int, output: Tensor) -> None:
        """End F of segment s, and run what the schedule lists before the next F."""
        if not isinstance(output, Tensor):
            kind, name = type(output).__name__, self.wiring.end_name(s)
            raise TypeError(f"{name!r} returned a {kind}, a layer must return one tensor")
        if s not in self._index.recomputed:
            self._keep_graph(run, s, output)
        run.features = self.loss_inputs.features(s, output)
        if s == self.stage.segments[-1] and (s in self._ends or not self.wiring.flows[s]):
            run.outgoing = canonical_layout(output.detach())
        if self.recompute is not None:
            self.recompute.remember(s, output)
        del output
        torch.set_grad_enabled(True)
        self._run(run, self._index.after[run.microbatch, s])
        run.features = None

    def _keep_graph(self, run: StepContext, s: int, output: Tensor) -> None:
        flows = self.wiring.flows[s]
        if flows:
            box: list[Tensor] = []
            handle: Tensor = InjectGradient.apply(output, box)
            run.graphs[s, run.microbatch] = SegmentGraph(handle, box, run.leaf, len(flows))
        run.leaf = None

    def _forward_again(self, run: StepContext, action: Action) -> None:
        s, m = action.segment, action.microbatch
        assert self.recompute is not None
        segment_input = run.kept.pop((s, m)).detach()
        run.leaf = segment_input.requires_grad_() if self._onward[s] else None

        def enter() -> Tensor:
            self._generators.seed(self.seed, run.number, "F", s, run.first + m)
            return self._open_segment(run, s, m, segment_input)

        with self._precision.forward(), self.loss_inputs.recomputed(run, s, m):
            output = self.recompute(s, run.batches[m].inputs, enter)
        microbatch, run.microbatch = run.microbatch, m
        self._keep_graph(run, s, output)
        run.microbatch = microbatch

    # --- L, B -------------------------------------------------------------------------------------------------------

    def _loss(self, run: StepContext, action: Action) -> None:
        objective = self._objectives[action.segment, action.flow]
        features, inputs = self.loss_inputs.inputs(run, objective)
        head = self.wiring.head(objective)
        self._generators.seed(
            self.seed, run.number, *objective.seed_key, run.first + action.microbatch
        )
        with self._precision.forward():
            loss: Tensor = head["loss"](features, head["aux"], inputs)
            loss = loss if run.weight == 1 else loss * run.weight
        if loss.requires_grad:
            with self._precision.backward():
                run.backward(loss)
        loss = loss.detach()
        total = run.losses.get(objective.loss)
        run.losses[objective.loss] = loss if total is None else total + loss
        self.loss_inputs.leave_errors(run, objective, inputs)
        if objective.flow is not None:
            at = FlowKey(action.segment, objective.flow, action.microbatch)
            run.errors.add(
                at,
                GradientPart(
                    -1 - (objective.number or 0), scaled(pop_gradient(features), objective.scale)
                ),
            )

    def _backward(self, run: StepContext, action: Action) -> None:
        s, m, f = action.segment, action.microbatch, action.flow or 0
        flow, graph = self.wiring.flows[s][f], run.graphs[s, m]
        graph.backwards_left -= 1
        if graph.backwards_left == 0:
            del run.graphs[s, m]
        inputs = list(self._parameters[s]) if flow.train else []
        if flow.onward is not None and graph.leaf is not None:
            inputs.append(graph.leaf)
        graph.box.append(run.errors.take(FlowKey(s, f, m)))
        ends, errors = self.loss_inputs.ends(run, FlowKey(s, f, m), last=graph.backwards_left == 0)
        with self._precision.backward(), self._gradients.of(s, f, run.aside):
            kept = graph.backwards_left > 0
            torch.autograd.backward(
                [graph.handle, *ends], [None, *errors], retain_graph=kept, inputs=inputs
            )
        del ends, errors
        if flow.onward is not None and graph.leaf is not None:
            leaf, graph.leaf = graph.leaf, graph.leaf if graph.backwards_left else None
            error = scaled(pop_gradient(leaf), flow.scale)
            if s == self.stage.segments[0]:
                run.upward[FlowKey(s, f, m)] = error
            else:
                run.errors.add(FlowKey(s - 1, flow.onward, m), GradientPart(f, error))

    # --- between ranks ----------------------------------------------------------------------------------------------

    def _send(self, run: StepContext, action: Action) -> None:
        assert self.link is not None
        tensor = outgoing(run, action, self.wiring)
        self.link.send(action, tensor, len(run.batches[action.microbatch].inputs))

    def _receive(self, run: StepContext, action: Action) -> None:
        assert self.link is not None
        arrive(run, action, self.wiring, self.link.receive(action))

    # --- H, S -------------------------------------------------------------------------------------------------------

    def _reduce(self, run: StepContext, action: Action) -> None:
        assert self.link is not None
        aside = FlowGradients.aside(action.segment, run.aside) if action.op is Op.REDUCE_S else []
        self.link.reduce(action, self.optimizers.gradients(action) + aside)

    def _step(self, run: StepContext, action: Action) -> None:
        if self.link is not None:
            self.link.reduced(action)
        if action.op is Op.S:
            self._gradients.add(action.segment, run.aside)
        if run.stepping:
            with self._precision.backward():
                self.optimizers.step(action)
            if action.op is Op.S:
                run.stepped.append(action.segment)

    def _copy(self, run: StepContext, action: Action) -> None:
        self.loss_inputs.copy(self._objectives[action.segment, action.flow], run.number)

    def _drop_gradients(self) -> None:
        heads, encoders = self.wiring.heads.parameters(), self.wiring.encoders.parameters()
        for parameter in (*self.model.parameters(), *heads, *encoders):
            parameter.grad = None


_RUN: dict[Op, Callable[[Engine, StepContext, Action], None]] = {
    Op.F: Engine._forward_again,
    Op.L: Engine._loss,
    Op.B: Engine._backward,
    Op.H: Engine._step,
    Op.S: Engine._step,
    Op.P: Engine._copy,
    **dict.fromkeys(SENDS, Engine._send),
    **dict.fromkeys(RECEIVES, Engine._receive),
    **dict.fromkeys(REDUCES, Engine._reduce),
}
