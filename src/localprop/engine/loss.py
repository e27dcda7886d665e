"""L: a local loss, its forward and its backward at once; and the losses that a step returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from localprop.engine.backward import GradientPart, pop_gradient
from localprop.engine.plan import StepPlan
from localprop.engine.store import StepContext, Store
from localprop.errors import BadInput
from localprop.rule.local_loss import LossInputs
from localprop.schedule.schedule import Action, Op
from localprop.schedule.values import Kind, Value, name_gradient, name_tap_gradient
from localprop.schedule.wiring import Wiring


class LossPlace(NamedTuple):
    """Where a local loss stands. It prints like `loss2 at layer 5 'blocks.4' (module 2)`.

    Attributes:
        row: its row in the credit table.
        module: the local module that it belongs to.
        layer: the number of the layer at whose end it sits.
        name: the name of that layer.
    """

    row: int
    module: int
    layer: int
    name: str

    def __str__(self) -> str:
        return f"loss{self.row} at layer {self.layer} {self.name!r} (module {self.module})"


def find_loss_places(wiring: Wiring) -> tuple[LossPlace, ...]:
    """The places of all losses that run, in the order of their rows."""
    places = []
    for objective in wiring.objectives:
        segment = wiring.segments[objective.segment]
        layer, name = segment.layers[-1], wiring.end_name(objective.segment)
        places.append(LossPlace(objective.loss, segment.module, layer, name))
    return tuple(sorted(places))


class Losses(tuple[Tensor, ...]):
    """The local losses of one step, 0-dimensional tensors on the model's device, in the order of
    the forward. Each knows its place.

    Attributes:
        places: the place of each.

    Example:
        >>> import torch, localprop as lp
        >>> model, batch = lp.models.resnet8(), (torch.randn(8, 3, 8, 8), torch.randint(10, (8,)))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> learner = lp.Learner(model, lp.greedy(), modules=2, optimizer=sgd, sample=batch)
        >>> for place, loss in learner.step(batch).items():
        ...     print(place, loss.shape)
        loss0 at layer 1 'blocks.0' (module 0) torch.Size([])
        loss1 at layer 3 'blocks.2' (module 1) torch.Size([])
    """

    places: tuple[LossPlace, ...]
    _task: LossPlace

    @classmethod
    def of(cls, losses: Mapping[int, Tensor], places: tuple[LossPlace, ...]) -> Losses:
        """Losses with their places.

        Args:
            losses: by row.
            places: of all losses that there may be, in the order of their rows; the last one is
                the task's.
        """
        own = tuple(place for place in places if place.row in losses)
        ordered = cls(losses[place.row] for place in own)
        ordered.places, ordered._task = own, places[-1]
        return ordered

    def items(self) -> Iterator[tuple[LossPlace, Tensor]]:
        """Each loss after its place, as the items of a dict."""
        return zip(self.places, self, strict=True)

    @property
    def rows(self) -> tuple[int, ...]:
        """The row of each in the credit table."""
        return tuple(place.row for place in self.places)

    @property
    def modules(self) -> tuple[int, ...]:
        """The module that each of them belongs to."""
        return tuple(place.module for place in self.places)

    @property
    def task(self) -> Tensor:
        """The loss of the network's own output, that of the last module.

        Raises:
            BadInput: on a rank that does not run the last module.
        """
        if self._task not in self.places:
            raise BadInput(
                f"The task's loss is that of module {self._task.module}, which another rank runs: "
                "ask the last rank."
            )
        return self[-1]

    def __repr__(self) -> str:
        # Reads the values, for which a GPU has to finish the step.
        return f"Losses({', '.join(f'{place}: {loss:.4g}' for place, loss in self.items())})"


class _Tap(NamedTuple):
    """An inner output that a loss looks at.

    Attributes:
        name: of the module that returns it.
        value: the tensor.
        takes: whether this loss is its last reader.
        gradient: where the gradient goes that the loss leaves there, if anything learns from it.
        scale: what that is multiplied by.
    """

    name: str
    value: Value
    takes: bool
    gradient: Value | None
    scale: float


class RunLoss:
    """A local loss at the end of a segment.

    Args:
        plan: of the step.
        action: the loss.
    """

    def __init__(self, plan: StepPlan, action: Action) -> None:
        wiring, liveness, microbatch = plan.wiring, plan.liveness, action.microbatch
        objective = wiring.objective_at(action.segment, action.flow)
        self._head, self._number = wiring.head(objective), objective.loss
        self._parameters: list[Tensor] = list(self._head.parameters())
        self._microbatch = microbatch
        self._features = Value(Kind.FEATURES, action.segment, microbatch=microbatch)
        self._takes_features = liveness.takes(action, self._features)
        self._learns = objective.flow is not None
        self._second_order = objective.second_order
        self._scale = objective.scale
        self._gradient = None
        if self._learns:
            self._gradient = GradientPart(
                plan, name_gradient(wiring, Action(Op.L, *objective.key, microbatch))
            )
        self._more = _find_more_inputs(plan, action)
        self._generators = plan.generators
        self._draw = plan.draw_key(action)
        self._precision = plan.precision if plan.precision.is_active else None
        self._device_type = plan.device_type

    def __call__(self, step: StepContext) -> None:
        """Run it: gradients of the head add up in `.grad`, and that of the features goes to their
        flow.
        """
        store = step.store
        features = self._take_features(store)
        inputs = self._collect_inputs(step)
        # Dropout in an auxiliary network must not depend on what has drawn before: on a rank other
        # actions have run, and after a resume none.
        self._generators.seed(step.seeds[self._draw])
        if self._precision is None:
            loss = self._evaluate(step, features, inputs)
        else:
            with self._precision.forward():
                loss = self._evaluate(step, features, inputs)
        # An auxiliary network without parameters, behind a segment that learns nothing, leaves
        # nothing to differentiate. The loss is then a number to report.
        if loss.requires_grad:
            # L runs in a hook, so inside the forward's autocast. A backward belongs outside of it:
            # its operations take the dtypes that the forward has recorded.
            if step.autocast:
                with torch.autocast(self._device_type, enabled=False):
                    step.backward(loss)
            else:
                step.backward(loss)
        # The graph of the auxiliary network must not live on in the reported loss.
        loss = loss.detach()
        total = step.losses.get(self._number)
        step.losses[self._number] = loss if total is None else total + loss
        others = [*self._parameters, *inputs.taps.values()]
        if self._gradient is not None:
            # The host's `backward` has only the loss as argument, and so the gradient at the
            # features comes in `.grad`. Left there, it would live as long as the features.
            gradient = pop_gradient(features, self._scale, others)
            assert gradient is not None
            self._gradient.write(store, gradient)
            del gradient
        if self._more is not None:
            self._more.leave(store, inputs, others)

    def _take_features(self, store: Store) -> Tensor:
        features: Tensor = (
            store.pop(self._features) if self._takes_features else store[self._features]
        )
        if self._second_order:
            return features
        # Another loss reads these features later. Each loss gets a view of its own, so that their
        # gradients do not add up in one `.grad`.
        if not self._takes_features:
            features = features.detach()
        return features.requires_grad_(self._learns)

    def _collect_inputs(self, step: StepContext) -> LossInputs:
        known = step.inputs[self._microbatch]
        if self._more is None:
            return known
        module_input, taps, gradients = self._more.take(step.store)
        return known._replace(module_input=module_input, taps=taps, gradients=gradients)

    def _evaluate(self, step: StepContext, features: Tensor, inputs: LossInputs) -> Tensor:
        loss: Tensor = self._head["loss"](features, self._head["aux"], inputs)
        weight = step.weights[self._microbatch]
        # A loss is a mean over its micro-batch. Weighted by the shares, the sum is the mean over
        # the batch, even if the parts differ in size.
        return loss if weight == 1 else loss * weight


class _MoreInputs(NamedTuple):
    """What a loss looks at besides its features, and what it leaves there.

    Attributes:
        taps: the inner outputs.
        module_input: the input of its module, and whether this loss is the last to read it.
        second_order: whether it differentiates through its module; then tensors keep their graph.
        carried: the gradient that the second-order loss before has left; None for the first.
        carries: that which this one leaves for the next; None for the last.
    """

    taps: tuple[_Tap, ...]
    module_input: tuple[Value, bool] | None
    second_order: bool
    carried: Value | None
    carries: Value | None

    def take(self, store: Store) -> tuple[Tensor | None, dict[str, Tensor], list[Tensor] | None]:
        """The fields of LossInputs after the batch's."""
        module_input = None
        if self.module_input is not None:
            value, takes = self.module_input
            module_input = store.pop(value) if takes else store[value]
        taps = {}
        for tap in self.taps:
            tensor = store.pop(tap.value) if tap.takes else store[tap.value]
            if not self.second_order:
                tensor = tensor.detach().requires_grad_(tap.gradient is not None)
            taps[tap.name] = tensor
        if not self.second_order:
            return module_input, taps, None
        carried = None if self.carried is None else store.pop(self.carried, None)
        # A list and not a tensor: the loss takes the gradient out of it, so that no frame of ours
        # keeps it alive, and puts its own in.
        return module_input, taps, [] if carried is None else [carried]

    def leave(self, store: Store, inputs: LossInputs, leaves: list[Tensor]) -> None:
        """After the backward: keep gradients at inner outputs for their flows, and what goes to the
        next loss.
        """
        for tap in self.taps:
            output = inputs.taps[tap.name]
            # A loss may ask for a tap and then not use it: autograd leaves `.grad` at None.
            if tap.gradient is not None and output.grad is not None:
                store[tap.gradient] = pop_gradient(output, tap.scale, leaves)
        # This loss's backward runs through its module down to the input, and fills `.grad` of that
        # leaf. No flow goes on from there.
        if self.second_order and inputs.module_input is not None:
            inputs.module_input.grad = None
        if inputs.gradients and self.carries is not None:
            store[self.carries] = inputs.gradients.pop()


def _find_more_inputs(plan: StepPlan, action: Action) -> _MoreInputs | None:
    wiring, liveness, microbatch = plan.wiring, plan.liveness, action.microbatch
    objective = wiring.objective_at(action.segment, action.flow)
    reads, writes = liveness.operands[action]
    module_input = next((v for v in reads if v.kind is Kind.MODULE_INPUT), None)
    taps = []
    for tap in objective.taps:
        value = Value(Kind.TAP, tap.name, microbatch=microbatch)
        gradient = (
            None if tap.flow is None else name_tap_gradient(wiring, tap.name, objective, microbatch)
        )
        taps.append(_Tap(tap.name, value, liveness.takes(action, value), gradient, tap.scale))
    if not taps and module_input is None and not objective.second_order:
        return None
    return _MoreInputs(
        tuple(taps),
        None if module_input is None else (module_input, liveness.takes(action, module_input)),
        objective.second_order,
        next((v for v in reads if v.kind is Kind.CARRIED), None),
        next((v for v in writes if v.kind is Kind.CARRIED), None),
    )
