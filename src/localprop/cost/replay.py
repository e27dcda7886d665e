"""The peak and the operations of a step, from what each of its layers costs.

The schedule of the step is read action by action, with the same operands by which the engine lets
values die, and each action is replayed layer by layer. So a configuration takes a millisecond,
where the engine on fake tensors takes seconds::

    F    live + the layer's peak;   then it keeps its graph, and its output goes on
    B    live + the layer's peak;   then the graph dies, gradients come
    W    the same, of the sum of the gradients that backwards have kept

The output of a layer lives as long as somebody holds it: the forward that goes on, the leaf of a
segment, the graph of the layer or of the next one, losses, frames of Python, a stretch of layers
that run again from it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

from localprop.cost.layer_costs import LayerCosts, ScaledCosts
from localprop.cost.layer_reading import BackwardCost, Frames, LayerReading
from localprop.cost.replayable import find_dropped_outputs, find_leaves
from localprop.network.recomputed import Recomputed, Stretch
from localprop.schedule.liveness import Liveness
from localprop.schedule.schedule import Action, Op
from localprop.schedule.values import Kind, Value


class Replayed(NamedTuple):
    """A step on paper.

    Attributes:
        peak_bytes: the peak, with parameters, optimizer state and batch.
        resting_bytes: alive between steps.
        flops: operations.
        at: the action at the peak.
        gradient_bytes: of parameters, alive at the peak.
    """

    peak_bytes: int
    resting_bytes: int
    flops: int
    at: Action
    gradient_bytes: int


def replay(
    costs: LayerCosts | ScaledCosts,
    resting: int,
    liveness: Liveness,
    recomputed: Recomputed = Recomputed(),  # noqa: B008
) -> Replayed:
    """Replay a step.

    Args:
        costs: of the layers, at the size of a micro-batch.
        resting: bytes that are alive between steps, with the whole batch, without heads.
        liveness: of the schedule of one process.
        recomputed: the layers that run again.
    """
    step = _Step(costs, resting, liveness, recomputed)
    for action in liveness.schedule:
        step.run(action)
    return Replayed(step.peak, step.resting, step.flops, step.at, step.gradients)


class _Step:
    """What is alive in a step, in bytes."""

    def __init__(
        self,
        costs: LayerCosts | ScaledCosts,
        resting: int,
        liveness: Liveness,
        recomputed: Recomputed,
    ) -> None:
        wiring, first = liveness.wiring, liveness.schedule[0]
        self._costs, self._wiring, self._liveness = costs, wiring, liveness
        spans = [*wiring.list_spans()]
        stretches = [*recomputed.clip(spans)]
        self._again = {each.layers[0] for each in stretches if len(each.layers) == 1}
        self._stretches = {
            i: each for each in stretches if len(each.layers) > 1 for i in each.layers
        }
        self._waiting: list[tuple[Stretch, int]] = []  # stretches to run again, by micro-batch
        self._dropped = set(find_dropped_outputs(wiring, stretches))
        self._outputs = [reading.output for reading in costs.read("whole")]
        heads = [
            costs.read("alone")[self._end(o.segment)].loss.held for o in wiring.objectives[:-1]
        ]
        self.resting = resting + sum(heads)
        self.live = self.peak = self.resting
        self.flops, self.at, self.gradients = 0, first, 0
        self._holders: dict[int, set[tuple[object, ...]]] = defaultdict(set)
        self._values: dict[tuple[Any, ...], int] = {}
        self._frames = Frames()  # while the actions after a forward run
        self._action = first
        self._leaves = frozenset(find_leaves(liveness))
        self._run = {
            Op.F: self._forward,
            Op.L: self._loss,
            Op.B: self._backward,
            Op.W: self._backward,
        }

    def run(self, action: Action) -> None:
        self._action = action
        if action.op in self._run:
            self._run[action.op](action)
        elif action.op is Op.S:
            layers = self._wiring.segments[action.segment].layers
            self._top(max(self._costs.read("whole")[layer].step_peak for layer in layers))
            for name in [n for n in self._values if n[0] == "weights" and n[1] in layers]:
                self._drop(name)
        elif action.op is Op.H:
            self._top(self._costs.read("alone")[self._end(action.segment)].loss.step_peak)
            self._drop(("head", action.segment))

    # --- who holds what ---------------------------------------------------------------------------

    def _end(self, segment: int) -> int:
        return self._wiring.segments[segment].layers[-1]

    def _top(self, more: int) -> None:
        if self.live + more > self.peak:
            self.peak, self.at = self.live + more, self._action
            values = self._values.items()
            self.gradients = sum(n for name, n in values if name[0] in ("weights", "head"))

    def _add(self, name: tuple[Any, ...], nbytes: int) -> None:
        if name not in self._values:
            self._values[name] = nbytes
            self.live += nbytes

    def _drop(self, name: tuple[Any, ...]) -> None:
        self.live -= self._values.pop(name, 0)

    def _hold(self, layer: int, holder: tuple[object, ...]) -> None:
        """Hold the output of a layer. The input of the first one is the batch, which stays."""
        if layer >= 0:
            if not self._holders[layer]:
                self.live += self._outputs[layer]
            self._holders[layer].add(holder)

    def _release(self, layer: int, holder: tuple[object, ...]) -> None:
        if layer >= 0 and holder in self._holders[layer]:
            self._holders[layer].remove(holder)
            if not self._holders[layer]:
                self.live -= self._outputs[layer]

    def _enter_frames(self, frames: Frames) -> None:
        for layer in frames.outputs:
            self._hold(layer, ("frames",))
        self.live += frames.others

    def _leave_frames(self, frames: Frames) -> None:
        for layer in frames.outputs:
            self._release(layer, ("frames",))
        self.live -= frames.others

    # --- actions ----------------------------------------------------------------------------------

    def _forward(self, action: Action) -> None:
        segment, m = action.segment, action.microbatch
        layers, writes = self._wiring.segments[segment].layers, self._writes(action)
        has_leaf = Value(Kind.LEAF, segment, microbatch=m) in writes
        self._leave_frames(self._frames)
        if has_leaf:
            self._hold(layers[0] - 1, ("leaf", segment, m))
        for layer in layers:
            frames = self._find_frames(layer, "at_start")
            self._enter_frames(frames)
            stretch = self._stretches.get(layer)
            if stretch is None:
                self._run_layer(layer, m, self._reading(layer, has_leaf or layer > layers[0]))
            else:
                self._run_stretch(stretch, layer, m)
            self._leave_frames(frames)
            self._go_on(layer)
        end = layers[-1]
        if Value(Kind.FEATURES, segment, microbatch=m) in writes:
            self._hold(end, ("features", segment, m))
        last = segment == len(self._wiring.segments) - 1
        if last:
            self._release(end, ("run",))
        self._frames = Frames() if last else self._find_frames(end, "at_end")
        self._enter_frames(self._frames)

    def _find_frames(self, layer: int, moment: str) -> Frames:
        """What frames hold, also by the graphs of tensors: these hold the leaves they begin at."""
        frames: Frames = getattr(self._costs.read("alone")[layer], moment)
        if not self._leaves:
            return frames
        linked: Frames = getattr(self._costs.read("linked")[layer], moment)
        return frames._replace(outputs=frames.outputs | linked.outputs & self._leaves)

    def _run_layer(self, layer: int, m: int, reading: LayerReading) -> None:
        """Run a layer, which keeps its graph."""
        self.flops += reading.forward.flops
        drops = layer in self._again and layer in self._dropped
        self._keep_graph(layer, m, reading, with_output=not drops)

    def _keep_graph(
        self, layer: int, m: int, reading: LayerReading, *, with_output: bool = True
    ) -> None:
        self._top(reading.forward.peak)
        self._add(("graph", layer, m), reading.forward.kept)
        if reading.forward.keeps_input:
            self._hold(layer - 1, ("graph", layer, m))
        if reading.forward.keeps_output and with_output:
            self._hold(layer, ("graph", layer, m))

    def _run_stretch(self, stretch: Stretch, layer: int, m: int) -> None:
        """Run a layer of a stretch that runs again: nothing stays but the stretch's input."""
        cost = self._costs.read("whole", recomputed=True)[layer].forward
        self._top(cost.peak)
        self.flops += cost.flops
        if layer == stretch.layers[0]:
            self._wait(stretch, m)
        if len(self._wiring.layers.calls[layer]) == 1:  # else its calls hand over what they keep
            self._add(("rerun", layer, m), cost.kept)
        if self._keeps_output(layer) and cost.keeps_output:
            self._hold(layer, ("graph", layer, m))

    def _wait(self, stretch: Stretch, m: int) -> None:
        self._hold(stretch.layers[0] - 1, ("stretch", *stretch.layers, m))
        self._waiting.append((stretch, m))

    def _go_on(self, layer: int) -> None:
        """The layer's output is the next one's input."""
        self._hold(layer, ("run",))
        self._release(layer - 1, ("run",))

    def _find_waiting(self, layer: int, m: int) -> Stretch | None:
        """The innermost stretch that has to run again before the backward of a layer."""
        waiting = reversed(self._waiting)
        return next((each for each, at in waiting if at == m and layer in each.layers), None)

    def _keeps_output(self, layer: int) -> bool:
        """Whether a layer that runs again keeps its output, as the next one keeps its input."""
        stretch = self._stretches.get(layer)
        return layer not in self._dropped and (stretch is None or layer == stretch.layers[-1])

    def _run_again(self, stretch: Stretch, layer: int, m: int) -> None:
        """Run a stretch again up to a layer whose second run is one with its backward."""
        self._waiting.remove((stretch, m))
        inner = {i: each for each in stretch.inner for i in each.layers}
        last = inner.get(layer)
        for i in range(stretch.layers[0], layer if last is None else last.layers[0]):
            if i in inner:
                self._run_stretch(inner[i], i, m)
            else:
                self._run_layer(i, m, self._costs.read("whole")[i])
            self._go_on(i)
        if last is None:
            self._hold(layer - 1, ("graph", layer, m))
            self._release(layer - 1, ("run",))
        else:
            self._wait(last, m)
            self._release(last.layers[0] - 1, ("run",))
        self._release(stretch.layers[0] - 1, ("stretch", *stretch.layers, m))
        if last is not None:
            self._run_again(last, layer, m)

    def _loss(self, action: Action) -> None:
        segment, m = action.segment, action.microbatch
        end, objective = self._end(segment), self._wiring.objective_at(segment, action.flow)
        is_task = objective is self._wiring.objectives[-1]
        loss = self._costs.read("whole" if is_task else "alone")[end].loss
        self._top(loss.peak)
        self.flops += loss.flops
        self._add(("head", segment), loss.gradients)
        self._write_gradient(action)
        if self._liveness.takes(action, Value(Kind.FEATURES, segment, microbatch=m)):
            self._release(end, ("features", segment, m))

    def _backward(self, action: Action) -> None:
        segment, m, layers = action.segment, action.microbatch, self._layers(action)
        is_last = self._liveness.takes(action, Value(Kind.GRAPH, segment, microbatch=m))
        written = {value.kind for value in self._writes(action)}
        goes_on, keeps = Kind.GRADIENT in written, Kind.KEPT_GRADIENT in written
        # Several where the sums of flows are kept apart.
        sums = [v for v in self._writes(action) if v.kind is Kind.WEIGHT_GRADIENT]
        end, gradient = layers[-1], self._take_gradient(action)
        for layer in reversed(layers):
            waiting = self._find_waiting(layer, m)
            if waiting is not None:
                self._run_again(waiting, layer, m)
            inner = layer > layers[0]
            again = waiting is not None or (
                layer in self._again and ("rerun", layer, m) not in self._values
            )
            comes_again = again and not self._keeps_output(layer)
            find = partial(
                self._find_backward,
                layer,
                trains=bool(sums),
                reaches_input=inner or goes_on,
                is_last=is_last,
                keeps=keeps and layer == end,
            )
            cost = find(again=again)
            if comes_again:  # with its output, as if it were stored
                stored = self._costs.read("whole")[layer]
                self._drop(("graph", layer, m))
                self._keep_graph(layer, m, stored)
                flops = cost.flops
                calls = self._wiring.layers.calls[layer]
                if stored.forward.keeps_output and (layer in self._stretches or len(calls) == 1):
                    # All of it runs again.
                    flops = find(again=False).flops + stored.forward.flops
                cost = BackwardCost(find(again=False).peak, flops)
            self._top(cost.peak)
            self.flops += cost.flops
            self._drop(gradient if layer == end else ("gradient", layer, m, None))
            if keeps and layer == end:  # added to what other flows have kept
                self._add(("kept", end, m), self._outputs[end])
            if is_last:
                self._drop(("graph", layer, m))
                self._drop(("rerun", layer, m))
                self._release(layer - 1, ("graph", layer, m))
                self._release(layer, ("graph", layer, m))
            elif layer in self._again:
                kept = self._costs.read("whole")[layer].forward.kept
                self._add(("rerun", layer, m), kept - self._values.get(("graph", layer, m), 0))
            for value in sums:
                name = ("weights", layer, value.flow, value.maker)
                self._add(name, self._costs.read("whole")[layer].gradients)
            if inner:
                self._add(("gradient", layer - 1, m, None), self._outputs[layer - 1])
        if goes_on:
            self._write_gradient(action)
        leaf = Value(Kind.LEAF, segment, microbatch=m)
        if self._liveness.takes(action, leaf):
            self._release(layers[0] - 1, ("leaf", segment, m))

    def _take_gradient(self, action: Action) -> tuple[Any, ...]:
        """The name of the gradient that a backward begins with; W adds two of them first."""
        end, m = self._end(action.segment), action.microbatch
        if action.op is Op.B:
            return "gradient", end, m, action.flow
        self._top(0)
        for value in self._liveness.operands[action].reads:
            if value.kind is Kind.GRADIENT:
                self._drop(("gradient", end, m, value.flow))
        return "kept", end, m

    def _layers(self, action: Action) -> range:
        return self._wiring.segments[action.segment].layers

    def _writes(self, action: Action) -> tuple[Value, ...]:
        return self._liveness.operands[action].writes

    def _write_gradient(self, action: Action) -> None:
        """A part of a gradient comes; where there is one, it is added to that."""
        for value in self._writes(action):
            if value.kind is Kind.GRADIENT:
                end = self._end(int(value.at))
                self._add(("gradient", end, value.microbatch, value.flow), self._outputs[end])

    def _reading(self, layer: int, has_leaf: bool) -> LayerReading:
        kind = "whole" if has_leaf else "alone"
        return self._costs.read(kind, recomputed=layer in self._again)[layer]

    def _find_backward(
        self,
        layer: int,
        *,
        trains: bool,
        reaches_input: bool,
        is_last: bool,
        keeps: bool,
        again: bool,
    ) -> BackwardCost:
        if not trains:
            kind = "summed" if keeps else "passing"
        elif not is_last:
            kind = "linked"
        elif not reaches_input:
            kind = "alone"
        else:
            kind = "beside" if self._is_held(layer) else "whole"
        # Where an earlier flow has made all of it again, the layer is as if it were stored.
        return self._costs.read(kind, recomputed=again)[layer].backwards[0]

    def _is_held(self, layer: int) -> bool:
        """Whether not only its graph holds a layer's output, but also a hook at its end, say."""
        return any(holder[0] != "graph" for holder in self._holders[layer])
