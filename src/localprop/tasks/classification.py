"""Tasks whose targets are classes: of a sample, a position, a pixel or the next token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.tasks.class_weights import find_weight_problems, list_weights
from localprop.tasks.task import Task, require_targets

__all__ = ["CausalLM", "Classification", "MaskedLM", "Segmentation", "TokenClassification"]


@check_arguments
@dataclass(frozen=True)
class Classification(Task):
    """The cross-entropy of outputs with classes, or with a probability for each class.

    Outputs (N, C) go with classes (N,), outputs (N, T, C) with classes (N, T), and outputs
    (N, C, d1, ...), as torch has them, with classes (N, d1, ...). Classes are int64. Probabilities
    have the shape of the outputs. A batch weighs as much as its labels that count: their number,
    or the sum of their class weights; with probabilities, the number of samples.

    Attributes:
        label_smoothing: the share of the target that is spread over all classes.
        class_weights: a weight for each class.
        ignore_index: the label of what does not count.
        dim: the dimension of the outputs that holds the classes. It is found by shapes where it
            can be told.

    Raises:
        BadInput: `label_smoothing` is outside [0, 1], a class weight is negative, or one is 0 with
            label smoothing.

    Example:
        >>> task = Classification(class_weights=[1, 3])
        >>> labels = torch.tensor([0, 1, -100])
        >>> task.loss(torch.zeros(3, 2), (None, labels))
        tensor(0.6931)
        >>> task.weight((None, labels))
        tensor(4., dtype=torch.float64)
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] | Tensor | None = None
    ignore_index: int = -100
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            numbers = list_weights("class_weights", self.class_weights)
            object.__setattr__(self, "class_weights", numbers)
        check(self._find_argument_problems())

    def _find_argument_problems(self) -> Iterator[str]:
        if not 0 <= self.label_smoothing <= 1:
            yield f"label_smoothing={self.label_smoothing} must lie in [0, 1]."
        yield from find_weight_problems("class_weights", self._weights)
        if self.label_smoothing and 0 in self._weights:
            yield (
                f"class_weights has a 0, and label_smoothing={self.label_smoothing}: samples of "
                "that class would add to the loss but not to its denominator. Use "
                "label_smoothing=0, or ignore_index for the class."
            )

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(self.class_weights or ())

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        return self._reduce(output, batch, "mean")

    def total(self, output: Tensor, batch: Any) -> Tensor:
        return self._reduce(output, batch, "sum")

    def _reduce(self, output: Tensor, batch: Any, reduction: str) -> Tensor:
        targets = require_targets(self, batch)
        dim = self._find_class_dim(output.shape, targets)
        if dim != 1:  # as rows; torch's own form stays as it is
            if targets.is_floating_point():
                targets = targets.movedim(dim, -1).flatten(0, -2)
            else:
                targets = targets.flatten()
            output = output.movedim(dim, -1).flatten(0, -2)
        weights = self._make_class_weights(output)
        if weights is not None and 0 in self._weights and not targets.is_floating_point():
            # A part that has no other labels: torch's gradient is NaN, but 0 if it ignores them.
            counts = targets != self.ignore_index
            counts &= weights[targets.where(counts, 0)] > 0
            targets = targets.where(counts, self.ignore_index)
        return self._compare(output, targets, weights, reduction)

    def _compare(
        self, output: Tensor, targets: Tensor, weights: Tensor | None, reduction: str
    ) -> Tensor:
        return functional.cross_entropy(
            output,
            targets,
            weight=weights,
            ignore_index=self.ignore_index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
        )

    def weight(self, batch: Any) -> Tensor | float:
        targets = require_targets(self, batch)
        if targets.is_floating_point():  # class weights are no part of that mean: torch's source
            return targets.numel() / targets.shape[1 if self.dim is None else self.dim]
        counts = targets != self.ignore_index
        if self.class_weights is None:
            return counts.sum()
        weights = self._make_class_weights(targets.new_empty(0, dtype=torch.float64))
        assert weights is not None
        return (weights[targets.where(counts, 0)] * counts).sum()

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterator[str]:
        try:
            targets = require_targets(self, batch)
            dim = self._find_class_dim(outputs, targets)
        except BadInput as error:
            yield from error.problems
            return
        classes = outputs[dim]
        if classes < 2:
            yield (
                "The model has 1 output, so its cross-entropy is always 0: give the model one "
                "output for each of 2 or more classes, or use task=lp.MultiLabel() for one output "
                "that says yes or no."
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            yield (
                f"class_weights has {len(self.class_weights)} weights, but the model has {classes} "
                "outputs: give one for each."
            )
        if targets.device.type == "cpu" and targets.numel():
            yield from self._find_value_problems(targets, classes, dim)

    def _find_value_problems(self, targets: Tensor, classes: int, dim: int) -> Iterator[str]:
        if targets.is_floating_point():
            if (targets < 0).any() or not sum_to_one(targets, dim):
                yield (
                    "Targets are neither classes (torch.int64) nor probabilities (0 or more, with "
                    "a sum of 1 in each row): cross-entropy needs one class per sample. Use "
                    "task=lp.MultiLabel() for several classes per sample, or task=lp.Regression() "
                    "for numbers."
                )
            return
        low, high = map(int, torch.aminmax(targets))
        if low < 0 or high >= classes:  # then look closer
            counted = targets[targets != self.ignore_index]
            low, high = map(int, torch.aminmax(counted)) if counted.numel() else (0, 0)
        if low < 0 or high >= classes:
            yield (
                f"Labels run from {low} to {high}, but the model has {classes} outputs: labels "
                f"must lie in 0..{classes - 1}, or be ignore_index={self.ignore_index}."
            )

    def _find_class_dim(self, outputs: torch.Size, targets: Tensor) -> int:
        """The dimension of the outputs that holds the classes, as dimension 1 where that is it."""
        if not targets.is_floating_point() and targets.dtype != torch.int64:
            raise BadInput(
                f"Targets are {targets.dtype}, but cross-entropy takes classes as torch.int64: "
                "use targets.long()."
            )
        ndim = len(outputs)
        if ndim == 2 and targets.ndim == 1 and self.dim != 0 and len(targets) == outputs[0]:
            return 1
        if ndim < 2:
            raise BadInput(
                f"Outputs have shape {tuple(outputs)}, but cross-entropy takes (N, C), with one "
                "output for each class."
            )
        candidates = {1, ndim - 1} if self.dim is None else {self.dim % ndim}
        fitting = [dim for dim in sorted(candidates) if _fits(outputs, dim, targets)]
        if not fitting:
            raise BadInput(_say_what_fits(outputs, targets, candidates))
        if len(fitting) > 1:
            raise BadInput(
                f"Outputs {tuple(outputs)} with targets {tuple(targets.shape)} may have their "
                f"classes in dimension 1 or in the last: say which, as in "
                f"task=lp.{type(self).__name__}(dim=-1)."
            )
        return fitting[0]

    def _make_class_weights(self, like: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        weights = torch.as_tensor(self.class_weights, dtype=like.dtype)
        return weights.to(like.device, non_blocking=True)


def _fits(outputs: torch.Size, dim: int, targets: Tensor) -> bool:
    if targets.is_floating_point():
        return targets.shape == outputs
    return targets.shape == outputs[:dim] + outputs[dim + 1 :]


def _say_what_fits(outputs: torch.Size, targets: Tensor, dims: Iterable[int]) -> str:
    shapes = {tuple(outputs[:dim] + outputs[dim + 1 :]): None for dim in sorted(dims, reverse=True)}
    wanted = " or ".join(map(str, shapes))
    text = (
        f"Targets have shape {tuple(targets.shape)}, but outputs {tuple(outputs)} take classes "
        f"{wanted} as torch.int64, or probabilities {tuple(outputs)}."
    )
    if targets.shape == outputs:
        text += " For several classes per sample, use task=lp.MultiLabel()."
    return text


def sum_to_one(targets: Tensor, dim: int) -> bool:
    """Whether targets sum to 1 along a dimension, up to bfloat16's precision (three digits)."""
    return not ((targets.float().sum(dim) - 1).abs() > 1e-2).any()


@check_arguments
@dataclass(frozen=True)
class Segmentation(Classification):
    """Classification of pixels: outputs (N, C, H, W) with classes (N, H, W).

    Outputs of a lower resolution are brought to that of the labels by bilinear interpolation, as
    Hugging Face's SegFormer does (`ForSemanticSegmentationLoss`), and torchvision's networks by
    themselves.

    Attributes:
        ignore_index: the label of pixels that do not count: 255, as in Pascal VOC, Cityscapes and
            both libraries.

    Raises:
        BadInput: as for `Classification`.

    Example:
        >>> Segmentation().loss(torch.zeros(2, 5, 8, 8), (None, torch.full((2, 32, 32), 3)))
        tensor(1.6094)
    """

    ignore_index: int = 255
    dim: int | None = 1

    def _reduce(self, output: Tensor, batch: Any, reduction: str) -> Tensor:
        size = require_targets(self, batch).shape[1:]
        if output.ndim == 4 and len(size) == 2 and output.shape[2:] != size:
            output = functional.interpolate(output, size=size, mode="bilinear", align_corners=False)
        return super()._reduce(output, batch, reduction)

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterator[str]:
        targets = self.targets(batch)
        if len(outputs) == 4 and targets is not None and targets.ndim == 3:
            outputs = torch.Size([*outputs[:2], *targets.shape[1:]])
        return super().find_problems(batch, outputs)


@check_arguments
@dataclass(frozen=True)
class CausalLM(Classification):
    """Language modelling: the output at each position predicts the label of the next.

    Outputs (N, T, C) go with labels (N, T) that are the input's own tokens, as Hugging Face's
    causal models take them. The first label is no target, and the last output has none. Labels
    that are shifted already belong to `Classification(dim=-1)`.

    Raises:
        BadInput: as for `Classification`.

    Example:
        >>> task = CausalLM()
        >>> task.targets({"labels": torch.tensor([[5, 6, 7]])})
        tensor([[   6,    7, -100]])
    """

    dim: int | None = -1

    def targets(self, batch: Any) -> Tensor | None:
        """The label that each position predicts; the last position has none."""
        labels = super().targets(batch)
        # Padded labels instead of cut outputs: those are the largest tensor of a language model,
        # and a cut copies it. Hugging Face's ForCausalLMLoss does the same.
        return (
            labels
            if labels is None
            else functional.pad(labels[:, 1:], (0, 1), value=self.ignore_index)
        )


@check_arguments
def TokenClassification(
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int = -100,
) -> Classification:
    """Classification of each token: outputs (N, T, C) with classes (N, T).

    Example:
        >>> TokenClassification().loss(torch.zeros(2, 4, 4), (None, torch.zeros(2, 4).long()))
        tensor(1.3863)
    """
    return Classification(label_smoothing, class_weights, ignore_index, dim=-1)


@check_arguments
def MaskedLM(label_smoothing: float = 0.0, ignore_index: int = -100) -> Classification:
    """Language modelling of masked tokens: labels (N, T) are -100 where nothing was masked.

    Example:
        >>> MaskedLM() == TokenClassification()
        True
    """
    return TokenClassification(label_smoothing, ignore_index=ignore_index)
