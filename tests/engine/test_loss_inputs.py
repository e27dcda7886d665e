"""Losses that read inner outputs and their module's input, against one connected graph.

The reference is the credit table itself: the gradient of a layer is the sum, over the losses that
train it, of weight times the derivative of the loss. Each derivative is one call of
`torch.autograd.grad` on a graph without any cut. Some credits have several losses at one end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.rule.credit import Credit
from tests.helpers.layers import cut_once
from tests.helpers.reference import (
    NETWORKS,
    Term,
    add_gradients,
    assert_moved,
    assert_same_state,
    network,
    sgd,
)

# For each network, the module inside a layer whose output losses read.
TAPS: dict[str, Callable[[int], str]] = {
    "mlp": lambda layer: f"{2 * layer}",
    "resnet14": lambda layer: f"blocks.{layer - 1}.bn2" if layer else "bn",
}


def list_taps(name: str, layers: range) -> tuple[str, ...]:
    return tuple(TAPS[name](layer) for layer in layers)


class InputReadingLoss(lp.LocalLoss):
    """Cross-entropy, the energy of each tap, and the distance of the means of input and output."""

    module_input = True

    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        assert inputs.module_input is not None
        taps = [inputs.taps[name] for name in self.taps]
        return input_reading_loss(features, aux, inputs.targets, inputs.module_input, taps)


def input_reading_loss(
    features: Tensor, aux: nn.Module, targets: Tensor, module_input: Tensor, taps: list[Tensor]
) -> Tensor:
    loss = functional.cross_entropy(aux(features), targets)
    energies = [tap.square().mean() for tap in taps]
    distance = (features.mean() - module_input.mean()).square()
    return loss + 0.3 * sum(energies, torch.zeros(())) + 0.2 * distance


@dataclass(frozen=True)
class InputReadingLosses:
    """Builds these losses. Second and later losses at a module's end read the features alone."""

    network: str

    def __call__(self, point: lp.AttachPoint) -> lp.LocalLoss:
        if point.objective:
            return lp.CrossEntropy()(point)
        return InputReadingLoss(list_taps(self.network, range(point.start, point.layer + 1)))


CREDITS: dict[str, Credit] = {
    "own": lp.LocalCredit(),
    "links": lp.BackwardLinks(layers=1, weight=0.5),
    "long links": lp.BackwardLinks(layers=3, cross_modules=True),
    "links by convs": lp.BackwardLinks(layers=3, unit="convs"),
    "links only": lp.BackwardLinks(layers=1, combine="only"),
    "mean in tails": lp.BackwardLinks(layers=1, combine="mean"),
    "mean": lp.BackwardLinks(layers=2, combine="mean"),
    "interlocked, sum": lp.InterlockingCredit(wise=2, combine="sum"),
    "interlocked, mean": lp.InterlockingCredit(wise=3, combine="mean"),
    "windows": lp.WindowCredit(size=2),
    "own and windows": lp.LocalAndWindowCredit(weight=0.25),
}


class UncutModel:
    """A copy of all that a learner trains, run as one graph; the credit table says who trains what.

    Attributes:
        outputs: the step's input, and then the output of each layer.
        inner: the outputs that losses read, by the name of the module.
    """

    def __init__(self, name: str, learner: lp.Learner) -> None:
        self.name, self.table = name, learner.wiring.table
        self.model = copy.deepcopy(learner.model)
        self.heads = copy.deepcopy(learner.heads)
        self.layers = NETWORKS[name][1](self.model)
        self.outputs: list[Tensor] = []
        self.inner: dict[str, Tensor] = {}
        self.optimizer = sgd([*self.model.parameters(), *self.heads.parameters()])
        for tap in list_taps(name, range(len(self.layers))):
            module = self.model.get_submodule(tap)
            module.register_forward_hook(partial(self._record, tap))

    def _record(self, name: str, module: nn.Module, args: object, output: Tensor) -> Tensor:
        self.inner[name] = output
        return output.clone()  # the stem's ReLU writes into it

    def step(self, images: Tensor, targets: Tensor) -> None:
        self.outputs = [images]
        for layer in self.layers:
            self.outputs.append(layer(self.outputs[-1]))
        total: dict[nn.Parameter, Tensor] = {}
        for k in self.table.losses:
            loss = self._find_loss(k, targets)
            add_gradients(total, Term(loss, list(self.heads[str(k)].parameters())))
            for layer, entry in zip(self.layers, self.table.rows[k], strict=True):
                if entry is not None and entry.train:
                    add_gradients(total, Term(loss, list(layer.parameters()), entry.weight))
        for parameter, gradient in total.items():
            parameter.grad = gradient
        self.optimizer.step()

    def _find_loss(self, k: int, targets: Tensor) -> Tensor:
        module = self.table.module_of_loss[k]
        end = self.table.ends[module] + 1
        start = end - self.table.sizes[module]
        features, aux = self.outputs[end], self.heads.get_submodule(f"{k}.aux")
        is_last = k == len(self.table.rows) - 1
        is_first_at_this_end = self.table.module_of_loss.index(module) == k
        if is_last or not is_first_at_this_end:
            return functional.cross_entropy(aux(features), targets)
        taps = [self.inner[tap] for tap in list_taps(self.name, range(start, end))]
        return input_reading_loss(features, aux, targets, self.outputs[start].detach(), taps)


