"""The prediction of memory works on models of all kinds, and leaves them as they were.

Each kind is one that users have: tensors that are no parameters, things that cannot be copied, and
models on the meta device.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import localprop as lp
from localprop.cost.memory import LiveBytes
from localprop.tasks.batch import Batch
from tests.helpers.predictions import (
    CLASSES,
    SAMPLES,
    STEPS,
    WIDTH,
    compare,
    compare_learner,
    learn,
    make_batch,
    sgd,
)

# --- tensors that are no parameters --------------------------------------------------------------


class Attributes(nn.Module):
    """Tensors as plain attributes, as in sinusoidal positions, and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.tables: dict[str, Any] = {}

    def fill(self) -> None:
        self.positions = torch.randn(1, 50 * STEPS, WIDTH)
        self.tables |= {"rows": [torch.randn(400, WIDTH)], "pair": (torch.randn(WIDTH), 2)}
        self.steps = torch.zeros((), dtype=torch.long)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        if self.tables:
            self.steps += 1
            pair, count = self.tables["pair"]
            if self.steps.item() > 0:  # a value that is read
                features = features + self.positions[:, : inputs.shape[1]] + pair * count
            features = features + self.tables["rows"][0][: inputs.shape[1]]
        classes: Tensor = self.head(features.mean(1))
        return classes


def test_tensors_that_are_attributes() -> None:
    model, batch = Attributes(), make_batch(STEPS, WIDTH)
    learner = learn(model, batch)
    model.fill()
    assert learner.memory().resting_bytes > 4 * WIDTH * (50 * STEPS + 400)
    compare_learner(learner, batch)
    assert model.steps == 2  # real steps alone count


def test_batchnorm_that_counts_its_batches() -> None:
    """The average of all batches needs their number, which is read."""
    norm, batch = nn.BatchNorm1d(WIDTH), make_batch(WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, CLASSES))
    learner = learn(model, batch)
    norm.momentum = None
    compare_learner(learner, batch)
    assert norm.num_batches_tracked == 2


class SparseText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        classes: Tensor = self.head(self.embed(tokens).mean(1))
        return classes


def test_sparse_gradients() -> None:
    batch = Batch.of((torch.randint(500, (SAMPLES, 60)), torch.randint(CLASSES, (SAMPLES,))))
    compare(SparseText(), batch, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def test_live_bytes_of_sparse_tensors() -> None:
    dense = torch.eye(4)
    with LiveBytes() as live:
        sparse = dense.to_sparse()
        assert live.current == 4 * 4 + 2 * 4 * 8  # values, and two indices of each
        del sparse
    assert live.current == 0


# --- what cannot be copied -----------------------------------------------------------------------


def make_mlp() -> nn.Sequential:
    layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def hold_a_lock(model: nn.Sequential) -> None:
    vars(model)["lock"] = threading.Lock()


def hold_a_thread(model: nn.Sequential) -> None:
    vars(model)["thread"] = threading.Thread(target=model.forward)


def hold_a_file(model: nn.Sequential) -> None:
    vars(model)["log"] = sys.__stdout__


def hold_a_generator(model: nn.Sequential) -> None:
    vars(model)["numbers"] = (number for number in range(3))


def keep_features(model: nn.Sequential) -> None:
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        kept[:] = [output]
        model.features = output  # with its graph

    model[2].register_forward_hook(keep)
    model(torch.randn(2, WIDTH))


def patch_the_forward(model: nn.Sequential) -> None:
    original: Callable[[Tensor], Tensor] = model.forward
    scale = torch.ones(CLASSES)
    vars(model)["forward"] = lambda inputs: original(inputs) * scale


def patch_a_layer(model: nn.Sequential) -> None:
    original = model[2].forward
    vars(model[2])["forward"] = functools.partial(
        lambda forward, inputs: forward(inputs) * 2, original
    )


def norm_weights_the_old_way(model: nn.Sequential) -> None:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[2])


def norm_the_spectrum(model: nn.Sequential) -> None:
    nn.utils.parametrizations.spectral_norm(model[2])


def prune(model: nn.Sequential) -> None:
    nn.utils.prune.l1_unstructured(model[2], "weight", amount=0.3)  # type: ignore[no-untyped-call]


