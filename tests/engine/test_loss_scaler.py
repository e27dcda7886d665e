"""precision="fp16": the bits of a plain loop with GradScaler, for all losses and optimizers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

import localprop as lp
from localprop.engine.loss_scaler import LossScaler
from localprop.errors import BadInput, StepFailed
from localprop.tasks.batch import Batch
from localprop.training.state_file import StateFile
from tests.helpers import predictions
from tests.helpers.cli import run_command
from tests.helpers.reference import sgd

LINEAR = lp.greedy(lp.Head(convs=0, linears=1))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def make_batch(number: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(9, 6, generator=generator), torch.arange(9) % 3


def learn(rule: lp.Rule, **options: Any) -> lp.Learner:
    arguments = {"modules": 3, "optimizer": sgd, "precision": "fp16", **options}
    return lp.Learner(make_model(), rule, sample=make_batch(), **arguments)


def set_scale(learner: lp.Learner, scale: float) -> None:
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": scale})


def copy_weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# A scale of 2 ** 21 overflows at first.
@pytest.mark.parametrize("scale", [2.0**10, 2.0**21])
@pytest.mark.parametrize("factory", [True, False])
def test_end_to_end_is_the_plain_loop(scale: float, factory: bool) -> None:
    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=0.1, momentum=0.9)

    model, theirs = make_model(), make_model()
    learner = lp.Learner(
        model,
        lp.end_to_end(),
        modules=1,
        optimizer=make_optimizer if factory else make_optimizer(list(model.parameters())),
        sample=make_batch(),
        precision="fp16",
    )
    set_scale(learner, scale)
    optimizer = make_optimizer(list(theirs.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scales = [scale]
    for step in range(8):
        images, labels = make_batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(theirs(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        assert torch.equal(learner.step((images, labels)).task, loss)
        assert learner.scaler.state_dict() == scaler.state_dict()
    assert are_equal(copy_weights(model), copy_weights(theirs))
    assert (scales[-1] < scale) is (scale > 2**20)
    assert scales[-1] == scales[-2]  # by then steps are taken


def make_large_batch() -> tuple[Tensor, Tensor]:
    images, labels = make_batch()
    images[:, 0] *= 1000
    return images, labels


def step_by_hand(
    model: nn.Sequential, heads: list[nn.Module], optimizers: list[Optimizer], scaler: Any
) -> None:
    """Greedy training by torch alone: an optimizer for each module and head, one scaler."""
    features, labels = make_large_batch()
    for layers, head in zip((model[:2], model[2:4], model[4:]), heads, strict=True):
        with torch.autocast("cpu", torch.float16):
            output = layers(features)
            loss = cross_entropy(head(output), labels)
        scaler.scale(loss).backward()
        features = output.detach()
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()


def test_each_module_leaves_its_own_step_out() -> None:
    """A large input makes the gradients of the first layer's weights overflow, and no others."""
    learner = learn(LINEAR)
    assert isinstance(learner.model, nn.Sequential)
    with torch.no_grad():  # its units would be saturated
        learner.model.get_parameter("0.weight")[:, 0] = 0
    model, scaler = copy.deepcopy(learner.model), torch.amp.GradScaler("cpu", init_scale=2.0**13)
    set_scale(learner, 2.0**13)
    heads = [copy.deepcopy(learner.heads[row].get_submodule("aux")) for row in ("0", "1")]
    trained = [model[:2], model[2:4], model[4:], *heads]
    optimizers = [sgd(list(module.parameters())) for module in trained]
    before = [copy_weights(module) for module in trained]
    ours: list[nn.Module] = [learner.model[:2], learner.model[2:4], learner.model[4:]]
    ours += [learner.heads[row].get_submodule("aux") for row in ("0", "1")]
    skipped = []
    for _ in range(3):
        step_by_hand(model, [*heads, nn.Identity()], optimizers, scaler)
        learner.step(make_large_batch())
        after = [copy_weights(module) for module in trained]
        skipped.append([are_equal(a, b) for a, b in zip(before, after, strict=True)])
        before = after
        assert all(
            are_equal(copy_weights(a), copy_weights(b)) for a, b in zip(ours, trained, strict=True)
        )
        assert learner.scaler.get_scale() == scaler.get_scale()
    assert skipped[0] == [True, False, False, False, False]
    assert scaler.get_scale() < 2.0**13


RULES = [LINEAR, lp.backlink(), lp.auglocal(depth=1), lp.interlocking(2)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.reference)
def test_powers_of_two_change_nothing(rule: lp.Rule) -> None:
    """Where nothing over- or underflows, the scale does not show: flows are linear."""
    weights = []
    for scale in (2.0**8, 2.0**12):
        learner = learn(rule)
        set_scale(learner, scale)
        for step in range(2):
            learner.step(make_batch(step))
        assert learner.scaler.get_scale() == scale
        weights.append([p.detach() for p in learner.parameters()])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*weights, strict=True))


