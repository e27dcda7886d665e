"""The engine: a schedule read as tensors. It knows the ops and no method, and alone calls autograd and optimizers.

The network runs its own forward. For the time of a step a hook sits on each module at whose return a segment ends; when it
fires, F of that segment is done, the engine runs the schedule's actions up to the next F, and hands the network a detached
output (plus context) to go on with::

    network   ──► segment 0 ──►┐            ┌──► segment 1 ──►┐              ┌──► ...
    hook                       └ L H B0 S ──┘                 └ L H B0 S  ───┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput, StepFailed
from localprop.rule.losses import Batch
from localprop.step.random import Generators
from localprop.step.rerun import Rerun
from localprop.step.schedule import Action, Op, Schedule
from localprop.step.state import Backward, Deliver, Graph, Losses, Observer, State, split, story
from localprop.step.wiring import Objective, Wiring


class Engine:
    """Runs a schedule on a model.

    Args:
        model: the primary network; only its forward is called.
        wiring: segments, flows, objectives, with their heads and encoders on the model's device.
        schedule: the actions of a step.
        segment_optimizers: by segment; one that is missing is stepped by somebody else.
        objective_optimizers: likewise, by the segment at whose end an objective sits.
        device: where the model is.
        autocast: dtype of the forwards and losses, or None.
        seed: of all random draws.
    """

    def __init__(
        self,
        model: nn.Module,
        wiring: Wiring,
        schedule: Schedule,
        segment_optimizers: Mapping[int, Optimizer],
        objective_optimizers: Mapping[int, Optimizer],
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.wiring = wiring
        self.schedule = schedule
        self.device = device
        self.autocast = autocast
        self.seed = seed
        self.segment_optimizers = segment_optimizers
        self.objective_optimizers = objective_optimizers
        self._generators = Generators(device)
        self._read_wiring()
        self._read_schedule()
        self.rerun = Rerun(model, wiring, self._again) if self._again else None

    def _read_wiring(self) -> None:
        wiring, named = self.wiring, dict(self.model.named_parameters())
        self._ends = [self.model.get_submodule(wiring.end_name(s)) for s in range(len(wiring.segments) - 1)]
        self._encoders = {s: wiring.encoders_at(s) for s in range(len(wiring.segments))}
        self._parameters: list[list[Tensor]] = []
        for s, segment in enumerate(wiring.segments):
            encoders = self._encoders[s]
            trained = [named[name] for name in segment.parameters] + (list(encoders.parameters()) if encoders else [])
            self._parameters.append([parameter for parameter in trained if parameter.requires_grad])
        self._overwrites = [
            s > 0 and wiring.layers.overwritten[segment.layers[0] - 1] for s, segment in enumerate(wiring.segments)
        ]
        self._onward = [any(flow.onward is not None for flow in flows) for flows in wiring.flows]
        self._objectives = {objective.segment: objective for objective in wiring.objectives}
        supplied = [source.module for own in wiring.sources for source in own]
        self._last_receiver = {
            m: max(k for k, own in enumerate(wiring.sources) if any(source.module == m for source in own))
            for m in supplied
        }

    def _read_schedule(self) -> None:
        """Split the schedule at the network's own forwards: what to do when each of them is done."""
        self._after: dict[tuple[int, int], list[Action]] = {}
        reruns = set()
        for action in self.schedule:
            place = (action.microbatch, action.segment)
            if action.op is Op.F and place not in self._after:
                current = self._after.setdefault(place, [])
            else:
                current.append(action)
                if action.op is Op.F:
                    reruns.add(action.segment)
        self._microbatches = 1 + max(action.microbatch for action in self.schedule)
        self._again = frozenset(reruns)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers that the engine steps, those of segments first."""
        return [*self.segment_optimizers.values(), *self.objective_optimizers.values()]

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
        run = State(number, backward, stepping, observe, batch)
        run.batches = split(batch, self._microbatches)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self._generators.kept())
            stack.enter_context(self._hooked(run))
            try:
                for microbatch, part in enumerate(run.batches):
                    self._microbatch(run, microbatch, part, len(part.inputs) / len(batch.inputs))
            except BaseException as error:  # Ctrl-C too: the next step would add to what was left
                self._drop_gradients()
                if self.rerun is not None:
                    self.rerun.forget()
                if isinstance(error, BadInput) or not isinstance(error, Exception):
                    raise
                raise StepFailed(story(run, self.wiring, self.schedule, error)) from error
        return Losses.of(run.losses)

    def _microbatch(self, run: State, microbatch: int, part: Batch, weight: float) -> None:
        run.microbatch, run.batch, run.weight, run.expected = microbatch, part, weight, 0
        with self._autocast():
            entered = self._enter(run, 0, part.inputs)
            output = self.model(entered)
            del entered
            if run.expected != len(self._ends):
                raise RuntimeError(f"the forward ended before the module {self._end_name(run.expected)!r} had run")
            self._leave(run, len(self._ends), output)

    @contextmanager
    def _hooked(self, run: State) -> Iterator[None]:
        handles = [end.register_forward_hook(self._hook(run, s)) for s, end in enumerate(self._ends)]
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
                raise RuntimeError(f"the module {self._end_name(s)!r} ran before {self._end_name(run.expected)!r}")
            run.expected = s + 1
            self._leave(run, s, output)
            following = output.detach()
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
        again = s in self._again
        torch.set_grad_enabled(bool(self.wiring.flows[s]) and not again)
        self._generators.seed(self.seed, run.number, "F", s, run.microbatch)
        if again:
            run.kept[s, run.microbatch] = handed
        run.leaf = handed.requires_grad_() if self._onward[s] and not again else None
        entered = self._opened(run, s, handed)
        self._supply(run, s, entered)
        return entered

    def _opened(self, run: State, s: int, handed: Tensor) -> Tensor:
        """What segment s runs on: its input with its contexts added, or a copy where its layers write into their input."""
        encoders = self._encoders[s]
        if encoders is None:
            return handed.clone() if self._overwrites[s] else handed
        for source, encoder in zip(self.wiring.sources[self.wiring.segments[s].module], encoders, strict=True):
            handed = handed + encoder(run.inlets[source.module])
        return handed

    def _supply(self, run: State, s: int, entered: Tensor) -> None:
        """Keep a module's input if a later module receives it as context, drop those that nobody will read again."""
        segment = self.wiring.segments[s]
        if segment.inlet:
            if segment.module in self._last_receiver:
                kept = entered.detach()
                run.inlets[segment.module] = kept.clone() if self._overwrites[s] else kept
            if not self._again:
                for m in [m for m in run.inlets if self._last_receiver[m] <= segment.module]:
                    del run.inlets[m]

    def _leave(self, run: State, s: int, output: Tensor) -> None:
        """End F of segment s, and run what the schedule lists before the next F."""
        if not isinstance(output, Tensor):
            raise TypeError(f"{self._end_name(s)!r} returned a {type(output).__name__}, a layer must return one tensor")
        if s not in self._again:
            self._keep_graph(run, s, output)
        run.features = output.detach() if s in self._objectives else None
        if self.rerun is not None:
            self.rerun.remember(s, output)
        del output
        torch.set_grad_enabled(True)
        for action in self._after[run.microbatch, s]:
            self._begin(run, action)
            _RUN[action.op](self, run, action)
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
            self._generators.seed(self.seed, run.number, "F", s, m)
            return self._opened(run, s, handed)

        with self._autocast():
            output = self.rerun(s, run.batches[m].inputs, enter)
        microbatch, run.microbatch = run.microbatch, m
        self._keep_graph(run, s, output)
        run.microbatch = microbatch

    # --- L, B, H, S -------------------------------------------------------------------------------------------------

    def _loss(self, run: State, action: Action) -> None:
        objective = self._objectives[action.segment]
        features, run.features = run.features, None
        assert features is not None
        if objective.flow is not None:
            features.requires_grad_()
        head = self._head(objective)
        self._generators.seed(self.seed, run.number, "L", action.segment, action.microbatch)
        with self._autocast():
            loss: Tensor = head["loss"](features, head["aux"], run.batch)
            loss = loss if run.weight == 1 else loss * run.weight
        if loss.requires_grad:
            with self._outside_autocast():
                run.backward(loss)
        loss = loss.detach()
        total = run.losses.get(objective.loss)
        run.losses[objective.loss] = loss if total is None else total + loss
        if objective.flow is not None:
            self._deliver(run, action.segment, objective.flow, _taken(features), objective.scale)

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
        graph.box.append(run.errors.pop((s, action.flow, m)))
        with self._outside_autocast():
            torch.autograd.backward(graph.handle, retain_graph=graph.backwards_left > 0, inputs=inputs)
        if flow.onward is not None and graph.leaf is not None:
            leaf, graph.leaf = graph.leaf, graph.leaf if graph.backwards_left else None
            self._deliver(run, s - 1, flow.onward, _taken(leaf), flow.scale)

    def _deliver(self, run: State, s: int, flow: int, error: Tensor, scale: float) -> None:
        """Add an error to those that wait for a flow."""
        if scale != 1:
            error.mul_(scale)
        place = (s, flow, run.action.microbatch if run.action else 0)
        waiting = run.errors.get(place)
        if waiting is None:
            run.errors[place] = error
        else:
            waiting.add_(error)

    def _step(self, run: State, action: Action) -> None:
        table = self.segment_optimizers if action.op is Op.S else self.objective_optimizers
        optimizer = table.get(action.segment)
        if not run.stepping or optimizer is None:
            return
        optimizer.step()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if action.op is Op.S:
            run.stepped.append(action.segment)

    # --- small things -----------------------------------------------------------------------------------------------

    def _head(self, objective: Objective) -> nn.ModuleDict:
        head = self.wiring.heads[str(objective.loss)]
        assert isinstance(head, nn.ModuleDict)
        return head

    def _autocast(self) -> AbstractContextManager[object]:
        # Without a cache: one would keep casts of all weights alive, and share their graph between micro-batches.
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)

    def _outside_autocast(self) -> AbstractContextManager[object]:
        """Backwards run outside, be it our autocast or a host's; they follow the dtypes of their forwards."""
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    def _end_name(self, s: int) -> str:
        return self.wiring.end_name(s)

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
}


def _taken(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which the leaf forgets."""
    error, leaf.grad = leaf.grad, None
    assert error is not None
    return error
