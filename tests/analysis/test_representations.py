"""CKA by hand, by a second formula, and its invariances."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.analysis.representations import estimate_hsic
from tests.helpers.reference import sgd


def estimate_plainly(x: Tensor, y: Tensor) -> float:
    """HSIC without bias, as Nguyen et al. write it, with traces and ones."""
    k, l = (each.flatten(1).double().numpy() for each in (x, y))
    k, l = k @ k.T, l @ l.T
    numpy.fill_diagonal(k, 0)
    numpy.fill_diagonal(l, 0)
    n, ones = len(k), numpy.ones(len(k))
    trace = numpy.trace(k @ l)
    product = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((trace + product - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3)))


def find_cka(x: Tensor, y: Tensor) -> float:
    products = estimate_hsic([x, y])
    return float(products[0, 1] / (products[0, 0] * products[1, 1]).sqrt())


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_by_hand() -> None:
    """x = 1, -1, 1, -1 has products of 1 and -1, of which each row has the sum -1 off its diagonal.

    The trace of K K is 12; 1ᵀK1 = -4 gives 16/6; 1ᵀKK1 = 4, times 2/2. So 12 + 8/3 - 4, over 4 * 1.
    """
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert float(estimate_hsic([x])) == pytest.approx((12 + 8 / 3 - 4) / 4, rel=1e-12)


@pytest.mark.parametrize("samples", [4, 5, 32])
def test_as_a_second_formula_has_it(samples: int) -> None:
    x, y = draw(0, samples, 6), draw(1, samples, 2, 3) + 5
    found = estimate_hsic([x, y])
    for row, one in enumerate((x, y)):
        for column, other in enumerate((x, y)):
            assert float(found[row, column]) == pytest.approx(
                estimate_plainly(one, other), rel=1e-9, abs=1e-9
            )


def test_what_cka_does_not_see_and_what_it_sees() -> None:
    x, other = draw(0, 40, 5), draw(1, 40, 7)
    rotation, _ = torch.linalg.qr(draw(2, 5, 5))
    assert find_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert find_cka(x, 3 * x @ rotation + 2) == pytest.approx(1, abs=1e-9)
    assert find_cka(x, other) == pytest.approx(find_cka(-0.1 * x @ rotation, other), abs=1e-9)
    stretched = x * torch.tensor([100.0, 1, 1, 1, 1])
    assert find_cka(x, stretched) < 0.8


def test_unrelated_features_have_none_on_average() -> None:
    """The biased estimate would be above 0.9 here: 8 samples of 200 numbers."""
    found = [find_cka(draw(seed, 8, 200), draw(1000 + seed, 8, 200)) for seed in range(60)]
    assert abs(sum(found) / 60) < 0.05
    assert min(found) < 0 < max(found)


def make_learner(*widths: int, seed: int = 0) -> lp.Learner:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((6, *widths), (*widths, 3), strict=True):
        layers.append(nn.Sequential(nn.Linear(before, after), nn.Tanh()))
    sample = (torch.zeros(4, 6), torch.zeros(4).long())
    model = nn.Sequential(*layers)
    return lp.Learner(model, lp.greedy(), modules=len(layers), optimizer=sgd, sample=sample)


def test_networks_of_different_depths_over_batches() -> None:
    """HSIC is averaged over batches, and then divided; a batch of 3 samples does not count."""
    one, other = make_learner(8, 5), make_learner(7, seed=1)
    data = [draw(seed, samples, 6).float() for seed, samples in ((0, 16), (1, 24), (2, 3))]
    found = lp.analysis.compare_representations(one, other, data)
    assert (len(found.ends), len(found.other_ends), found.samples) == (3, 2, 40)
    sides: list[list[list[Tensor]]] = []
    for learner in (one, other):
        outputs: list[list[Tensor]] = []
        for features in data[:2]:
            outputs.append([])
            for layer in learner.model.children():
                features = layer(features)
                outputs[-1].append(features.detach())
        sides.append(outputs)
    for row in range(3):
        for column in range(2):
            pairs = [(sides[0][k][row], sides[1][k][column]) for k in range(2)]
            cross = sum(estimate_plainly(x, y) for x, y in pairs)
            squares = [sum(estimate_plainly(p[i], p[i]) for p in pairs) for i in (0, 1)]
            expected = cross / math.sqrt(squares[0] * squares[1])
            assert found.values[row][column] == pytest.approx(expected, abs=1e-5)
    again = lp.analysis.compare_representations(one, one, data)
    assert [again.values[k][k] for k in range(3)] == pytest.approx([1, 1, 1], abs=1e-12)
    assert "| 1" in str(found)


def test_an_output_that_is_constant_has_no_similarity() -> None:
    learner = make_learner(8)
    with torch.no_grad():
        for parameter in next(learner.model.children()).parameters():
            parameter.zero_()
    data = [draw(0, 8, 6).float()]
    found = lp.analysis.compare_representations(learner, make_learner(8, seed=1), data)
    assert found.values == ((None, None), (None, None))
    assert "–" in str(found)


def test_data_that_cannot_be_compared_are_refused() -> None:
    learner = make_learner(8)
    with pytest.raises(lp.BadInput, match="no batch of 4 samples"):
        lp.analysis.compare_representations(learner, learner, [draw(0, 3, 6).float()])
    with pytest.raises(lp.BadInput, match="limit=0 must be 1 or more"):
        lp.analysis.compare_representations(learner, learner, [], limit=0)
    broken = torch.full((8, 6), torch.nan)
    with pytest.raises(lp.BadInput, match=r"module 0 .* of the first network is not finite"):
        lp.analysis.compare_representations(learner, learner, [broken])


def test_the_limit_counts_samples() -> None:
    learner = make_learner(8)
    data = (draw(seed, 10, 6).float() for seed in range(5))
    assert lp.analysis.compare_representations(learner, learner, data, limit=15).samples == 20
