"""What losses may look at besides their features, and several losses at one module's end, against one connected graph.

The reference is the credit table itself: the gradient of a layer is the sum, over the losses that train it, of weight times
the derivative of the loss, each found by one call of :func:`torch.autograd.grad` on a graph without any cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from reference import NETWORKS, assert_moved, assert_same_state, network, sgd
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

TAPS = {"mlp": lambda layer: f"{2 * layer}", "resnet14": lambda layer: f"blocks.{layer - 1}.bn2" if layer else "bn"}


class Looking(lp.LocalLoss):
    """Cross-entropy, the energy of an inner output of each layer, and the distance to a projection of the inlet."""

    def __init__(self, taps: tuple[str, ...], inlet: bool) -> None:
        super().__init__()
        self.taps, self.inlet = taps, inlet

    def forward(self, features: Tensor, aux: nn.Module, seen: lp.Seen) -> Tensor:
        loss = functional.cross_entropy(aux(features), seen.targets)
        loss = loss + 0.3 * sum(seen.taps[name].square().mean() for name in self.taps)
        if self.inlet:
            assert seen.inlet is not None
            loss = loss + 0.2 * (features.mean() - seen.inlet.mean()).square()
        return loss


@dataclass(frozen=True)
class Looks:
    """Builds :class:`Looking` losses; those of later numbers at a module's end look at the features alone."""

    network: str
    inlet: bool = True

    def __call__(self, site: lp.Site) -> lp.LocalLoss:
        if site.objective:
            return lp.CrossEntropy()(site)
        taps = tuple(TAPS[self.network](layer) for layer in range(site.start, site.layer + 1))
        return Looking(taps, self.inlet)


CREDITS = {
    "own": lp.Own(),
    "links": lp.BackwardLinks(layers=1, weight=0.5),
    "long links": lp.BackwardLinks(layers=3, spill=True),
    "links by convs": lp.BackwardLinks(layers=3, unit="convs"),
    "links only": lp.BackwardLinks(layers=1, combine="only"),
    "mean in tails": lp.BackwardLinks(layers=1, combine="mean"),
    "mean": lp.BackwardLinks(layers=2, combine="mean"),
    "interlocked, sum": lp.Interlocked(wise=2, combine="sum"),
    "interlocked, mean": lp.Interlocked(wise=3, combine="mean"),
    "windows": lp.Windows(size=2),
    "own and windows": lp.OwnAndWindows(weight=0.25),
}


class Reference:
    """The same learner without cuts: a copy of all that it trains, and its credit table."""

    def __init__(self, name: str, learner: lp.Learner, looks: Looks) -> None:
        self.table = learner.wiring.table
        self.model = copy.deepcopy(learner.model)
        self.layers = NETWORKS[name][1](self.model)
        self.heads = copy.deepcopy(learner.heads)
        self.looks = looks
        self.velocity: dict[nn.Parameter, Tensor] = {}

    def step(self, images: Tensor, targets: Tensor) -> None:
        inner: dict[str, Tensor] = {}
        names = {TAPS[self.looks.network](layer) for layer in range(len(self.layers))}
        hooks = [self.model.get_submodule(name).register_forward_hook(_noting(inner, name)) for name in names]
        outputs, h = [images], images
        for layer in self.layers:
            h = layer(h)
            outputs.append(h)
        total: dict[nn.Parameter, Tensor] = {}
        for k in self.table.losses:
            self._add(total, k, outputs, inner, targets)
        for parameter, gradient in total.items():
            self.velocity[parameter] = 0.9 * self.velocity.get(parameter, 0) + gradient
            parameter.data -= 0.05 * self.velocity[parameter]
        for hook in hooks:
            hook.remove()

    def _add(
        self,
        total: dict[nn.Parameter, Tensor],
        k: int,
        outputs: list[Tensor],
        inner: dict[str, Tensor],
        targets: Tensor,
    ) -> None:
        module = self.table.at[k]
        end = self.table.ends[module]
        start = end + 1 - self.table.sizes[module]
        loss = functional.cross_entropy(self.heads[str(k)]["aux"](outputs[end + 1]), targets)
        if k < len(self.table.rows) - 1 and not list(self.table.at[:k]).count(module):
            loss = loss + 0.3 * sum(
                inner[TAPS[self.looks.network](layer)].square().mean() for layer in range(start, end + 1)
            )
            if self.looks.inlet:
                loss = loss + 0.2 * (outputs[end + 1].mean() - outputs[start].detach().mean()).square()
        shares = [(list(self.heads[str(k)].parameters()), 1.0)]
        for layer, entry in enumerate(self.table.rows[k]):
            if entry is not None and entry.train:
                shares.append((list(self.layers[layer].parameters()), entry.weight))
        for parameters, weight in shares:
            found = torch.autograd.grad(loss, parameters, retain_graph=True) if parameters else ()
            for parameter, gradient in zip(parameters, found, strict=True):
                total[parameter] = total.get(parameter, 0) + weight * gradient


