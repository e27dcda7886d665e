"""What every function of methods.py must pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import localprop as lp
from localprop import methods
from localprop.training.checkpoint import restore, state_of
from localprop.training.config import Config, build, load_data
from localprop.training.expression import rule_of

METHODS = [
    function
    for name, function in inspect.getmembers(methods, inspect.isfunction)
    if function.__module__.startswith(f"{methods.__name__}.") and not name.startswith("_")
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
Method = Callable[..., lp.Rule]


def batch(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_data(Config(data="digits"))
    return digits.train.images[:size].float(), digits.train.labels[:size]


def learner_of(method: Method) -> lp.Learner:
    config = Config(model="resnet14", batch_size=64, lr=0.05)
    learner = build(config, load_data(config))
    return lp.Learner(
        learner.model,
        method(),
        modules=7,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
        sample=batch(),
        normalised=lp.Normalised(),  # digits are pixels in 0..1
    )


@each_method
def test_it_learns(method: Method) -> None:
    """Every local loss falls on one batch, the last one to half, and the network itself has learned the batch."""
    learner = learner_of(method)
    first = learner.step(batch())
    for _ in range(25):
        last = learner.step(batch())
    # A published weight may be 0, as that of the last of HPFF's windows.
    assert all(after < before or before == 0 for before, after in zip(first, last, strict=True))
    assert last.task < first.task / 2
    assert (learner.network(batch()[0]).argmax(1) == batch()[1]).float().mean() > 0.9


@each_method
def test_it_resumes_to_the_same_bits(method: Method) -> None:
    undisturbed, resumed = learner_of(method), learner_of(method)
    undisturbed.step(batch())
    state = state_of(undisturbed)
    undisturbed.step(batch())
    restore(resumed, state)
    resumed.step(batch())
    for (name, a), (_, b) in zip(undisturbed.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@each_method
def test_its_repr_evaluates_back(method: Method) -> None:
    names: dict[str, Any] = {name: getattr(lp, name) for name in lp.__all__}
    assert eval(repr(method()), names) == method() == rule_of(method.__name__) == rule_of(repr(method()))


@each_method
def test_its_docstring_is_complete(method: Method) -> None:
    doc = inspect.getdoc(method) or ""
    for part in ("Equations", "Credit", "Example:", "Reference:"):
        assert part in doc, f"{method.__name__} lacks {part}"
    assert any(str(year) in doc.split("Reference:")[1] for year in range(1980, 2030))


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (lp.end_to_end(), "end_to_end"),
        (lp.greedy(), "greedy"),
        (lp.dgl(), "dgl"),
        (lp.predsim(), "predsim"),
        (lp.infopro(), "infopro"),
        (lp.backlink(layers=1), "backlink"),
        (lp.contsup(), "contsup"),
        (lp.auglocal(depth=1), "auglocal"),
        (lp.interlocking(wise=2), "interlocking"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_its_docstring_draws_its_own_table(rule: lp.Rule, name: str) -> None:
    """The drawing in the docstring is the table that the code makes for four modules of three layers."""
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(12)])
    table = rule.credit(lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 4))
    assert str(table) in (inspect.getdoc(getattr(methods, name)) or "").replace("    ", "")


def test_the_battery_sees_all_methods() -> None:
    assert {method.__name__ for method in METHODS} == {name for name in lp.__all__ if hasattr(methods, name)} - {
        "Rule"
    } & {name for name in dir(methods) if name.islower()}
