"""Auxiliary networks that look like the layers which follow: AugLocal's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.models.resnet import BasicBlock, init_convs
from localprop.network.probe import on_meta
from localprop.rule.auxiliary import Pool, Site, gathered

_CLASSIFIER_WIDTH = 512  # of the two linear layers after sampled convolutions
_EXPANSION = 4  # of a bottleneck block: its output is four times as wide as its inside


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with batch norm, plus a shortcut: (N, I, H, W) -> (N, O, H / stride, W / stride).

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output, four times those of the 3x3 convolution.
        stride: stride of the 3x3 convolution and of the shortcut.

    Example:
        >>> Bottleneck(64, 256, stride=2)(torch.zeros(1, 64, 8, 8)).shape
        torch.Size([1, 256, 4, 4])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385; the stride is where torchvision
    has it.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        inside = out_chans // _EXPANSION
        self.body = nn.Sequential(
            *_normed(nn.Conv2d(in_chans, inside, 1, bias=False)),
            *_normed(nn.Conv2d(inside, inside, 3, stride, padding=1, bias=False)),
            *_normed(nn.Conv2d(inside, out_chans, 1, bias=False))[:2],
        )
        same = stride == 1 and in_chans == out_chans
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to (N, out_chans, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def _normed(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


@dataclass(frozen=True)
class SampledLayers:
    """AugLocal's auxiliary network: fresh layers shaped like a uniform sample of those that follow, then a classifier.

    After layer l of n, the head has layers like the network's `round(l + (n-1-l)/d * i)`, i = 1..d, the last one always
    among them, with weights of their own; d falls linearly with the module's number k of K from `depth` to
    `depth * (1 - pyramid) + pyramid`, so that deeper modules have smaller heads. Python rounds halves to even, as the
    official code does. The network's classifier is not counted: n are the layers before it.

    Residual blocks have the widths of the layers they stand for; strides follow the halvings of the map, at most one per
    block, a surplus one deferred to the next block. Features that are no maps (N, C, H, W) get copies, whatever the unit;
    this is our reading, nothing is published for them.

    Attributes:
        depth: d at the first module.
        pyramid: tau, how much of the depth the last head has lost; 0 keeps it.
        unit: what stands for a layer: a "basic" residual block (CIFAR ResNets, ResNet-34) or a "bottleneck" (ResNet-50 and
            deeper), then an average and a linear layer; a "conv" of VGG with bias, BatchNorm and ReLU, after a 2x2 max-pool
            where the width changes, then 512 averages, two linear layers of 512 with BatchNorm and a last one; a "copy" of
            the layer itself, initialised anew, for networks whose layers keep their shape.
        norm: whether a head of but one basic block has a BatchNorm before its linear layer, as in the official CIFAR code; its
            ImageNet code has none.

    Raises:
        BadInput: bad values; copies that do not fit on each other; layers that cannot be copied.

    Example (ResNet-32, depth 2, first module)::

        unit 0 (16 channels, 32x32) -> block like unit 8 (32, /2) -> block like unit 15 (64, /2) -> average -> Linear

    Source: Ma et al., Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR 2024, arXiv 2402.17318.
    """

    depth: int = 2
    pyramid: float = 0.5
    unit: str = "basic"
    norm: bool = True

    def __post_init__(self) -> None:
        problems = [f"depth={self.depth} must be 1 or more."] if self.depth < 1 else []
        if not 0 <= self.pyramid <= 1:
            problems.append(f"pyramid={self.pyramid} must lie in [0, 1].")
        if self.unit not in _UNITS:
            problems.append(f"unit={self.unit!r} must be one of {', '.join(_UNITS)}.")
        check(problems)

    def __call__(self, site: Site) -> nn.Module:
        depth = self.depth_at(site.module, site.modules)
        positions = self.positions(site.layer, _before_classifier(site), depth)
        if self.unit == "copy" or not site.is_map():
            return _copies(site, positions)
        if self.unit == "conv":
            return _convs(site, positions)
        return self._blocks(site, positions, depth)

    def _blocks(self, site: Site, positions: list[int], depth: int) -> nn.Module:
        block = BasicBlock if self.unit == "basic" else Bottleneck
        blocks = [block(narrow, wide, stride) for narrow, wide, stride in _strided(site, positions)]
        width = site.width(positions[-1] if positions else None)
        norm = [nn.BatchNorm1d(width)] if self.norm and depth <= 1 and self.unit == "basic" else []
        head = nn.Sequential(*blocks, Pool(1), *norm, nn.Linear(width, site.outputs))
        init_convs(head)
        return head

    def depth_at(self, module: int, modules: int) -> int:
        """The depth d of the head of one of `modules` modules."""
        passed = self.pyramid * module / (modules - 2) if modules > 2 else 0.0
        return max(1, round(self.depth * (1 - passed) + passed))

    @staticmethod
    def positions(layer: int, layers: int, depth: int) -> list[int]:
        """The layers that a head of this depth after `layer` is shaped like."""
        left = layers - 1 - layer
        if depth >= left:
            return list(range(layer + 1, layers))
        return [round(layer + left / depth * i) for i in range(1, depth + 1)]


_UNITS = ("basic", "bottleneck", "conv", "copy")


def _before_classifier(site: Site) -> int:
    """How many layers there are before the network's classifier: up to the last map, or all but one that makes the outputs."""
    layers = site.layers
    if site.is_map():
        return max((layer for layer in range(len(layers)) if site.is_map(layer)), default=site.layer) + 1
    # Of layers that all have the outputs' shape only the last can be the classifier, and only if nothing runs after it.
    alone = all(name.startswith(f"{layers.names[-1]}.") for name in layers.parameters[-1])
    return len(layers) - (alone and layers.shapes[-1] == layers.output_shape)