def _noting(inner: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        inner[name] = output
        return output.clone()  # the stem's ReLU writes into it

    return hook


def compare(name: str, credit: str, **options: object) -> None:
    model, batches = network(name)
    before, looks = copy.deepcopy(model), Looks(name)
    rule = lp.Rule(CREDITS[credit], loss=looks)
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0], **options)
    reference = Reference(name, learner, looks)
    for batch in batches:
        learner.step(batch)
        reference.step(*batch)
    assert_moved(before, model)
    assert_same_state(model, reference.model, 1e-10)
    assert_same_state(learner.heads, reference.heads, 1e-10)


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("name", TAPS)
def test_losses_that_look_inside_equal_the_reference(name: str, credit: str) -> None:
    compare(name, credit)


@pytest.mark.parametrize("credit", ["own", "links", "own and windows"])
def test_likewise_where_segments_run_again(credit: str) -> None:
    compare("resnet14", credit, recompute=True)


TABLES = {
    lp.BackwardLinks(): "TTT|...|... ..T|TTT|... ...|..T|TTT",
    lp.BackwardLinks(layers=4, spill=True): "TTT|...|... TTT|TTT|... ..T|TTT|TTT",
    lp.BackwardLinks(combine="only"): "TTp|...|... ..T|TTp|... ...|..T|TTT",
    lp.BackwardLinks(combine="mean"): "TTa|...|... ..a|TTa|... ...|..a|TTT",
    lp.Interlocked(2): "...|...|... TTT|ppp|... ...|TTT|TTT",
    lp.Interlocked(2, combine="sum"): "TTT|...|... TTT|TTT|... ...|TTT|TTT",
    lp.Interlocked(2, combine="mean"): "aaa|...|... aaa|aaa|... ...|aaa|TTT",
    lp.Windows(2): "...|...|... TTT|TTT|... ...|TTT|TTT",
    lp.Windows(2, stride=2): "...|...|... TTT|TTT|... ...|...|TTT",
    lp.OwnAndWindows(): "...|TTT|... TTT|TTT|... ...|TTT|TTT",
    lp.OwnAndWindows(weight=0.5): "...|TTT|... TTT|TTT|... ...|aaa|TTT",
}


@pytest.mark.parametrize(("credit", "rows"), TABLES.items(), ids=map(repr, TABLES))
def test_tables_of_three_modules_of_three_layers(credit: Callable[..., lp.CreditTable], rows: str) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 3)
    drawn = [line.split()[1] for line in str(credit(partition)).splitlines() if line.startswith("loss")]
    assert drawn == rows.split()


def test_the_length_of_a_link_in_convolutions() -> None:
    """Blocks of ResNet-14 have two convolutions on their longest path, shortcuts are not longer; 3 of them need two blocks."""
    layers = lp.layers_of(lp.models.resnet14(), torch.zeros(2, 3, 8, 8))
    assert layers.depths == (1, 2, 2, 2, 2, 2, 3)  # the last layer has the classifier, too
    table = lp.BackwardLinks(layers=3, unit="convs")(lp.Partition.at(layers, last=[2, 5]))
    assert str(table).splitlines()[1] == "loss1 .TT|TTT|."


# --- parameters that travel -------------------------------------------------------------------------------------------------


class Lent(nn.Module):
    """A classifier and a copy of one parameter of the network, which it adds to its logits."""

    def __init__(self, width: int, outputs: int, borrow: lp.Borrow) -> None:
        super().__init__()
        self.own = nn.Linear(width, outputs)
        self.copy = nn.Parameter(torch.zeros(outputs, width), requires_grad=False)
        self.borrows = (borrow,)

    def forward(self, features: Tensor) -> Tensor:
        return self.own(features) + features @ self.copy.T


@dataclass(frozen=True)
class Lends:
    decay: float = 0.0
    every: int = 1
    lag: int = 0

    def __call__(self, site: lp.Site) -> nn.Module:
        borrow = lp.Borrow("14.weight", "copy", decay=self.decay, every=self.every, lag=self.lag)
        return Lent(site.features[-1], site.outputs, borrow)


@pytest.mark.parametrize(
    ("lends", "expected"),
    [
        # w0 the classifier before the first step, w1 after it, ...; every second step means steps 0 and 2
        (Lends(), lambda w: [w[0], w[1], w[2], w[3]]),
        (Lends(every=2), lambda w: [w[0], w[1], w[1], w[3]]),
        (Lends(lag=1), lambda w: [w[0], w[0], w[1], w[2]]),
        (Lends(decay=0.75), lambda w: [0 * w[0], w[1] / 4, w[1] * 3 / 16 + w[2] / 4, None]),
        (Lends(decay=0.75, lag=1), lambda w: [0 * w[0], w[0] / 4, w[0] * 3 / 16 + w[1] / 4, None]),
    ],
    ids=["copied", "every second step", "lag", "averaged", "averaged with a lag"],
)
def test_borrowed_parameters_follow_their_owner(lends: Lends, expected: Callable[..., list[Tensor | None]]) -> None:
    model, batches = network("mlp")
    learner = lp.Learner(model, lp.greedy(aux=lends), modules=4, optimizer=sgd, sample=batches[0])
    owned, copies = [model[14].weight.detach().clone()], [learner.heads["0"]["aux"].copy.clone()]
    for batch in batches:
        learner.step(batch)
        owned.append(model[14].weight.detach().clone())
        copies.append(learner.heads["0"]["aux"].copy.clone())
    for copied, wanted in zip(copies, expected(owned), strict=True):
        if wanted is not None:
            torch.testing.assert_close(copied, wanted, rtol=0, atol=1e-12)


