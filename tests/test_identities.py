"""What must be equal without any reference: rules that coincide, and a model that stays the plain model."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import NETWORKS, assert_moved, assert_same_state, network, sgd
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

RULES: dict[str, lp.Rule] = {
    "greedy": lp.greedy(),
    "backlink": lp.backlink(),
    "contsup": lp.contsup(),
    "auglocal": lp.auglocal(),
    "interlocking": lp.interlocking(),
    "end_to_end": lp.end_to_end(),
    "combined": lp.Rule(lp.BackwardLinks(2, 0.5), lp.SampledLayers(), context=lp.ContextSupply(previous=1)),
}
Batches = list[tuple[Tensor, Tensor]]


def trained(rule: lp.Rule, name: str = "resnet14", modules: int = 4, *, recompute: bool = False) -> lp.Learner:
    """A learner after three steps."""
    model, batches = network(name)
    learner = lp.Learner(model, rule, modules=modules, optimizer=sgd, sample=batches[0], recompute=recompute)
    for batch in batches:
        learner.step(batch)
    return learner


def plain_loop(model: nn.Module, batches: Batches) -> None:
    """The loop of any PyTorch tutorial."""
    optimizer = sgd(model.parameters())
    for images, targets in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


def hooks_of(model: nn.Module) -> list[object]:
    """Everything that could still act on a module from outside."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    hooks = [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]
    return hooks + [module for module in model.modules() if "forward" in vars(module)]


# --- rules that coincide ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "resnet14"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lp.interlocking(wise=1), lp.greedy()),
        (lp.interlocking(wise=4), lp.end_to_end()),
        (lp.interlocking(wise=9), lp.end_to_end()),
        (lp.backlink(layers=0), lp.greedy()),
        (lp.backlink(layers=9), lp.backlink(layers=2)),  # a module of the four has two layers at most
        (lp.Rule(lp.Own(joined=3)), lp.end_to_end()),
    ],
)
def test_rules_that_coincide(name: str, one: lp.Rule, other: lp.Rule) -> None:
    a, b = trained(one, name), trained(other, name)
    assert_same_state(a.model, b.model)
    assert_same_state(a.heads, b.heads)


@pytest.mark.parametrize(
    ("one", "other"), [(lp.backlink(layers=1), lp.greedy()), (lp.interlocking(2), lp.interlocking(3))]
)
def test_rules_that_differ(one: lp.Rule, other: lp.Rule) -> None:
    """The tests above can fail."""
    with pytest.raises(AssertionError):
        assert_same_state(trained(one).model, trained(other).model)


def test_context_without_sources_is_greedy() -> None:
    assert_same_state(trained(lp.contsup(False, 0)).network, trained(lp.greedy()).model)


@pytest.mark.parametrize("name", ["mlp", "resnet14", "timm_vit"])
@pytest.mark.parametrize("rule", ["greedy", "backlink", "interlocking", "end_to_end"])
def test_one_module_is_the_plain_loop(name: str, rule: str) -> None:
    model, batches = network(name)
    plain_loop(model, batches)
    assert_same_state(trained(RULES[rule], name, modules=1).model, model)


def test_one_module_with_context_is_the_plain_loop() -> None:
    model, batches = network("resnet14")
    plain_loop(model, batches)
    assert_same_state(trained(RULES["contsup"], modules=1).network, model)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recompute", [False, True])
def test_end_to_end_is_the_plain_loop(name: str, recompute: bool) -> None:
    model, batches = network(name)
    before = copy.deepcopy(model)
    plain_loop(model, batches)
    assert_moved(before, model)
    assert_same_state(trained(RULES["end_to_end"], name, recompute=recompute).model, model, tolerance=1e-12)


# --- the model stays the plain model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_trained_model_is_the_plain_model(rule: str) -> None:
    learner = trained(RULES[rule], recompute=rule == "backlink")
    fresh, batches = network("resnet14")
    assert list(learner.model.state_dict()) == list(fresh.state_dict())
    fresh.load_state_dict(learner.model.state_dict(), strict=True)
    assert hooks_of(learner.model) == []
    images = batches[0][0]
    assert torch.equal(learner.model.eval()(images), fresh.eval()(images))
    assert all(parameter.grad is None for parameter in learner.parameters())
    if rule not in ("contsup", "combined"):
        assert learner.network is learner.model


