"""What modules return, and that a look leaves a learner as it was, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.analysis.outputs import list_module_ends, looking_at, read_outputs
from tests.helpers.language_models import language_model
from tests.helpers.ranks import Blocks, RankPool, noise
from tests.helpers.reference import batches_of, sgd
from tests.helpers.towers import Tower
from tests.helpers.training import hooks_of


class Counting(nn.Module):
    """Counts its forwards, and draws in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))
        self.seen: Tensor

    def forward(self, features: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        return features + 1e-3 * torch.randn_like(features)


def make_learner(rule: lp.Rule, *, seed: int = 0) -> lp.Learner:
    """A convolutional network with BatchNorm, dropout, a counter and draws in evaluation mode."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.3)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), Counting(), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )
    return lp.Learner(model, rule, modules=3, optimizer=sgd, sample=make_batch())


def make_batch(seed: int = 0, samples: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, 8, 8, generator=generator), torch.arange(samples) % 10


def read_all(learner: lp.Learner) -> dict[str, Any]:
    """All that a look must not change, as values that compare by ==."""
    networks = {"model": learner.model, "heads": learner.heads, "encoders": learner.encoders}
    found: dict[str, Any] = {"steps": learner.steps, "skipped": learner.skipped}
    for name, network in networks.items():
        found[name] = {key: value.tolist() for key, value in network.state_dict().items()}
        found[f"{name} modes"] = [module.training for module in network.modules()]
        found[f"{name} gradients"] = [
            None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in network.parameters()
        ]
        found[f"{name} memory"] = [value.data_ptr() for value in network.state_dict().values()]
        found[f"{name} hooks"] = hooks_of(network)
    counter = learner.model.get_submodule("2.1")
    assert isinstance(counter, Counting)
    found["calls"] = counter.calls
    found["optimizers"] = str(learner.state_dict()["optimizer"])  # type: ignore[index]
    found["torch"] = torch.get_rng_state().tolist()
    found["python"], found["numpy"] = random.getstate(), str(numpy.random.get_state())
    return found


def shuffled() -> torch.utils.data.DataLoader[Any]:
    """A loader whose order comes from torch's global generator."""
    images, labels = make_batch(samples=24)
    data = torch.utils.data.TensorDataset(images, labels)
    return torch.utils.data.DataLoader(data, batch_size=12, shuffle=True)


LOOKS: dict[str, Callable[[lp.Learner, lp.Learner], object]] = {
    "probe": lambda one, _: lp.analysis.probe(one, shuffled(), [make_batch(1)]),
    "representations": lambda one, other: lp.analysis.compare_representations(
        one, other, shuffled()
    ),
    "gradients": lambda one, _: lp.analysis.compare_gradients(one, make_batch(2)),
}


@pytest.mark.parametrize("rule", [lp.contsup(), lp.backlink(), lp.man()], ids=["ctx", "bl", "man"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_changes_nothing_and_says_the_same_twice(look: str, rule: lp.Rule) -> None:
    """With gradients that somebody is accumulating, a frozen norm, and a step behind."""
    if rule == lp.man() and look == "gradients":
        pytest.skip(reason="refused: MAN copies parameters after their step")
    one, other = make_learner(rule), make_learner(lp.greedy(), seed=1)
    one.step(make_batch())
    if rule != lp.man():
        one.backward(make_batch(1))
    one.model[0][1].eval()  # type: ignore[index]
    torch.manual_seed(5)
    before = read_all(one), read_all(other)
    first = LOOKS[look](one, other)
    assert (read_all(one), read_all(other)) == before
    assert LOOKS[look](one, other) == first


def test_outputs_are_those_of_the_forward() -> None:
    """Channels last. What a later module writes into counts as it was before."""
    learner = make_learner(lp.greedy())
    images, _ = make_batch()
    with looking_at(learner):
        outputs = read_outputs(learner, images)
    assert list_module_ends(learner) == ("0", "1", "3")
    model = learner.model.eval()
    assert isinstance(model, nn.Sequential)
    first = model[0](images)
    second = model[1](first)
    assert torch.equal(outputs[0], first.movedim(1, -1).double())
    assert torch.equal(outputs[1], second.movedim(1, -1).double())
    assert outputs[2].shape == (12, 10)


def test_outputs_of_tokens() -> None:
    model, batches = language_model()
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=batches[0])
    with looking_at(learner):
        outputs = read_outputs(learner, batches[0])
    assert [each.shape for each in outputs] == [(5, 6, 8), (5, 6, 8), (5, 6, 11)]
    assert torch.equal(outputs[-1], learner.predict(batches[0]))


def test_a_batch_that_the_network_does_not_run_on_is_refused() -> None:
    learner = make_learner(lp.greedy())
    wrong = [(torch.zeros(4, 5, 8, 8), torch.arange(4))]
    with pytest.raises(lp.BadInput, match="network does not run on a batch"):
        lp.analysis.probe(learner, wrong, wrong)
    with pytest.raises(lp.BadInput, match="learner must be a Learner"):
        lp.analysis.probe(learner.model, wrong, wrong)  # type: ignore[arg-type]


def look_on_ranks() -> list[str]:
    batches = noise((12,))
    learner = lp.Learner(
        Blocks(), lp.greedy(), modules=4, optimizer=sgd, sample=batches[0], ranks=lp.Ranks()
    )
    said = []
    for look in (
        lambda: lp.analysis.probe(learner, batches, batches),
        lambda: lp.analysis.compare_representations(learner, learner, batches),
        lambda: lp.analysis.compare_gradients(learner, batches[0]),
    ):
        try:
            look()
        except lp.BadInput as error:
            said.append(str(error))
    learner.flush()
    return said


@pytest.mark.xdist_group("ranks")
def test_several_ranks_are_refused(pool: RankPool) -> None:
    for said in pool.run(2, look_on_ranks):
        assert [text.count("load it in one process") for text in said] == [1, 1, 1], said


def test_a_cut_at_a_function() -> None:
    """A residual outside of the block: the sum is what the module returns, and not the block."""

    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = x.sin() + block(x)
        return x

    tower = Tower(forward)
    batch, *_ = batches_of((6,), 3)
    learner = lp.Learner(tower, lp.greedy(), modules=2, optimizer=sgd, sample=batch)
    (end, _) = list_module_ends(learner)
    assert end == "blocks.1+1"
    with looking_at(learner):
        output, _ = read_outputs(learner, batch)
    features = batch[0]
    for block in tower.blocks[:2]:
        features = features.sin() + block(features)
    assert torch.equal(output, features.double())
