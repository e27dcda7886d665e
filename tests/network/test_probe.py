"""The look at a model: it leaves no trace, takes any code, and refuses what does not run."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm
from torch.utils.checkpoint import checkpoint

import localprop as lp
from localprop.network.probe import trace_forward
from localprop.tasks.batch import Batch
from tests.helpers.towers import Block, Pair, Tower, build_preactivated, forward_in_order

SAMPLE = torch.zeros(2, 6, dtype=torch.float64)


def trace(model: nn.Module, sample: Tensor = SAMPLE) -> list[str]:
    return [call.name for call in trace_forward(model, lp.Task().forward, Batch.of(sample)).calls]


# --- no trace -------------------------------------------------------------------------------------


def test_the_model_is_not_touched() -> None:
    model = lp.models.resnet8()
    before = copy.deepcopy(model.state_dict())
    model.eval()
    lp.layers_of(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Restless(nn.Module):
    """Changes everything that a forward can change."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.block, self.rest = Block(), nn.ModuleList([Block(), nn.Linear(6, 3)]).double()
        self.register_buffer("calls", torch.zeros(()))
        self.attribute = torch.zeros(3)
        self.held: dict[str, list[Tensor]] = {"sums": [torch.zeros(3)]}
        self.count, self.names, self.seen = 0, ["a"], set[int]()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.attribute += 1
        self.held["sums"][0] += 1
        self.held["kept"] = [x]
        self.count += 1
        self.names.append("b")
        self.seen.add(len(self.names))
        scale = random.random() + float(np.random.rand()) + torch.rand(()).item()
        scale += torch.rand((), generator=self.generator).item()
        self.features = self.block(x * scale)
        output: Tensor = self.rest[1](self.rest[0](self.features))
        return output


def test_a_model_that_changes_with_every_call_stays_as_it_was() -> None:
    model = Restless()
    model.block.requires_grad_(False)
    tensors = [model.calls, model.attribute, model.held["sums"][0]]
    generators = random.getstate(), torch.get_rng_state(), model.generator.get_state()
    numbers = np.random.get_state(legacy=True)
    layers = lp.layers_of(model, SAMPLE)
    assert layers.names == ("block", "rest.0", "rest.1")
    assert all(
        new is old
        for new, old in zip(
            [model.calls, model.attribute, model.held["sums"][0]], tensors, strict=True
        )
    )
    assert not any(tensor.any() for tensor in tensors)
    assert (model.count, model.names, model.seen) == (0, ["a"], set())
    assert set(model.held) == {"sums"}
    assert not hasattr(model, "features")
    assert not any(p.requires_grad for p in model.block.parameters())
    assert random.getstate() == generators[0]
    assert torch.equal(torch.get_rng_state(), generators[1])
    assert torch.equal(model.generator.get_state(), generators[2])
    assert str(np.random.get_state(legacy=True)) == str(numbers)


def test_a_failing_forward_leaves_no_trace_either() -> None:
    def fail(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        blocks[0](x)
        raise ValueError("no luck")

    tower = Tower(fail)
    state = torch.get_rng_state()
    with pytest.raises(lp.BadInput, match=r"Tower could not run on .*ValueError: no luck"):
        lp.layers_of(tower.eval(), SAMPLE)
    assert not tower.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in tower.modules())


# --- what a trace holds ---------------------------------------------------------------------------


def test_a_trace_lists_calls_in_the_order_of_their_returns() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Identity()), nn.Linear(6, 3))
    calls = trace_forward(model, lp.Task().forward, Batch.of(SAMPLE.float())).calls
    assert [call.name for call in calls] == ["0.0", "0.1", "0", "1"]
    assert [call.parent.name if call.parent else "" for call in calls] == ["0", "0", "", ""]
    assert [call.end > call.start for call in calls] == [True, False, True, True]


def test_a_trace_knows_which_outputs_are_written_into() -> None:
    model = build_preactivated(inplace=True)
    calls = trace_forward(model, lp.Task().forward, Batch.of(SAMPLE)).calls
    modified = [call.name for call in calls if call.outputs[0].modified_in_place]
    assert modified == ["0", "1.linear", "1", "2.linear", "2", "3.linear", "3"]


def test_a_call_that_raises_and_is_caught_does_not_confuse_the_others() -> None:
    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            try:
                x = block(x, lengths=None)
            except TypeError:
                x = block(x)
        return x

    assert (
        lp.layers_of(Tower(forward), SAMPLE).names
        == lp.layers_of(Tower(forward_in_order), SAMPLE).names
    )


# --- models as they are ---------------------------------------------------------------------------


