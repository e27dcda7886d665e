"""One process or several ranks: the same bits, for every rule; see tests/crew.py for what a run is and what is compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import pytest
import timm
import torch
import torchvision
from crew import Blocks, Crew, Outcome, Run, Stream, assert_same, attempt, noise, train
from test_schedule import wiring_of
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.rule.auxiliary import Site
from localprop.rule.losses import LocalLoss, Seen
from localprop.rule.table import PASS, T
from localprop.step.errors import Error, Errors, Place
from localprop.step.flows import Flow
from localprop.step.gradients import Gradients

pytestmark = pytest.mark.xdist_group("ranks")


def compare(crew: Crew, run: Run, *counts: int) -> None:
    """The run on so many ranks against one process."""
    alone = train(run, alone=True)
    for count in counts:
        assert_same(alone, crew.run(count, train_on_ranks, run))


def train_on_ranks(run: Run) -> Outcome:
    return train(run, alone=False)


# --- rules --------------------------------------------------------------------------------------------------------------


class Reconstruction(LocalLoss):
    """Cross-entropy, and how well the network's input is read from the features; as InfoPro's, it owns a decoder."""

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(chans, 3, 1)

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        error = functional.mse_loss(self.decoder(features), seen.inputs)
        return functional.cross_entropy(aux(features), seen.targets) + error


def reconstruction(site: Site) -> LocalLoss:
    return Reconstruction(site.features[1])


COMBINED = lp.Rule(lp.BackwardLinks(2, 0.5), lp.SampledLayers(2), context=lp.ContextSupply(input=True, previous=2))
COMBINATIONS = {
    "combined": COMBINED,
    "longer than a module": lp.backlink(layers=3, weight=0.5),
    "wise=3": lp.interlocking(wise=3),
    "context that skips ranks": lp.Rule(lp.Interlocked(2), context=lp.ContextSupply(previous=4)),
    "a loss that reads the input": lp.Rule(lp.BackwardLinks(1), loss=reconstruction),
}


@pytest.mark.parametrize("rule", COMBINATIONS.values(), ids=COMBINATIONS)
@pytest.mark.parametrize("microbatches", [1, 3])
def test_combinations(crew: Crew, rule: lp.Rule, microbatches: int) -> None:
    compare(crew, Run(rule, options={"modules": 6, "microbatches": microbatches}), 2, 4)


def test_several_layers_a_module_recomputed(crew: Crew) -> None:
    options = {"modules": 3, "microbatches": 2, "recompute": True}
    compare(crew, Run(COMBINATIONS["longer than a module"], options=options), 2, 3)


def test_stages_where_the_user_wants_them(crew: Crew) -> None:
    compare(crew, Run(COMBINED, ranks={"cuts": (1, 5)}), 3)
    compare(crew, Run(lp.backlink(), ranks={"seconds": (9.0, 1.0, 1.0, 1.0, 1.0, 1.0)}), 2)


def digits() -> Stream:
    data = lp.data.load("digits")
    return list(lp.data.Batches(data, "train", 256, shuffle=True, augment=True, seed=3).epoch(0))


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(
    "rule", [lp.greedy(), lp.backlink(), lp.interlocking(), lp.end_to_end()], ids=lambda r: str(r.credit)
)
def test_an_epoch_of_digits(crew: Crew, rule: lp.Rule, microbatches: int) -> None:
    assert len(digits()[-1][0]) % 4  # the last batch is uneven
    options = {"modules": 4, "microbatches": microbatches}
    compare(crew, Run(rule, partial(Blocks, 1), options, batches=digits), 2)


# --- models -------------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Whole numbers in, a mask that all layers read, and parameters and buffers of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)  # it is off wherever a layer has hooks, as on ranks
        self.embedding = nn.Embedding(20, 16)
        self.positions = nn.Parameter(torch.randn(6, 16) * 0.1)
        self.register_buffer("scale", torch.full((16,), 0.9))
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(5)])
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        x = self.embedding(tokens) + self.positions
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding) * self.scale
        return self.head(x.mean(1))


class Between(Blocks):
    """Work between the layers: random, in place, and views."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(functional.dropout(x, 0.1, self.training))
            x = (torch.relu_(x) if i % 2 else x + 1).transpose(2, 3)
        return self.head(x.mean((2, 3)))


