"""Fake kernels whose outputs are corrected: the prediction of memory meets the measurement."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.cost.kernels import count_lstm_workspace
from localprop.tasks.batch import Batch
from tests.helpers.predictions import CLASSES, STEPS, WIDTH, compare, make_batch


class Last(nn.Module):
    """The classes of a sequence, from the output of a recurrent layer at its end."""

    def __init__(self, layer: nn.RNNBase, *, inference: bool = False) -> None:
        super().__init__()
        self.layer, self.inference = layer, inference
        directions = 2 if layer.bidirectional else 1
        self.head = nn.Linear((layer.proj_size or layer.hidden_size) * directions, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs if self.layer.batch_first else inputs.transpose(0, 1)
        with torch.set_grad_enabled(not self.inference):
            outputs, _ = self.layer(inputs)
        classes: Tensor = self.head(outputs.mean(1 if self.layer.batch_first else 0))
        return classes


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "bias": False}, {"num_layers": 2, "bidirectional": True}],
    ids=str,
)
def test_recurrent_layers(kind: Callable[..., nn.RNNBase], options: dict[str, Any]) -> None:
    if torch.__version__.startswith("2.11") and kind is nn.LSTM and options.get("bias") is False:
        pytest.skip("torch 2.11 holds another workspace for an LSTM without biases")
    compare(Last(kind(WIDTH, 40, **options)), make_batch(STEPS, WIDTH))


def test_a_recurrent_layer_in_inference_has_no_workspace() -> None:
    model = Last(nn.LSTM(WIDTH, 40).requires_grad_(False), inference=True)
    compare(model, make_batch(STEPS, WIDTH))


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (5, 3, 17, 64), (16, 4, 64, 16), (3, 9, 300, 256)])
def test_the_workspace_of_an_lstm(size: tuple[int, int, int, int]) -> None:
    steps, samples, inputs, hidden = size
    layer, sequence = nn.LSTM(inputs, hidden), torch.randn(steps, samples, inputs)
    output, _ = layer(sequence)
    nodes, saved = [output.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node.name() == "MkldnnRnnLayerBackward0":
            saved.append(node._saved_result3)
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert {each.numel() for each in saved} == {count_lstm_workspace(*size, itemsize=4)}


class Transposed(nn.Module):
    """Norms as time series models use them: channels last, transposed around each norm."""

    def __init__(self, norm: Callable[[int], nn.Module], dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(norm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.dims = dims

    def forward(self, inputs: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            inputs = norm(layer(inputs).transpose(1, self.dims)).transpose(1, self.dims)
        classes: Tensor = self.head(inputs.flatten(1, -2).mean(1))
        return classes


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (STEPS,)),
        (nn.BatchNorm2d, (STEPS, 5)),
        (nn.BatchNorm3d, (STEPS, 5, 2)),
        (functools.partial(nn.InstanceNorm1d, affine=True), (STEPS,)),
        (functools.partial(nn.GroupNorm, 4), (STEPS,)),
    ],
)
def test_norms_behind_a_transposition(
    norm: Callable[[int], nn.Module], shape: tuple[int, ...]
) -> None:
    compare(Transposed(norm, len(shape) + 1), make_batch(*shape, WIDTH))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_norms_in_both_layouts(memory_format: torch.memory_format) -> None:
    blocks = [(nn.Conv2d(WIDTH, WIDTH, 3), nn.BatchNorm2d(WIDTH)) for _ in range(2)]
    layers = [layer for block in blocks for layer in block]
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)
    ).to(memory_format=memory_format)
    images, labels = make_batch(WIDTH, 8, 8).data
    compare(model, Batch.of((images.contiguous(memory_format=memory_format), labels)))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: functional.mse_loss(x, x.detach() + 1),
        lambda x: functional.smooth_l1_loss(x, x.detach() + 1, reduction="sum"),
        lambda x: functional.binary_cross_entropy(x.sigmoid(), x.detach().sigmoid()),
        lambda x: functional.fold(functional.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
        lambda x: functional.unfold(x, 3, padding=1),
    ],
    ids=["mse", "smooth_l1", "binary_cross_entropy", "fold", "unfold"],
)
def test_kernels_that_keep_a_larger_storage(operation: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(8, CLASSES, 1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.body(images)
            kept = [operation(features) for _ in range(3)]  # alive together
            added = torch.stack([each.mean() for each in kept]).sum()
            classes: Tensor = (self.head(features) + added).mean((2, 3))
            return classes

    compare(Model(), make_batch(2, 16, 16))


def test_products_by_groups() -> None:
    """Experts, each of which multiplies its own samples by its own matrix."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(WIDTH, WIDTH)
            self.weight = nn.Parameter(torch.randn(2, WIDTH, WIDTH))
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            features = self.body(inputs)
            ends = torch.tensor([len(features) // 2, len(features)], dtype=torch.int32)
            classes: Tensor = self.head(torch._grouped_mm(features, self.weight, offs=ends).relu())
            return classes

    compare(Experts(), make_batch(WIDTH))
