"""Configs: all problems at once; methods read from text, hostile text among it."""

from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import localprop as lp
from localprop.data import Batches, Options
from localprop.errors import BadInput
from localprop.rule.auxiliary import Normalised
from localprop.step.wiring import wire
from localprop.training.config import Config, accepted_types, build, device_of, load_data, prepared
from localprop.training.expression import methods, parts, rule_of

# methods from text


@pytest.mark.parametrize("name", list(methods()))
def test_every_method_is_read_by_name_call_and_repr(name: str) -> None:
    rule = getattr(lp, name)()
    assert rule_of(name) == rule_of(f"{name}()") == rule_of(f" lp.{name}( ) ") == rule_of(repr(rule)) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("backlink(layers=2, weight=0.5)", lp.backlink(layers=2, weight=0.5)),
        ("backlink(2, 1, aux=Head(0, linears=1))", lp.backlink(2, 1, aux=lp.Head(0, linears=1))),
        ("greedy(aux=Head)", lp.greedy(aux=lp.Head())),
        ("greedy(aux=lp.SampledLayers(depth=3))", lp.greedy(aux=lp.SampledLayers(depth=3))),
        ("contsup(input=False, previous=4)", lp.contsup(input=False, previous=4)),
        ("Rule(credit=BackwardLinks(layers=1))", lp.Rule(lp.BackwardLinks(layers=1))),
        (
            "Rule(Own(), loss=CrossEntropy(0.1), context=ContextSupply(encoder=ConvEncoder(hidden=4)))",
            lp.Rule(loss=lp.CrossEntropy(0.1), context=lp.ContextSupply(encoder=lp.ConvEncoder(hidden=4))),
        ),
    ],
)
def test_expressions(text: str, rule: lp.Rule) -> None:
    assert rule_of(text) == rule
    assert rule_of(repr(rule)) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backlnk()", ["did you mean backlink?", *methods()]),
        ("greedy(aux=Hed())", ["did you mean Head?", "SampledLayers"]),
        ("backlink(layer=2)", ["no argument 'layer'", "did you mean layers?", "It has layers, weight, "]),
        ("greedy(Head(), 4)", ["is given 2 arguments, but has 1"]),
        ("backlink(1, layers=2)", ["layers twice"]),
        ("backlink(layers=2, layers=2)", ["layers twice"]),
        ("backlink(layers=1.5)", ["layers must be a whole number"]),
        ("backlink(layers=True)", ["layers must be a whole number"]),
        ("backlink(weight='heavy')", ["weight must be a number"]),
        ("contsup(input=1)", ["input must be True or False"]),
        ("greedy(aux=3)", ["aux must be a part such as Head()"]),
        ("greedy(aux=CrossEntropy())", ["aux must be a part such as Head()"]),
        ("greedy(aux=greedy())", ["aux must be a part such as Head()"]),
        ("Rule(credit=Head())", ["credit must be a part such as Own()"]),
        ("Rule(context=ConvEncoder())", ["context must be a part such as ContextSupply()"]),
        ("Rule(reference=1)", ["reference must be a text"]),
        ("Head()", ["makes a Head, but a rule is needed"]),
        ("3", ["makes a int, but a rule is needed"]),
        ("backlink(layers=-1)", ["layers=-1 must be 0 or more layers"]),
        ("backlink(weight=1e999)", ["positive and finite"]),
        ("backlink(", ["cannot be read"]),
        ("", ["cannot be read"]),
        ("a; b", ["cannot be read"]),
    ],
)
def test_what_is_wrong_is_said(text: str, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        rule_of(text)
    for word in words:
        assert word in str(caught.value)


def test_all_problems_of_an_expression_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        rule_of("backlink(layer=2, weight='a', aux=Head(convs=-1, linears=0))")
    assert len(caught.value.problems) == 4


def hostile(file: Path) -> list[str]:
    return [
        f"__import__('pathlib').Path({str(file)!r}).touch()",
        f"greedy(aux=open({str(file)!r}, 'w'))",
        f"greedy(aux=(lambda: open({str(file)!r}, 'w'))())",
        f"[open({str(file)!r}, 'w') for _ in [0]]",
        f"lp.data.open({str(file)!r}, 'w')",
        f"lp.__builtins__['open']({str(file)!r}, 'w')",
        f"(x := open)({str(file)!r}, 'w')",
    ]


def test_hostile_text_is_never_run(tmp_path: Path) -> None:
    for text in hostile(tmp_path / "made"):
        with pytest.raises(BadInput):
            rule_of(text)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "().__class__.__base__.__subclasses__()",
        "lp.models.create_model('resnet8', 10, (3, 8, 8))",
        "Learner()",
        "BadInput('x')",
        "models",
        "greedy.__globals__",
        "greedy()()",
        "greedy(**{'aux': 1})",
        "greedy(*[1])",
        "backlink(layers=2**99999999)",
        "backlink(layers=" + "9" * 5000 + ")",
        "greedy(aux=" * 150 + ")" * 150,
        "(" * 1000,
        "-" * 1900 + "1",
        "greedy(" * 100_000,
        "greedy\0()",
        "1()",
        "'\\d'()",
        "f'{greedy()}'",
        "...",
        "None",
        "1 if 1 else 2",
        "\ud800()",
    ],
)
def test_odd_text_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        rule_of(text)
    assert len(str(caught.value)) < 1000


