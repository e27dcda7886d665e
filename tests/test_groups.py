"""Neuron groups and HPFF's two losses, against plain loops and one connected graph in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from connected import Connected, Losses, compare
from reference import NETWORKS, assert_same_state, batches_of, network, sgd
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

# --- neuron groups --------------------------------------------------------------------------------------------------------


def likeness(logits: list[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """Of groups, sample by sample and pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for n, target in enumerate(targets.tolist()):
        beliefs = []
        for own in logits:
            p = torch.exp(own[n] / temperature)
            p = p / p.sum()
            p = torch.cat([p[:target], p[target + 1 :]])
            p = p / p.sum()
            beliefs.append(p / torch.sqrt((p**2).sum()))
        for g in range(len(logits)):
            for other in range(len(logits)):
                if g != other:
                    total = total + (beliefs[g] * beliefs[other]).sum()
    return total / (len(targets) * len(logits) * (len(logits) - 1))


class Given(nn.Module):
    """An auxiliary network that returns what it was made with."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, features: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize(
    ("groups", "diversity", "temperature"), [(2, 0.5, 3.0), (3, 2.0, 1.0), (1, 0.5, 3.0), (4, 0.0, 3.0)]
)
def test_the_loss_of_groups(groups: int, diversity: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(groups, 6, 5, dtype=torch.float64), torch.randint(5, (6,))
    loss = lp.GroupCrossEntropy(diversity, temperature)(None)
    found = loss(torch.zeros(6, 4), Given(logits), lp.Seen(torch.zeros(6, 4), targets))
    expected = sum(functional.cross_entropy(own, targets) for own in logits)
    if groups > 1:
        expected = expected + diversity * likeness(list(logits), targets, temperature)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)


def test_groups_that_agree_on_wrong_classes_have_the_penalty_1() -> None:
    logits = torch.randn(1, 6, 5, dtype=torch.float64).expand(3, 6, 5)
    loss = lp.GroupCrossEntropy(diversity=1.0)(None)
    without = lp.GroupCrossEntropy(diversity=0.0)(None)
    seen = lp.Seen(torch.zeros(6, 4), torch.randint(5, (6,)))
    both = [part(torch.zeros(6, 4), Given(logits), seen).item() for part in (loss, without)]
    assert both[0] - both[1] == pytest.approx(1)


def test_group_losses_on_a_grouped_network() -> None:
    """Each group's head sees all channels, those of the other group as constants; the final classifier learns apart."""

    def losses(connected: Connected) -> Losses:
        last = len(connected.modules) - 1
        found = {last: functional.cross_entropy(connected.outputs[-1], connected.targets)}
        for k in range(last):
            h, logits = connected.outputs[k + 1], []
            half = h.shape[1] // 2
            for g, head in enumerate(connected.aux(k).heads):
                keep = torch.arange(h.shape[1]) // half == g
                logits.append(head(torch.where(keep.view(1, -1, 1, 1), h, h.detach())))
            found[k] = sum(functional.cross_entropy(own, connected.targets) for own in logits)
            found[k] = found[k] + 0.5 * likeness(logits, connected.targets, 3.0)
        return found

    torch.manual_seed(0)
    model = lp.models.grouped_resnet(8, groups=2, ends=(1, 3)).double()
    batches = batches_of((3, 8, 8), 10)
    compare(lp.gn_dgl(), model, batches, lambda network: list(network.layers), losses, modules=5)


def test_a_groups_error_reaches_its_own_channels_alone() -> None:
    aux = lp.GroupHeads(groups=4)(site_of("resnet14", 3))
    features = torch.randn(5, 16, 8, 8, requires_grad=True)
    for g, logits in enumerate(aux(features)):
        (gradient,) = torch.autograd.grad(logits.square().sum(), features, retain_graph=True)
        assert [bool(part.any()) for part in gradient.chunk(4, 1)] == [other == g for other in range(4)]


