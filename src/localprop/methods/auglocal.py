"""AugLocal: auxiliary networks like the layers ahead (Ma et al., ICLR 2024, arXiv 2402.17318)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.models.resnet import BasicBlock, init_convs
from localprop.network.fake_tensors import FakeMode, quiet_fakes
from localprop.network.untouched import untouched
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import Pool, pool_or_norm
from localprop.rule.credit import LocalCredit
from localprop.rule.rule import Rule

__all__ = ["SampledLayers", "auglocal"]

_UNITS = ("basic", "bottleneck", "conv", "copy")
_EXPANSION = 4  # of a bottleneck block: its output is four times as wide as its inner convolution
_CLASSIFIER_WIDTH = 512  # of the two linear layers after sampled convolutions


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with batch norm, plus a shortcut.

    Maps (N, I, H, W) to (N, O, H / stride, W / stride).

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output, four times those of the 3x3 convolution.
        stride: stride of the 3x3 convolution and of the shortcut.

    Example:
        >>> Bottleneck(64, 256, stride=2)(torch.zeros(1, 64, 8, 8)).shape
        torch.Size([1, 256, 4, 4])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385. The
    stride is in the 3x3 convolution, as in torchvision.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        inner = out_chans // _EXPANSION
        self.body = nn.Sequential(
            *_add_norm_and_relu(nn.Conv2d(in_chans, inner, 1, bias=False)),
            *_add_norm_and_relu(nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)),
            nn.Conv2d(inner, out_chans, 1, bias=False),
            nn.BatchNorm2d(out_chans),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_chans != out_chans:
            conv = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_chans))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to (N, out_chans, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def _add_norm_and_relu(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


@check_arguments
@dataclass(frozen=True)
class SampledLayers:
    """AugLocal's auxiliary network: new layers shaped like a uniform sample of the layers ahead.

    After layer l of n, the head has layers like the network's `round(l + (n-1-l)/d * i)`, i = 1..d,
    with weights of their own, and a classifier. The sample always includes the last layer. The
    depth d falls linearly with the module's number k of K from `depth` to
    `depth * (1 - pyramid) + pyramid`, so deeper modules have smaller heads. Python rounds halves to
    even, as the official code does. n counts the layers before the network's classifier.

    Residual blocks have the widths of the layers that they stand for. Their strides follow the
    halvings of the map. A block halves the map at most once and leaves a second halving to the next
    block. Features that are not maps (N, C, H, W) get copies, whatever the unit. This is our
    reading: nothing is published for them.

    Attributes:
        depth: d at the first module.
        pyramid: tau, the share of the depth that the last head has lost; 0 keeps the depth.
        unit: the layer that stands for a layer of the network.
            "basic": a residual block of CIFAR ResNets and ResNet-34; "bottleneck": one of ResNet-50
            and deeper. An average and a linear layer follow.
            "conv": a convolution of VGG with bias, BatchNorm and ReLU, after a 2x2 max-pool where
            the width changes. An average to 512 numbers, two linear layers of 512 with BatchNorm
            and a last linear layer follow.
            "copy": a copy of the layer itself, initialised again, for networks whose layers keep
            their shape.
        norm: whether a head of a single basic block has a BatchNorm before its linear layer. The
            official CIFAR code has it, the official ImageNet code does not.

    Raises:
        BadInput: bad values, copies that do not fit on each other, or layers that cannot be copied.

    Example (ResNet-32, depth 2, first module)::

        layer 0 (16 channels, 32x32)
            -> block like layer 8 (32, /2) -> block like layer 15 (64, /2) -> average -> Linear

    Source: Ma et al., Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR
    2024, arXiv 2402.17318.
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

    def __call__(self, point: AttachPoint) -> nn.Module:
        depth = self.depth_at(point.module, point.modules)
        layers = _count_layers_before_classifier(point)
        positions = self.sample_positions(point.layer, layers, depth)
        if self.unit == "copy" or not point.is_map():
            return _build_copy_head(point, positions)
        if self.unit == "conv":
            return _build_conv_head(point, positions)
        return self._build_block_head(point, positions, depth)

    def _build_block_head(
        self, point: AttachPoint, positions: list[int], depth: int
    ) -> nn.Sequential:
        block = BasicBlock if self.unit == "basic" else Bottleneck
        body: list[nn.Module] = [
            block(in_chans, out_chans, stride)
            for in_chans, out_chans, stride in _plan_blocks(point, positions)
        ]
        width = point.width(positions[-1] if positions else None)
        body.append(Pool(1))
        if self.norm and depth <= 1 and self.unit == "basic":
            body.append(nn.BatchNorm1d(width))
        head = nn.Sequential(*body, nn.Linear(width, point.outputs))
        init_convs(head)
        return head

    def depth_at(self, module: int, modules: int) -> int:
        """The depth d of the head of module number `module` of `modules`."""
        lost = self.pyramid * module / (modules - 2) if modules > 2 else 0.0
        return max(1, round(self.depth * (1 - lost) + lost))

    @staticmethod
    def sample_positions(layer: int, layers: int, depth: int) -> list[int]:
        """The layers that a head of this depth imitates, after `layer` of a network of `layers`."""
        ahead = layers - 1 - layer
        if depth >= ahead:
            return list(range(layer + 1, layers))
        return [round(layer + ahead / depth * i) for i in range(1, depth + 1)]