def draw(model: nn.Sequential) -> None:
    def add_noise(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output + torch.randn(CLASSES) * random.random() * float(np.random.rand())

    model[4].register_forward_hook(add_noise)


# Those whose parameters change, before the learner is made; the others behind the probe's back.
BEFORE = [norm_the_spectrum]
AFTER = [
    hold_a_lock,
    hold_a_thread,
    hold_a_file,
    hold_a_generator,
    keep_features,
    patch_the_forward,
    patch_a_layer,
    draw,
]


@pytest.mark.parametrize("hold", [*BEFORE, *AFTER])
def test_models_that_cannot_be_copied(hold: Callable[[nn.Sequential], None]) -> None:
    model, batch = make_mlp(), make_batch(WIDTH)
    if hold in BEFORE:
        hold(model)
    learner = learn(model, batch, modules=2)
    if hold in AFTER:
        hold(model)
    compare_learner(learner, batch)


@pytest.mark.parametrize("hold", [norm_weights_the_old_way, prune])
def test_weights_that_are_computed(hold: Callable[[nn.Sequential], None]) -> None:
    """The computed weight is an attribute with a graph, which a deep copy refuses."""
    model, batch = make_mlp(), make_batch(WIDTH)
    hold(model)
    partition = partition_as_if_plain(model, batch)
    compare(model, batch, modules=None, partition=partition)


def partition_as_if_plain(model: nn.Sequential, batch: Batch) -> lp.Partition:
    """The partition of a model whose weight is a computed attribute."""
    held = {module: vars(module).pop("weight", None) for module in model}
    try:
        return lp.Partition.uniform(lp.layers_of(model, batch), 2)
    finally:
        for module, weight in held.items():
            if weight is not None:
                module.weight = weight


def look_at(value: Any) -> Any:
    """What can be compared of an object: tensors by identity, version and values."""
    if isinstance(value, Tensor):
        grad = value.grad if value.is_leaf else None
        return id(value), value._version, value.detach().clone(), look_at(grad)
    if isinstance(value, (list, tuple)):
        return [look_at(each) for each in value]
    if isinstance(value, dict):
        return [(look_at(key), look_at(each)) for key, each in value.items()]
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return id(value), look_at(vars(value))
    return value if isinstance(value, (int, float, str)) else id(value)


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_equal(each, its)
    elif isinstance(one, Tensor):
        assert type(one) is Tensor
        assert torch.equal(one, other)
    else:
        assert one == other


class Remembers(nn.Module):
    """Writes to all that it can reach."""

    shared = torch.zeros(2)

    def __init__(self) -> None:
        super().__init__()
        self.layers = make_mlp()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.calls, self.fails = 0, False
        self.seen: list[Any] = []
        self.own = torch.Generator().manual_seed(1)
        self.numbers = np.random.default_rng(1)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(inputs)
        inputs = self.norm(inputs)
        self.last = inputs
        random.random(), np.random.rand(), self.numbers.random(), torch.rand(1)
        self.shared.add_(1)
        if self.fails:
            raise RuntimeError("as asked")
        classes: Tensor = self.layers(inputs)
        return classes


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", ["memory", "flops", "values", "explain"])
def test_a_prediction_leaves_everything_as_it_was(method: str, fails: bool) -> None:
    model, batch = Remembers(), make_batch(WIDTH)
    optimizer = torch.optim.AdamW(model.parameters())
    learner = learn(model, batch, modules=2, optimizer=optimizer)
    learner.step(batch)
    learner.backward(batch)  # leaves gradients
    model.seen.clear()
    model.fails = fails
    everything = [model, learner.heads, optimizer]

    def states() -> list[Any]:
        numpy_state = np.random.get_state(legacy=False)
        own = [model.own.get_state(), model.numbers.bit_generator.state]
        return [torch.get_rng_state(), repr(random.getstate()), repr(numpy_state), repr(own)]

    before = look_at(everything), states(), look_at(Remembers.shared)
    if fails:
        with pytest.raises(lp.BadInput, match="as asked"):
            getattr(learner, method)()
    else:
        getattr(learner, method)()
    after = look_at(everything), states(), look_at(Remembers.shared)
    assert_equal(list(before[:2]), list(after[:2]))
    assert torch.equal(before[2][2], after[2][2])  # of class attributes the values
    model.fails = False
    learner.step(batch)


# --- the meta device -----------------------------------------------------------------------------


def test_a_model_on_the_meta_device_reads_as_on_the_cpu() -> None:
    batch = make_batch(WIDTH)
    on_cpu = learn(make_mlp(), batch, modules=2)
    on_meta = learn(make_mlp().to("meta"), batch, modules=2)
    assert on_meta.memory() == on_cpu.memory()
    assert on_meta.flops() == on_cpu.flops()
    assert on_meta.explain(values=True) == on_cpu.explain(values=True)
    assert all(parameter.is_meta for parameter in on_meta.parameters())


class Deciding(nn.Linear):
    """A layer that looks at values."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (2 if inputs.abs().max() > 9 else 1)


def test_a_model_that_reads_values_is_refused() -> None:
    model = nn.Sequential(Deciding(WIDTH, WIDTH), Deciding(WIDTH, CLASSES))
    batch = torch.zeros(4, WIDTH), torch.arange(4) % CLASSES
    learner = lp.Learner(model, lp.greedy(), modules=2, optimizer=sgd, sample=batch)
    for predict in (learner.memory, learner.flops):
        with pytest.raises(lp.BadInput, match="Sequential reads values"):
            predict()
    assert learner.step(batch).task > 0
