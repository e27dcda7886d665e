"""The learner's surface: what it accepts, and what it refuses with a message that says the fix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.fsdp import FullyShardedDataParallel
from torchvision.models import VisionTransformer

import localprop as lp


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def sample(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10


def make(**changed: Any) -> lp.Learner:
    """A greedy learner of a ResNet-8. `changed` may hold anything, since tests check refusals."""
    options: dict[str, Any] = {
        "model": lp.models.resnet8(),
        "rule": lp.greedy(),
        "modules": 4,
        "optimizer": sgd,
        "sample": sample(),
    }
    return lp.Learner(**(options | changed))


class Doubled(nn.Module):
    """A layer that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x


class OfTuples(nn.Module):
    """A network of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Doubled(), Doubled()])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        output: Tensor = self.head(x)
        return output


class Parent(nn.Module):
    """What goes around two of three blocks was made before any module has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.head, self.scale = nn.Linear(4, 2), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.scale
        output: Tensor = self.head(self.blocks[2](self.blocks[1](self.blocks[0](x)) * scaled))
        return output


def test_too_few_layers_say_why() -> None:
    with pytest.raises(lp.BadInput) as refused:
        make(model=Parent(), sample=(torch.zeros(2, 4), torch.zeros(2).long()))
    assert (
        "These could not be layers: blocks.0: a path from the input to the output goes around it. "
        "To make layers of them, put what goes around a module, as the addition of h + block(h), "
        "into the forward of that module."
    ) in str(refused.value)


def test_a_model_of_one_layer_cannot_be_cut() -> None:
    layers = lp.layers_of(nn.Linear(4, 2), torch.zeros(2, 4))
    with pytest.raises(lp.BadInput, match="after 0: the model has one layer and cannot be cut"):
        lp.Partition.at(layers, [0])


def test_a_model_from_torch_compile_gets_advice() -> None:
    def backend(graph: object, inputs: object) -> None:
        raise RuntimeError("as inductor on a meta device")

    compiled = cast(nn.Module, torch.compile(lp.models.resnet8(), backend=backend))
    layers = lp.layers_of(compiled, sample())
    words = r"pass the model before torch\.compile, or compile it in place with model\.compile"
    with pytest.raises(lp.BadInput, match=words):
        lp.Partition.uniform(layers, 2)


def make_other_partition() -> lp.Partition:
    return lp.Partition.uniform(lp.layers_of(lp.models.mlp(4), torch.zeros(2, 4)), 2)


def make_batch(*shape: int) -> tuple[Tensor, Tensor]:
    """Zeros, and the class 0 for each of them."""
    return torch.zeros(*shape), torch.zeros(shape[0], dtype=torch.long)


NO_CONTEXT = nn.Sequential(nn.Linear(192, 4), nn.Linear(4, 4))

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"modules": 9}, "choose between 1 and 4"),
    ({"modules": None}, "Give either modules=K"),
    ({"modules": 0}, "choose between 1 and 4"),
    ({"modules": 2.5}, "whole number"),
    ({"microbatches": "2"}, "whole number"),
    ({"rule": lp.greedy}, "call a method"),
    ({"modules": None, "partition": [1, 2]}, "must be a localprop.Partition"),
    ({"task": "mse"}, "must be a task such as"),
    ({"task": nn.CrossEntropyLoss(reduction="sum")}, "must be a mean"),
    ({"optimizer": torch.optim.LBFGS}, "runs the model again"),
    ({"sample": ()}, "No task is usual for CifarResNet with the batch ()"),
    ({"sample": torch.tensor(1.0)}, "No task is usual for CifarResNet"),
    ({"sample": (torch.zeros(8, 3, 8, 8), torch.zeros(8))}, "say what they are"),
    ({"model": "resnet8"}, "must be a torch.nn.Module"),
    ({"precision": "fp8"}, "fp32, bf16"),
    ({"optimizer": "sgd"}, "function of parameters"),
    ({"optimizer": lambda params: None}, "returned a NoneType"),
    ({"optimizer": lambda params: sgd(params[:1])}, "owns 1 of"),
    ({"microbatches": 0}, "microbatches=0"),
    ({"microbatches": 2**31}, "split into at most 4096 parts"),
    ({"seed": "a"}, "seed must be a whole number"),
    ({"ranks": 2}, "ranks must be a Ranks"),
    ({"sample": make_batch(8, 5, 8, 8)}, "sample of shape (8, 5, 8, 8)"),
    ({"sample": "a batch"}, "No task is usual for CifarResNet with the batch str"),
    ({"model": OfTuples(), "sample": make_batch(2, 4)}, "the model has 2 layer(s)"),
    (
        {
            "model": NO_CONTEXT,
            "rule": lp.contsup(),
            "modules": 2,
            "sample": make_batch(2, 192),
        },
        "leave context out",
    ),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_what_cannot_be_trained_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(lp.BadInput) as refused:
        make(**changed)
    assert message in str(refused.value)


