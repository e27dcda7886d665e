"""Models that checkpoint their own layers train as without; cuts may lie within a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import localprop as lp
from tests.helpers.reference import sgd

RULES = [lp.greedy(), lp.end_to_end(), lp.interlocking(1), lp.backlink()]
each_rule = pytest.mark.parametrize("rule", RULES, ids=["greedy", "end_to_end", "one back", "link"])


class Checkpointed(nn.Module):
    """Six layers, in checkpoints of so many."""

    def __init__(self, every: int, *, use_reentrant: bool = False) -> None:
        super().__init__()
        self.every, self.use_reentrant = every, use_reentrant
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        def run(x: Tensor, first: int) -> Tensor:
            for block in self.blocks[first : first + self.every]:
                x = block(x)
            return x

        for first in range(0, len(self.blocks), self.every or len(self.blocks)):
            if self.every:
                x = checkpoint(run, x, first, use_reentrant=self.use_reentrant)
            else:
                x = nn.Sequential(*self.blocks)(x)
        logits: Tensor = self.head(x)
        return logits


def find_gradients(
    make: Callable[[], nn.Module], rule: lp.Rule, batch: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    torch.manual_seed(0)
    model = make()
    learner = lp.Learner(model, rule, modules=3, optimizer=sgd, sample=batch)
    learner.backward(batch)
    return [parameter.grad for parameter in model.parameters()]


def assert_same_gradients(
    rule: lp.Rule,
    plain: Callable[[], nn.Module],
    checkpointed: Callable[[], nn.Module],
    batch: tuple[Tensor, Tensor],
) -> None:
    expected, got = (find_gradients(make, rule, batch) for make in (plain, checkpointed))
    for one, other in zip(expected, got, strict=True):
        assert one is not None
        assert other is not None
        assert one.equal(other)


@each_rule
@pytest.mark.parametrize("every", [1, 2, 3])
def test_cuts_at_and_within_checkpoints(rule: lp.Rule, every: int) -> None:
    batch = torch.randn(4, 8), torch.arange(4) % 3
    assert_same_gradients(rule, lambda: Checkpointed(0), lambda: Checkpointed(every), batch)


@each_rule
def test_a_model_of_timm(rule: lp.Rule) -> None:
    def make(checkpointing: bool) -> nn.Module:
        model: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=24, num_classes=3
        )
        model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        return model

    batch = torch.randn(2, 3, 32, 32), torch.arange(2)
    assert_same_gradients(rule, lambda: make(False), lambda: make(True), batch)


def test_reentrant_checkpoints_are_refused_with_the_remedy() -> None:
    batch = torch.randn(4, 8), torch.arange(4) % 3
    model = Checkpointed(2, use_reentrant=True)
    with pytest.raises(lp.BadInput, match="use use_reentrant=False"):
        lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=batch)


def test_contexts_within_a_checkpoint_are_refused() -> None:
    model: Any = timm.create_model("resnet18", num_classes=3)
    model.set_grad_checkpointing(True)
    batch = torch.randn(2, 3, 32, 32), torch.arange(2)
    with pytest.raises(lp.BadInput, match="within a checkpoint of the model's own"):
        lp.Learner(model, lp.contsup(), modules=4, optimizer=sgd, sample=batch)
