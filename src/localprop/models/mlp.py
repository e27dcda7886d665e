"""Multilayer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from localprop.errors import BadInput


def mlp(in_features: int, hidden: Sequence[int] = (512, 512), num_classes: int = 10) -> nn.Sequential:
    """Flatten, then a linear layer and a ReLU per hidden width, then a linear classifier.

    Args:
        in_features: numbers in one sample, after flattening.
        hidden: widths of the hidden layers, in order; none gives a linear classifier.
        num_classes: outputs of the classifier.

    Returns:
        A network from (N, ...) with `in_features` numbers per sample to logits (N, num_classes).

    Raises:
        BadInput: if a width is less than one.

    Example:
        >>> mlp(64, hidden=(32,))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    widths = [in_features, *hidden, num_classes]
    if min(widths) < 1:
        raise BadInput(f"The widths of the MLP are {widths}, but each must be at least 1: pass positive numbers.")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], num_classes))