class Narrow(nn.Module):
    """Maps of one channel or one pixel at the cuts, whose layout does not show in their strides."""

    def __init__(self, *chans: int, stride: int = 1) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(3, chans[0], 3, stride, 1), nn.BatchNorm2d(chans[0]))]
        for a, b in pairwise(chans):
            layers.append(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()))
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(chans[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def frozen(*prefixes: str) -> nn.Module:
    model = Blocks()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    return model


def tied() -> nn.Module:
    """A frozen weight that layers of several stages share."""
    model = Blocks()
    shared = model.blocks[3][3].weight.requires_grad_(False)
    for i in (1, 6):
        model.blocks[i][3].weight = shared
    return model


def channels_last(build: Callable[[], nn.Module]) -> nn.Module:
    return build().to(memory_format=torch.channels_last)


def strided() -> Stream:
    return [(images.contiguous(memory_format=torch.channels_last), labels) for images, labels in noise()]


def sentences() -> Stream:
    draws = torch.Generator().manual_seed(2)
    return [
        (torch.randint(20, (n, 6), generator=draws).clamp(min=1), torch.randint(10, (n,), generator=draws))
        for n in (8, 8, 8, 5)
    ]


def vit() -> nn.Module:
    size = {"img_size": 16, "patch_size": 4, "depth": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", drop_rate=0.1, drop_path_rate=0.1, **size)


resnet18 = partial(torchvision.models.resnet18, num_classes=10)
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"build": resnet18, "batches": partial(noise, (6, 6, 5), (3, 32, 32))},
    "resnet18 channels last": {
        "build": partial(channels_last, resnet18),
        "batches": partial(noise, (6, 6, 5), (3, 32, 32)),
    },
    "vit": {"build": vit, "batches": partial(noise, (6, 6, 5), (3, 16, 16))},
    "tokens": {"build": Tokens, "batches": sentences},
    "channels last": {"build": partial(channels_last, Blocks), "batches": strided},
    "one channel": {"build": partial(channels_last, partial(Narrow, 1, 4, 1, 4, 1, 1)), "batches": strided},
    "one pixel": {"build": partial(channels_last, partial(Narrow, *[8] * 6, stride=8)), "batches": strided},
    "between layers": {"build": Between},
    "frozen in the middle": {"build": partial(frozen, "blocks.3", "blocks.4", "blocks.5.0")},
    "frozen at the start": {"build": partial(frozen, "stem", "blocks.0", "blocks.1", "blocks.2")},
    "frozen at the end": {"build": partial(frozen, "head", "blocks.5", "blocks.6", "blocks.7")},
    "tied and frozen": {"build": tied},
}


@pytest.mark.parametrize("rule", [lp.backlink(), lp.end_to_end()], ids=lambda rule: str(rule.credit))
@pytest.mark.parametrize("name", MODELS)
def test_models(crew: Crew, name: str, rule: lp.Rule) -> None:
    compare(crew, Run(rule, options={"modules": 4, "microbatches": 2}, **MODELS[name]), 2)


@pytest.mark.parametrize("rule", [lp.contsup(), COMBINED], ids=lambda rule: str(rule.credit))
@pytest.mark.parametrize("name", ["channels last", "one channel", "frozen in the middle", "frozen at the start"])
def test_models_with_context(crew: Crew, name: str, rule: lp.Rule) -> None:
    compare(crew, Run(rule, options={"modules": 4, "microbatches": 2}, **MODELS[name]), 4)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "bf16", "microbatches": 2, "recompute": True}]
)
def test_autocast(crew: Crew, options: dict[str, Any]) -> None:
    compare(crew, Run(COMBINED, options={"modules": 6} | options, pause=(1,)), 2)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def test_another_optimizer(crew: Crew) -> None:
    compare(crew, Run(lp.backlink(), optimizer=adamw), 2)


class Rooted(Blocks):
    """A statistic of the model itself, kept up between two late blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if i == 6 and self.training:
                self.level.lerp_(x.detach().mean((0, 2, 3)), 0.1)
            x = block(x)
        return self.head(x.mean((2, 3)) - self.level)


class Bypassed(Blocks):
    """The head reads something of the stem's, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = x.detach().mean() + 1
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) * gate)


