"""ContSup: the encoders of its contexts, against the official code and the paper."""

from __future__ import annotations

import pytest
import torch

import localprop as lp
from tests.helpers.cifar_resnets import build_wiring, count_mmacs, count_parameters, find_layers

ENCODERS = [  # modules, E, R1 and R1E: an R1 encoder of the image itself is left out of R1E
    (2, 3_912, 192, 3_912),
    (4, 13_512, 2_944, 13_512 + 2_944 - 96),
    (8, 29_160, 8_960, 29_160 + 8_960 - 96),
    (16, 62_232, 21_808, 62_232 + 21_808 - 96),
]


@pytest.mark.parametrize(("modules", "raw", "previous", "both"), ENCODERS)
def test_encoder_parameters(modules: int, raw: int, previous: int, both: int) -> None:
    rules = [lp.contsup(True, 0), lp.contsup(False, 1), lp.contsup(True, 1)]
    counts = [count_parameters(build_wiring(32, rule, modules).encoders) for rule in rules]
    assert counts == [raw, previous, both]


INFERENCE = [  # network, modules, image, previous, MMACs of the deployed network
    (32, 2, True, 0, 73.0),
    (32, 2, False, 1, 69.2),
    (32, 4, True, 0, 82.5),
    (32, 4, False, 1, 70.2),
    (32, 4, True, 1, 83.6),
    (32, 8, True, 0, 98.0),
    (32, 8, False, 1, 71.3),
    (32, 8, True, 1, 100.1),
    (32, 16, True, 0, 130.7),
    (32, 16, False, 1, 73.4),
    (32, 16, True, 1, 134.9),
    (32, 16, False, 2, 77.9),
    (32, 16, False, 4, 87.7),
    (32, 16, False, 8, 108.7),
    (32, 16, False, 16, 130.2),
    (110, 16, True, 1, 318.9),
]


@pytest.mark.parametrize(("network", "modules", "image", "previous", "expected"), INFERENCE)
def test_inference_costs_of_context(
    network: int, modules: int, image: bool, previous: int, expected: float
) -> None:
    """In every case here, the uniform partition is the published one."""
    with torch.device("meta"):
        model = lp.models.cifar_resnet(network)
        learner = lp.Learner(
            model,
            lp.contsup(image, previous),
            partition=lp.Partition.uniform(find_layers(network), modules),
            optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
            sample=torch.zeros(2, 3, 32, 32),
        )
    assert count_mmacs(learner.network, (3, 32, 32)) == pytest.approx(expected, abs=0.06)