def _strided(site: Site, positions: list[int]) -> Iterator[tuple[int, int, int]]:
    """(channels in, channels out, stride) of a block for each position."""
    layer, owed = site.layer, 0
    for position in positions:
        side, following = (site.layers.shapes[i][2] for i in (layer, position))
        owed += round(math.log2(side / following))  # 7 -> 4 is a halving, too
        stride = 2 if owed >= 1 else 1
        owed -= stride - 1
        yield site.width(layer), site.width(position), stride
        layer = position


def _convs(site: Site, positions: list[int]) -> nn.Module:
    """Weights keep PyTorch's defaults: the official code creates these heads after it has drawn the network's weights."""
    body, width = list[nn.Module](), site.width()
    for position in positions:
        wide = site.width(position)
        # ceil_mode: a map of a single pixel stays one.
        body += [nn.MaxPool2d(2, ceil_mode=True)] if wide != width else []
        body += _normed(nn.Conv2d(width, wide, 3, padding=1))
        width = wide
    body += [nn.Flatten(), nn.AdaptiveAvgPool1d(_CLASSIFIER_WIDTH)]
    for _ in range(2):
        body += [nn.Linear(_CLASSIFIER_WIDTH, _CLASSIFIER_WIDTH), nn.BatchNorm1d(_CLASSIFIER_WIDTH), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(_CLASSIFIER_WIDTH, site.outputs))


def _copies(site: Site, positions: list[int]) -> nn.Module:
    width = site.width(positions[-1] if positions else None)
    copies = [site.fresh(position) for position in positions]
    head = nn.Sequential(*copies, gathered(site, width), nn.Linear(width, site.outputs))
    twin = on_meta(head).to(site.layers.dtypes[site.layer])
    try:
        twin(torch.empty((2, *site.features[1:]), dtype=site.layers.dtypes[site.layer], device="meta"))
    except Exception as error:  # whatever the user's layers raise
        names = ", ".join(site.layers.names[position] for position in positions)
        raise BadInput(
            f"SampledLayers copies layers, but copies of {names} do not fit on features {tuple(site.features)} "
            f"({error}): copies need layers that keep their shape. Use aux=Head() for this network."
        ) from error
    return head