def _count_layers_before_classifier(point: AttachPoint) -> int:
    """Count the layers up to the last map; without maps, all but a last layer that classifies."""
    layers = point.layers
    if point.is_map():
        maps = (layer for layer in range(len(layers)) if point.is_map(layer))
        return max(maps, default=point.layer) + 1
    # The last layer is itself the classifier if its output has the shape of the network's outputs
    # and no parameters run after it. Otherwise the classifier follows the last layer.
    prefix = f"{layers.names[-1]}."
    runs_last = all(name.startswith(prefix) for name in layers.parameters[-1])
    classifies = runs_last and layers.shapes[-1] == layers.output_shape
    return len(layers) - (1 if classifies else 0)


def _plan_blocks(point: AttachPoint, positions: list[int]) -> Iterator[tuple[int, int, int]]:
    """(channels in, channels out, stride) of the block for each position."""
    layer, halvings = point.layer, 0  # halvings of the map that no block has made yet
    for position in positions:
        side, next_side = (point.layers.shapes[i][2] for i in (layer, position))
        halvings += round(math.log2(side / next_side))  # 7 -> 4 is a halving, too
        stride = 2 if halvings >= 1 else 1
        halvings -= stride - 1
        yield point.width(layer), point.width(position), stride
        layer = position


def _build_conv_head(point: AttachPoint, positions: list[int]) -> nn.Sequential:
    # The weights keep PyTorch's default initialization: the official code creates these heads after
    # it has initialized the network's weights.
    body, width = list[nn.Module](), point.width()
    for position in positions:
        next_width = point.width(position)
        if next_width != width:
            body.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil_mode keeps a map of one pixel
        body += _add_norm_and_relu(nn.Conv2d(width, next_width, 3, padding=1))
        width = next_width
    body += [nn.Flatten(), nn.AdaptiveAvgPool1d(_CLASSIFIER_WIDTH)]
    for _ in range(2):
        linear = nn.Linear(_CLASSIFIER_WIDTH, _CLASSIFIER_WIDTH)
        body += [linear, nn.BatchNorm1d(_CLASSIFIER_WIDTH), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(_CLASSIFIER_WIDTH, point.outputs))


def _build_copy_head(point: AttachPoint, positions: list[int]) -> nn.Sequential:
    width = point.width(positions[-1] if positions else None)
    copies = [point.make_fresh_copy(position) for position in positions]
    head = nn.Sequential(*copies, pool_or_norm(point, width), nn.Linear(width, point.outputs))
    _check_copies_fit(point, positions, head)
    return head


def _check_copies_fit(point: AttachPoint, positions: list[int], head: nn.Module) -> None:
    """Run the head on fake tensors, which cost no memory, to see whether its layers fit."""
    dtype, device = point.layers.dtypes[point.layer], next(head.parameters()).device
    head.to(dtype)  # as it will be
    mode = FakeMode(head.parameters())
    try:
        with untouched(head), quiet_fakes(), mode:
            head(torch.empty(point.features, dtype=dtype, device=device))
    except Exception as error:  # the user's layers may raise anything
        names = ", ".join(point.layers.names[position] for position in positions)
        raise BadInput(
            f"SampledLayers copies layers, but copies of {names} do not fit on features "
            f"{tuple(point.features)} ({error}): copies need layers that keep their shape. "
            "Use aux=Head() for this network."
        ) from error


@check_arguments
def auglocal(
    depth: int = 2, pyramid: float = 0.5, joined: bool = True, unit: str = "basic"
) -> Rule:
    """AugLocal: greedy local learning whose auxiliary networks look like the layers that follow.

    Equations: those of `greedy`, with a_k made of d_k new layers shaped like the layers p_i after
    layer l of n::

        d_k = max(1, round(depth * (1 - r) + r)),   r = pyramid * k / (K - 2),   k = 0..K-2
        p_i = round(l + (n - 1 - l) / d_k * i),     i = 1..d_k

    Credit (joined, depth=1)::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|...|...
        loss3 ...|...|TTT|TTT

    The paper trains layer by layer: `modules` = the number of layers. Its CIFAR code joins the last
    depth + 1 layers under the true loss and counts them as one of the K modules. Its ImageNet code
    gives every layer but the last a head and uses no pyramid.

    Args:
        depth: d, the layers of the first auxiliary network.
        pyramid: tau, how far the depth falls towards 1.
        joined: the CIFAR form (True) or the ImageNet form (False). It decides which layers form the
            final module, and whether a head of one basic block has a BatchNorm before its linear
            layer (in the CIFAR form only).
        unit: what stands for a layer: a "basic" or "bottleneck" residual block, a "conv" of VGG, or
            a "copy" of the layer itself, for networks whose layers keep their shape. See
            `SampledLayers`.

    Example:
        >>> import localprop as lp
        >>> rule = lp.auglocal(depth=2)                            # ResNet-32 and 110 on CIFAR-10
        >>> rule = lp.auglocal(depth=4, pyramid=0, joined=False)   # ResNet-34 on ImageNet
        >>> # ResNet-101 on ImageNet; unit="conv" is for VGG-13
        >>> rule = lp.auglocal(depth=4, pyramid=0, joined=False, unit="bottleneck")

    Reference: Ma, Wu, Si, Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks,
    ICLR 2024, arXiv 2402.17318.
    """
    return Rule(
        credit=LocalCredit(joined=depth if joined else 0),
        aux=SampledLayers(depth, pyramid, unit, norm=joined),
        reference="Ma et al. 2024, arXiv 2402.17318",
    )