def build_weight_normed() -> nn.Module:
    model = nn.Sequential(*(weight_norm(nn.Linear(6, 6)) for _ in range(2)), nn.Linear(6, 3))
    model(SAMPLE.float())
    return model


def build_pruned() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(2)), nn.Linear(6, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return model


def build_locked() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(2)), nn.Linear(6, 3))
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


def build_counting() -> nn.Module:
    """A batch norm without momentum reads how many batches it has seen."""
    return nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 6), nn.Linear(6, 3)
    )


def build_patched() -> nn.Module:
    """A forward that closes over the one that it replaces."""
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(2)), Pair())
    original = model.forward
    model.forward = lambda x: original(x)[0]  # type: ignore[method-assign, no-untyped-call]
    return model


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(6, 6, batch_first=True) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 4, -1)
        for layer in self.layers:
            x, _ = layer(x)
        output: Tensor = self.head(x[:, -1])
        return output


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("build", "count"),
    [
        (build_weight_normed, 3),
        (build_pruned, 3),
        (build_locked, 3),
        (build_counting, 3),
        (build_patched, 3),
        (Recurrent, 2),
    ],
)
def test_nothing_is_copied_so_any_module_will_do(
    build: Callable[[], nn.Module], count: int
) -> None:
    assert len(lp.layers_of(build(), SAMPLE.float())) == count


class Deciding(nn.Module):
    """A forward that depends on the values of whole numbers, and of fractions."""

    def __init__(self, *, of_fractions: bool) -> None:
        super().__init__()
        self.embed, self.of_fractions = nn.Embedding(9, 6), of_fractions
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != 1
        x = self.embed(ids)
        if not mask.all():
            x = x * mask[..., None]
        for block in self.blocks:
            x = block(x)
            if self.of_fractions and x.abs().max() > 1e9:
                x = x / 2
        last: Tensor = x[torch.arange(len(ids)), mask.sum(1) - 1]
        return last


@pytest.mark.parametrize(("of_fractions", "way"), [(False, "fake"), (True, "imagined")])
def test_a_forward_may_read_values(of_fractions: bool, way: str) -> None:
    layers = lp.layers_of(Deciding(of_fractions=of_fractions), torch.tensor([[2, 3, 1], [4, 5, 6]]))
    assert layers.names == ("embed", "blocks.0", "blocks.1", "blocks.2")
    assert layers.way == way


def test_a_forward_that_no_imagined_value_passes_runs_on_two_samples() -> None:
    sizes: list[int] = []

    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        sizes.append(len(x))
        if torch.isnan(x).any():  # an imagined answer is yes
            raise ValueError("not a number")
        return forward_in_order(blocks, x)

    layers = lp.layers_of(Tower(forward), torch.ones(9, 6, dtype=torch.float64))
    assert layers.way == "real"
    assert sizes[-2:] == [2, 3]  # to see which sizes grow
    assert [tuple(shape) for shape in layers.shapes] == [(9, 6)] * 4


def test_a_model_on_meta() -> None:
    with torch.device("meta"):
        model = Deciding(of_fractions=False)
    layers = lp.layers_of(model, torch.tensor([[2, 3, 1], [4, 5, 6]]))
    assert layers.names == ("embed", "blocks.0", "blocks.1", "blocks.2")


def test_blocks_that_checkpoint_themselves() -> None:
    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    plain, checkpointed = (lp.layers_of(Tower(f), SAMPLE) for f in (forward_in_order, forward))
    assert checkpointed.names == plain.names
    assert checkpointed.parameters == plain.parameters


# --- refusals -------------------------------------------------------------------------------------


def test_a_model_that_returns_two_tensors_gets_advice() -> None:
    class Two(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return self.linear(x), self.linear(x)

    with pytest.raises(lp.BadInput, match=r"returns .*forward=lambda model, batch"):
        lp.layers_of(Two(), torch.zeros(2, 6))


def test_a_sample_that_does_not_fit() -> None:
    with pytest.raises(lp.BadInput, match=r"Tower could not run on a sample of shape \(2, 5\)"):
        lp.layers_of(Tower(lambda b, x: b[0](x)), torch.zeros(2, 5, dtype=torch.float64))


def test_lazy_modules_get_advice() -> None:
    with pytest.raises(lp.BadInput, match=r"lazy modules .* run it once on a batch"):
        lp.layers_of(nn.Sequential(nn.LazyLinear(3)), SAMPLE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # of either category
def test_script_modules_get_advice() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(6, 6)), nn.Linear(6, 3))
    with pytest.raises(lp.BadInput, match=r"its module '0' is a ScriptModule"):
        lp.layers_of(model, SAMPLE.float())