def test_a_partition_of_another_model_is_refused() -> None:
    with pytest.raises(lp.BadInput) as refused:
        make(modules=None, partition=make_other_partition())
    assert "of another model" in str(refused.value)


def return_nothing(point: lp.AttachPoint) -> nn.Module:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lp.greedy(aux=nn.Linear(3, 3)), "not an object that is built already"),
        (lambda: lp.greedy(aux=return_nothing), "aux builder returned a NoneType"),
        (lambda: lp.auglocal(depth=5), "use more modules"),
        (lambda: lp.backlink(layers=-1), "0 or more layers"),
        (lambda: lp.backlink(weight=0), "positive and finite"),
        (lambda: lp.interlocking(wise=0), "1 or more modules"),
    ],
)
def test_rules_that_cannot_train_are_refused(build: Callable[[], lp.Rule], message: str) -> None:
    with pytest.raises(lp.BadInput) as refused:
        make(rule=build())
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (lp.models.resnet8(), torch.randn(8, 10), "a sum of 1 in each row"),
        (lp.models.resnet8(), torch.ones(8, 10), "a sum of 1 in each row"),
        (lp.models.resnet8(), torch.eye(10)[:8] * 2 - torch.eye(10)[1:9], "0 or more"),
        (
            lp.models.resnet8(),
            torch.eye(4)[:8].repeat(2, 1),
            "or probabilities (8, 10)",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), torch.zeros(8, 1), "1 output"),
        (
            nn.Linear(8, 10),
            torch.full((8, 3, 8, 10), 0.1),
            "lp.Classification(dim=-1)",
        ),
    ],
)
def test_targets_that_are_no_probabilities_are_refused(
    model: nn.Module, targets: Tensor, message: str
) -> None:
    batch = (torch.randn(8, 3, 8, 8), targets)
    with pytest.raises(lp.BadInput) as refused:
        make(model=model, modules=1, sample=batch, task=lp.Classification())
    assert message in str(refused.value)


def test_probabilities_of_classes_are_targets() -> None:
    batch = (torch.randn(8, 3, 8, 8), torch.rand(8, 10).softmax(1))
    assert all(loss > 0 for loss in make(sample=batch).step(batch))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(8, 4, 8, 8), torch.zeros(8, dtype=torch.long)), "(8, 4, 8, 8)"),
        ((torch.zeros(8, 3, 8, 8).double(), torch.zeros(8, dtype=torch.long)), "torch.float64"),
        ((torch.zeros(8, 3, 8, 8), torch.full((8,), 10)), "0..9"),
        ((torch.zeros(8, 3, 8, 8), torch.full((8,), -1)), "from -1"),
        ((torch.zeros(8, 3, 8, 8), torch.zeros(7, dtype=torch.long)), "one per sample"),
        ((torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.int32)), "torch.int32"),
        ((torch.zeros(8, 3, 8, 8), torch.zeros(8, 1, dtype=torch.long)), "the sample was (N)"),
        ((torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)), "empty"),
        ((torch.zeros(8, 3, 8, 8),), "but the sample was (a float32 tensor (8, 3, 8, 8), a"),
        ({"images": torch.zeros(8)}, "A batch is {images: a float32 tensor (8,)}, but"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(batch: Any, message: str) -> None:
    learner = make()
    before = [parameter.clone() for parameter in learner.parameters()]
    with pytest.raises(lp.BadInput) as refused:
        learner.step(batch)
    assert message in str(refused.value)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))
    assert learner.steps == 0


