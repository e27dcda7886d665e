"""What once went wrong, each with its story."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

BATCH = (torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 10)


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


class HandWritten(nn.Module):
    """Convolutions with plain functions between them, a norm that is shared, and a buffer of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5)])
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        for conv in self.convs:
            x = functional.relu(self.norm(conv(x)), inplace=True)
            x = functional.dropout(x, 0.2, self.training)
        return self.fc(x.mean((2, 3)))


class InPlace(HandWritten):
    """What writes into the output of a convolution itself."""

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            x += 1
            x = functional.relu(x, inplace=True)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("build", [HandWritten, InPlace])
@pytest.mark.parametrize("rule", [lp.end_to_end(), lp.backlink(), lp.contsup()], ids=lambda rule: rule.reference)
def test_recompute_runs_what_cannot_be_stubbed(build: Callable[[], nn.Module], rule: lp.Rule) -> None:
    """What stands between the stubs ran for real on their constants: it updated statistics, drew the segment's random
    numbers, and could not write into a constant without memory."""
    torch.manual_seed(0)
    model = build()
    states = []
    for recompute in (False, True):
        twin = copy.deepcopy(model)
        learner = lp.Learner(twin, rule, modules=5, optimizer=sgd, sample=BATCH, recompute=recompute)
        for _ in range(3):
            learner.step(BATCH)
        states.append(twin.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_step_leaves_no_gradients(error: type[BaseException]) -> None:
    """After Ctrl-C in a notebook the next step added to the gradients that were left; after a failed first step, recompute
    compared the next batch with the failed one."""
    torch.manual_seed(0)
    model = lp.models.resnet8()
    learner = lp.Learner(model, lp.backlink(), modules=4, optimizer=sgd, sample=BATCH, recompute=True)

    def interrupt(action: Any) -> None:
        if str(action) == "1L":
            raise error

    with pytest.raises((error, lp.StepFailed)):
        learner.step(BATCH, observe=interrupt)
    assert all(parameter.grad is None for parameter in learner.parameters())
    learner.step((BATCH[0] + 1, BATCH[1]))


class PreActivation(nn.Module):
    """A layer that begins by writing into its input."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=inplace)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(x))


def test_context_is_what_the_module_received() -> None:
    """A layer that writes into its input in place changed what later modules received as context."""
    weights = []
    for inplace in (False, True):
        torch.manual_seed(0)
        blocks = [PreActivation(inplace) for _ in range(4)]
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )
        learner = lp.Learner(model, lp.contsup(input=False, previous=2), modules=5, optimizer=sgd, sample=BATCH)
        learner.step(BATCH)
        weights.append([*(p.detach() for p in learner.parameters()), learner.network.eval()(BATCH[0])])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_frozen_ties_may_cross_cuts() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    model[3].weight = model[1].weight
    model[1].weight.requires_grad_(False)
    batch = (torch.randn(8, 4), torch.arange(8) % 4)
    lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=batch).step(batch)


def test_a_new_learner_replaces_the_heads_of_the_old_one() -> None:
    """The heads of an earlier learner stayed in an optimizer that both shared."""
    model = lp.models.resnet8()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=optimizer, sample=BATCH)
        learner.step(BATCH)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in learner.parameters()}


def test_layers_of_different_dtypes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double()

    class Narrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.rest = nn.Linear(4, 4), copy.deepcopy(model)

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.stem(x).double())

    batch = (torch.randn(8, 4), torch.arange(8) % 4)
    learner = lp.Learner(Narrowed(), lp.greedy(), modules=4, optimizer=sgd, sample=batch)
    assert torch.isfinite(learner.step(batch).task)


def test_backward_inside_a_hosts_autocast() -> None:
    """Backwards ran inside it, against PyTorch's advice."""
    gradients = []
    for outside in (True, False):
        torch.manual_seed(0)
        model = lp.models.resnet8()
        learner = lp.Learner(
            model, lp.greedy(), modules=4, optimizer=sgd, sample=BATCH, precision="bf16" if outside else "fp32"
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=not outside, cache_enabled=False):
            learner.backward(BATCH)
        gradients.append([p.grad for p in learner.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
