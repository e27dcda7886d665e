"""The learner's surface: what it refuses, with what was seen and what would fix it, and loops that others own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp

Params = list[nn.Parameter]


def sgd(params: Params) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def sample(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10


def make(model: nn.Module | None = None, rule: lp.Rule | None = None, **changed: Any) -> lp.Learner:
    options: dict[str, Any] = {"modules": 4, "optimizer": sgd, "sample": sample(), **changed}
    return lp.Learner(model or lp.models.resnet8(), rule or lp.greedy(), **options)


class Doubled(nn.Module):
    """A layer that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), x


class OfTuples(nn.Module):
    """A network of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Doubled(), Doubled()])
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x)


class Parent(nn.Module):
    """Blocks that the forward of their parent adds up, uses again, or goes around."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(1 if kind == "again" else 3)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "again":
            return self.head(self.blocks[0](self.blocks[0](x)))
        if self.kind == "around":
            down = self.blocks[0](x)
            return self.head(self.blocks[2](self.blocks[1](down)) + down)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def of_a_parent(kind: str) -> lp.Learner:
    return make(Parent(kind), sample=(torch.zeros(2, 4), torch.zeros(2).long()))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("added", "blocks.0, blocks.1, blocks.2: a path from the input to the output goes around it. To make layers of them, "
         "put what goes around a module, as the addition of h + block(h), into the forward of that module."),
        ("around", "blocks.1, blocks.2: a path from the input to the output goes around it. To make"),
        ("again", "blocks.0: it is called 2 times in one forward. To make layers of them, give each use a module of its own."),
    ],
)  # fmt: skip
def test_too_few_layers_tell_why(kind: str, told: str) -> None:
    with pytest.raises(lp.BadInput) as refused:
        of_a_parent(kind)
    assert f"These could not be layers: {told}" in str(refused.value)


def test_a_model_of_one_layer_cannot_be_cut() -> None:
    layers = lp.layers_of(Parent("added"), torch.zeros(2, 4))
    with pytest.raises(lp.BadInput, match=r"after 0: the model has one layer and cannot be cut.*goes around it"):
        lp.Partition.at(layers, [0])


def test_a_model_from_torch_compile_gets_advice() -> None:
    def backend(graph: object, inputs: object) -> None:
        raise RuntimeError("as inductor on a meta device")

    with pytest.raises(
        lp.BadInput, match=r"give the model before torch\.compile, or compile it in place: model\.compile"
    ):
        lp.layers_of(torch.compile(lp.models.resnet8(), backend=backend), sample())