@pytest.mark.parametrize("rule", RULES)
def test_a_copy_is_inert(rule: str) -> None:
    """A forward of a deep copy (an average of weights) neither trains it nor the original."""
    learner = trained(RULES[rule])
    images, targets = network("resnet14")[1][0]
    before, twin = copy.deepcopy(learner.model.state_dict()), copy.deepcopy(learner.model)
    functional.cross_entropy(twin(images), targets).backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert all(torch.equal(before[name], value) for name, value in learner.model.state_dict().items())


class Unreliable(nn.Module):
    """Passes its input on; fails when `calls` reaches zero."""

    calls = -1

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls == 0:
            raise ArithmeticError("no forward today")
        return x


@pytest.mark.parametrize(
    ("where", "recompute", "call"),
    [("layer", False, 1), ("head", False, 1), ("layer", True, 1), ("layer", True, 2)],  # 2: when it runs again
)
def test_a_failed_step_leaves_nothing_behind(where: str, recompute: bool, call: int) -> None:
    model, batches = network("mlp")
    part = Unreliable()
    if where == "layer":
        model.insert(7, part)
    learner = lp.Learner(model, lp.backlink(), modules=4, optimizer=sgd, sample=batches[0], recompute=recompute)
    if where == "head":
        learner.heads["2"]["aux"].append(part)
    learner.step(batches[0])

    part.calls, random, last = call, torch.get_rng_state(), copy.deepcopy(model[-1])
    with torch.no_grad():
        with pytest.raises(lp.StepFailed, match="no forward today") as caught:
            learner.step(batches[1])
        assert not torch.is_grad_enabled()
    assert "<-- here" in str(caught.value)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert hooks_of(model) == []
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert_same_state(last, model[-1])  # the last layer comes after the failure
    learner.step(batches[2])
    assert not torch.equal(last.weight, model[-1].weight)


def test_a_step_under_no_grad_trains() -> None:
    model, batches = network("mlp")
    learner, before = (
        lp.Learner(model, lp.backlink(), modules=4, optimizer=sgd, sample=batches[0]),
        copy.deepcopy(model),
    )
    with torch.no_grad():
        learner.step(batches[0])
        assert not torch.is_grad_enabled()
    assert_moved(before, model)


# --- the deployed network of a rule with context ----------------------------------------------------------------------------


def deployed_by_hand(learner: lp.Learner, x: Tensor) -> Tensor:
    """R1E on resnet14 in four modules: layers stem | 0, 1 | 2, 3 | 4, 5."""
    model, encoders = learner.model, learner.encoders
    u1 = model.relu(model.bn(model.conv(x))) + encoders["1"][0](x)
    u2 = model.blocks[1](model.blocks[0](u1)) + encoders["2"][0](x) + encoders["2"][1](u1)
    u3 = model.blocks[3](model.blocks[2](u2)) + encoders["3"][0](x) + encoders["3"][1](u2)
    return model.fc(model.blocks[5](model.blocks[4](u3)).mean((2, 3)))


def test_the_deployed_network_of_context() -> None:
    learner = trained(lp.contsup())
    names = learner.network.state_dict()
    assert {name.removeprefix("model.") for name in names if name.startswith("model.")} == set(
        learner.model.state_dict()
    )
    assert {".".join(name.split(".")[:3]) for name in names if not name.startswith("model.")} == {
        "encoders.1.0",
        "encoders.2.0",
        "encoders.2.1",
        "encoders.3.0",
        "encoders.3.1",
    }
    images, plain = network("resnet14")[1][0][0], learner.model
    learner.network.eval()
    output = learner.network(images)
    torch.testing.assert_close(output, deployed_by_hand(learner, images), rtol=0, atol=1e-13)
    assert not torch.allclose(output, plain(images), atol=1e-3)
    assert hooks_of(learner.network) == []


def test_a_copy_of_the_deployed_network_is_its_own() -> None:
    learner = trained(lp.contsup())
    batches = network("resnet14")[1]
    images = batches[0][0]
    twin = copy.deepcopy(learner.network).eval()
    expected = learner.network.eval()(images)
    assert torch.equal(twin(images), expected)
    learner.network.train()
    learner.step(batches[0])
    assert torch.equal(twin(images), expected)
    assert not torch.equal(learner.network.eval()(images), expected)
    other = trained(lp.contsup())
    other.network.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(other.network.eval()(images), expected)


