"""Auxiliary networks: the small network at a module's end that a local loss looks through. They are not deployed."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.network.layers import Layers


class Normalised(NamedTuple):
    """How inputs were made from pixels in 0..1: (pixel - mean) / std, per channel; by default they are pixels.

    Attributes:
        mean: one number per channel, or one for all.
        std: likewise.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Site:
    """What a builder may know about the end of a module.

    Attributes:
        module: the module's number, from 0.
        modules: how many modules there are; those that are joined under the last loss count as one.
        layer: the number of the module's last layer.
        layers: all layers of the network, with their shapes; those after `layer` are what follows.
        features: the shape of the module's output, batch first.
        outputs: the number of outputs (classes) of the network.
        start: the number of the module's first layer.
        objective: which loss this is of those at the module's end; 0 unless the credit has several there.
        normalised: how inputs were made from pixels; None if nobody has said.
    """

    module: int
    modules: int
    layer: int
    layers: Layers
    features: torch.Size
    outputs: int
    start: int = 0
    objective: int = 0
    normalised: Normalised | None = None

    def dimension(self, layer: int | None = None) -> int:
        """Which dimension of the features, or of another layer's output, holds the channels; see :class:`Head`.

        Raises:
            BadInput: features of five or more dimensions that no Conv3d or BatchNorm3d made.
        """
        shape = self.features if layer is None else self.layers.shapes[layer]
        if len(shape) in (2, 4):
            return channel_dimension(shape, self.layers.input_shape)
        own = self._own_pieces(self.layer if layer is None else layer)
        weighted = [m for name in own for m in self.layers.model.get_submodule(name).modules() if _has_weights(m)]
        if isinstance(weighted[-1] if weighted else None, _CHANNELS_FIRST):
            return 1
        if len(shape) > 3:
            raise BadInput(
                f"Module {self.module} has features of shape {tuple(shape)}, of which no Conv3d or BatchNorm3d says where "
                "their channels are: cut elsewhere, or give the rule an aux of your own."
            )
        return len(shape) - 1

    def width(self, layer: int | None = None) -> int:
        """The number of channels of the features, or of another layer's output."""
        shape = self.features if layer is None else self.layers.shapes[layer]
        return shape[self.dimension(layer)]

    def is_map(self, layer: int | None = None) -> bool:
        """Whether the features, or another layer's output, are convolutional maps (N, C, H, W)."""
        shape = self.features if layer is None else self.layers.shapes[layer]
        return is_map(shape, self.layers.input_shape)

    def fresh(self, layer: int) -> nn.Module:
        """A copy of a layer with weights of its own, initialised anew.

        Modules that know how are reset, convolutions drawn as in the CIFAR ResNets; parameters of others stay copies. Of the
        network's last layer, what follows its end (a classifier) is left out.

        Raises:
            BadInput: a layer made of several modules that are not neighbours in an nn.Sequential.
        """
        module = deepcopy(self._whole(layer))
        for part in module.modules():
            for name in ("reset_parameters", "_reset_parameters"):  # torch's attention has the latter
                if callable(reset := getattr(part, name, None)):
                    reset()
        init_convs(module)
        return module.train()

    def _whole(self, layer: int) -> nn.Module:
        """The stretch of an nn.Sequential, or the one module, that is all of a layer."""
        name, model = self.layers.names[layer], self.layers.model
        own, pieces = self._own_pieces(layer), [piece.name for piece in self.layers.pieces[layer]]
        after = pieces[len(own) :] if name in pieces and layer == len(self.layers) - 1 else []
        parents = {piece.rpartition(".")[0] for piece in own}
        chained = len(parents) == 1 and type(model.get_submodule(*parents)) is nn.Sequential
        if len(own) > 1 and chained and self._owns([*own, *after], layer):
            return nn.Sequential(*map(model.get_submodule, own))
        if self._owns([name, *after], layer):
            return model.get_submodule(name)
        raise BadInput(f"Layer {name!r} is made of several modules, and cannot be copied: cut elsewhere.")

    def _own_pieces(self, layer: int) -> list[str]:
        """The modules that a layer is made of, up to its end."""
        name, pieces = self.layers.names[layer], [piece.name for piece in self.layers.pieces[layer]]
        return pieces[: pieces.index(name) + 1] if name in pieces else [name]

    def _owns(self, modules: list[str], layer: int) -> bool:
        """Whether all parameters of a layer are below these modules."""
        return all(any(p.startswith(f"{m}.") for m in modules) for p in self.layers.parameters[layer])


