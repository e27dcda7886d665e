"""GN-DGL's neuron groups, against plain loops and one connected graph in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.connected import Connected, Losses, compare
from tests.helpers.points import build_head, make_point
from tests.helpers.reference import batches_of, children_of, network, sgd

# --- the loss -------------------------------------------------------------------------------------


def predict_wrong_classes(logits: Tensor, target: int, temperature: float) -> Tensor:
    """A group's prediction (classes,) without the true class, scaled to length 1."""
    p = torch.exp(logits / temperature)
    p = p / p.sum()
    p = torch.cat([p[:target], p[target + 1 :]])
    p = p / p.sum()
    return p / torch.sqrt((p**2).sum())


def agreement(logits: list[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """How much groups agree on wrong classes, sample by sample and pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for n, target in enumerate(targets.tolist()):
        predictions = [predict_wrong_classes(z[n], target, temperature) for z in logits]
        for g in range(len(logits)):
            for other in range(len(logits)):
                if g != other:
                    total = total + (predictions[g] * predictions[other]).sum()
    return total / (len(targets) * len(logits) * (len(logits) - 1))


def sum_cross_entropies(logits: list[Tensor], targets: Tensor) -> Tensor:
    losses = [functional.cross_entropy(z, targets) for z in logits]
    return torch.stack(losses).sum()


class FixedOutput(nn.Module):
    """An auxiliary network that returns what it was made with."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, features: Tensor) -> Tensor:
        return self.logits


def compute_group_loss(rule_loss: lp.GroupCrossEntropy, logits: Tensor, targets: Tensor) -> float:
    features = torch.zeros(6, 4)
    loss = rule_loss(make_point(4))(features, FixedOutput(logits), lp.LossInputs(features, targets))
    value: float = loss.item()
    return value


@pytest.mark.parametrize(
    ("groups", "diversity", "temperature"),
    [(2, 0.5, 3.0), (3, 2.0, 1.0), (1, 0.5, 3.0), (4, 0.0, 3.0)],
)
def test_the_loss_of_groups(groups: int, diversity: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(groups, 6, 5, dtype=torch.float64), torch.randint(5, (6,))
    found = compute_group_loss(lp.GroupCrossEntropy(diversity, temperature), logits, targets)
    expected = sum_cross_entropies(list(logits), targets)
    if groups > 1:
        expected = expected + diversity * agreement(list(logits), targets, temperature)
    assert found == pytest.approx(expected.item(), abs=1e-12)


def test_groups_that_agree_on_wrong_classes_have_the_penalty_1() -> None:
    logits = torch.randn(1, 6, 5, dtype=torch.float64).expand(3, 6, 5)
    targets = torch.randint(5, (6,))
    penalized = compute_group_loss(lp.GroupCrossEntropy(diversity=1.0), logits, targets)
    plain = compute_group_loss(lp.GroupCrossEntropy(diversity=0.0), logits, targets)
    assert penalized - plain == pytest.approx(1)


def test_probabilities_are_no_targets_of_groups() -> None:
    model, ((images, targets), *_) = network("resnet14")
    soft = functional.one_hot(targets, 10).double()
    with pytest.raises(lp.BadInput, match="needs targets that are classes"):
        lp.Learner(model, lp.gn_dgl(), modules=3, optimizer=sgd, sample=(images, soft))


# --- the auxiliary networks -----------------------------------------------------------------------


def make_resnet14_point(modules: int, module: int = 0) -> lp.AttachPoint:
    model, (batch, *_) = network("resnet14")
    layers = lp.layers_of(model, batch[0])
    span = lp.Partition.uniform(layers, modules).modules[module]
    return lp.AttachPoint(module, modules, span[-1], layers, layers.shapes[span[-1]], 10, span[0])


def test_a_groups_gradient_reaches_its_own_channels_alone() -> None:
    aux = lp.GroupHeads(groups=4)(make_resnet14_point(3))
    features = torch.randn(5, 16, 8, 8, requires_grad=True)
    for g, logits in enumerate(aux(features)):
        (gradient,) = torch.autograd.grad(logits.square().sum(), features, retain_graph=True)
        reached = [bool(channels.any()) for channels in gradient.chunk(4, 1)]
        assert reached == [other == g for other in range(4)]


def test_the_head_always_widens() -> None:
    """Conv C->2C with stride 2, FC 128, FC; for the last width, too: 64 -> 128 channels."""
    head = build_head(lp.WideningHead(), make_resnet14_point(7, module=5))
    assert [tuple(p.shape) for p in head.parameters() if p.ndim > 1] == [
        (128, 64, 3, 3),
        (128, 128),
        (10, 128),
    ]
    conv = head[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.stride == (2, 2)
    assert head(torch.zeros(3, 64, 2, 2)).shape == (3, 10)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(lp.BadInput, match="ends with 16 channels, which cannot be shared evenly"):
        lp.GroupHeads(groups=3)(make_resnet14_point(3))


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)diversity=-1.*temperature=0"):
        lp.GroupCrossEntropy(diversity=-1, temperature=0)
    with pytest.raises(lp.BadInput, match="groups=0"):
        lp.GroupHeads(groups=0)


# --- the method -----------------------------------------------------------------------------------


def compute_reference_losses(connected: Connected) -> Losses:
    """Each group's head reads all channels, those of the other group as constants.

    The final classifier learns apart.
    """
    last, targets = len(connected.modules) - 1, connected.targets
    losses = {last: functional.cross_entropy(connected.outputs[-1], targets)}
    for k in range(last):
        h, logits = connected.outputs[k + 1], []
        half = h.shape[1] // 2
        for g, head in enumerate(children_of(connected.aux(k), "heads")):
            keep = (torch.arange(h.shape[1]) // half == g).view(1, -1, 1, 1)
            logits.append(head(torch.where(keep, h, h.detach())))
        losses[k] = sum_cross_entropies(logits, targets) + 0.5 * agreement(logits, targets, 3.0)
    return losses


def test_group_losses_on_a_grouped_network() -> None:
    torch.manual_seed(0)
    model = lp.models.grouped_resnet(8, groups=2, ends=(1, 3)).double()
    batches = batches_of((3, 8, 8), 10)
    compare(
        lp.gn_dgl(),
        model,
        batches,
        lambda grouped: children_of(grouped, "layers"),
        compute_reference_losses,
        modules=5,
    )
