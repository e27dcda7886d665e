"""Networks in which something goes around the cuts: gradients are those of plain forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import localprop as lp
from localprop.rule.local_loss import LossInputs
from localprop.rule.table import Entry, T
from tests.helpers.networks_with_skips import MODELS, UNet, conv
from tests.helpers.reference import sgd

BATCH = torch.randn(2, 3, 16, 16), torch.randint(4, (2, 16, 16))


def train_back(reach: int) -> lp.Rule:
    """Each loss trains its own module and so many before it."""

    def trains(loss: int, layer: int, module: int) -> Entry | None:
        return T if loss - reach <= module <= loss else None

    return lp.Rule(lambda partition: lp.make_table(partition, trains))


def make_learner(
    model: nn.Module, rule: lp.Rule, modules: int, *, isolate_skips: bool = False, **options: Any
) -> lp.Learner:
    partition = lp.Partition.uniform(
        lp.layers_of(model, BATCH), modules, isolate_skips=isolate_skips
    )
    return lp.Learner(
        model,
        rule,
        partition=partition,
        optimizer=sgd,
        sample=BATCH,
        task=lp.Segmentation(),
        **options,
    )


@contextmanager
def see(model: nn.Module, name: str, seen: list[Tensor]) -> Iterator[None]:
    """Within the context, keep the first tensor that a module or function returns."""
    name, _, number = name.partition("+")

    def keep(module: nn.Module, args: object, output: Any) -> None:
        # The network may write into it later.
        seen.append((output if isinstance(output, Tensor) else output[0]).clone())

    class Functions(TorchFunctionMode):
        count = -1  # of those since the module has returned

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if self.count >= 0 and isinstance(result, (Tensor, tuple)):
                self.count += 1
                if self.count == int(number):
                    keep(model, (), result)
            return result

    def begin(module: nn.Module, args: object, output: object) -> None:
        functions.count = 0

    functions = Functions()
    handle = model.get_submodule(name).register_forward_hook(begin if number else keep)
    with functions if number else nullcontext():
        yield
    handle.remove()


def compute_gradients(learner: lp.Learner) -> dict[str, Tensor]:
    """The gradients of all parameters, by one plain forward per loss: nothing is cut there."""
    layers, modules = learner.partition.layers, learner.partition.modules
    named = dict(learner.named_parameters())
    total: dict[str, Tensor] = {}
    for k, row in enumerate(learner.wiring.table.rows):
        seen: list[Tensor] = []
        with see(learner.model, layers.names[modules[k][-1]], seen):
            output = learner.model(BATCH[0])
        features = output if k == len(modules) - 1 else seen[0]
        head: Any = learner.heads[str(k)]
        loss = head["loss"](features, head["aux"], LossInputs(*BATCH))
        reached = {
            name for layer, entry in enumerate(row) if entry for name in layers.parameters[layer]
        } | {name for name in named if name.startswith(f"heads.{k}.")}
        wanted = [name for name in named if name.removeprefix("model.") in reached]
        found = torch.autograd.grad(loss, [named[name] for name in wanted], allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                total[name] = total[name] + gradient if name in total else gradient
    return total


def assert_gradients(learner: lp.Learner, expected: dict[str, Tensor]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in learner.named_parameters():
        gradient, wanted = parameter.grad, expected.get(name)
        if wanted is None:
            assert gradient is None or not gradient.any(), name
            continue
        assert gradient is not None, name
        floor = float(wanted.abs().max()) + 1e-4 * largest
        assert float((gradient - wanted).abs().max()) < 1e-5 * floor, name


@pytest.mark.parametrize("reach", [0, 1, 9], ids=["greedy", "one back", "all"])
@pytest.mark.parametrize("modules", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str, modules: int, reach: int) -> None:
    torch.manual_seed(0)
    learner = make_learner(MODELS[name](), train_back(reach), modules)
    expected = compute_gradients(learner)
    learner.backward(BATCH)
    assert_gradients(learner, expected)


@pytest.mark.parametrize("name", MODELS)
def test_end_to_end_steps_are_those_of_a_plain_loop(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    plain = deepcopy(model)
    learner, optimizer = make_learner(model, lp.end_to_end(), 4), sgd(plain.parameters())
    for _ in range(2):
        learner.step(BATCH)
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(plain(BATCH[0]), BATCH[1]))
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_micro_batches_add_up() -> None:
    gradients = []
    for microbatches in (1, 2):
        torch.manual_seed(0)
        model = UNet()
        learner = make_learner(model, train_back(1), 3, microbatches=microbatches)
        for module in (model, learner.heads):
            module.eval()  # BatchNorm in training knows no micro-batches
        learner.backward(BATCH)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_isolated_skips_carry_no_credit() -> None:
    torch.manual_seed(0)
    plain = UNet(detached=True)
    model = UNet()
    model.load_state_dict(plain.state_dict())
    layers = lp.layers_of(model, BATCH)
    partition = lp.Partition.uniform(layers, len(layers), isolate_skips=True)
    arguments: Any = {"optimizer": sgd, "sample": BATCH, "task": lp.Segmentation()}
    learner = lp.Learner(model, lp.end_to_end(), partition=partition, **arguments)
    learner.backward(BATCH)
    torch.autograd.backward(functional.cross_entropy(plain(BATCH[0]), BATCH[1]))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("cells", "stem.2 cell_0 cell_1 cell_2 cell_3"),
        ("halves", "stem+1 blocks.0 blocks.1 blocks.2+1"),
        ("stages", "0 1.before+2 1.cells.0 1 2.before+2 2.cells.0 2"),
        ("dense", "blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5"),
    ],
)
def test_blocks_that_share_more_than_one_tensor(name: str, names: str) -> None:
    assert " ".join(lp.layers_of(MODELS[name](), BATCH).names) == names


def test_a_graph_module_has_the_layers_of_its_model() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    images = torch.zeros(2, 3, 32, 32)
    plain = lp.layers_of(model, images)
    traced = lp.layers_of(torch.fx.symbolic_trace(model), images)
    assert [name.partition(".relu")[0] for name in traced.names] == [*plain.names]
    assert traced.parameters == plain.parameters


def test_modules_end_where_nothing_goes_around_if_they_can() -> None:
    model = torchvision.models.densenet121(num_classes=4)
    batch = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=batch)
    ends = [learner.partition.layers.names[cut - 1] for cut in learner.partition.cuts]
    assert ends == [f"features.denseblock{i}" for i in (1, 2, 3)]


def test_a_residual_outside_of_a_block_ends_a_layer() -> None:
    names = lp.layers_of(MODELS["residuals"](), BATCH).names
    assert names == (
        "stem.2", "layers.0.0+1", "layers.0.1+2", "layers.1.0+1", "layers.1.1+2", "layers.2.0+1",
        "layers.2.1+2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (lp.contsup(), {}, "contexts cannot be added"),
    ],
)
def test_what_needs_one_tensor_is_refused(
    rule: lp.Rule, options: dict[str, bool], message: str
) -> None:
    with pytest.raises(
        lp.BadInput, match=f"'down.1' hands on more than one tensor, and {message}.*: 'down.0'\\."
    ):
        make_learner(UNet(), rule, 6, **options)


def test_a_tensor_that_is_kept_before_its_module_returns_is_found() -> None:
    class Keeps(UNet):
        """What a block keeps is the tensor that the cut has not replaced."""

        def __init__(self) -> None:
            super().__init__()
            self.kept: list[Tensor] = []
            for block in self.down:
                block.register_forward_hook(lambda _, args, output: self.kept.append(output))

        def forward(self, x: Tensor) -> Tensor:
            self.kept.clear()
            return super().forward(x) + self.kept[0].mean()

    learner = make_learner(Keeps(), lp.greedy(), 6)
    assert learner.step(BATCH)  # hooks come after those of the cuts, and see what they hand on

    class KeepsInside(nn.Sequential):
        kept: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x)  # type: ignore[no-untyped-call]
            return self.kept

    class ReadsInside(UNet):
        def __init__(self) -> None:
            super().__init__()
            self.down[0] = KeepsInside(*conv(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            output, first = super().forward(x), self.down[0]
            assert isinstance(first, KeepsInside)
            return output + first.kept.mean()

    with pytest.raises(lp.BadInput, match="keeps a tensor before its module returns"):
        make_learner(ReadsInside(), lp.greedy(), 6)


def test_a_model_that_runs_on_no_fakes_is_proved_on_real_tensors() -> None:
    class Reads(UNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.detach().numpy().size > 0)

    learner = make_learner(Reads(), lp.greedy(), 6)
    assert learner.partition.layers.way == "real"
    assert len(learner.step(BATCH)) == 6
