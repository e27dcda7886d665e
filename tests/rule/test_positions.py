"""Heads of networks with an output for each position."""

from __future__ import annotations

import torch
from torch import nn

import localprop as lp
from tests.helpers.reference import sgd


def test_heads_whose_convolutions_halve_the_map() -> None:
    """The usual head halves the map where the network grows wider; its output is brought back."""
    blocks = [
        nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())
        for inputs, outputs, stride in ((3, 8, 1), (8, 16, 2), (16, 32, 2), (32, 32, 1))
    ]
    model = nn.Sequential(*blocks, nn.Upsample(scale_factor=4), nn.Conv2d(32, 4, 1))
    batch = torch.randn(2, 3, 16, 16), torch.randint(4, (2, 16, 16))
    learner = lp.Learner(
        model, lp.greedy(), modules=4, optimizer=sgd, sample=batch, task=lp.Segmentation()
    )
    for k, size in enumerate((16, 8, 4)):
        channels = 8 * 2**k
        features = torch.randn(2, channels, size, size)
        assert learner.heads[str(k)]["aux"](features).shape == (2, 4, 16, 16)  # type: ignore[index]
    larger = torch.randn(2, 3, 24, 20), torch.randint(4, (2, 24, 20))
    assert len(learner.step(larger)) == 4