def site_of(name: str, modules: int, module: int = 0) -> lp.Site:
    model, (batch, *_) = network(name)
    layers = lp.layers_of(model, batch[0])
    own = lp.Partition.uniform(layers, modules).modules[module]
    return lp.Site(module, modules, own[-1], layers, layers.shapes[own[-1]], 10, own[0])


def test_the_head_always_widens() -> None:
    """Conv C->2C with stride 2, FC 128, FC; at the last stage too: 64 -> 128 channels."""
    head = lp.WideningHead()(site_of("resnet14", 7, module=5))
    assert [tuple(p.shape) for p in head.parameters() if p.ndim > 1] == [(128, 64, 3, 3), (128, 128), (10, 128)]
    assert head[0].stride == (2, 2)
    assert head(torch.zeros(3, 64, 2, 2)).shape == (3, 10)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(lp.BadInput, match="ends with 16 channels, which cannot be shared evenly"):
        lp.GroupHeads(groups=3)(site_of("resnet14", 3))


def test_probabilities_are_no_targets_of_groups() -> None:
    model, ((images, targets), *_) = network("resnet14")
    soft = functional.one_hot(targets, 10).double()
    learner = lp.Learner(model, lp.gn_dgl(), modules=3, optimizer=sgd, sample=(images, soft))
    with pytest.raises(lp.BadInput, match="needs targets that are classes"):
        learner.step((images, soft))


# --- a module's own loss and that of its window -----------------------------------------------------------------------------


def test_weights_of_windows_as_published() -> None:
    """(5, .5) -> (0, 0) linearly in i / (K - 2): the last window has none, but 1/14 of them at ResNet-32's nominal K = 16."""
    losses = lp.OwnAndWindowLosses(window=1.0)
    assert losses.weights(1, 4) == pytest.approx((2.5, 0.25))
    assert losses.weights(2, 4) == (0, 0)
    assert lp.OwnAndWindowLosses(window=1.0, counted=16).weights(13, 15) == pytest.approx((5 / 14, 0.5 / 14))
    assert lp.OwnAndWindowLosses(window=1.0, counted=55).weights(52, 54) == pytest.approx((5 / 53, 0.5 / 53))


