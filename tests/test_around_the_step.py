"""What users do around a step does here what it does in a plain loop of PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import localprop as lp
from tests.helpers.reference import assert_moved, assert_same_state, network

SIZES = (3, 1, 5)
generator = torch.Generator().manual_seed(0)
PARTS = [
    (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator))
    for n in SIZES
]
WHOLE = torch.cat([x for x, _ in PARTS]), torch.cat([y for _, y in PARTS])


def make_model() -> nn.Module:
    torch.manual_seed(1)
    blocks = [
        nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        for channels in (3, 8, 8)
    ]
    classify = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(*blocks, classify)


def make_learner(model: nn.Module, rule: lp.Rule, **options: Any) -> lp.Learner:
    usual: dict[str, Any] = {
        "sample": WHOLE,
        "modules": 4,
        "optimizer": AdamW(model.parameters(), lr=0.01),
    }
    return lp.Learner(model, rule, **(usual | options))


Backward = Callable[[Tensor], object]


def weigh(share: float) -> Backward:
    return lambda loss: torch.autograd.backward(loss * share)


# --- accumulation -----------------------------------------------------------------------------


def accumulate_plainly(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> None:
    """Each part counts by its samples, so that the sum is the gradient of the batch's mean."""
    samples = sum(len(y) for _, y in parts)
    for x, y in parts:
        weigh(len(y) / samples)(cross_entropy(model(x), y))


def test_accumulated_batches_are_those_of_the_plain_loop() -> None:
    plain, model = make_model(), make_model()
    optimizer = AdamW(plain.parameters(), lr=0.01)
    learner = make_learner(model, lp.end_to_end())
    for _ in range(3):
        accumulate_plainly(plain, PARTS)
        for batch in PARTS:
            learner.backward(batch, backward=weigh(len(batch[1]) / sum(SIZES)))
        for each in (optimizer, *learner.optimizers):
            each.step()
            each.zero_grad()
    assert_moved(make_model(), plain)
    assert_same_state(plain, model)


@pytest.mark.parametrize("rule", [lp.greedy(), lp.backlink(), lp.interlocking(), lp.end_to_end()])
def test_accumulated_batches_are_one_large_batch(rule: lp.Rule) -> None:
    """For local losses too, up to the rounding of sums. The heads have no BatchNorm here, which
    would see a part of the batch.
    """
    rule = replace(rule, aux=lp.Head(convs=0, linears=2))
    learners = [make_learner(make_model().double(), rule, sample=double(WHOLE)) for _ in "ab"]
    for batch in PARTS:
        learners[0].backward(double(batch), backward=weigh(len(batch[1]) / sum(SIZES)))
    learners[1].backward(double(WHOLE))
    for one, other in zip(*(learner.parameters() for learner in learners), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


def double(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].double(), batch[1]


def test_micro_batches_of_unequal_parts_are_those_of_the_plain_loop() -> None:
    """Four of nine samples: three, two, two and two."""
    plain, model = make_model(), make_model()
    learner = make_learner(model, lp.end_to_end(), microbatches=4)
    learner.backward(WHOLE)
    parts = list(zip(*(each.tensor_split((3, 5, 7)) for each in WHOLE), strict=True))
    accumulate_plainly(plain, parts)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


# --- scaling and clipping ---------------------------------------------------------------------

Step = Callable[[tuple[Tensor, Tensor], Backward], object]


def run_scaled(step: Step, parameters: list[nn.Parameter], optimizer: AdamW) -> Iterator[float]:
    """The loop of PyTorch's documentation; yields the scale after each step."""
    # Overflows in half precision for the smallest batch, and is no power of two.
    scaler = torch.amp.GradScaler("cpu", init_scale=3e5, growth_interval=2)
    for batch in [WHOLE, *PARTS] * 2:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            step(batch, lambda loss: torch.autograd.backward(scaler.scale(loss)))
        scaler.unscale_(optimizer)
        clip_grad_norm_(parameters, 0.1)
        scaler.step(optimizer)
        scaler.update()
        yield scaler.get_scale()


def test_a_scaler_and_clipping_are_those_of_the_plain_loop() -> None:
    plain, model = make_model(), make_model()
    optimizer = AdamW(plain.parameters(), lr=0.01)
    learner = make_learner(model, lp.end_to_end())

    def step_plainly(batch: tuple[Tensor, Tensor], backward: Backward) -> None:
        backward(cross_entropy(plain(batch[0]), batch[1]))

    def step(batch: tuple[Tensor, Tensor], backward: Backward) -> None:
        learner.backward(batch, backward=backward)

    (own,) = learner.optimizers
    assert isinstance(own, AdamW)
    expected = list(run_scaled(step_plainly, list(plain.parameters()), optimizer))
    assert list(run_scaled(step, list(learner.parameters()), own)) == expected
    pairs = list(itertools.pairwise(expected))
    assert any(after < before for before, after in pairs)  # a step was skipped
    assert any(after > before for before, after in pairs)  # others were not
    assert_moved(make_model(), plain)
    assert_same_state(plain, model)


@pytest.mark.parametrize("rule", [lp.greedy(), lp.backlink(), lp.contsup()])
def test_a_scaler_reaches_every_local_loss(rule: lp.Rule) -> None:
    """A scale that is a power of two is gone after unscale_, to the bit."""
    plain, scaled = (make_learner(make_model(), rule) for _ in "ab")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain.backward(WHOLE)
    scaled.backward(WHOLE, backward=lambda loss: torch.autograd.backward(scaler.scale(loss)))
    scaler.unscale_(scaled.optimizers[0])
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


# --- averages ---------------------------------------------------------------------------------


def average(module: nn.Module) -> AveragedModel:
    decay_by_half = get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=decay_by_half, use_buffers=True)


def test_an_average_of_the_network_is_that_of_the_plain_loop() -> None:
    plain, model = make_model(), make_model()
    optimizer = AdamW(plain.parameters(), lr=0.01)
    learner = make_learner(model, lp.end_to_end())
    expected, own = average(plain), average(learner.network)
    for x, y in PARTS:
        weigh(1.0)(cross_entropy(plain(x), y))
        optimizer.step()
        optimizer.zero_grad()
        expected.update_parameters(plain)
        learner.step((x, y))
        own.update_parameters(learner.network)
    assert_moved(plain, expected.module)
    assert_same_state(expected, own)
    assert torch.equal(own(WHOLE[0]), expected(WHOLE[0]))


def test_averages_of_heads_and_of_a_network_with_context() -> None:
    """By hand: with a decay of a half, each step counts as much as all before it."""
    model, batches = network("resnet8")
    learner = make_learner(model, lp.contsup(), modules=3, sample=batches[0])
    parts = {"network": learner.network, "heads": learner.heads}
    averages = {name: average(part) for name, part in parts.items()}
    expected: dict[str, dict[str, Tensor]] = {}
    for batch in batches:
        learner.step(batch)
        for name, part in parts.items():
            averages[name].update_parameters(part)
            now = copy.deepcopy(dict(part.named_parameters()))
            before = expected.get(name, now)
            expected[name] = {key: (before[key] + now[key]).detach() / 2 for key in now}
    for name, module in averages.items():
        found = dict(module.module.named_parameters())
        assert found.keys() == expected[name].keys()
        assert len(found) > 0
        for key, value in found.items():
            torch.testing.assert_close(value.detach(), expected[name][key])
    averages["network"](batches[0][0])
    assert all(parameter.grad is None for parameter in learner.parameters())
