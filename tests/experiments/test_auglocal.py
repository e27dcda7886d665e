"""AugLocal's recipes."""

from __future__ import annotations

from dataclasses import replace

from localprop import experiments
from localprop.experiments.blank_data import make_blank_dataset
from localprop.training.build import build


def test_resnet32_has_thirteen_heads_and_a_tail_of_three_layers() -> None:
    config = experiments.find("resnet32_cifar10_auglocal_d2").config
    config = replace(config, batch_size=2, device="cpu")
    learner = build(config, make_blank_dataset(config))
    heads_with_parameters = [head for head in learner.heads.values() if [*head.parameters()]]
    assert learner.wiring.table.effective_modules == 14
    assert len(heads_with_parameters) == 13
    assert learner.wiring.table.reach(15) == 3
