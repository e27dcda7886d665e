"""Methods of a comparison, and their labels."""

from __future__ import annotations

import pytest

from localprop.errors import BadInput
from localprop.report.method_spec import MethodSpec, parse_methods


def test_an_expression_may_have_a_label_or_recompute() -> None:
    assert MethodSpec.parse("greedy()") == MethodSpec("greedy()", "greedy()", recompute=False)
    assert MethodSpec.parse("end_to_end() with recompute").recompute is True
    assert MethodSpec.parse("end_to_end() with recompute=2").recompute == 2
    named = MethodSpec.parse("mine: greedy() with recompute=blocks.1,blocks.2")
    assert named == MethodSpec("mine", "greedy()", recompute="blocks.1,blocks.2")
    assert MethodSpec.parse("a b: Rule()").label == "a b"


def test_no_method_is_bad_input() -> None:
    with pytest.raises(BadInput, match="No method"):
        parse_methods([" "])


def test_options_stand_behind_the_expression() -> None:
    spec = MethodSpec.parse("fast one: greedy() with recompute=2 with fast")
    assert spec.options == {"recompute": 2, "offload": False, "fast": True}
    assert (spec.label, spec.method) == ("fast one", "greedy()")
    assert MethodSpec.parse("greedy() with offload").offload


def test_a_method_may_have_a_precision_of_its_own() -> None:
    spec = MethodSpec.parse("greedy() with bf16 with fast")
    assert (spec.method, spec.options["precision"], spec.options["fast"]) == (
        "greedy()",
        "bf16",
        True,
    )
    assert "precision" not in MethodSpec.parse("greedy() with fast").options