def test_all_problems_at_once() -> None:
    with pytest.raises(lp.BadInput) as refused:
        make(modules=None, precision="fp8", optimizer=3)
    assert len(refused.value.problems) == 3


def test_parameters_frozen_later_are_refused() -> None:
    learner = make()
    next(learner.model.parameters()).requires_grad_(False)
    with pytest.raises(lp.BadInput, match="make a new Learner"):
        learner.step(sample())


def make_small_transformer() -> nn.Module:
    """torchvision's, whose smallest model by name has 86 million parameters."""
    model: nn.Module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    return model


@pytest.mark.parametrize(
    "make_model",
    [
        partial(lp.models.create_model, "timm:resnet18", 4, (3, 32, 32)),
        partial(lp.models.create_model, "torchvision:resnet18", 4, (3, 32, 32)),
        partial(lp.models.create_model, "timm:vit_tiny_patch16_224", 4, (3, 32, 32)),
        make_small_transformer,
    ],
    ids=["timm:resnet18", "torchvision:resnet18", "timm:vit_tiny", "torchvision:vit"],
)
@pytest.mark.parametrize("rule", [lp.greedy(), lp.backlink()], ids=["greedy", "backlink"])
def test_unchanged_models_train(make_model: Callable[[], nn.Module], rule: lp.Rule) -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 4)
    names = list(model.state_dict())
    learner = lp.Learner(
        model,
        rule,
        modules=4,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
        sample=batch,
    )
    first = learner.step(batch)
    for _ in range(4):
        last = learner.step(batch)
    assert last.task < first.task
    assert list(model.state_dict()) == names


def test_explain_shows_table_schedule_and_bytes() -> None:
    text = make(rule=lp.backlink()).explain()
    expected = ("loss1 T|T|.|.", "0F 0L 1F 1L", "blocks.2", "peak MiB", "Predicted peak")
    assert [words for words in expected if words not in text] == []


def list_owned(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_learning_rate_schedulers_reach_every_optimizer() -> None:
    learner = make(rule=lp.backlink())
    assert len(learner.optimizers) == 4 + 3
    owned = set().union(*map(list_owned, learner.optimizers))
    assert owned == {id(p) for p in learner.parameters()}


def test_a_new_learner_replaces_the_heads_of_the_old_one() -> None:
    """The heads of an earlier learner stayed in an optimizer that both shared."""
    model = lp.models.resnet8()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        learner = make(model=model, optimizer=optimizer)
        learner.step(sample())
    assert list_owned(optimizer) == {id(p) for p in learner.parameters()}


class ShardedParameter(nn.Parameter):
    """What a DTensor looks like from outside."""

    placements = ()


@pytest.mark.filterwarnings("ignore:FSDP is switching")  # in one process
def test_a_model_that_is_parallel_already_is_refused(tmp_path: Path) -> None:
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.Linear(4, 2))
    batch = torch.zeros(2, 4), torch.zeros(2).long()
    store = FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(lp.BadInput, match=r"is in DistributedDataParallel.*Ranks\(replicas"):
            make(model=wrapped, sample=batch)
        sharded = FullyShardedDataParallel(copy.deepcopy(model), device_id=torch.device("cpu"))
        with pytest.raises(lp.BadInput, match=r"in FullyShardedDataParallel.*Ranks\(replicas"):
            make(model=nn.Sequential(sharded), sample=batch)
    finally:
        torch.distributed.destroy_process_group()
    first.weight = ShardedParameter(first.weight.detach())
    with pytest.raises(lp.BadInput, match=r"'0.weight' is sharded .*Ranks\(replicas"):
        make(model=model, sample=batch)


def test_repr_says_what_it_is() -> None:
    """The layers have 64 * 8 + 8 and 8 * 10 + 10 parameters, and the head 8 * 10 + 10."""
    sample = (torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64))
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 10))
    head = lp.Head(convs=0, linears=1)
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    learner = lp.Learner(model, lp.greedy(aux=head), modules=2, optimizer=sgd, sample=sample)
    assert repr(learner) == (
        "Learner(Sequential, Rule(aux=Head(convs=0, linears=1)), modules=2, "
        "parameters=610 + 90 of heads)"
    )
