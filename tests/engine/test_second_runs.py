"""Layers with state that run again: equal to a plain loop to the bit, and nothing counts twice."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import sgd
from tests.helpers.stateful_layers import LAYERS, WIDTH, Block

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(8, WIDTH, generator=GENERATOR), torch.arange(8) % 3) for _ in range(4)]


def build(layer: str) -> nn.Module:
    torch.manual_seed(0)
    blocks = [LAYERS[layer]() for _ in range(3)]
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks, nn.Linear(WIDTH, 3))


def list_state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds, but for what torch holds for itself."""
    own = set(vars(nn.Module()))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tensor.detach()
    for path, each in module.named_modules():
        for key, value in vars(each).items():
            if key in own or key.startswith("_flat_weight"):  # the same as the parameters
                continue
            if isinstance(value, (Tensor, int, float, list, deque, dict, set)):
                yield f"{path}.{key}", value


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), (_, expected) in zip(list_state(one), list_state(other), strict=True):
        if isinstance(value, Tensor):
            assert torch.equal(value, expected), name
        else:
            assert value == expected, name


def train(
    layer: str, rule: lp.Rule, recompute: Any, modules: int, **options: Any
) -> tuple[nn.Module, lp.Learner]:
    model = build(layer)
    learner = lp.Learner(
        model, rule, modules=modules, optimizer=sgd, sample=BATCHES[0], recompute=recompute,
        **options,
    )  # fmt: skip
    random.seed(0)
    numpy.random.seed(0)
    for batch in BATCHES:
        learner.step(batch)
    return model, learner


@pytest.mark.parametrize("recompute", [True, "modules", 2, "0..3(0..2(0,1))"])
@pytest.mark.parametrize("layer", LAYERS)
def test_end_to_end_with_state_is_bit_equal_to_stored(layer: str, recompute: Any) -> None:
    stored, _ = train(layer, lp.end_to_end(), False, 2)
    again, learner = train(layer, lp.end_to_end(), recompute, 2)
    assert_same(again, stored)
    assert learner.engine.recompute is not None
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (lp.greedy(), {}),
        (lp.backlink(), {"microbatches": 2}),
        (lp.interlocking(), {}),
    ],
    ids=["greedy", "backlink in two parts", "interlocking"],
)
@pytest.mark.parametrize(("recompute", "modules"), [(True, 4), ("0..3(0..1)", 2)])
@pytest.mark.parametrize("layer", LAYERS)
def test_local_rules_with_state_are_bit_equal_to_stored(
    layer: str, rule: lp.Rule, options: dict[str, int], recompute: Any, modules: int
) -> None:
    stored, _ = train(layer, rule, False, modules, **options)
    again, _ = train(layer, rule, recompute, modules, **options)
    assert_same(again, stored)


def count_runs(model: nn.Module) -> list[int]:
    """How often each block runs from here on."""
    runs = [0, 0, 0]
    for i in range(3):
        block = model.get_submodule(str(1 + i))
        assert isinstance(block, Block)

        def count(x: Tensor, i: int = i, weigh: Any = block.weigh) -> Any:
            runs[i] += 1
            return weigh(x)

        block.weigh = count  # type: ignore[method-assign]
    return runs


@pytest.mark.parametrize("rule", [lp.end_to_end(), lp.backlink(layers=2), lp.interlocking(3)])
def test_each_layer_runs_again_once(rule: lp.Rule) -> None:
    """Also where several flows follow; and users' hooks see no second run."""
    model = build("batch norm")
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=BATCHES[0], recompute=True)
    runs, seen = count_runs(model), [0, 0, 0]
    for i in range(3):

        def see(*_: object, i: int = i) -> None:
            seen[i] += 1

        model.get_submodule(str(1 + i)).register_forward_hook(see)
    learner.step(BATCHES[0])
    assert runs == [2, 2, 2]
    assert seen == [1, 1, 1]