def test_a_state_goes_on_with_the_scale(tmp_path: Path) -> None:
    first, second, third = (learn(lp.backlink()) for _ in range(3))
    for learner in (first, third):
        set_scale(learner, 2.0**22)
    first.step(make_batch())
    first.step(make_batch(1))
    state = first.state_dict()
    assert state is not None
    assert state["scaler"]["scale"] == first.scaler.get_scale() < 2.0**22
    second.load_state_dict(state)
    lp.save(tmp_path / "a.safetensors", first)
    lp.load(tmp_path / "a.safetensors", third)
    for learner in (first, second, third):
        for step in range(4):
            learner.step(make_batch(step))
        assert are_equal([*learner.parameters()], [*first.parameters()])
        assert learner.scaler.state_dict() == first.scaler.state_dict()
    scale = second.scaler.get_scale()
    second.rebuild(modules=2)
    assert second.scaler.get_scale() == scale


@pytest.mark.parametrize("entry", [None, {}, {"scale": "large"}, 3])
def test_a_state_without_a_scale_is_refused(entry: object) -> None:
    learner = learn(LINEAR)
    state = learner.state_dict()
    assert state is not None
    with pytest.raises(BadInput, match="no scale of losses"):
        learner.load_state_dict({**state, "scaler": entry})
    assert "scaler" not in (learn(LINEAR, precision="bf16").state_dict() or {})


def test_backward_alone_needs_the_scaler() -> None:
    stepped, learner = learn(LINEAR), learn(LINEAR)
    with pytest.raises(BadInput, match=r"learner\.scaler\.scale"):
        learner.backward(make_batch())
    assert all(p.grad is None for p in learner.parameters())
    learner.backward(
        make_batch(),
        backward=lambda loss: learner.scaler.scale(loss).backward(),  # type: ignore[no-untyped-call]
    )
    for optimizer in learner.optimizers:
        learner.scaler.step(optimizer)
    learner.scaler.update()
    stepped.step(make_batch())
    assert are_equal([*learner.parameters()], [*stepped.parameters()])


@pytest.mark.parametrize("fused", [True, False])
def test_hooks_before_a_step_see_the_gradients(fused: bool) -> None:
    """The scale is out of them by then: clipping to 1e-3 would else be clipping to far less."""
    norms: list[Tensor] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in grads if g is not None]).norm())

    learner = learn(lp.end_to_end(), modules=1, optimizer=lambda p: SGD(p, lr=0.1, fused=fused))
    learner.optimizers[0].register_step_pre_hook(look)
    learner.step(make_batch())
    model = make_model()
    cross_entropy(model(make_batch()[0]), make_batch()[1]).backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    expected = torch.cat([g.flatten() for g in grads]).norm()
    assert torch.allclose(torch.stack(norms), expected, rtol=0.01)


def test_parameters_without_gradients() -> None:
    """GradScaler refuses an optimizer of such alone."""
    unread = nn.Parameter(torch.ones(2))
    scaler = LossScaler(torch.amp.GradScaler("cpu"))
    scaler.step(SGD([unread], lr=0.1))
    scaler.update()
    assert torch.equal(unread, torch.ones(2))


def test_a_failed_step_leaves_the_scaler_in_order() -> None:
    learner = learn(LINEAR)
    assert isinstance(learner.model, nn.Sequential)

    def fail(*_: object) -> None:
        raise ValueError("no")

    handle = learner.model[4].register_forward_pre_hook(fail)
    with pytest.raises(StepFailed):
        learner.step(make_batch())
    handle.remove()
    before = copy_weights(learner.model)
    learner.step(make_batch())
    assert not are_equal(before, copy_weights(learner.model))


def test_an_engine_runs_alone() -> None:
    """As simulations time it."""
    learner = learn(LINEAR)
    for number in range(2):
        learner.engine.step(Batch.of(make_batch()), number=number)
    assert learner.scaler.state_dict()["_growth_tracker"] == 2


def test_memory_is_predicted() -> None:
    batch = predictions.make_batch(3, 16, 16)
    learner = lp.Learner(
        lp.models.create_model("resnet8", 3, (3, 16, 16)),
        lp.contsup(),
        modules=3,
        optimizer=predictions.sgd,
        sample=batch.data,
        precision="fp16",
    )
    predictions.compare_learner(learner, batch)


def test_parameters_in_float16_are_refused() -> None:
    with pytest.raises(BadInput, match=r"leave out model\.half"):
        lp.Learner(
            make_model().half(),
            LINEAR,
            modules=2,
            optimizer=sgd,
            sample=make_batch(),
            precision="fp16",
        )


def test_a_run_goes_on_with_the_scale(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = "--model mlp --data digits --limit 64 --batch-size 32 --modules 2 --precision fp16"
    words = ["train", *flags.split(), "--epochs", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert run_command(capsys, *words)[0] == 0
    (last, *_) = tmp_path.glob("*2*.safetensors")
    assert StateFile(last).about["scaler"]["scale"] == 2.0**16


def test_it_is_said() -> None:
    assert "One GradScaler scales all losses" in learn(LINEAR).explain()
    assert "GradScaler" not in learn(LINEAR, precision="bf16").explain()
