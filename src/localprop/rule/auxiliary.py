"""Auxiliary networks: the small network between a module's end and its local loss. Not deployed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.models.resnet import init_convs
from localprop.network.partition import Partition
from localprop.rule.attach import AttachPoint, channel_dimension
from localprop.rule.limits import format_modules
from localprop.rule.positions import PositionNorm, has_positions

__all__ = ["Head", "NoHead", "Pool"]

AuxBuilder = Callable[[AttachPoint], nn.Module]


@check_arguments
class Pool(nn.Module):
    """Average features to one vector per sample.

    (N, C, H, W) and (N, tokens, C) become (N, C). (N, C) stays as it is.

    Args:
        dimension: the dimension that holds the channels. By default it is guessed from the shape:
            maps (N, H, W, C) as in Swin are recognised by H = W.

    Example:
        >>> Pool(1)(torch.zeros(2, 64, 100)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dimension: int | None = None) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, features: Tensor) -> Tensor:
        """Average over all dimensions except the batch and the channels."""
        channels = self.dimension
        if channels is None:
            channels = channel_dimension(features.shape)
        positions = tuple(d for d in range(1, features.ndim) if d != channels)
        if not positions:
            return features
        # Sum and divide instead of mean(): the gradient of a sum is a view, while the gradient of
        # mean() is a whole map more at the peak of a step.
        return features.sum(positions) / math.prod(features.shape[d] for d in positions)


def pool_or_norm(point: AttachPoint, width: int) -> nn.Module:
    """Build the module in front of a head's linear layers.

    It averages over all positions. If the network has an output for each position, it is a
    LayerNorm of each instead.

    Args:
        point: where the head is attached.
        width: the number of channels.
    """
    if has_positions(point):
        channel, last = point.dimension(), len(point.features) - 1
        return nn.LayerNorm(width) if channel == last else PositionNorm(width, channel)
    return Pool(point.dimension())


@check_arguments
@dataclass(frozen=True)
class Head:
    """The usual auxiliary classifier "XcYf": X 3x3 convolutions, a global average, Y linear layers.

    The first convolution doubles the width and halves the map as long as the network itself grows
    wider. The other convolutions keep both. Convolutions have no bias and are followed by BatchNorm
    and ReLU. ReLU stands between linear layers.

    Features that are not maps (tokens, vectors) skip the convolutions. If the network has an output
    per token, the head classifies each token after a LayerNorm and does not average. Both are our
    reading: nothing is published for such features.

    Which dimension holds the channels is read off the network: it is the one that the next layer
    contracts or scales (`AttachPoint.dimension`).

    Attributes:
        convs: X.
        linears: Y, 1 or more.
        hidden: the width of the linear layers before the last.
        widen: a factor for all widths.
        outputs: the number of outputs of the last linear layer. 0 means one per class. Contrastive
            losses use 128.

    Raises:
        BadInput: a number is too small.

    Example (the published 1c2f head of a 16-channel module)::

        (N, 16, 32, 32) -> conv 16->32, stride 2 -> average -> (N, 32) -> 128 -> (N, classes)

    Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv
    2101.10832, official code.
    """

    convs: int = 1
    linears: int = 2
    hidden: int = 128
    widen: int = 1
    outputs: int = 0

    def __post_init__(self) -> None:
        limits = [
            ("convs", self.convs, 0),
            ("linears", self.linears, 1),
            ("hidden", self.hidden, 1),
            ("widen", self.widen, 1),
            ("outputs", self.outputs, 0),
        ]
        check(
            f"Head({name}={value}): {name} must be {least} or more."
            for name, value, least in limits
            if value < least
        )

    def __call__(self, point: AttachPoint) -> nn.Module:
        body, width = self._build_convs(point) if point.is_map() else ([], point.width())
        body.append(pool_or_norm(point, width))
        for _ in range(self.linears - 1):
            body += [nn.Linear(width, self.hidden * self.widen), nn.ReLU()]
            width = self.hidden * self.widen
        head = nn.Sequential(*body, nn.Linear(width, self.outputs or point.outputs))
        init_convs(head)
        return head

    def find_limits(self, partition: Partition) -> Iterator[tuple[str, str]]:
        """Find out where there are no maps to convolve."""
        yield from find_map_limits("convs", partition)

    def _build_convs(self, point: AttachPoint) -> tuple[list[nn.Module], int]:
        """The convolutions, and the width of the last one."""
        convs, width = list[nn.Module](), point.width()
        wide = self._find_conv_width(point) if self.convs else width
        for i in range(self.convs):
            stride = 2 if i == 0 and wide > point.width() * self.widen else 1
            convs += [
                nn.Conv2d(width, wide, 3, stride, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
            width = wide
        return convs, width

    def _find_conv_width(self, point: AttachPoint) -> int:
        """Twice the module's width, but at most that of the network's last maps.

        In a network whose last maps have 64 channels: 16 -> 32 -> 64 -> 64.
        """
        last = next(layer for layer in reversed(range(len(point.layers))) if point.is_map(layer))
        return min(2 * point.width(), point.width(last)) * self.widen


@dataclass(frozen=True)
class NoHead:
    """No auxiliary network: the loss reads the features themselves.

    Example:
        >>> rule = lp.greedy(aux=lp.NoHead())
    """

    def __call__(self, point: AttachPoint) -> nn.Module:
        return nn.Identity()


def find_width_problems(head: str, name: str, widths: tuple[int, ...], least: int = 0) -> list[str]:
    """Find the problems of a head's tuple of widths.

    Args:
        head: the class of the head, as the user writes it.
        name: the field that holds the widths.
        widths: the widths.
        least: how many widths the head needs.

    Example:
        >>> find_width_problems("ConvHead", "convs", (8, 0))
        ['ConvHead(convs=(8, 0)): each must be 1 or more.']
    """
    problems = []
    if len(widths) < least:
        problems.append(f"{head}({name}={widths}): give {least} or more numbers.")
    if any(width < 1 for width in widths):
        problems.append(f"{head}({name}={widths}): each must be 1 or more.")
    return problems


def find_map_limits(name: str, partition: Partition) -> Iterator[tuple[str, str]]:
    """Find the modules without maps, where an argument of a head for maps has no effect.

    Args:
        name: the argument.
        partition: the network and its cuts.

    Example:
        >>> layers = lp.layers_of(lp.models.mlp(4, hidden=(8, 8)), torch.zeros(2, 4))
        >>> list(find_map_limits("convs", lp.Partition.uniform(layers, 3)))
        [('convs', 'the features of modules 0-1 are no maps')]
    """
    layers, ends = partition.layers, [module[-1] for module in partition.modules[:-1]]
    without = [
        i
        for i, end in enumerate(ends)
        if len(layers.shapes[end]) != 4 or layers.find_channel(end) != 1
    ]
    if without:
        yield name, f"the features of {format_modules(without)} are no maps"
