"""ContSup's recipes."""

from __future__ import annotations

import localprop as lp
from localprop import recipes
from tests.helpers.recipes import parse_recipe_rule


def test_balanced_rows_have_no_decoder() -> None:
    names = [name for name in recipes.names("contsup") if "balanced" in name]
    assert len(names) == 6
    assert {type(parse_recipe_rule(name).loss) for name in names} == {lp.ContrastiveLoss}
    assert all(("resnet32" in name) == bool(recipes.find(name).readings) for name in names)
