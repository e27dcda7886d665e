"""Data types and autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import sgd


def make_batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_dtypes(dtype: torch.dtype) -> None:
    images, targets = make_batch()
    batch = images.to(dtype), targets
    model = lp.models.resnet8().to(dtype)
    learner = lp.Learner(model, lp.contsup(), modules=4, optimizer=sgd, sample=batch)
    losses = learner.step(batch)
    assert all(parameter.dtype == dtype for parameter in learner.parameters())
    assert torch.isfinite(losses.task)


class Widened(nn.Module):
    """A layer in float32, and layers in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.rest = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rest(self.stem(x).double())
        return output


def test_layers_of_different_dtypes() -> None:
    batch = (torch.randn(8, 4), torch.arange(8) % 4)
    learner = lp.Learner(Widened(), lp.greedy(), modules=4, optimizer=sgd, sample=batch)
    assert torch.isfinite(learner.step(batch).task)


@pytest.mark.parametrize(
    ("microbatches", "recompute"),
    [(1, False), (2, False), (1, True)],
    ids=["plain", "micro-batches", "recompute"],
)
@pytest.mark.parametrize(
    "rule",
    [lp.end_to_end(), lp.backlink(), lp.interlocking(2), lp.contsup()],
    ids=lambda rule: rule.reference,
)
def test_bf16_autocast_is_near_fp32(rule: lp.Rule, microbatches: int, recompute: bool) -> None:
    losses, weights = [], []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        learner = lp.Learner(
            lp.models.resnet8(),
            rule,
            modules=4,
            optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
            sample=make_batch(),
            precision=precision,
            microbatches=microbatches,
            recompute=recompute,
        )
        losses.append(learner.step(make_batch()).task.item())
        weights.append(learner.model.get_parameter("fc.weight").detach().clone())
        assert all(parameter.dtype == torch.float32 for parameter in learner.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert torch.allclose(weights[0], weights[1], atol=0.02)
    assert not torch.equal(weights[0], weights[1])


def test_backward_inside_a_hosts_autocast() -> None:
    """Backwards ran inside it, against PyTorch's advice."""
    gradients = []
    for outside in (True, False):
        torch.manual_seed(0)
        learner = lp.Learner(
            lp.models.resnet8(),
            lp.greedy(),
            modules=4,
            optimizer=sgd,
            sample=make_batch(),
            precision="bf16" if outside else "fp32",
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=not outside, cache_enabled=False):
            learner.backward(make_batch())
        gradients.append([p.grad for p in learner.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_attention_is_differentiated_twice() -> None:
    """Fused attention kernels have no second derivative, so second-order losses go without them."""
    tokens = torch.arange(16).reshape(2, 8) % 5
    batch = tokens, tokens
    model = lp.models.create_model("transformer:width=8,heads=2,blocks=2", 5, (8,))
    learner = lp.Learner(model, lp.sgr(), modules=3, optimizer=sgd, sample=batch)
    assert all(torch.isfinite(loss) for loss in learner.step(batch))
    assert torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]


def test_new_shapes_within_the_autocast_of_a_host() -> None:
    """Autocast keeps casts of weights, and must not keep those of the look at a new shape."""
    images, targets = make_batch()
    learner = lp.Learner(
        lp.models.resnet8(), lp.greedy(), modules=2, optimizer=sgd, sample=(images, targets)
    )
    larger = nn.functional.interpolate(images, scale_factor=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner.backward((larger, targets))
    assert {type(loss) for loss in losses} == {Tensor}
    assert torch.isfinite(losses.task)