def test_attention_is_differentiated_twice() -> None:
    """Successive gradient reconciliation does; the fused kernels of attention have no second derivative."""
    tokens = torch.arange(16).reshape(2, 8) % 5
    model = lp.models.create_model("transformer:width=8,heads=2,blocks=2", 5, (8,))
    learner = make(model, lp.sgr(), modules=3, sample=(tokens, tokens))
    assert all(torch.isfinite(loss) for loss in learner.step((tokens, tokens)))
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: make(modules=9), "choose between 1 and 4"),
        (lambda: make(modules=None), "Give either modules=K"),
        (lambda: make(modules=0), "choose between 1 and 4"),
        (lambda: make(modules=2.5), "whole number"),
        (lambda: make(microbatches="2"), "whole number"),
        (lambda: make(rule=lp.greedy), "call a method"),
        (lambda: make(modules=None, partition=[1, 2]), "must be a localprop.Partition"),
        (lambda: make(modules=None, partition=lp.Partition.uniform(lp.layers_of(lp.models.mlp(4), torch.zeros(2, 4)), 2)),
         "of another model"),
        (lambda: make(task=nn.CrossEntropyLoss()), "must build a loss"),
        (lambda: make(rule=lp.greedy(aux=nn.Linear(3, 3))), "no module"),
        (lambda: make(rule=lp.greedy(aux=lambda site: None)), "aux builder returned a NoneType"),
        (lambda: make(optimizer=torch.optim.LBFGS), "runs the model again"),
        (lambda: make(sample=()), "not ()"),
        (lambda: make(sample=torch.tensor(1.0)), "not scalars"),
        (lambda: make(sample=(torch.zeros(8, 3, 8, 8), torch.zeros(8))), "use targets.long()"),
        (lambda: make("resnet8"), "must be a torch.nn.Module"),
        (lambda: make(precision="fp8"), "fp32, bf16"),
        (lambda: make(optimizer="sgd"), "function of parameters"),
        (lambda: make(optimizer=lambda params: None), "returned a NoneType"),
        (lambda: make(optimizer=lambda params: sgd(params[:1])), "owns 1 of"),
        (lambda: make(microbatches=0), "microbatches=0"),
        (lambda: make(sample=(torch.zeros(8, 5, 8, 8), torch.zeros(8).long())), "sample of shape (8, 5, 8, 8)"),
        (lambda: make(sample="a batch"), "tuple of tensors"),
        (lambda: make(OfTuples(), sample=(torch.zeros(2, 4), torch.zeros(2).long())), "returns a tuple"),
        (lambda: make(rule=lp.auglocal(depth=5)), "use more modules"),
        (lambda: make(rule=lp.backlink(layers=-1)), "0 or more layers"),
        (lambda: make(rule=lp.backlink(weight=0)), "positive and finite"),
        (lambda: make(rule=lp.interlocking(wise=0)), "1 or more modules"),
        (lambda: make(nn.Sequential(nn.Linear(192, 4), nn.Linear(4, 4)), rule=lp.contsup(), modules=2,
                      sample=(torch.zeros(2, 192), torch.zeros(2).long())), "leave context out"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(build: Callable[[], object], told: str) -> None:
    with pytest.raises(lp.BadInput) as refused:
        build()
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("model", "targets", "told"),
    [
        (lp.models.resnet8(), torch.randn(8, 10), "sum to 1"),
        (lp.models.resnet8(), torch.ones(8, 10), "sum to 1"),
        (lp.models.resnet8(), torch.eye(10)[:8] * 2 - torch.eye(10)[1:9], "0 or more"),
        (lp.models.resnet8(), torch.eye(4)[:8].repeat(2, 1), "(N, 10)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), torch.zeros(8, 1), "1 output"),
        (nn.Linear(8, 10), torch.full((8, 3, 8, 10), 0.1), "outputs at each position"),
    ],
)
def test_targets_that_are_no_probabilities_are_refused(model: nn.Module, targets: torch.Tensor, told: str) -> None:
    batch = (torch.randn(8, 3, 8, 8), targets)
    with pytest.raises(lp.BadInput) as refused:
        make(model, modules=1, sample=batch).step(batch)
    assert told in str(refused.value)


def test_probabilities_of_classes_are_targets() -> None:
    batch = (torch.randn(8, 3, 8, 8), torch.rand(8, 10).softmax(1))
    assert all(loss > 0 for loss in make(sample=batch).step(batch))


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ((torch.zeros(8, 3, 9, 9), torch.zeros(8, dtype=torch.long)), "(N, 3, 8, 8)"),
        ((torch.zeros(8, 3, 8, 8).double(), torch.zeros(8, dtype=torch.long)), "torch.float64"),
        ((torch.zeros(8, 3, 8, 8), torch.full((8,), 10)), "0..9"),
        ((torch.zeros(8, 3, 8, 8), torch.full((8,), -1)), "from -1"),
        ((torch.zeros(8, 3, 8, 8), torch.zeros(7, dtype=torch.long)), "one per input"),
        ((torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.int32)), "torch.int32"),
        ((torch.zeros(8, 3, 8, 8), torch.zeros(8, 1, dtype=torch.long)), "they must be (N)"),
        ((torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)), "empty"),
        ((torch.zeros(8, 3, 8, 8),), "(inputs, targets)"),
        ({"images": torch.zeros(8)}, "tuple of tensors"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(batch: Any, told: str) -> None:
    learner = make()
    before = [parameter.clone() for parameter in learner.parameters()]
    with pytest.raises(lp.BadInput) as refused:
        learner.step(batch)
    assert told in str(refused.value)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))
    assert learner.steps == 0


