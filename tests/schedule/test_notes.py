"""Notes: said if and only if another value of an argument trains to the same bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.methods.names import find_methods, find_parts
from tests.helpers.layers import cut_once
from tests.helpers.reference import sgd

pytestmark = pytest.mark.xdist_group("notes")  # one process finds what several tests read

# They act in every 50th step only, after the three steps of these tests.
LATER = {("KineticPenalty", "growth")}
Change = Callable[[Any], lp.Rule]


def make_mlp() -> nn.Module:
    return nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)], nn.Linear(6, 3))


# A network, the shape of its inputs, its classes and its modules.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "mlp": (make_mlp, (6,), 3, 5),
    "resnet8": (lp.models.resnet8, (3, 8, 8), 10, 4),
    "one module": (make_mlp, (6,), 3, 1),
}


@dataclass
class Argument:
    """An argument of a part in a rule, and what makes the rule with another value of it."""

    owner: Any
    field: Field[Any]
    change: Change

    @property
    def value(self) -> Any:
        return getattr(self.owner, self.field.name)

    @property
    def key(self) -> tuple[str, str]:
        return type(self.owner).__name__, self.field.name


def list_arguments(part: Any, change: Change) -> Iterator[Argument]:
    """The arguments of a part and of all parts inside."""
    if isinstance(part, tuple):
        for i, member in enumerate(part):

            def change_member(other: object, i: int = i) -> lp.Rule:
                return change((*part[:i], other, *part[i + 1 :]))

            yield from list_arguments(member, change_member)
    elif is_dataclass(part):
        for field in fields(part):

            def change_field(other: object, name: str = field.name) -> lp.Rule:
                return change(replace(part, **{name: other}))  # type: ignore[type-var]

            yield Argument(part, field, change_field)
            yield from list_arguments(getattr(part, field.name), change_field)


def vary(value: object) -> Any:
    """Another value than this one, or None for texts and parts."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return (value / 2 or 0.25) if isinstance(value, float) else None


def list_rules() -> Iterator[lp.Rule]:
    """The methods with their defaults, and a rule with each part that can stand in a role alone."""
    for method in find_methods().values():
        yield method()
    for part in find_parts().values():
        signature = inspect.signature(part.__call__)  # type: ignore[operator]
        role = {
            ("CreditTable", 2): "credit",
            ("nn.Module", 2): "aux",
            ("LocalLoss", 2): "loss",
            ("LocalLoss", 3): "penalty",
        }.get((signature.return_annotation, len(signature.parameters)))
        if role:
            yield lp.Rule(**{role: part()})


def make_learner(name: str, rule: lp.Rule) -> lp.Learner:
    make_model, shape, classes, modules = NETWORKS[name]
    torch.manual_seed(0)
    model, sample = make_model(), (torch.rand(6, *shape), torch.arange(6) % classes)
    return lp.Learner(
        model,
        rule,
        partition=cut_once(model, sample, modules),
        optimizer=sgd,
        sample=sample,
        normalization=lp.Normalization(),
    )


def train(name: str, rule: lp.Rule) -> tuple[dict[str, Tensor], lp.Learner]:
    """All that three steps train."""
    learner = make_learner(name, rule)
    _, shape, classes, _ = NETWORKS[name]
    for seed in range(3):
        torch.manual_seed(seed)
        learner.step((torch.rand(6, *shape), torch.randint(classes, (6,))))
    return {name: p.detach() for name, p in learner.named_parameters()}, learner


def is_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def find_mistakes(name: str, rule: lp.Rule, seen: set[tuple[str, str]]) -> Iterator[str]:
    """Compare the notes on each argument, one at a time, with what training says."""
    changes = [
        (argument, other)
        for argument in list_arguments(rule, lambda changed: changed)
        if (other := vary(argument.value)) is not None
        and other != argument.field.default
        and argument.key not in seen | LATER
    ]
    if not changes:
        return
    try:
        trained, _ = train(name, rule)
    except (lp.BadInput, lp.StepFailed):
        return  # the rule does not fit this network
    for argument, other in changes:
        if argument.key in seen:  # a part may stand in a rule twice
            continue
        seen.add(argument.key)
        try:
            now_trained, learner = train(name, argument.change(other))
        except (lp.BadInput, lp.StepFailed):
            continue
        owner, field = argument.key
        # The note may say that the whole part has no effect.
        said = [
            note
            for note in learner.notes
            if note.startswith(f"{owner}({field}={other!r})")
            or (note.startswith("Rule(") and f"{field}={other!r}" in note)
        ]
        if bool(said) != is_equal(trained, now_trained):
            yield f"{owner}({field}={argument.value!r}) -> {other!r}: {said or learner.notes}"