@given(st.text(max_size=60) | st.from_regex(r"(backlink|greedy|Rule)\((layers|aux|credit)=[\w(),.=' -]{0,30}\)"))
def test_any_text_is_a_rule_or_bad_input(text: str) -> None:
    with suppress(BadInput):
        assert isinstance(rule_of(text), lp.Rule)


def test_parts_are_parts_of_rules() -> None:
    assert {"Rule", "Head", "BackwardLinks", "ContextSupply", "CrossEntropy"} <= parts().keys()
    assert not {"Site", "CreditTable", "Learner", "Batch"} & parts().keys()


# values


def test_defaults_are_sound() -> None:
    assert Config().problems() == []
    assert accepted_types().keys() == {field.name for field in fields(Config)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("microbatches", 65),
        ("modules", 0),
        ("lr", float("nan")),
        ("lr", 0.0),
        ("lr", "0.1"),
        ("momentum", 1.0),
        ("momentum", 0.0),
        ("weight_decay", -1.0),
        ("lr_schedule", "step"),
        ("warmup_epochs", 20),
        ("warmup_epochs", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", True),
        ("device", "toaster"),
        ("device", "meta"),
        ("precision", "fp16"),
        ("method", "nothing"),
        ("method", None),
        ("recompute", 1),
        ("epochs", None),
        ("optimizer", "adagrad"),
        ("clip_norm", 0.0),
        ("label_smoothing", 1.0),
        ("milestones", (3,)),
        ("milestones", [3]),
        ("milestones", (0.5,)),
        ("lr_factor", 0.0),
        ("cuts", (3, 1)),
        ("cuts", (-1,)),
        ("mean", "0.5"),
        ("phases", "greedy for two"),
    ],
)
def test_each_bad_value_is_one_problem(name: str, value: object) -> None:
    problems = Config(**{name: value}).problems()  # type: ignore[arg-type]
    assert len(problems) == 1
    assert name in problems[0] or "nothing" in problems[0] or name == "phases"


def test_all_problems_at_once() -> None:
    bad = Config(model="nope", epochs=0, lr="x", method="nope", device="nope", limit=0)  # type: ignore[arg-type]
    with pytest.raises(BadInput) as caught:
        prepared(bad)
    assert len(caught.value.problems) == 5  # without data, the model cannot be looked at
    with pytest.raises(BadInput, match="no model 'nope'"):
        build(Config(model="nope", epochs=0), load_data(Config()))


def test_one_epoch_of_a_cosine_is_refused_and_of_a_constant_is_not() -> None:
    assert "0: use 2 or more" in Config(epochs=1).problems()[0]
    assert Config(epochs=1, lr_schedule="constant").problems() == []


def test_a_last_batch_too_small_for_the_microbatches_is_refused() -> None:
    dataset = load_data(Config(limit=66))
    with pytest.raises(BadInput, match="has 2 of the 66"):
        build(Config(model="mlp", microbatches=4), dataset)


@pytest.mark.parametrize("model", ["mlp:100000000000000", "resnet20"])
def test_what_does_not_fit_is_bad_input(model: str) -> None:
    method = "greedy(aux=Head(hidden=1000000000000))"
    with pytest.raises(BadInput, match="choose smaller sizes"):
        build(Config(model=model, method=method), load_data(Config()))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    dataset = load_data(Config())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = build(Config(model="mlp:8"), dataset)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    two, three = build(Config(model="mlp:8"), dataset), build(Config(model="mlp:8", seed=1), dataset)
    assert torch.equal(next(one.parameters()), next(two.parameters()))
    assert not torch.equal(next(one.parameters()), next(three.parameters()))


