"""Multilayer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from localprop.errors import check
from localprop.models.problems import builds_network, find_dropout_problems


@builds_network
def mlp(
    in_features: int,
    hidden: Sequence[int] = (512, 512),
    num_classes: int = 10,
    *,
    norm: bool = False,
    leaky: bool = False,
    dropout: float = 0.0,
    zero_output: bool = False,
) -> nn.Sequential:
    """Flatten, then a linear layer and a nonlinearity per hidden width, then a linear classifier.

    Dropout comes at the start of a layer, so a local loss reads features before dropout. PredSim's
    networks have three hidden layers of 1024 (3000 on CIFAR-10), with batch norm and dropout.

    Args:
        in_features: numbers in one sample, after flattening.
        hidden: widths of the hidden layers, in order. An empty sequence gives a linear classifier.
        num_classes: outputs of the classifier.
        norm: put a batch norm between each hidden linear layer and its nonlinearity.
        leaky: LeakyReLU of slope 0.01 instead of ReLU.
        dropout: probability that an output of a hidden layer is dropped.
        zero_output: initialise the classifier's weight with zeros, as the paper's code does under
            local losses.

    Returns:
        A network from (N, ...) with `in_features` numbers per sample to logits (N, num_classes).

    Raises:
        BadInput: if a width is less than one, or the probability lies outside [0, 1).

    Example:
        >>> mlp(64, hidden=(32,))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source of the options: Nøkland, Eidnes, Training Neural Networks with Local Error Signals
    (PredSim), ICML 2019, arXiv 1901.06656.
    """
    widths = [in_features, *hidden, num_classes]
    problems = list(find_dropout_problems(dropout))
    if min(widths) < 1:
        problems.append(
            f"The widths of the MLP are {widths}, but each must be at least 1: pass positive"
            " numbers."
        )
    check(problems)
    layers: list[nn.Module] = [nn.Flatten()]
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        linear = nn.Linear(fan_in, fan_out)
        if zero_output and layer == len(hidden):
            nn.init.zeros_(linear.weight)
        layers.append(nn.Sequential(nn.Dropout(dropout), linear) if layer and dropout else linear)
        if layer < len(hidden):
            layers += [nn.BatchNorm1d(fan_out)] if norm else []
            layers.append(nn.LeakyReLU(0.01) if leaky else nn.ReLU())
    return nn.Sequential(*layers)
