"""Methods read from text: names, arguments, hostile text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import localprop as lp
from localprop.errors import BadInput
from localprop.methods.names import find_methods, find_parts
from localprop.methods.parse import parse_rule


@pytest.mark.parametrize("name", list(find_methods()))
def test_every_method_is_read_by_name_call_and_repr(name: str) -> None:
    rule = getattr(lp, name)()
    assert (
        parse_rule(name)
        == parse_rule(f"{name}()")
        == parse_rule(f" lp.{name}( ) ")
        == parse_rule(repr(rule))
        == rule
    )


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
            "Rule(LocalCredit(), loss=CrossEntropy(0.1), "
            "context=ContextSupply(encoder=ConvEncoder(hidden=4)))",
            lp.Rule(
                loss=lp.CrossEntropy(0.1),
                context=lp.ContextSupply(encoder=lp.ConvEncoder(hidden=4)),
            ),
        ),
    ],
)
def test_expressions_are_read(text: str, rule: lp.Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(repr(rule)) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backlnk()", ["did you mean backlink?", *find_methods()]),
        ("greedy(aux=Hed())", ["did you mean Head or NoHead?", "SampledLayers"]),
        (
            "backlink(layer=2)",
            ["no argument 'layer'", "did you mean layers?", "It has layers, weight, "],
        ),
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
        ("Rule(credit=Head())", ["credit must be a part such as LocalCredit()"]),
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
def test_problems_of_an_expression_are_named(text: str, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        parse_rule(text)
    for word in words:
        assert word in str(caught.value)


def test_all_problems_of_an_expression_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        parse_rule("backlink(layer=2, weight='a', aux=Head(convs=-1, linears=0))")
    assert len(caught.value.problems) == 4


def hostile_texts(file: Path) -> list[str]:
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
    for text in hostile_texts(tmp_path / "made"):
        with pytest.raises(BadInput):
            parse_rule(text)
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
        parse_rule(text)
    assert len(str(caught.value)) < 1000


@given(
    st.text(max_size=60)
    | st.from_regex(r"(backlink|greedy|Rule)\((layers|aux|credit)=[\w(),.=' -]{0,30}\)")
)
def test_any_text_is_a_rule_or_bad_input(text: str) -> None:
    with suppress(BadInput):
        assert isinstance(parse_rule(text), lp.Rule)


def test_the_parts_of_rules_are_found() -> None:
    assert {"Rule", "Head", "BackwardLinks", "ContextSupply", "CrossEntropy"} <= find_parts().keys()
    assert not {"AttachPoint", "CreditTable", "Learner", "Batch"} & find_parts().keys()