class Counting(torch.optim.SGD):
    """Counts its steps among its hyperparameters, as schedule-free optimizers do."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for parameter in group["params"]:
                parameter.grad.div_(group["count"])
        super().step(closure)


def counting(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return Counting(parameters, lr=0.1)


def adafactor(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=0.01)


def test_an_optimizer_that_counts(crew: Crew) -> None:
    compare(crew, Run(lp.backlink(), optimizer=counting), 2)


def test_an_optimizer_with_products_in_bf16(crew: Crew) -> None:
    compare(crew, Run(lp.backlink(), options={"modules": 6, "precision": "bf16"}, optimizer=adafactor), 2)


def test_data_past_a_cut_without_a_gradient_is_refused(crew: Crew) -> None:
    answers = crew.run(2, train_on_ranks, Run(lp.backlink(), Bypassed))
    assert isinstance(answers[1], lp.BadInput)
    assert "give another output when they run alone" in str(answers[1])


@pytest.mark.xfail(
    strict=True, reason="a buffer that no module of a layer owns is taken to be rank 0's: README, Limits"
)
def test_a_buffer_of_the_models_own(crew: Crew) -> None:
    compare(crew, Run(lp.backlink(), Rooted), 2)


# --- a batch that cannot be used ----------------------------------------------------------------------------------------


def refused_in_between(alone: bool) -> tuple[list[Any], Any]:
    """Three steps; what a batch of 2 in 3 micro-batches gives after the first."""
    torch.manual_seed(0)
    data, sgd = noise(), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
    ranks = lp.Ranks(alone=alone, timeout_s=20)
    options = {"modules": 4, "microbatches": 3, "sample": data[0], "optimizer": sgd, "ranks": ranks}
    learner = lp.Learner(Blocks(), lp.backlink(), **options)
    refusals = []
    for images, labels in data[:3]:
        learner.step((images, labels))
        refusals.append(str(attempt(learner.step, (images[:2], labels[:2]))))
        refusals.append(str(attempt(learner.step, (images[:, :, :4], labels))))
    network = learner.gather()
    return refusals, None if network is None else dict(network.state_dict())


def test_a_refused_batch_leaves_no_trace(crew: Crew) -> None:
    refusals, expected = refused_in_between(alone=True)
    assert "A batch of 2 cannot be split into 3 micro-batches" in refusals[0]
    (there, found), (others, _) = crew.run(2, refused_in_between, False)
    assert there == others == refusals
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


# --- sums ---------------------------------------------------------------------------------------------------------------

BIG, TINY = 1e8, 1.0  # in float32 (BIG + TINY) - BIG is 0, and (BIG - BIG) + TINY is 1


def test_errors_are_summed_in_the_order_of_their_makers() -> None:
    """Three losses whose errors meet at one place, those of a loss there and of two flows from ahead."""
    table = lp.CreditTable((1, 1, 1), ((T, None, None), (T, T, None), (T, PASS, T)))
    place, values, totals = Place(0, 0, 0), {-1: BIG, 0: -BIG, 1: TINY}, set()
    for makers in permutations(values):
        errors = Errors(wiring_of(table))
        for maker in makers:
            errors.add(place, Error(maker, torch.tensor(values[maker])))
        totals.add(float(errors.take(place)))
    assert totals == {TINY}


def flows_of(count: int) -> tuple[tuple[Flow, ...], ...]:
    return (tuple(Flow(frozenset({k}), True, None, 1.0) for k in range(count)),)


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_do_not_depend_on_which_flow_comes_first(parts: int) -> None:
    values = {(0, 0): [BIG, TINY, TINY], (0, 1): [-BIG, TINY, TINY], (0, 2): [TINY, TINY, BIG]}

    def total(order: list[tuple[int, int]]) -> Tensor:
        """Each flow's micro-batches in order, flows mixed."""
        weight = nn.Parameter(torch.zeros(1))
        gradients, aside = Gradients({0: [weight]}, flows_of(3), parts), {}
        for flow, m in order:
            with gradients.of(0, flow, aside):
                weight.backward(torch.tensor([values[0, flow][m]]))
        gradients.add(0, aside)
        assert not aside
        assert weight.grad is not None
        return weight.grad

    one = [(flow, m) for flow in range(3) for m in range(parts)]
    other = [(flow, m) for m in range(parts) for flow in (2, 1, 0)]  # as on ranks
    assert torch.equal(total(one), total(other))