@cache
def find_all_mistakes(name: str) -> tuple[list[str], set[tuple[str, str]]]:
    """The mistakes on a network, and the arguments that were tried."""
    seen = set[tuple[str, str]]()
    return [mistake for rule in list_rules() for mistake in find_mistakes(name, rule, seen)], seen


@pytest.mark.parametrize("name", NETWORKS)
def test_a_note_is_there_if_and_only_if_training_is_the_same(name: str) -> None:
    assert find_all_mistakes(name)[0] == []


def test_all_numbers_and_switches_of_all_parts_are_tried() -> None:
    arguments = {
        (part, field.name)
        for part, make in find_parts().items()
        for field in fields(make)  # type: ignore[arg-type]
        if vary(field.default) is not None
    }
    tried = set[tuple[str, str]]().union(*(find_all_mistakes(name)[1] for name in NETWORKS))
    assert arguments - tried == LATER


NO_MAPS = "the features of modules 0-3 are no maps"
ONE_LAYER = "modules 0-3 have 1 layer each"


@pytest.mark.parametrize(
    ("name", "rule", "note"),
    [
        ("mlp", lp.backlink(), ""),
        ("mlp", lp.backlink(layers=3), f"BackwardLinks(layers=3) = layers=1: {ONE_LAYER}"),
        ("mlp", lp.interlocking(wise=5), ""),
        ("mlp", lp.interlocking(wise=99), "InterlockingCredit(wise=99) = wise=5"),
        ("mlp", lp.greedy(lp.Head(convs=3)), f"Head(convs=3) has no effect: {NO_MAPS}"),
        ("mlp", lp.greedy(lp.Head(convs=0)), f"Head(convs=0) has no effect: {NO_MAPS}"),
        ("resnet8", lp.greedy(lp.Head(convs=3)), ""),
        ("resnet8", lp.contsup(previous=9), "ContextSupply(previous=9) = previous=2"),
        (
            "resnet8",
            lp.Rule(aux=lp.Head(convs=3), loss=lp.SimilarityLoss()),
            "Head(convs=3) has no effect",
        ),
        ("resnet8", lp.Rule(aux=lp.NoHead(), loss=lp.SimilarityLoss()), ""),
        (
            "resnet8",
            lp.gn_dgl(diversity=0.0, temperature=2.0),
            "GroupCrossEntropy(temperature=2.0) = temperature=3.0",
        ),
        (
            "resnet8",
            lp.greedy(lp.OneConvHead(pools=(4, 4, 4, 9))),
            "OneConvHead(pools=(4, 4, 4, 9)) = pools=(4,)",
        ),
        ("one module", lp.greedy(lp.ConvHead()), f"Rule(aux={lp.ConvHead()}) = aux={lp.Head()}"),
        ("one module", lp.end_to_end(), ""),
    ],
)
def test_the_words(name: str, rule: lp.Rule, note: str) -> None:
    notes = make_learner(name, rule).notes
    short = [n.replace(" is the same as", " =").replace(" on this network", "") for n in notes]
    assert short == ([f"{note}."] if note else [])


def test_a_link_that_some_modules_cut_off() -> None:
    learner = make_learner("mlp", lp.end_to_end())
    partition = lp.Partition.at(learner.partition.layers, [1, 2])
    (note,) = lp.find_notes(lp.backlink(layers=2), partition)
    assert note == "BackwardLinks(layers=2) is capped on this network: module 1 has 1 layer."
    assert lp.find_notes(lp.backlink(layers=2, cross_modules=True), partition) == ()


def test_a_part_of_the_user_may_raise_anything() -> None:
    @dataclass(frozen=True)
    class Fragile:
        size: int = 1

        def __call__(self, point: lp.AttachPoint) -> nn.Module:
            return nn.Linear(6, {1: 3, 5: 3}[self.size])

    assert make_learner("mlp", lp.greedy(Fragile(size=5))).notes == ()


def test_notes_leave_the_random_state_and_the_network_alone() -> None:
    learner = make_learner("resnet8", lp.contsup(previous=9, aux=lp.ConvHead()))
    state, before = torch.get_rng_state(), {n: p.clone() for n, p in learner.named_parameters()}
    assert learner.notes
    assert torch.equal(torch.get_rng_state(), state)
    assert is_equal(before, dict(learner.named_parameters()))