@pytest.mark.parametrize(
    ("recompute", "times"),
    [
        ("1..3", [2, 2, 2]),
        ("1..3(1..2)", [3, 3, 2]),
        ("1..3(1,2..3)", [3, 2, 2]),
        ("0..3(0..2(0..1))", [4, 3, 2]),
        ("1..2(1)", [3, 2, 1]),
    ],
)
def test_inner_stretches_run_once_more(recompute: str, times: list[int]) -> None:
    model = build("batch norm")
    learner = lp.Learner(
        model, lp.end_to_end(), modules=1, optimizer=sgd, sample=BATCHES[0], recompute=recompute
    )
    runs = count_runs(model)
    learner.step(BATCHES[0])
    assert runs == times


def test_a_stretch_keeps_its_input_alone() -> None:
    """Of eight equal layers in two stretches, an input and one stretch are alive, not eight."""
    torch.manual_seed(0)
    layers = [Block() for _ in range(8)]
    batch = torch.zeros(1000, WIDTH), torch.zeros(1000, dtype=torch.long)

    def read_peak(recompute: Any) -> float:
        learner = lp.Learner(
            nn.Sequential(*layers), lp.end_to_end(), modules=1, optimizer=sgd, sample=batch,
            recompute=recompute,
        )  # fmt: skip
        reading = learner.memory()
        return (reading.peak_bytes - reading.resting_bytes) / (1000 * WIDTH * 4)

    # A layer keeps four tensors as large as its output, which is one of them; while its backward
    # runs there are up to four more.
    assert 32 <= read_peak(False) <= 36
    assert 16 <= read_peak("0..3,4..7") <= 16 + 1 + 4
    # At most two layers are there again at once, beside the inputs of stretches.
    assert 8 <= read_peak("0..6(0..3(0..1),4..5)") <= 8 + 3 + 4


def test_a_layer_that_changes_others_is_refused_in_the_first_step() -> None:
    class Tells(Block):
        """Counts at another module."""

        def __init__(self, other: Any) -> None:
            super().__init__()
            self.others = (other,)

        def forward(self, x: Tensor) -> Tensor:
            self.others[0].told += 1
            return super().forward(x)

    stem: Any = nn.Linear(WIDTH, WIDTH)
    stem.told = 0
    model = nn.Sequential(stem, Tells(stem), nn.Linear(WIDTH, 3))
    learner = lp.Learner(
        model, lp.end_to_end(), modules=1, optimizer=sgd, sample=BATCHES[0], recompute=True
    )
    with pytest.raises(lp.BadInput, match="'1' changes 'told' outside of itself"):
        learner.step(BATCHES[0])


ROTATIONS = itertools.count()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x * next(ROTATIONS),
        lambda x: x * (1 + 1e-6 * next(ROTATIONS)),
        lambda x: x.roll(next(ROTATIONS), 0),
    ],
    ids=["other values", "nearly the same", "another order"],
)
def test_a_layer_that_reads_what_changes_is_refused_in_the_first_step(
    read: Callable[[Tensor], Tensor],
) -> None:
    class Reads(Block):
        def weigh(self, x: Tensor) -> Tensor:
            return read(x)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Reads(), nn.Linear(WIDTH, 3))
    learner = lp.Learner(
        model, lp.end_to_end(), modules=1, optimizer=sgd, sample=BATCHES[0], recompute=True
    )
    with pytest.raises(lp.BadInput, match="'1' gave other values when it ran again"):
        learner.step(BATCHES[0])


def test_a_layer_that_begins_to_read_what_changes_is_refused_then() -> None:
    """A few numbers of each second run are compared."""
    calls = itertools.count()

    class Reads(Block):
        def weigh(self, x: Tensor) -> Tensor:
            count = next(calls)
            return x * (count if count > 4 else 1)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Reads(), nn.Linear(WIDTH, 3))
    learner = lp.Learner(
        model, lp.end_to_end(), modules=1, optimizer=sgd, sample=BATCHES[0], recompute=True
    )
    learner.step(BATCHES[0])
    learner.step(BATCHES[0])
    with pytest.raises(lp.BadInput, match="'1' gave other values when it ran again"):
        learner.step(BATCHES[0])


