"""HPFF: a module's own loss and that of its window, against two chains of modules in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.points import list_convs
from tests.helpers.reference import NETWORKS, assert_same_state, children_of, network, sgd


def test_weights_of_windows_as_published() -> None:
    """(5, .5) -> (0, 0) linearly in i / (K - 2).

    The last window has the weight 0, but 1/14 of the first at ResNet-32's nominal K = 16.
    """
    losses = lp.LocalAndWindowLosses(window=1.0)
    assert losses.weights(1, 4) == pytest.approx((2.5, 0.25))
    assert losses.weights(2, 4) == (0, 0)
    resnet32 = lp.LocalAndWindowLosses(window=1.0, official_modules=16)
    assert resnet32.weights(13, 15) == pytest.approx((5 / 14, 0.5 / 14))
    resnet110 = lp.LocalAndWindowLosses(window=1.0, official_modules=55)
    assert resnet110.weights(52, 54) == pytest.approx((5 / 53, 0.5 / 53))


def test_bad_fields_are_all_named() -> None:
    message = r"(?s)local=0.*window=-1.*first=\(5.*patches=0.*official_modules=-2"
    with pytest.raises(lp.BadInput, match=message):
        lp.LocalAndWindowLosses(
            local=0,
            window=-1,
            first=(5.0, -1.0),
            patches=0,
            official_modules=-2,
        )


# --- two losses -----------------------------------------------------------------------------------


def test_two_losses_in_two_chains() -> None:
    """The code's own way: a chain of modules and one of windows, each run again.

    The whole batch is small enough for that. BatchNorm's running statistics are not compared: there
    they move more than once a batch.
    """
    model, batches = network("resnet14")
    batches = [(images.sigmoid(), targets) for images, targets in batches]
    learner = lp.Learner(
        model,
        lp.hpff(first=(2.0, 0.5), last=(1.0, 0.25), local=0.01),
        modules=5,
        optimizer=sgd,
        sample=batches[0],
        normalization=lp.Normalization(),
    )
    copied, heads = copy.deepcopy(model), copy.deepcopy(learner.heads)
    layers = NETWORKS["resnet14"][1](copied)
    modules = [nn.Sequential(*(layers[i] for i in span)) for span in learner.partition.modules]
    optimizer = torch.optim.SGD([*copied.parameters(), *heads.parameters()], lr=0.05, momentum=0.9)
    for images, targets in batches:
        optimizer.zero_grad()
        sum_losses(modules, heads, images, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        learner.step((images, targets))
    assert_same_parameters(model, copied)
    assert_same_parameters(learner.heads, heads)


def assert_same_parameters(model: nn.Module, expected: nn.Module) -> None:
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{name} differs")


def sum_losses(
    modules: Sequence[nn.Module], heads: nn.ModuleDict, images: Tensor, targets: Tensor
) -> Tensor:
    """The sum of all losses of five modules.

    Where a module's input is detached, its loss goes no further.
    """

    def task(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets)

    x = modules[0](images).detach()  # the chain of modules
    y = images  # the chain of windows: the input of the next window
    total = torch.zeros((), dtype=images.dtype)
    for i in range(1, 4):
        own, window = f"{2 * i - 2}", f"{2 * i - 1}"
        h = modules[i](x)
        total = total + 0.01 * task(heads.get_submodule(f"{own}.aux")(h))
        x = h.detach()
        before = modules[i - 1](y.detach())
        z = modules[i](before)
        r = i / 3
        a, b = 2.0 * (1 - r) + 1.0 * r, 0.5 * (1 - r) + 0.25 * r
        decoders = children_of(heads, f"{window}.loss.parts.0.decoders")
        reconstruction = sum_patch_losses(decoders, z, images)
        prediction = heads.get_submodule(f"{window}.aux")(z)
        total = total + 0.99 * (a * reconstruction + b * task(prediction))
        y = before.detach()
    return total + 0.01 * task(modules[4](x)) + 0.99 * task(modules[4](modules[3](y)))


def sum_patch_losses(decoders: list[nn.Module], z: Tensor, images: Tensor) -> Tensor:
    """Four decoders, each of a quarter of the features for its quarter of the image."""
    h, w = z.shape[2] // 2, z.shape[3] // 2
    tall, wide = images.shape[2] // 2, images.shape[3] // 2
    losses = []
    for number, decoder in enumerate(decoders):
        i, j = divmod(number, 2)
        patch = z[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
        image = images[:, :, i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
        losses.append(compute_patch_loss(decoder, patch, image))
    return torch.stack(losses).sum()


def compute_patch_loss(decoder: nn.Module, patch: Tensor, image: Tensor) -> Tensor:
    first, second = list_convs(decoder)
    norm = next(module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d))
    maps = functional.interpolate(patch, image.shape[2:], mode="bilinear", align_corners=True)
    maps = functional.batch_norm(first(maps), None, None, norm.weight, norm.bias, training=True)
    pixels = torch.sigmoid(second(functional.relu(maps)))
    return functional.binary_cross_entropy(pixels, image)


def test_a_window_without_weight_has_no_loss() -> None:
    """With the published last weights, the last window trains nothing.

    Its head stays as it is, and its modules lack nothing else.
    """
    model, (batch, *_) = network("resnet14")
    batch = (batch[0].sigmoid(), batch[1])
    learner = lp.Learner(
        model, lp.hpff(), modules=4, optimizer=sgd, sample=batch, normalization=lp.Normalization()
    )
    before = copy.deepcopy(learner.heads)
    losses = learner.step(batch)
    assert losses[3].item() == 0
    assert learner.wiring.table.module_of_loss[3] == 2
    for k in "012":
        assert not torch.equal(next(before[k].parameters()), next(learner.heads[k].parameters()))
    assert_same_state(before["3"], learner.heads["3"])