def test_borrowed_parameters_are_not_trained() -> None:
    """The head's error reaches its features through the copy, and not the owner of what was copied."""
    model, (batch, *_) = network("mlp")
    frozen = model[14].requires_grad_(False)
    before = copy.deepcopy(frozen)
    learner = lp.Learner(model, lp.greedy(aux=Lends()), modules=4, optimizer=sgd, sample=batch)
    learner.step(batch)
    assert_same_state(frozen, before)
    assert torch.equal(learner.heads["0"]["aux"].copy, frozen.weight)


# --- what is refused --------------------------------------------------------------------------------------------------------


class SecondOrder(lp.LocalLoss):
    attached = True

    def forward(self, features: Tensor, aux: nn.Module, seen: lp.Seen) -> Tensor:
        return functional.cross_entropy(aux(features), seen.targets)


def second_order(site: lp.Site) -> lp.LocalLoss:
    return SecondOrder()


def test_a_second_order_loss_must_train_its_module_and_no_other() -> None:
    model, (batch, *_) = network("mlp")
    with pytest.raises(lp.BadInput, match=r"differentiates through its module, .* give it credit=Own\(\)"):
        lp.Learner(model, lp.Rule(lp.BackwardLinks(), loss=second_order), modules=4, optimizer=sgd, sample=batch)


def test_a_second_order_loss_cannot_run_again() -> None:
    model, (batch, *_) = network("mlp")
    rule = lp.Rule(loss=second_order)
    with pytest.raises(lp.BadInput, match="recompute=True, but loss 0 differentiates through its module"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch, recompute=True)


def test_an_attached_loss_of_first_order_is_plain_local_learning() -> None:
    states = []
    for loss in (second_order, lp.CrossEntropy()):
        model, batches = network("resnet14")
        learner = lp.Learner(model, lp.Rule(loss=loss), modules=4, optimizer=sgd, sample=batches[0], microbatches=2)
        for batch in batches:
            learner.step(batch)
        states.append(learner.model)
    assert_same_state(*states, 1e-12)


@pytest.mark.parametrize("lag", [0, 1])
def test_borrowing_right_after_a_step_needs_that_step(lag: int) -> None:
    """An optimizer of all parameters steps at the end: only what was there before the step can be borrowed."""
    model, (batch, *_) = network("mlp")
    whole = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = lp.greedy(aux=Lends(lag=lag))
    if lag:
        lp.Learner(model, rule, modules=4, optimizer=whole, sample=batch).step(batch)
    else:
        with pytest.raises(lp.BadInput, match=r"borrows .14\.weight. right after its step"):
            lp.Learner(model, rule, modules=4, optimizer=whole, sample=batch)


def test_looking_elsewhere_is_refused() -> None:
    model, (batch, *_) = network("mlp")

    def elsewhere(site: lp.Site) -> lp.LocalLoss:
        return Looking(("14",), inlet=False)

    with pytest.raises(lp.BadInput, match="inside its own module only, but '14' is in another one"):
        lp.Learner(model, lp.Rule(loss=elsewhere), modules=4, optimizer=sgd, sample=batch)


def test_two_losses_may_tap_one_output() -> None:
    """Of two losses at a module's end the second only looks; the error that the first has left there is not lost."""

    class Twice(lp.LocalLoss):
        taps = ("2",)

        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, features: Tensor, aux: nn.Module, seen: lp.Seen) -> Tensor:
            loss = functional.cross_entropy(aux(features), seen.targets)
            return loss + self.weight * seen.taps["2"].square().mean() if self.weight else loss

    def build(site: lp.Site) -> lp.LocalLoss:
        if site.module != 1:
            return lp.CrossEntropy()(site)
        return Twice(0.0 if site.objective else 0.3)

    states = []
    for loss in (build, lp.CrossEntropy()):
        model, (batch, *_) = network("mlp")
        partition = lp.Partition.at(lp.layers_of(model, batch), last=[0, 3])
        learner = lp.Learner(
            model, lp.Rule(lp.OwnAndWindows(), loss=loss), partition=partition, optimizer=sgd, sample=batch
        )
        learner.step(batch)
        states.append(model[2].weight)
    assert not torch.equal(*states)


def test_a_second_order_loss_shares_its_module_with_no_other() -> None:
    model, (batch, *_) = network("mlp")

    def first_only(site: lp.Site, loss: lp.LocalLoss) -> lp.LocalLoss:
        return second_order(site) if site.module == 0 else loss

    with pytest.raises(lp.BadInput, match="differentiates through its module"):
        lp.Learner(model, lp.Rule(lp.BackwardLinks(99), penalty=first_only), modules=4, optimizer=sgd, sample=batch)