def test_what_autograd_forbids_is_still_forbidden() -> None:
    """torch counts no versions behind hooks of saved tensors."""

    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            output = x.sin().tanh()
            return output.exp() * output.add_(1)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Writes(), nn.Linear(WIDTH, 3))
    learner = lp.Learner(
        model, lp.end_to_end(), modules=1, optimizer=sgd, sample=BATCHES[0], recompute=True
    )
    with pytest.raises(lp.StepFailed, match="modified by an inplace operation"):
        learner.step(BATCHES[0])


class Cache:
    """Collects what layers have seen, as models of transformers do."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []


class Caches(nn.Module):
    """Hands a cache to its layers if it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Remembers() for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        cache = Cache() if use_cache else None
        for block in self.blocks:
            x = block(x, cache)
        output: Tensor = self.head(x)
        return output


class Remembers(Block):
    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if cache is not None:
            cache.keys.append(x)
        return super().forward(x)


def test_caches_among_the_arguments_are_refused() -> None:
    with pytest.raises(lp.BadInput, match=r"'blocks.0' changes .*Cache.*use_cache=False"):
        lp.Learner(
            Caches(), lp.end_to_end(), modules=2, optimizer=sgd, sample=BATCHES[0], recompute=True
        )


@pytest.mark.parametrize(
    ("recompute", "message"),
    [
        (9, "recompute=9, but there are 5 layers"),
        (-1, "recompute=-1"),
        ("nowhere", "'nowhere' names no layer. The layers are: 0, 1, 2"),
        (["1", "x*"], "'x\\*' names no layer"),
        (1.5, "recompute must be True or False"),
        ("3..1", "'3..1' names no layer"),
        ("1..9", "'1..9' names no layer"),
        ("0..2,1..3", "'0..2' and '1..3' overlap"),
        ("0..2(1..3)", r"'1..3' must be a smaller part of '0..2'"),
        ("0..2(0..2)", r"'0..2' must be a smaller part of '0..2'"),
        ("0..2(1", "brackets hold the stretches inside one"),
        ("0(0)", "brackets hold the stretches inside one"),
    ],
)
def test_choices_that_name_no_layers_are_refused(recompute: Any, message: str) -> None:
    with pytest.raises(lp.BadInput, match=message):
        train("dropout", lp.end_to_end(), recompute, 2)


@pytest.mark.parametrize(
    ("recompute", "again"),
    [
        (True, [1, 2, 3]),
        (2, [1, 3]),
        (["2", "3"], [2, 3]),
        ("[12]", [1, 2]),
        ("1..2", [1, 2]),
        (["0..1", "3"], [1, 3]),
        (False, []),
    ],
)
def test_a_choice_of_layers_runs_again(recompute: Any, again: list[int]) -> None:
    model = build("counts calls")
    learner = lp.Learner(
        model, lp.end_to_end(), modules=2, optimizer=sgd, sample=BATCHES[0], recompute=recompute
    )
    runs = dict.fromkeys((1, 2, 3), 0)
    for i in runs:

        def count(*_: object, i: int = i) -> None:
            runs[i] += 1

        model.get_submodule(f"{i}.linear").register_forward_hook(count)
    learner.step(BATCHES[0])
    assert [i for i, times in runs.items() if times == 2] == again


@pytest.mark.parametrize(
    ("recompute", "line"),
    [
        (True, "all layers, one by one"),
        (["1", "2"], "1, 2, one by one"),
        ("0..3(0..1)", r"0..3(0..1)"),
        ("modules", "all layers, those of a module together"),
    ],
)
def test_explain_names_the_layers(recompute: Any, line: str) -> None:
    learner = lp.Learner(
        build("dropout"), lp.greedy(), modules=2, optimizer=sgd, sample=BATCHES[0],
        recompute=recompute,
    )  # fmt: skip
    assert f"In the backward run again, as far as that saves memory: {line}." in learner.explain()
