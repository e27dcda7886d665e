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

from localprop.errors import BadInput, StepFailed
from localprop.rule.losses import Batch
from localprop.step.contexts import Contexts
from localprop.step.errors import Error, Errors, Place, scaled, taken
from localprop.step.gradients import Gradients
from localprop.step.link import Link
from localprop.step.messages import arrive, departing
from localprop.step.optimizers import Optimizers
from localprop.step.precision import Precision
from localprop.step.programme import Programme
from localprop.step.random import Generators
from localprop.step.rerun import Rerun
from localprop.step.schedule import RECEIVES, REDUCES, SENDS, Action, Op, Schedule
from localprop.step.stage import Stage
from localprop.step.state import Backward, Deliver, Graph, Losses, Observer, State, dense, split, story
from localprop.step.stretch import Reached, stubbed
from localprop.step.views import Views
from localprop.step.wiring import Wiring


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
        link: Link | None = None,
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
        self._generators = Generators(device)
        self._precision = Precision(device, autocast, twice=any(objective.attached for objective in wiring.objectives))
        self._programme = Programme(schedule)
        self._read_wiring()
        self._pending: State | None = None  # the batch before, if some of its actions are still to come
        self.rerun = Rerun(model, wiring, self._programme.again) if self._programme.again else None

    def _read_wiring(self) -> None:
        wiring, named, own = self.wiring, dict(self.model.named_parameters()), self.stage.segments
        last = len(wiring.segments) - 1
        self._ends = {s: self.model.get_submodule(wiring.end_name(s)) for s in own if s < last}
        self._contexts = Contexts(wiring, own, self._programme.sent_inlets, stay=bool(self._programme.again))
        self._parameters: dict[int, list[Tensor]] = {}
        for s in own:
            self._parameters[s] = [parameter for parameter in wiring.trained(named, s) if parameter.requires_grad]
        self._gradients = Gradients(self._parameters, wiring.flows, self._programme.microbatches * self.stage.replicas)
        self._overwrites = [
            s > 0 and wiring.layers.overwritten[segment.layers[0] - 1] for s, segment in enumerate(wiring.segments)
        ]
        self._onward = [any(flow.onward is not None for flow in flows) for flows in wiring.flows]
        self._objectives = {o.place: o for o in wiring.objectives if o.segment in own}
        self.views = Views(self.model, wiring, own)

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
        count = self._programme.microbatches
        run = State(number, backward, stepping, observe, batch, Errors(self.wiring), first=count * self.stage.replica)
        run.batches = split(batch, count * self.stage.replicas)[run.first : run.first + count]
        self._whole(run, training=True)
        self._pending = run if self._programme.late else None
        self.optimizers.keep(self._programme.late)
        return Losses.of(run.losses, self.wiring.table.at)

    def predict(self, batch: Batch, *, number: int = 0) -> Tensor | None:
        """Run an engine whose schedule has only forwards and messages; the output, where the last segment is."""
        run = State(number, Tensor.backward, False, None, batch, Errors(self.wiring), batches=[batch])
        self._whole(run, training=False)
        return run.departing

    def _whole(self, run: State, *, training: bool) -> None:
        with self._running(run), self._hooked(run):
            if self.link is not None:
                run.action = next(action for action in self.schedule if not action.late)  # what the greeting is for
                self.link.begin(run.number, run.batch, run.batches, self.schedule, training=training)
            whole = len(run.batch.inputs)
            self._run(run, self._programme.before)
            for microbatch, part in enumerate(run.batches):
                self._microbatch(run, microbatch, part, len(part.inputs) / whole)

    def flush(self) -> None:
        """Run what is still to come of the last batch: actions that wait for errors of other ranks."""
        if self._pending is not None:
            run = self._pending
            run.begun = 0
            with self._running(run), self._hooked(run):
                self._run(run, self._programme.late)
            self._pending = None

    @contextmanager
    def _running(self, run: State) -> Iterator[None]:
        with torch.enable_grad(), self._generators.kept():
            try:
                yield
            except BaseException as error:  # Ctrl-C too: the next step would add to what was left
                self._drop_gradients()
                self._pending = None
                if self.rerun is not None:
                    self.rerun.forget()
                if isinstance(error, BadInput) or not isinstance(error, Exception):
                    raise
                raise StepFailed(story(run, self.wiring, self.schedule, error), run.action) from error

    def _microbatch(self, run: State, microbatch: int, part: Batch, weight: float) -> None:
        first, last = self.stage.segments[0], self.stage.segments[-1]
        run.microbatch, run.batch, run.weight, run.expected = microbatch, part, weight, first
        with self._precision.forward():
            output = self._forward(run, first, part.inputs)
            if run.expected != last:
                raise RuntimeError(f"the forward ended before module {self.wiring.end_name(run.expected)!r} had run")
            self._leave(run, last, output)
        self._contexts.forget(microbatch, run.inlets)

    def _forward(self, run: State, first: int, inputs: Tensor) -> Tensor:
        """The output of the last segment that is run here; on the way, hooks end the others."""
        try:
            if first == 0:
                output: Tensor = self.model(self._enter(run, 0, inputs))
                return output
            if self._contexts.reads_input():
                run.inlets[0, run.microbatch] = inputs
            layer = self.wiring.segments[first].layers[0]
            enter = partial(self._enter_received, run, first)
            with stubbed(self.model, self.wiring.layers, layer, inputs, enter):
                output = self.model(inputs)
                return output
        except Reached as reached:
            return reached.output

    def _enter_received(self, run: State, s: int) -> Tensor:
        return self._enter(run, s, run.arrived.pop(run.microbatch))

    def _run(self, run: State, actions: Iterable[Action]) -> None:
        for action in actions:
            of = self._pending if action.late else run
            self._begin(run, action)
            if of is not None:  # in the first step there is no batch before
                _RUN[action.op](self, of, action)

    @contextmanager
    def _hooked(self, run: State) -> Iterator[None]:
        handles = [
            *self.views.hooked(run),
            *(end.register_forward_hook(self._hook(run, s)) for s, end in self._ends.items()),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, run: State, s: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            if self.rerun is not None and self.rerun.running is not None:
                return self.rerun.arrive(s, output)
            if run.expected != s:
                ran, awaited = self.wiring.end_name(s), self.wiring.end_name(run.expected)
                raise RuntimeError(f"the module {ran!r} ran before {awaited!r}")
            if s == self.stage.segments[-1]:
                raise Reached(output)
            run.expected = s + 1
            self._leave(run, s, output)
            following = dense(output.detach())
            del output
            return self._enter(run, s + 1, following)

        return hook

    @staticmethod
    def _begin(run: State, action: Action) -> None:
        run.action = action
        run.begun += 1
        if run.observe:
            run.observe(action)

    # --- F ----------------------------------------------------------------------------------------------------------

    def _enter(self, run: State, s: int, handed: Tensor) -> Tensor:
        """Begin F of segment s: its leaf, its random state, and the contexts that it receives."""
        self._begin(run, Action(Op.F, s, None, run.microbatch))
        again = s in self._programme.again
        torch.set_grad_enabled((bool(self.wiring.flows[s]) or self.views.attached(s)) and not again)
        self._generators.seed(self.seed, run.number, "F", s, run.first + run.microbatch)
        if again:
            run.kept[s, run.microbatch] = handed
        run.leaf = handed.requires_grad_() if self._onward[s] and not again else None
        entered = self.views.entered(run, s, self._opened(run, s, run.microbatch, handed), self._overwrites[s])
        self._contexts.keep(s, run.microbatch, entered, run.inlets, overwritten=self._overwrites[s])
        return entered

    def _opened(self, run: State, s: int, m: int, handed: Tensor) -> Tensor:
        """What segment s runs on: its input with its contexts added, or a copy where its layers write into their input."""
        added = self._contexts.added(s, m, handed, run.inlets)
        if added is not None:
            return added
        return handed.clone() if self._overwrites[s] else handed

    def _leave(self, run: State, s: int, output: Tensor) -> None:
        """End F of segment s, and run what the schedule lists before the next F."""
        if not isinstance(output, Tensor):
            kind, name = type(output).__name__, self.wiring.end_name(s)
            raise TypeError(f"{name!r} returned a {kind}, a layer must return one tensor")
        if s not in self._programme.again:
            self._keep_graph(run, s, output)
        run.features = self.views.features(s, output)
        if s == self.stage.segments[-1] and (s in self._ends or not self.wiring.flows[s]):
            run.departing = dense(output.detach())
        if self.rerun is not None:
            self.rerun.remember(s, output)
        del output
        torch.set_grad_enabled(True)
        self._run(run, self._programme.after[run.microbatch, s])
        run.features = None

    def _keep_graph(self, run: State, s: int, output: Tensor) -> None:
        flows = self.wiring.flows[s]
        if flows:
            box: list[Tensor] = []
            handle: Tensor = Deliver.apply(output, box)
            run.graphs[s, run.microbatch] = Graph(handle, box, run.leaf, len(flows))
        run.leaf = None

    def _forward_again(self, run: State, action: Action) -> None:
        s, m = action.segment, action.microbatch
        assert self.rerun is not None
        handed = run.kept.pop((s, m)).detach()
        run.leaf = handed.requires_grad_() if self._onward[s] else None

        def enter() -> Tensor:
            self._generators.seed(self.seed, run.number, "F", s, run.first + m)
            return self._opened(run, s, m, handed)

        with self._precision.forward(), self.views.again(run, s, m):
            output = self.rerun(s, run.batches[m].inputs, enter)
        microbatch, run.microbatch = run.microbatch, m
        self._keep_graph(run, s, output)
        run.microbatch = microbatch

    # --- L, B -------------------------------------------------------------------------------------------------------

    def _loss(self, run: State, action: Action) -> None:
        objective = self._objectives[action.segment, action.flow]
        features, seen = self.views.seen(run, objective)
        head = self.wiring.head(objective)
        self._generators.seed(self.seed, run.number, *objective.seed_place, run.first + action.microbatch)
        with self._precision.forward():
            loss: Tensor = head["loss"](features, head["aux"], seen)
            loss = loss if run.weight == 1 else loss * run.weight
        if loss.requires_grad:
            with self._precision.backward():
                run.backward(loss)
        loss = loss.detach()
        total = run.losses.get(objective.loss)
        run.losses[objective.loss] = loss if total is None else total + loss
        self.views.leave_errors(run, objective, seen)
        if objective.flow is not None:
            at = Place(action.segment, objective.flow, action.microbatch)
            run.errors.add(at, Error(-1 - (objective.number or 0), scaled(taken(features), objective.scale)))

    def _backward(self, run: State, action: Action) -> None:
        s, m = action.segment, action.microbatch
        assert action.flow is not None
        flow, graph = self.wiring.flows[s][action.flow], run.graphs[s, m]
        graph.backwards_left -= 1
        if graph.backwards_left == 0:
            del run.graphs[s, m]
        inputs = list(self._parameters[s]) if flow.train else []
        if flow.onward is not None and graph.leaf is not None:
            inputs.append(graph.leaf)
        graph.box.append(run.errors.take(Place(s, action.flow, m)))
        ends, errors = self.views.ends(run, Place(s, action.flow, m), last=graph.backwards_left == 0)
        with self._precision.backward(), self._gradients.of(s, action.flow, run.aside):
            kept = graph.backwards_left > 0
            torch.autograd.backward([graph.handle, *ends], [None, *errors], retain_graph=kept, inputs=inputs)
        del ends, errors
        if flow.onward is not None and graph.leaf is not None:
            leaf, graph.leaf = graph.leaf, graph.leaf if graph.backwards_left else None
            error = scaled(taken(leaf), flow.scale)
            if s == self.stage.segments[0]:
                run.upward[Place(s, action.flow, m)] = error
            else:
                run.errors.add(Place(s - 1, flow.onward, m), Error(action.flow, error))

    # --- between ranks ----------------------------------------------------------------------------------------------

    def _send(self, run: State, action: Action) -> None:
        assert self.link is not None
        tensor = departing(run, action, self.wiring)
        self.link.send(action, tensor, len(run.batches[action.microbatch].inputs))

    def _receive(self, run: State, action: Action) -> None:
        assert self.link is not None
        arrive(run, action, self.wiring, self.link.receive(action))

    # --- H, S -------------------------------------------------------------------------------------------------------

    def _reduce(self, run: State, action: Action) -> None:
        assert self.link is not None
        aside = Gradients.aside(action.segment, run.aside) if action.op is Op.REDUCE_S else []
        self.link.reduce(action, self.optimizers.gradients(action) + aside)

    def _step(self, run: State, action: Action) -> None:
        if self.link is not None:
            self.link.reduced(action)
        if action.op is Op.S:
            self._gradients.add(action.segment, run.aside)
        if run.stepping:
            with self._precision.backward():
                self.optimizers.step(action)
            if action.op is Op.S:
                run.stepped.append(action.segment)

    def _copy(self, run: State, action: Action) -> None:
        self.views.copy(self._objectives[action.segment, action.flow], run.number)

    def _drop_gradients(self) -> None:
        heads, encoders = self.wiring.heads.parameters(), self.wiring.encoders.parameters()
        for parameter in (*self.model.parameters(), *heads, *encoders):
            parameter.grad = None


_RUN: dict[Op, Callable[[Engine, State, Action], None]] = {
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