AuxBuilder = Callable[[Site], nn.Module]
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm3d)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class Pool(nn.Module):
    """Features to one vector per sample: (N, C, H, W) and (N, tokens, C) are averaged to (N, C), (N, C) stays.

    Args:
        dimension: which one holds the channels; if not given it is guessed, and maps whose channels come last, (N, H, W, C)
            as in Swin, are told apart by their square: H = W.

    Example:
        >>> Pool(1)(torch.zeros(2, 64, 100)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dimension: int | None = None) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, features: Tensor) -> Tensor:
        """Average all but the first and the channel dimension."""
        own = channel_dimension(features.shape) if self.dimension is None else self.dimension
        spatial = tuple(d for d in range(1, features.ndim) if d != own)
        if not spatial:
            return features
        # Sum and divide: the gradient of a sum is a view, that of mean() a whole map more at the peak of a step.
        return features.sum(spatial) / math.prod(features.shape[d] for d in spatial)


def gathered(site: Site, width: int) -> nn.Module:
    """What stands before a head's linear layers: an average over all positions or, if the network has an output for each
    of them (N, T, classes), LayerNorm.
    """
    return nn.LayerNorm(width) if len(site.layers.output_shape) > 2 else Pool(site.dimension())


def channel_dimension(shape: torch.Size, image: tuple[int, ...] = ()) -> int:
    """Which dimension of a batch of features holds the channels, in a network whose input has the shape `image`.

    Of four dimensions it is the last one if those before it are as long to each other as the image's sides, or nearer to
    that than the last two are (odd sides are rounded when they are halved); of a square image, or of none, if they are equal.

    Example:
        >>> channel_dimension(torch.Size((2, 32, 32, 50)), image=(2, 3, 64, 100))
        1
        >>> channel_dimension(torch.Size((2, 32, 32, 50)))
        3
    """
    if len(shape) != 4:
        return len(shape) - 1
    if len(image) != 4 or image[2] == image[3]:
        return 3 if shape[1] == shape[2] != shape[3] else 1
    last, first = (abs(math.log(high * image[3] / (wide * image[2]))) for high, wide in pairwise(shape[1:]))
    return 3 if last < first else 1


def is_map(shape: torch.Size, image: tuple[int, ...] = ()) -> bool:
    """Whether features are convolutional maps (N, C, H, W), in a network whose input has the shape `image`."""
    return len(shape) == 4 and channel_dimension(shape, image) == 1


@dataclass(frozen=True)
class Head:
    """The field's usual auxiliary classifier "XcYf": X 3x3 convolutions, a global average, Y linear layers.

    The first convolution doubles the width and halves the map as long as the network itself grows wider, the others keep
    both. Convolutions have no bias and are followed by BatchNorm and ReLU; ReLU stands between linear layers. Features that
    are no maps (tokens, vectors) skip the convolutions, and of a network with an output per token each token is classified,
    after LayerNorm and not averaged; this is our reading: nothing is published for them.

    Of features (N, T, C) the last dimension holds the channels, of (N, C, T) and (N, C, D, H, W) dimension 1 if the last
    weights before them are those of a Conv1d, a Conv3d or their BatchNorm. Of four dimensions, (N, H, W, C) as in Swin is
    told from (N, C, H, W) by sides that are as long to each other as the image's.

    Attributes:
        convs: X.
        linears: Y; 1 or more.
        hidden: the width of the linear layers before the last.
        widen: a factor for all widths.
        outputs: what the last linear layer makes; 0: one number per class. Contrastive losses take 128.

    Example (the published 1c2f head of a 16-channel module)::

        (N, 16, 32, 32) -> conv 16->32, stride 2 -> average -> (N, 32) -> 128 -> (N, classes)

    Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832, official code.
    """

    convs: int = 1
    linears: int = 2
    hidden: int = 128
    widen: int = 1
    outputs: int = 0

    def __post_init__(self) -> None:
        low = [
            ("convs", self.convs, 0),
            ("linears", self.linears, 1),
            ("hidden", self.hidden, 1),
            ("widen", self.widen, 1),
            ("outputs", self.outputs, 0),
        ]
        check(f"Head({name}={value}): {name} must be {least} or more." for name, value, least in low if value < least)

    def __call__(self, site: Site) -> nn.Module:
        width, body = site.width(), list[nn.Module]()
        for i in range(self.convs if site.is_map() else 0):
            wide = self._width(site) if i == 0 else width
            stride = 2 if i == 0 and self._width(site) > site.width() * self.widen else 1
            body += [nn.Conv2d(width, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
            width = wide
        body.append(gathered(site, width))
        for _ in range(self.linears - 1):
            body += [nn.Linear(width, self.hidden * self.widen), nn.ReLU()]
            width = self.hidden * self.widen
        head = nn.Sequential(*body, nn.Linear(width, self.outputs or site.outputs))
        init_convs(head)
        return head

    def _width(self, site: Site) -> int:
        """16 -> 32 -> 64 -> 64 in a network whose last maps have 64 channels."""
        last = next(layer for layer in reversed(range(len(site.layers))) if site.is_map(layer))
        return min(2 * site.width(), site.width(last)) * self.widen