def test_the_learner_is_that_of_the_config() -> None:
    dataset, learner = prepared(Config(model="resnet8", modules=2, weight_decay=0.5, lr=0.25, microbatches=2))
    assert len(learner.partition.modules) == 2
    group = learner.optimizers[0].param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.25, 0.9, True, 0.5)
    assert len(build(Config(model="resnet8"), dataset).partition.modules) == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"optimizer": "adam", "momentum": 0.5}, "adam has none"),
        ({"lr_schedule": "multistep"}, "give one or more"),
        ({"lr_schedule": "multistep", "milestones": (5, 20)}, "between 1 and 19"),
        ({"lr_schedule": "multistep", "milestones": (5, 5)}, "increase"),
        ({"cuts": (0, 2), "modules": 2}, "make 3"),
    ],
)
def test_values_that_do_not_fit_each_other(values: dict[str, Any], told: str) -> None:
    (problem,) = Config(**values).problems()
    assert told in problem


def test_values_that_fit() -> None:
    multistep = {"lr_schedule": "multistep", "milestones": (5, 19), "cuts": (0, 2), "modules": 3}
    assert Config(optimizer="adamw", clip_norm=1, mean=(1, 0.5), std=(1.0,), **multistep).problems() == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers(name: str, kind: type) -> None:
    _, learner = prepared(Config(model="mlp", optimizer=name, lr=0.25, weight_decay=0.5))
    assert {type(optimizer) for optimizer in learner.optimizers} == {kind}
    group = learner.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)


def test_gradients_are_clipped_for_each_optimizer() -> None:
    sgd: dict[str, Any] = {"model": "mlp:8", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "lr": 1.0}
    moves = []
    for clip in (None, 0.01):
        dataset, learner = prepared(Config(**sgd, clip_norm=clip))
        groups = [optimizer.param_groups[0]["params"] for optimizer in learner.optimizers]
        before = [[p.detach().clone() for p in group] for group in groups]
        learner.step(next(iter(Batches(dataset, "train", 64))))
        moves.append(
            [[p - old for p, old in zip(group, olds, strict=True)] for group, olds in zip(groups, before, strict=True)]
        )
    for free, clipped in zip(*moves, strict=True):
        norm = torch.cat([move.flatten() for move in free]).norm()
        assert norm > 0.02
        for long, short in zip(free, clipped, strict=True):
            torch.testing.assert_close(short, long * (0.01 / norm), rtol=1e-3, atol=1e-6)


def test_cuts_are_numbers_of_last_layers() -> None:
    _, learner = prepared(Config(model="resnet8", cuts=(0, 2)))
    assert learner.partition.modules == (range(0, 1), range(1, 3), range(3, 4))
    with pytest.raises(BadInput, match="must increase and lie between"):
        prepared(Config(model="resnet8", cuts=(3,)))


def test_label_smoothing_is_the_tasks() -> None:
    _, learner = prepared(Config(model="mlp", label_smoothing=0.3, method="greedy()"))
    assert [learner.wiring.heads[k]["loss"].label_smoothing for k in learner.wiring.heads][-1] == 0.3  # type: ignore[index]
    assert learner.wiring.heads["0"]["loss"].label_smoothing == 0  # type: ignore[index]
    assert learner.wiring.task.label_smoothing == 0.3


def test_losses_that_look_at_pixels_are_told_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = []
    monkeypatch.setattr(
        lp.learner, "wire", lambda *args, **kwargs: noted.append(kwargs["normalised"]) or wire(*args, **kwargs)
    )
    dataset = load_data(Config(mean=(0.25,), std=(0.5,)))
    build(Config(model="mlp"), dataset)
    assert noted == [Normalised((0.25,), (0.5,))]
    text = Config(model="transformer:width=8,blocks=1", data="text", context=8, limit=64)
    prepared(text)
    assert noted[1:] == [None]


def test_data_options_are_fields_of_a_config() -> None:
    shared = {field.name: field.default for field in fields(Options)}
    assert shared == {name: getattr(Config(), name) for name in shared}


def test_what_the_data_refuse_is_told_with_the_rest() -> None:
    with pytest.raises(BadInput) as caught:
        prepared(Config(model="nope", augment="cutout", limit=66, microbatches=4))
    assert len(caught.value.problems) == 3
    assert all(word in str(caught.value) for word in ("cutout=16", "'nope'", "last batch"))


@pytest.mark.parametrize("model", ["mlp", "mlp:8", "resnet8"])
def test_tokens_are_for_language_models(model: str) -> None:
    with pytest.raises(BadInput, match=f"{model} takes images, not tokens: use transformer"):
        prepared(Config(model=model, data="text", limit=64, epochs=2))


def test_devices() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert (device_of("auto").type == "cpu") == (not torch.accelerator.is_available())
    with pytest.raises(BadInput, match="this machine has cpu"):
        device_of("cuda:99")
