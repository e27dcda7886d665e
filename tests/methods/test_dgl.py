"""DGL's auxiliary network "MLP-SR", counted by hand from the official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.points import build_head, count_parameters, list_leaf_types, make_point


@pytest.mark.parametrize(
    ("head", "features", "expected"),
    [
        # 3 (16^2 + 2*16) convolutions, 3 (64^2 + 64 + 2*64) hidden, 64*10 + 10
        (lp.MlpSrHead(), (16, 32, 32), 864 + 12_864 + 650),
        (lp.MlpSrHead(linears=2, bias=False), (16, 32, 32), 864 + 8_448 + 650),
        (lp.MlpSrHead(convs=1, linears=0), (16, 8, 8), 288 + 650),
        # a quarter of 4 is one pixel
        (lp.MlpSrHead(), (16, 4, 4), 864 + 3 * (16 * 16 + 3 * 16) + 170),
        # MAN++: 16->128->128->128, pooled to one pixel, 128->512->512->512->10
        (
            lp.MlpSrHead(size=8, width=128, pooled=1, hidden=512),
            (16, 32, 32),
            16 * 128 + 2 * 128**2 + 3 * 256 + 128 * 512 + 2 * 512**2 + 3 * 512 * 3 + 5_130,
        ),
        (lp.MlpSrHead(), (16,), 3 * (16 * 16 + 3 * 16) + 170),  # no maps: no convolutions
    ],
    ids=str,
)
def test_mlp_sr_parameters(head: lp.MlpSrHead, features: tuple[int, ...], expected: int) -> None:
    built = head(make_point(*features))
    assert count_parameters(built) == expected
    assert built(torch.zeros(2, *features)).shape == (2, 10)


def test_mlp_sr_pools_to_a_quarter_rounded_up() -> None:
    head = lp.MlpSrHead()(make_point(4, 9, 30))
    pools = [module for module in head.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    assert [pool.output_size for pool in pools] == [(3, 8), (2, 2)]


def _list_linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def test_dgl_draws_its_linear_layers_from_narrow_normal_distributions() -> None:
    torch.manual_seed(0)
    linears = _list_linears(lp.dgl().aux(make_point(64, 32, 32)))
    deviations = [linear.weight.std().item() for linear in linears]
    assert deviations == pytest.approx([0.01] * 4, rel=0.05)
    assert not any(linear.bias.any() for linear in linears)
    plain = _list_linears(lp.MlpSrHead()(make_point(16, 32, 32)))
    assert all(linear.bias.any() for linear in plain)


def test_mlp_sr_of_tokens_normalises_each() -> None:
    head = build_head(lp.MlpSrHead(), make_point(5, 16, outputs=(5, 10)))
    assert "LayerNorm" in list_leaf_types(head)
    assert "BatchNorm1d" not in list_leaf_types(head)
    assert head(torch.zeros(2, 5, 16)).shape == (2, 5, 10)


def test_the_cnn_head_of_dgls_study_is_not_conv_head() -> None:
    """As docs/left_out.md says."""
    cnn = nn.Sequential(
        nn.Conv2d(128, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.BatchNorm2d(128),
        nn.Flatten(),
        nn.Linear(4 * 128, 10),
    )
    nearest = lp.ConvHead((128, 128))(make_point(128, 16, 16))
    counts = count_parameters(cnn), count_parameters(nearest)
    assert counts == (300_810, 296_970)
    page = (Path(__file__).parents[2] / "docs" / "left_out.md").read_text()
    (row,) = [line for line in page.splitlines() if "DGL's study of auxiliary networks" in line]
    assert all(f"{count:,} parameters" in row for count in counts)


def test_bad_values_are_refused_together() -> None:
    with pytest.raises(BadInput, match=r"(?s)convs.*pooled.*std"):
        lp.MlpSrHead(convs=-1, pooled=0, std=-0.1)
