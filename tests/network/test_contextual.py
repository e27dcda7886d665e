"""The deployed network of a rule with context, and what modules receive as context."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.reference import network, sgd
from tests.helpers.training import hooks_of, train


def deploy_by_hand(learner: lp.Learner, x: Tensor) -> Tensor:
    """R1E on resnet14 in four modules: layers stem | 0, 1 | 2, 3 | 4, 5."""

    def run(path: str, features: Tensor) -> Tensor:
        output: Tensor = learner.model.get_submodule(path)(features)
        return output

    def encode(path: str, context: Tensor) -> Tensor:
        encoded: Tensor = learner.encoders.get_submodule(path)(context)
        return encoded

    u1 = run("relu", run("bn", run("conv", x))) + encode("1.0", x)
    u2 = run("blocks.1", run("blocks.0", u1)) + encode("2.0", x) + encode("2.1", u1)
    u3 = run("blocks.3", run("blocks.2", u2)) + encode("3.0", x) + encode("3.1", u2)
    return run("fc", run("blocks.5", run("blocks.4", u3)).mean((2, 3)))


def test_the_deployed_network_of_context() -> None:
    learner = train(lp.contsup())
    names = learner.network.state_dict()
    own = {name for name in names if name.startswith("model.")}
    assert {name.removeprefix("model.") for name in own} == set(learner.model.state_dict())
    assert {".".join(name.split(".")[:3]) for name in names if name not in own} == {
        "encoders.1.0",
        "encoders.2.0",
        "encoders.2.1",
        "encoders.3.0",
        "encoders.3.1",
    }
    images, plain = network("resnet14")[1][0][0], learner.model
    learner.network.eval()
    output = learner.network(images)
    torch.testing.assert_close(output, deploy_by_hand(learner, images), rtol=0, atol=1e-13)
    assert not torch.allclose(output, plain(images), atol=1e-3)
    assert hooks_of(learner.network) == []


def test_a_copy_of_the_deployed_network_is_independent() -> None:
    learner = train(lp.contsup())
    batches = network("resnet14")[1]
    images = batches[0][0]
    copied = copy.deepcopy(learner.network).eval()
    expected = learner.network.eval()(images)
    assert torch.equal(copied(images), expected)
    learner.network.train()
    learner.step(batches[0])
    assert torch.equal(copied(images), expected)
    assert not torch.equal(learner.network.eval()(images), expected)
    other = train(lp.contsup())
    other.network.load_state_dict(copied.state_dict(), strict=True)
    assert torch.equal(other.network.eval()(images), expected)


def test_training_runs_the_network_that_is_deployed() -> None:
    """The last loss of a step is the loss of the deployed network in train mode."""
    learner = train(lp.contsup())
    images, targets = network("resnet14")[1][0]
    expected = functional.cross_entropy(copy.deepcopy(learner.network)(images), targets)
    assert learner.step((images, targets)).task.item() == pytest.approx(expected.item(), abs=1e-12)


class PreActivation(nn.Module):
    """A layer that begins by writing into its input."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=inplace)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(self.relu(x))
        return output


def train_pre_activation(inplace: bool) -> list[Tensor]:
    """The parameters after one step, and the output of the deployed network."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 10
    blocks = [PreActivation(inplace) for _ in range(4)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *head)
    rule = lp.contsup(input=False, previous=2)
    learner = lp.Learner(model, rule, modules=5, optimizer=sgd, sample=batch)
    learner.step(batch)
    parameters = [parameter.detach() for parameter in learner.parameters()]
    return [*parameters, learner.network.eval()(batch[0])]


def test_context_is_what_the_module_received() -> None:
    """A layer that writes into its input in place changed what later modules received."""
    pairs = zip(train_pre_activation(False), train_pre_activation(True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