def compare(name: str, credit: str, *, recompute: bool = False) -> None:
    model, batches = network(name)
    before = copy.deepcopy(model)
    rule = lp.Rule(CREDITS[credit], loss=InputReadingLosses(name))
    learner = lp.Learner(
        model,
        rule,
        partition=cut_once(model, batches[0], 4),
        optimizer=sgd,
        sample=batches[0],
        recompute=recompute,
    )
    expected = UncutModel(name, learner)
    for batch in batches:
        learner.step(batch)
        expected.step(*batch)
    assert_moved(before, model)
    assert_same_state(model, expected.model, 1e-10)
    assert_same_state(learner.heads, expected.heads, 1e-10)


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("name", TAPS)
def test_losses_that_read_inner_outputs_equal_the_reference(name: str, credit: str) -> None:
    compare(name, credit)


@pytest.mark.parametrize("credit", ["own", "links", "own and windows"])
def test_losses_that_read_inner_outputs_of_recomputed_segments(credit: str) -> None:
    compare("resnet14", credit, recompute=True)


class TapLoss(lp.LocalLoss):
    """Cross-entropy, and a multiple of the energy of a tap."""

    def __init__(self, tap: str, weight: float) -> None:
        super().__init__()
        self.taps, self.weight = (tap,), weight

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        loss = functional.cross_entropy(aux(features), inputs.targets)
        (tap,) = inputs.taps.values()
        return loss + self.weight * tap.square().mean() if self.weight else loss


def test_two_losses_may_tap_one_output() -> None:
    """The second of two losses at a module's end reads the tap, but has no gradient there.

    The gradient that the first one has left there must not be lost.
    """

    def build_tap_loss(point: lp.AttachPoint) -> lp.LocalLoss:
        if point.module != 1:
            return lp.CrossEntropy()(point)
        return TapLoss("2", weight=0.0 if point.objective else 0.3)

    weights = []
    for loss in (build_tap_loss, lp.CrossEntropy()):
        model, (batch, *_) = network("mlp")
        partition = lp.Partition.at(lp.layers_of(model, batch), last=[0, 3])
        rule = lp.Rule(lp.LocalAndWindowCredit(), loss=loss)
        learner = lp.Learner(model, rule, partition=partition, optimizer=sgd, sample=batch)
        learner.step(batch)
        weights.append(model.get_parameter("2.weight"))
    tapped, plain = weights
    assert not torch.equal(tapped, plain)


def test_a_tap_in_another_module_is_refused() -> None:
    model, (batch, *_) = network("mlp")
    rule = lp.Rule(loss=lambda point: TapLoss("14", weight=1.0))
    with pytest.raises(lp.BadInput, match="inside its own module only, but '14' is in another one"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)


# --- second-order losses ----------------------------------------------------------------------


class SecondOrder(lp.LocalLoss):
    """Cross-entropy that says that it differentiates through its module."""

    second_order = True

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        return functional.cross_entropy(aux(features), inputs.targets)


def second_order(point: lp.AttachPoint) -> lp.LocalLoss:
    return SecondOrder()


def test_a_second_order_loss_must_train_its_module_and_no_other() -> None:
    model, (batch, *_) = network("mlp")
    rule = lp.Rule(lp.BackwardLinks(), loss=second_order)
    words = r"differentiates through its module, .* give it credit=LocalCredit\(\)"
    with pytest.raises(lp.BadInput, match=words):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)


def test_a_second_order_loss_shares_its_module_with_no_other() -> None:
    model, (batch, *_) = network("mlp")

    def first_module_only(point: lp.AttachPoint, loss: lp.LocalLoss) -> lp.LocalLoss:
        return second_order(point) if point.module == 0 else loss

    rule = lp.Rule(lp.BackwardLinks(99), penalty=first_module_only)
    with pytest.raises(lp.BadInput, match="differentiates through its module"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)


def test_a_second_order_loss_cannot_be_recomputed() -> None:
    model, (batch, *_) = network("mlp")
    rule = lp.Rule(loss=second_order)
    with pytest.raises(
        lp.BadInput, match="recompute=True, but loss 0 differentiates through its module"
    ):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch, recompute=True)


def test_a_second_order_loss_without_second_derivatives_is_plain_local_learning() -> None:
    models = []
    for loss in (second_order, lp.CrossEntropy()):
        model, batches = network("resnet14")
        learner = lp.Learner(
            model, lp.Rule(loss=loss), modules=4, optimizer=sgd, sample=batches[0], microbatches=2
        )
        for batch in batches:
            learner.step(batch)
        models.append(learner.model)
    one, other = models
    assert_same_state(one, other, 1e-12)