def test_two_losses_in_two_chains() -> None:
    """The code's own way: a chain of modules and one of windows, each run again; the whole batch is small enough for that.

    BatchNorm's running statistics are not compared: there they move more than once a batch.
    """
    model, batches = network("resnet14")
    batches = [(images.sigmoid(), targets) for images, targets in batches]
    rule = lp.hpff(first=(2.0, 0.5), last=(1.0, 0.25), own=0.01)
    learner = lp.Learner(model, rule, modules=5, optimizer=sgd, sample=batches[0], normalised=lp.Normalised())
    twin, heads = copy.deepcopy(model), copy.deepcopy(learner.heads)
    layers = NETWORKS["resnet14"][1](twin)
    modules = [nn.Sequential(*(layers[i] for i in own)) for own in learner.partition.modules]
    optimizer = torch.optim.SGD([*twin.parameters(), *heads.parameters()], lr=0.05, momentum=0.9)
    for images, targets in batches:
        optimizer.zero_grad()
        chains(modules, heads, images, targets).backward()
        optimizer.step()
        learner.step((images, targets))
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    for a, b in zip(learner.heads.parameters(), heads.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def chains(modules: list[nn.Module], heads: nn.ModuleDict, images: Tensor, targets: Tensor) -> Tensor:
    """The sum of all losses of five modules; where a module's input is detached, its loss goes no further."""

    def task(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets)

    x, total, number = modules[0](images).detach(), 0.0, 0
    y = images
    for i in range(1, 4):
        x_i = modules[i](x)
        total = total + 0.01 * task(heads[str(number)]["aux"](x_i))
        x = x_i.detach()
        before = modules[i - 1](y.detach())
        z = modules[i](before)
        passed = i / 3
        a, b = 2.0 * (1 - passed) + 1.0 * passed, 0.5 * (1 - passed) + 0.25 * passed
        window = heads[str(number + 1)]
        total = total + 0.99 * (a * patched(window["loss"].parts[0].decoders, z, images) + b * task(window["aux"](z)))
        y = before.detach()
        number += 2
    own = task(modules[4](x))
    return total + 0.01 * own + 0.99 * task(modules[4](modules[3](y)))


def patched(decoders: nn.ModuleList, z: Tensor, images: Tensor) -> Tensor:
    """Four decoders, each of a quarter of the features for its quarter of the image."""
    total, (h, w) = 0.0, (z.shape[2] // 2, z.shape[3] // 2)
    tall, wide = images.shape[2] // 2, images.shape[3] // 2
    for place, decoder in enumerate(decoders):
        i, j = divmod(place, 2)
        part = z[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
        image = images[:, :, i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
        convs = [module for module in decoder.modules() if isinstance(module, nn.Conv2d)]
        norm = next(module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d))
        part = functional.interpolate(part, size=image.shape[2:], mode="bilinear", align_corners=True)
        part = functional.relu(functional.batch_norm(convs[0](part), None, None, norm.weight, norm.bias, training=True))
        total = total + functional.binary_cross_entropy(torch.sigmoid(convs[1](part)), image)
    return total


def test_a_window_without_weight_has_no_loss() -> None:
    """With the published last weights, the last window trains nothing: its head stays, and its modules lack nothing else."""
    model, (batch, *_) = network("resnet14")
    batch = (batch[0].sigmoid(), batch[1])
    learner = lp.Learner(model, lp.hpff(), modules=4, optimizer=sgd, sample=batch, normalised=lp.Normalised())
    before = copy.deepcopy(learner.heads)
    losses = learner.step(batch)
    assert losses[3].item() == 0
    assert learner.wiring.table.at[3] == 2
    for k in "012":
        assert not torch.equal(next(before[k].parameters()), next(learner.heads[k].parameters()))
    assert_same_state(before["3"], learner.heads["3"])


def test_windows_of_three() -> None:
    """L_k trains its module and the two before it; there are two windows in four modules, of four parts each."""
    model, ((images, targets), *_) = network("mlp")
    learner = lp.Learner(model, lp.windows(size=3), modules=4, optimizer=sgd, sample=(images, targets))
    twin, heads = copy.deepcopy(model), copy.deepcopy(learner.heads)
    learner.backward((images, targets))
    assert sorted(heads) == ["2", "3"]
    h = twin[:12](images)
    first = functional.cross_entropy(heads["2"]["aux"](h), targets)
    second = functional.cross_entropy(twin[12:](h), targets)
    for loss, window in ((first, twin[:12]), (second, twin[4:])):
        own = list(window.parameters())
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)


# --- what the methods of links reach --------------------------------------------------------------------------------------


def test_links_reach_the_other_readings_of_their_papers() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 4)

    def table(rule: lp.Rule) -> str:
        return str(rule.credit(partition))

    assert table(lp.backlink(layers=99)) == table(lp.interlocking(wise=2, combine="sum"))
    assert table(lp.backlink(layers=99, combine="only")) == table(lp.interlocking(wise=2))
    assert table(lp.backlink(layers=4, spill=True)).splitlines()[2] == "loss2 ..T|TTT|TTT|..."
    assert table(lp.backlink(layers=2, unit="convs")) == table(lp.backlink(layers=2))
    assert table(lp.backlink(layers=2, combine="only")).splitlines()[1] == "loss1 .TT|Tpp|...|..."
    assert table(lp.backlink(combine="mean")).splitlines()[1] == "loss1 ..a|TTa|...|..."
    assert table(lp.interlocking(combine="mean")).splitlines()[1] == "loss1 aaa|aaa|...|..."


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)own=0.*window=-1.*first=5.*patches=0.*counted=-2"):
        lp.OwnAndWindowLosses(own=0, window=-1, first=5, patches=0, counted=-2)
    with pytest.raises(lp.BadInput, match=r"(?s)diversity=-1.*temperature=0"):
        lp.GroupCrossEntropy(diversity=-1, temperature=0)
    with pytest.raises(lp.BadInput, match="groups=0"):
        lp.GroupHeads(groups=0)
