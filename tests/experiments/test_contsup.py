"""ContSup's recipes."""

from __future__ import annotations

import localprop as lp
from localprop import experiments
from tests.helpers.recipes import parse_recipe_rule


def test_balanced_rows_have_no_decoder() -> None:
    names = [name for name in experiments.names("contsup") if "balanced" in name]
    assert len(names) == 6
    assert {type(parse_recipe_rule(name).loss) for name in names} == {lp.ContrastiveLoss}
    assert all(("resnet32" in name) == bool(experiments.find(name).readings) for name in names)
