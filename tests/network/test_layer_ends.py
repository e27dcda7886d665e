"""Which modules end a layer, and why others do not; layers with odd ends train right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import Through, assert_same_state, batches_of, sgd
from tests.helpers.towers import (
    Block,
    Pair,
    Tower,
    build_learner,
    build_preactivated,
    check_against_reference,
    check_tower,
)

RULES = [lp.greedy(), lp.backlink(), lp.interlocking(2), lp.end_to_end()]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=["greedy", "backlink", "interlocking", "end_to_end"])
def test_cuts_that_the_next_layer_overwrites(rule: lp.Rule, recompute: bool) -> None:
    learners = [
        build_learner(build_preactivated(inplace), rule, 4, recompute=recompute)
        for inplace in (False, True)
    ]
    for batch in batches_of((6,), 3):
        for learner in learners:
            learner.step(batch)
    modified = [
        any(each.modified_in_place for own in learner.partition.layers.handed_on for each in own)
        for learner in learners
    ]
    assert modified == [False, True]
    assert_same_state(learners[0].model, learners[1].model)
    assert_same_state(learners[0].heads, learners[1].heads)


def test_an_identity_that_passes_a_tensor_on_is_no_cut() -> None:
    blocks: list[nn.Module] = []
    for _ in range(3):
        blocks += [Block(), nn.Identity()]
    model = nn.Sequential(*blocks, nn.Linear(6, 3)).double()
    layers = lp.layers_of(model, batches_of((6,), 3)[0])
    assert layers.names == ("0", "2", "4", "6")
    assert layers.not_cuttable["1"] == "it only passes a tensor on"

    def without_identities(model: nn.Module) -> list[nn.Module]:
        children = list(model.children())
        return [children[index] for index in (0, 2, 4, 6)]

    check_against_reference(model, without_identities)


@pytest.mark.parametrize("make", [lp.end_to_end, lp.greedy, lp.backlink])
def test_a_module_that_is_called_twice_has_two_cuts(make: Callable[[], lp.Rule]) -> None:
    """Blocks 0 1 1 2 3, beside a network in which the second use is a block of its own."""
    twice = Tower(lambda b, x: b[3](b[2](b[1](b[1](b[0](x))))))
    apart = Tower(lambda b, x: b[3](b[2](b[4](b[1](b[0](x))))), count=5)
    apart.load_state_dict(twice.state_dict(), strict=False)
    apart.blocks[4].load_state_dict(twice.blocks[1].state_dict())
    batch = batches_of((6,), 3)[0]
    gradients = []
    for tower in (twice, apart):
        learner = lp.Learner(tower, make(), modules=5, optimizer=sgd, sample=batch)
        learner.backward(batch)
        gradients.append({name: p.grad for name, p in learner.named_parameters()})
    assert lp.layers_of(twice, batch).names == (
        "blocks.0", "blocks.1#1", "blocks.1#2", "blocks.2", "blocks.3"
    )  # fmt: skip
    one, other = gradients
    for name in ("weight", "bias"):
        uses = [other.pop(f"blocks.{i}.linear.{name}") for i in (1, 4)]
        assert uses[0] is not None
        assert uses[1] is not None
        other[f"blocks.1.linear.{name}"] = uses[0] + uses[1]
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name])


def test_what_goes_around_a_cut_is_cut_where_it_was_made() -> None:
    """x1 = block 0, x3 = x1 + block 2(block 1(x1)): x1 is read until block 3."""

    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        x1 = blocks[0](x)
        output: Tensor = blocks[3](x1 + blocks[2](blocks[1](x1)))
        return output

    layers = lp.layers_of(Tower(forward), batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert [[each.until for each in own] for own in layers.handed_on] == [[3], [2], [3], []]


def test_what_a_function_returns_goes_around_a_cut() -> None:
    """x1 = block 0 + a number, x3 = block 2(block 1(x1)) + 2 x1."""

    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        x1 = blocks[0](x) + x.mean()
        output: Tensor = blocks[3](blocks[2](blocks[1](x1)) + 2 * x1)
        return output

    layers = lp.layers_of(Tower(forward), batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0+2", "blocks.1", "blocks.2+2", "blocks.3")


@pytest.mark.parametrize("recompute", [False, True])
def test_a_block_that_returns_a_tuple_is_cut_at_its_one_tensor(recompute: bool) -> None:
    tower = Tower(lambda b, x: b[3](b[2](b[1](b[0](x))[0])))
    tower.blocks[1] = Pair().double()
    layers = lp.layers_of(tower, batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")

    def take_first(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        output: Tensor = blocks[0](x)[0]
        return output

    check_tower(
        tower,
        lambda b, head: [b[0], Through(take_first, b[1]), b[2], nn.Sequential(b[3], head)],
        recompute,
    )


def test_a_block_that_returns_two_tensors_hands_on_both() -> None:
    class Two(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return torch.tanh(self.linear(x)), self.linear(x)

    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        one, two = blocks[1](blocks[0](x))
        output: Tensor = blocks[3](blocks[2](one + two))
        return output

    tower = Tower(forward)
    tower.blocks[1] = Two().double()
    layers = lp.layers_of(tower, batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert [each.positions for each in layers.handed_on[1]] == [(0,), (1,)]


def test_whole_numbers_need_no_embedding() -> None:
    model = Through(lambda b, x: b[1](b[0](x / 255)), nn.Linear(6, 6), nn.Linear(6, 3))
    layers = lp.layers_of(model, torch.zeros(2, 6, dtype=torch.uint8))
    assert layers.names == ("blocks.0", "blocks.1")


class Levels(nn.ModuleDict):
    """The beginning of a Sequential, with two of its outputs (IntermediateLayerGetter)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for module in self.values():
            x = module(x)
            outputs.append(x)
        return outputs[1], outputs[-1]


class TwoLevels(nn.Module):
    """The head reads two levels, so that one goes around the blocks of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = Levels({str(i): Block() for i in range(4)})
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.levels(x)
        output: Tensor = self.head(low + high)
        return output


def test_a_dictionary_of_numbers_is_a_list() -> None:
    layers = lp.layers_of(TwoLevels(), torch.zeros(2, 6))
    assert layers.names == ("levels.0", "levels.1", "levels.2", "levels.3")
    assert [layers.goes_around(i) for i in range(3)] == [False, False, True]


class Stack(nn.Module):
    """Pairs of blocks whose residuals are added outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Block(), Block()]) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.layers:
            first, second = pair.children()
            x = first(x) + x
            x = second(x) + x
        return x


class TwoStacks(nn.Module):
    """A network that is written by hand, with several children of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.early, self.late = nn.Linear(6, 6), Stack(), Stack()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.late(self.early(self.stem(x))))
        return output


def test_stacks_whose_residuals_are_outside_of_blocks_are_opened() -> None:
    layers = lp.layers_of(TwoStacks(), torch.zeros(2, 6))
    ends = [f"{s}.layers.{i}.{k}+1" for s in ("early", "late") for i in (0, 1) for k in (0, 1)]
    assert layers.names == ("stem", *ends, "head")
    assert not any(layers.goes_around(i) for i in range(len(layers)))
