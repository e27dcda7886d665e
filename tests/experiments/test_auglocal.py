"""AugLocal's recipes."""

from __future__ import annotations

from dataclasses import replace

import pytest

import localprop as lp
from localprop import experiments
from localprop.experiments.blank_data import make_blank_dataset
from localprop.training.build import build
from tests.helpers.recipes import parse_recipe_rule


def test_resnet32_has_thirteen_heads_and_a_tail_of_three_layers() -> None:
    config = experiments.find("resnet32_cifar10_auglocal_d2").config
    config = replace(config, batch_size=2, device="cpu")
    learner = build(config, make_blank_dataset(config))
    heads_with_parameters = [head for head in learner.heads.values() if [*head.parameters()]]
    assert learner.wiring.table.effective_modules == 14
    assert len(heads_with_parameters) == 13
    assert learner.wiring.table.reach(15) == 3


@pytest.mark.parametrize("network", ["resnet32", "resnet110"])
def test_the_predsim_baseline_starts_with_the_weights_of_auglocals_code(network: str) -> None:
    (name,) = experiments.names(f"{network}_stl10_auglocal_baseline_predsim")
    rule = parse_recipe_rule(name)
    assert rule.aux == lp.PooledHead(features=512, zeros=False)
    similarity, task = lp.SimilarityLoss(redraw=True), lp.CrossEntropy()
    assert rule.loss == lp.Terms((lp.Term(similarity, 0.99), lp.Term(task, 0.01)))