def test_training_sees_the_network_that_is_deployed() -> None:
    """The last loss of a step is the loss of the deployed network in train mode."""
    learner = trained(lp.contsup())
    images, targets = network("resnet14")[1][0]
    expected = functional.cross_entropy(copy.deepcopy(learner.network)(images), targets)
    assert learner.step((images, targets)).task.item() == pytest.approx(expected.item(), abs=1e-12)


# --- random state -----------------------------------------------------------------------------------------------------------


def dropping() -> nn.Sequential:
    """An MLP with dropout between, and at the start of, its layers."""
    hidden = [part for _ in range(7) for part in (nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3))]
    return nn.Sequential(nn.Dropout(0.2), *hidden, nn.Linear(6, 3)).double()


def with_dropout(rule: lp.Rule, seed: int = 0, *, recompute: bool = False, parts: int = 1) -> lp.Learner:
    torch.manual_seed(5)
    model, batches = dropping(), network("mlp")[1]
    learner = lp.Learner(
        model,
        rule,
        modules=4,
        optimizer=sgd,
        sample=batches[0],
        seed=seed,
        recompute=recompute,
        microbatches=parts,
    )
    for i, batch in enumerate(batches):
        torch.manual_seed(100 + i + seed)  # what the caller draws must not matter
        learner.step(batch)
    return learner


@pytest.fixture(params=["greedy", "backlink", "interlocking", "end_to_end"])
def rule(request: pytest.FixtureRequest) -> lp.Rule:
    return RULES[request.param]


@pytest.mark.parametrize("parts", [1, 3])
def test_dropout_draws_the_same_when_recomputed(rule: lp.Rule, parts: int) -> None:
    stored, again = with_dropout(rule, parts=parts), with_dropout(rule, recompute=True, parts=parts)
    assert_same_state(stored.model, again.model)


def test_the_same_seed_gives_the_same_bits(rule: lp.Rule) -> None:
    one, two, other = with_dropout(rule), with_dropout(rule), with_dropout(rule, seed=1)
    assert_same_state(one.model, two.model)
    assert_same_state(one.heads, two.heads)
    with pytest.raises(AssertionError):
        assert_same_state(one.model, other.model)


def test_dropout_differs_between_steps_and_layers() -> None:
    """A seed per place, not one for all: the masks that two dropouts draw in two steps are four different ones."""
    torch.manual_seed(0)
    masks: list[Tensor] = []
    model = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(9, 9), nn.Dropout(0.5))), nn.Linear(9, 3))
    for part in model:
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda module, args, output: masks.append(output == 0))
    batch = (torch.randn(8, 9), torch.randint(3, (8,)))
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=batch)
    masks.clear()
    learner.step(batch)
    learner.step(batch)
    assert len(masks) == 8
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


@pytest.mark.parametrize("recompute", [False, True])
def test_the_callers_random_state_is_left_alone(rule: lp.Rule, recompute: bool) -> None:
    batches = network("mlp")[1]
    model = dropping()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0], recompute=recompute)
    assert torch.equal(before, torch.get_rng_state())
    learner.step(batches[0])
    assert torch.equal(before, torch.get_rng_state())
    learner.backward(batches[0])
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_for_a_loop_that_others_own(rule: lp.Rule) -> None:
    """learner.backward and one optimizer over everything do what learner.step does."""
    model, batches = network("mlp")
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0])
    optimizer, scaled = sgd(learner.parameters()), []
    for batch in batches:
        learner.backward(batch, backward=lambda loss: (scaled.append(loss), loss.backward()))
        optimizer.step()
        optimizer.zero_grad()
    assert len(scaled) == 3 * len(learner.wiring.objectives)
    assert_same_state(model, trained(rule, "mlp").model)


def test_an_optimizer_that_exists_steps_once(rule: lp.Rule) -> None:
    model, batches = network("mlp")
    optimizer = sgd(model.parameters())
    learner = lp.Learner(model, rule, modules=4, optimizer=optimizer, sample=batches[0])
    for batch in batches:
        learner.step(batch)
    own = trained(rule, "mlp")
    assert_same_state(model, own.model)
    assert_same_state(learner.heads, own.heads)
