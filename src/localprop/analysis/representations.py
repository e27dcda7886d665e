"""How similar the representations of two networks are: CKA, module by module.

Kornblith et al. compare centred Gram matrices of the same samples, X Xᵀ and Y Yᵀ::

    CKA(X, Y) = HSIC(X Xᵀ, Y Yᵀ) / sqrt(HSIC(X Xᵀ, X Xᵀ) HSIC(Y Yᵀ, Y Yᵀ))

With few samples of many numbers, that is near 1 for anything. Nguyen et al. take the estimator of
HSIC without bias, and the mean of it over batches, which also needs the memory of one batch alone.

Sources: Kornblith, Norouzi, Lee, Hinton, Similarity of Neural Network Representations Revisited,
ICML 2019, arXiv 1905.00414. Nguyen, Raghu, Kornblith, Do Wide and Deep Networks Learn the Same
Things?, ICLR 2021, arXiv 2010.15327. Székely, Rizzo, Partial distance correlation with methods for
dissimilarities, Annals of Statistics 2014: its U-centred matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localprop.analysis.outputs import (
    check_one_process,
    list_module_ends,
    looking_at,
    read_outputs,
)
from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.learner import Learner
from localprop.writing.tables import format_table

_FEWEST = 4  # samples: the estimator divides by n - 3


@dataclass(frozen=True)
class Similarity:
    """The CKA of each module of one network with each module of another.

    Attributes:
        ends: the layer that each module of the first network ends with.
        other_ends: likewise of the second.
        values: a row for each module of the first, a column for each of the second. 1 is equal up
            to rotation, reflection and scale, 0 unrelated; values of unrelated modules lie around
            0, on both sides. None where an output is the same for all samples.
        samples: that were compared.
    """

    ends: tuple[str, ...]
    other_ends: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    samples: int

    def __str__(self) -> str:
        header = ["module", *map(str, range(len(self.other_ends)))]
        rows = [
            [f"{module} {end}", *("–" if each is None else f"{each:.2f}" for each in row)]
            for module, (end, row) in enumerate(zip(self.ends, self.values, strict=True))
        ]
        return format_table(header, rows)


@check_arguments
def compare_representations(
    learner: Learner, other: Learner, data: Iterable[Any], *, limit: int = 10_000
) -> Similarity:
    """Compare the output of each module with that of each module of another network, by linear CKA.

    Both networks see the same batches, in evaluation mode. All numbers of an output count: nothing
    is pooled. Each batch weighs the same, and one of fewer than 4 samples is left out. Nothing is
    drawn at random, and both learners stay as they were.

    Args:
        learner: in one process.
        other: likewise, often one trained end to end; it may have other modules. The same learner
            gives the similarity of its modules with each other.
        data: batches as both networks take them. Larger ones have less noise.
        limit: the samples that are read at most, up to the end of a batch.

    Returns:
        The matrix, modules of `learner` x modules of `other`.

    Raises:
        BadInput: a learner is on several ranks, a network does not run on the data, an output is
            not finite, or no batch has 4 samples.

    Example:
        >>> data = [torch.randn(16, 1, 8, 8) for _ in range(2)]
        >>> found = lp.analysis.compare_representations(learner, learner, data)
        >>> [round(found.values[module][module], 6) for module in range(3)]
        [1.0, 1.0, 1.0]

    Source: Kornblith et al., 2019, arXiv 1905.00414; Nguyen et al., 2021, arXiv 2010.15327.
    """
    for each in (learner, other):
        check_one_process(each)
    check([f"limit={limit} must be 1 or more samples."] if limit < 1 else [])
    ends, other_ends = list_module_ends(learner), list_module_ends(other)
    products = torch.zeros(len(ends) + len(other_ends), len(ends) + len(other_ends)).double()
    samples = 0
    with looking_at(learner), looking_at(other):
        for batch in data:
            outputs = [*read_outputs(learner, batch), *read_outputs(other, batch)]
            count = len(outputs[0])
            if count >= _FEWEST:
                products += estimate_hsic(outputs)
                samples += count
            if samples >= limit:
                break
    if not samples:
        raise BadInput(f"The data hold no batch of {_FEWEST} samples or more: raise batch_size.")
    check(
        f"The output of module {place} ({end}) of the {which} network is not finite: train again, "
        "with less lr."
        for which, own, first in (("first", ends, 0), ("second", other_ends, len(ends)))
        for place, end in enumerate(own)
        if not products[first + place, first + place].isfinite()
    )
    rows = [
        [_divide(products, row, column) for column in range(len(ends), len(products))]
        for row in range(len(ends))
    ]
    return Similarity(ends, other_ends, tuple(map(tuple, rows)), samples)


def estimate_hsic(outputs: Sequence[Tensor]) -> Tensor:
    """The estimates without bias of HSIC, with a linear kernel, of each output with each.

    HSIC is the scalar product of U-centred Gram matrices: their diagonals are zero, and so is the
    sum of each row.

    Args:
        outputs: k tensors (n, ...) of the same samples, n >= 4.

    Returns:
        (k, k), float64.

    Example:
        >>> estimate_hsic([torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])])
        tensor([[2.6667]], dtype=torch.float64)
    """
    count = len(outputs[0])
    centred = torch.stack([_centre(output.flatten(1).double()).flatten() for output in outputs])
    return centred @ centred.T / (count * (count - 3))


def _centre(features: Tensor) -> Tensor:
    """The U-centred Gram matrix (n, n) of features (n, p)."""
    count = len(features)
    features = features - features.mean(0)  # changes nothing but rounding
    gram = (features @ features.T).fill_diagonal_(0)
    sums = gram.sum(0) / (count - 2)
    mean = gram.sum() / ((count - 1) * (count - 2))
    return (gram - sums[:, None] - sums[None, :] + mean).fill_diagonal_(0)


def _divide(products: Tensor, row: int, column: int) -> float | None:
    squares = float(products[row, row] * products[column, column])
    return float(products[row, column]) / math.sqrt(squares) if squares > 0 else None
