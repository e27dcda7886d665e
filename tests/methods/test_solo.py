"""SOLO: heads that share the network's own read-out, against one connected graph in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.models.resnet import BasicBlock
from tests.helpers.connected import Connected, Losses, compare
from tests.helpers.connected_losses import cross_entropy, task_loss
from tests.helpers.language_models import language_model, layers_of_language_model
from tests.helpers.reference import NETWORKS, aux_of, batches_of, network, sgd


def normalize_by_root_mean_square(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps) * weight


def read_out(connected: Connected) -> Losses:
    """The losses of heads with two blocks each."""
    values = {len(connected.modules) - 1: task_loss(connected)}
    for k in range(len(connected.modules) - 1):
        aux, h = connected.aux(k), connected.outputs[k + 1]
        readout = aux.get_parameter("readout")
        for i in range(2):
            h = aux.get_submodule(f"body.{i}")(h)
        if h.ndim == 4:
            h = h.mean((2, 3))
        if h.shape[-1] != readout.shape[1]:
            h = h @ aux.get_parameter("widened.weight").T
        normed = normalize_by_root_mean_square(h, aux.get_parameter("norm.weight"))
        logits = normed @ readout.T * aux.get_parameter("temperature")
        values[k] = cross_entropy(logits, connected.targets)
    return values


def refresh_readouts(name: str, every: int) -> Callable[[Connected], None]:
    """Copy the network's read-out to all heads after every so many steps."""
    steps = iter(range(100))

    def copy_after_step(connected: Connected) -> None:
        if next(steps) % every == 0:
            for k in range(len(connected.modules) - 1):
                source = connected.model.get_parameter(name)
                connected.aux(k).get_parameter("readout").copy_(source)

    return copy_after_step


@pytest.mark.parametrize("every", [1, 2])
def test_a_shared_readout_of_a_language_model(every: int) -> None:
    model, batches = language_model()
    before = model.unembed.weight.detach().clone()
    rule, after = lp.solo(every=every), refresh_readouts("unembed.weight", every)
    learner = compare(
        rule, model, batches, layers_of_language_model, read_out, modules=2, after=after
    )
    aux = aux_of(learner, 0)
    readout, body = aux.get_parameter("readout"), list(aux.get_submodule("body").children())
    assert not readout.requires_grad
    assert not torch.equal(readout, before)
    # Of steps 0..3, step 2 is the last that refreshes if every second step does.
    assert torch.equal(readout, model.unembed.weight) == (every == 1)
    assert type(body[0]) is type(model.blocks[0])
    assert len(body) == 2


def test_a_shared_readout_in_half_precision() -> None:
    """Without warnings, which are errors here."""
    model, (batch, *_) = language_model()
    learner = lp.Learner(
        model.float(), lp.solo(), modules=2, optimizer=sgd, sample=batch, precision="bf16"
    )
    assert all(loss.isfinite() for loss in learner.step(batch))


def test_a_shared_readout_starts_as_a_copy() -> None:
    model, (batch, *_) = language_model()
    learner = lp.Learner(model, lp.solo(), modules=4, optimizer=sgd, sample=batch)
    readouts = [aux_of(learner, k).get_parameter("readout") for k in range(3)]
    assert all(torch.equal(readout, model.unembed.weight) for readout in readouts)


def test_a_shared_readout_of_an_image_network() -> None:
    """Layers that change the shape of their input are not copied, but their neighbours are.

    These are the stem and the first block of each stage of a ResNet.
    """
    model, batches = network("resnet14")
    after = refresh_readouts("fc.weight", 1)
    learner = compare(
        lp.solo(), model, batches, NETWORKS["resnet14"][1], read_out, modules=7, after=after
    )
    widths = []
    for k in range(6):
        for i in range(2):
            block = aux_of(learner, k).get_submodule(f"body.{i}")
            assert isinstance(block, BasicBlock)
            widths.append(tuple(block.conv1.weight.shape[:2]))
    assert widths == [(width, width) for width in (16, 16, 16, 32, 32, 64) for _ in range(2)]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lp.SharedReadout(readout="head.weight"), "no parameter 'head.weight'"),
        (
            lp.SharedReadout(readout="conv.weight"),
            r"\(16, 3, 3, 3\), but must have a row for each of the 10 outputs",
        ),
    ],
)
def test_readouts_that_do_not_fit_are_refused(head: lp.SharedReadout, reason: str) -> None:
    model, (batch, *_) = network("resnet14")
    with pytest.raises(lp.BadInput, match=reason):
        lp.Learner(model, lp.Rule(aux=head), modules=4, optimizer=sgd, sample=batch)


def test_blocks_that_cannot_be_copied_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    (batch, *_) = batches_of((6,), 3)
    reason = r"shape \(7, 5\), but no layer keeps features of this shape.*blocks=0"
    with pytest.raises(lp.BadInput, match=reason):
        lp.Learner(model, lp.solo(), modules=3, optimizer=sgd, sample=batch)
    lp.Learner(model, lp.solo(blocks=0), modules=3, optimizer=sgd, sample=batch)


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)blocks=-1.*every=0"):
        lp.SharedReadout(blocks=-1, every=0)
