"""What every method must pass. The tests find the methods by themselves."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import localprop as lp
from localprop import methods
from localprop.data.arrays import Images
from localprop.methods.parse import parse_rule
from localprop.state import restore, state_of
from localprop.training.build import load_data
from localprop.training.config import Config
from tests.helpers.layers import cut_once
from tests.helpers.methods import METHODS, Method, each_method

SAMPLES = 32
# The arguments that a docstring's credit drawing is made with, where they are not the defaults.
DRAWN_WITH: dict[str, dict[str, Any]] = {
    "auglocal": {"depth": 1},
    "backlink": {"layers": 1},
    "interlocking": {"wise": 2},
}


@cache
def make_batch() -> tuple[Tensor, Tensor]:
    digits = load_data(Config(data="digits"))
    assert isinstance(digits, Images)
    return digits.train.images[:SAMPLES].float(), digits.train.labels[:SAMPLES]


def make_learner(method: Method) -> lp.Learner:
    torch.manual_seed(0)
    # A block that keeps its input's shape, which SOLO copies, is not in every stage of a ResNet-8.
    name, modules = ("resnet14", 7) if method is lp.solo else ("resnet8", 4)
    model = lp.models.create_model(name, 10, (1, 8, 8))
    return lp.Learner(
        model,
        method(),
        partition=cut_once(model, make_batch(), modules),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
        sample=make_batch(),
        normalization=lp.Normalization(),  # digits are pixels in 0..1
    )


@each_method
def test_it_learns(method: Method) -> None:
    """Every local loss falls on one batch, the last one to half, and the network learns it."""
    learner, (images, labels) = make_learner(method), make_batch()
    first = learner.step((images, labels))
    for _ in range(25):
        last = learner.step((images, labels))
    # A published weight may be 0, like that of the last of HPFF's windows.
    assert all(after < before or before == 0 for before, after in zip(first, last, strict=True))
    assert last.task < first.task / 2
    assert (learner.network(images).argmax(1) == labels).float().mean() > 0.9


@each_method
def test_it_resumes_to_the_same_bits(method: Method) -> None:
    undisturbed, resumed = make_learner(method), make_learner(method)
    undisturbed.step(make_batch())
    state = state_of(undisturbed)
    assert state is not None
    undisturbed.step(make_batch())
    restore(resumed, state)
    resumed.step(make_batch())
    pairs = zip(undisturbed.named_parameters(), resumed.named_parameters(), strict=True)
    for (name, a), (_, b) in pairs:
        assert torch.equal(a, b), name


@each_method
def test_its_repr_evaluates_back(method: Method) -> None:
    rule = method()
    public_names: dict[str, Any] = {name: getattr(lp, name) for name in dir(lp)}
    assert eval(repr(rule), public_names) == rule
    assert parse_rule(method.__name__) == rule
    assert parse_rule(repr(rule)) == rule


@each_method
def test_its_docstring_is_complete(method: Method) -> None:
    doc = inspect.getdoc(method) or ""
    for heading in ("Equations", "Credit", "Example:", "Reference:"):
        assert heading in doc, f"{method.__name__} lacks {heading}"
    assert any(str(year) in doc.split("Reference:")[1] for year in range(1980, 2030))


@each_method
def test_its_docstring_draws_its_own_table(method: Method) -> None:
    """The drawing is the table that the code makes for four modules of three layers."""
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(12)])
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 4)
    table = method(**DRAWN_WITH.get(method.__name__, {})).credit(partition)
    assert str(table) in (inspect.getdoc(method) or "").replace("    ", "")


def test_the_battery_sees_all_methods() -> None:
    names = {method.__name__ for method in METHODS}
    assert names == {*methods.__all__}
    assert names == {name for name in dir(lp) if inspect.isfunction(getattr(methods, name, None))}


@pytest.mark.parametrize("name", sorted(DRAWN_WITH))
def test_drawings_with_other_arguments_say_so(name: str) -> None:
    """The line above the drawing names the arguments."""
    (above,) = (
        line
        for line in (inspect.getdoc(getattr(methods, name)) or "").splitlines()
        if line.startswith("Credit")
    )
    for argument, value in DRAWN_WITH[name].items():
        assert f"{argument}={value}" in above