def test_all_problems_at_once() -> None:
    with pytest.raises(lp.BadInput) as refused:
        make(modules=None, precision="fp8", optimizer=3)
    assert len(refused.value.problems) == 3


def test_parameters_thawed_later_are_noticed() -> None:
    learner = make()
    next(learner.model.parameters()).requires_grad_(False)
    with pytest.raises(lp.BadInput, match="make a new Learner"):
        learner.step(sample())


def test_a_failed_step_tells_where() -> None:
    class Fragile(nn.Linear):
        broken = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.broken:
                raise ValueError("the cable came out")
            return super().forward(x)

    model = nn.Sequential(nn.Linear(4, 4), Fragile(4, 4), nn.Linear(4, 2))
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    learner = make(model, modules=3, sample=batch)
    Fragile.broken = True
    with pytest.raises(lp.StepFailed) as failed:
        learner.step(batch)
    story = str(failed.value)
    for part in ("Action 1F failed", "the cable came out", "module 1", "1F <-- here", "stepped already: 0"):
        assert part in story
    Fragile.broken = False
    learner.step(batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_dtypes(dtype: torch.dtype) -> None:
    inputs, targets = sample()
    learner = make(lp.models.resnet8().to(dtype), lp.contsup(), sample=(inputs.to(dtype), targets))
    losses = learner.step((inputs.to(dtype), targets))
    assert all(parameter.dtype == dtype for parameter in learner.parameters())
    assert torch.isfinite(losses.task)


@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"recompute": True}], ids=str)
@pytest.mark.parametrize(
    "rule", [lp.end_to_end(), lp.backlink(), lp.interlocking(2), lp.contsup()], ids=lambda r: r.reference
)
def test_bf16_autocast_is_near_fp32(rule: lp.Rule, options: dict[str, Any]) -> None:
    states = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        learner = make(rule=rule, precision=precision, **options)
        losses = learner.step(sample())
        states.append((losses.task, learner.model.fc.weight.detach().clone()))
        assert all(parameter.dtype == torch.float32 for parameter in learner.parameters())
    assert states[1][0] == pytest.approx(states[0][0].item(), rel=0.05)
    assert torch.allclose(states[0][1], states[1][1], atol=0.02)
    assert not torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize(
    "name", ["timm:resnet18", "torchvision:resnet18", "timm:vit_tiny_patch16_224", "torchvision:vit_b_32"]
)
@pytest.mark.parametrize("rule", [lp.greedy(), lp.backlink()], ids=lambda rule: rule.reference)
def test_unchanged_models_train(name: str, rule: lp.Rule) -> None:
    model = lp.models.create_model(name, 4, (3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 4)
    names = list(model.state_dict())
    adam = lambda params: torch.optim.Adam(params, lr=1e-3)  # noqa: E731
    learner = lp.Learner(model, rule, modules=4, optimizer=adam, sample=batch)
    first = learner.step(batch)
    for _ in range(4):
        last = learner.step(batch)
    assert last.task < first.task
    assert list(model.state_dict()) == names


def test_explain_shows_table_schedule_and_bytes() -> None:
    text = make(rule=lp.backlink()).explain()
    for part in ("loss1 T|T|.|.", "0F 0L 0H 1F", "blocks.2", "peak MiB", "Predicted peak"):
        assert part in text


def test_losses_know_their_modules() -> None:
    losses = make(rule=lp.interlocking(2)).step(sample())
    assert losses.modules == (1, 2, 3)
    assert losses.task is losses[-1]


def test_learning_rate_schedulers_see_every_optimizer() -> None:
    learner = make(rule=lp.backlink())
    assert len(learner.optimizers) == 4 + 3
    owned = {id(p) for optimizer in learner.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in learner.parameters()}
