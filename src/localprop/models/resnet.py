"""Residual networks for small images, as the local learning literature uses them.

The blocks form one flat `nn.Sequential`, so that every residual block is a layer. A network of
depth 6n + 2 has 3n + 1 layers: the stem and 3n blocks.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.models.problems import builds_network, find_count_problems

STAGE_WIDTHS = (16, 32, 64)  # The stem has the first width.

Shortcut = Literal["conv", "pad"]


def init_convs(module: nn.Module) -> None:
    """Draw the weights of every convolution in `module` from N(0, 2 / (k * k * out_channels)).

    Batch norms (weight 1, bias 0), linear layers and convolution biases keep PyTorch's defaults.
    Auxiliary networks are initialised by the same function as the primary network.

    Args:
        module: changed in place. Draws come from torch's global generator.

    Example:
        >>> init_convs(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)))

    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852 (fan-out form).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))


def init_linears(module: nn.Module, std: float = 0.01) -> None:
    """Draw the weights of every linear layer in `module` from N(0, std squared). Biases become 0.

    Args:
        module: changed in place. Draws come from torch's global generator.
        std: standard deviation.

    Example:
        >>> init_linears(nn.Sequential(nn.Linear(3, 16), nn.ReLU()))

    Source: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020,
    arXiv 1901.08164, official code.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus a shortcut.

    It maps (N, I, H, W) to (N, O, H / stride, W / stride), rounded up.

    The shortcut is the identity if the shape does not change. Otherwise "conv" is a 1x1 convolution
    with batch norm (option B), and "pad" takes every stride-th pixel and appends channels of zeros
    (option A, no parameters).

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        stride: stride of the first convolution and of the shortcut.
        shortcut: "conv" or "pad".
        groups: number of groups of all convolutions.
        mixing: the first convolution and the shortcut's are not grouped and read all channels.

    Raises:
        BadInput: if the shortcut is unknown.

    Example:
        >>> BasicBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        shortcut: Shortcut = "conv",
        groups: int = 1,
        mixing: bool = False,
    ) -> None:
        check(_find_shortcut_problems(shortcut))
        super().__init__()
        of_input = 1 if mixing else groups  # groups of the convolutions that read the input
        self.conv1 = nn.Conv2d(
            in_chans, out_chans, 3, stride, padding=1, groups=of_input, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _build_shortcut(shortcut, in_chans, out_chans, stride, of_input)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to (N, out_chans, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)  # in place: the backward needs neither
        return self.relu(out)  # type: ignore[no-any-return]


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A).

    It takes every stride-th row and column and appends channels of zeros.

    Args:
        stride: in height and width.
        extra_chans: channels of zeros.

    Example:
        >>> PadShortcut(2, 16)(torch.ones(1, 16, 7, 7)).shape
        torch.Size([1, 32, 4, 4])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385,
    section 3.3. This form: Karkar et al., TRGL, NeurIPS 2023, official code.
    """

    def __init__(self, stride: int, extra_chans: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra_chans = extra_chans

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + extra_chans, ceil(H / stride), ceil(W / stride))."""
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(subsampled, (0, 0, 0, 0, 0, self.extra_chans))


class CifarResNet(nn.Module):
    """The residual network for 32x32 images.

    It has n blocks in each of three stages, which have 16, 32 and 64 channels. It differs from the
    paper's CIFAR network in its shortcuts, which are 1x1 convolutions (option B) instead of padding
    (option A). InfoPro, AugLocal and ContSup train this network. TRGL's has option A.

    Args:
        blocks_per_stage: n. The depth is 6n + 2.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        widen: a factor for all widths.
        shortcut: "conv" (option B) or "pad" (option A).

    Raises:
        BadInput: if the shortcut is unknown.

    Example:
        >>> CifarResNet(5)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385,
    section 4.2.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int = 10,
        in_chans: int = 3,
        widen: int = 1,
        shortcut: Shortcut = "conv",
    ) -> None:
        super().__init__()
        widths = list_layer_widths(blocks_per_stage, widen)
        self.conv = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential()
        for in_width, out_width in pairwise(widths):
            stride = 1 if in_width == out_width else 2
            self.blocks.append(BasicBlock(in_width, out_width, stride, shortcut=shortcut))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn(self.conv(x)))
        # A loop, because a call of `self.blocks` would hold its argument, a whole feature map,
        # until the last block ends.
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def list_layer_widths(blocks_per_stage: int, widen: int = 1) -> list[int]:
    """List the channels of the stem and of each block.

    Example:
        >>> list_layer_widths(2)
        [16, 16, 16, 32, 32, 64, 64]
    """
    widths = [STAGE_WIDTHS[0]]
    for width in STAGE_WIDTHS:
        widths += [width] * blocks_per_stage
    return [widen * width for width in widths]


def _build_shortcut(
    shortcut: Shortcut, in_chans: int, out_chans: int, stride: int, groups: int
) -> nn.Module:
    if stride == 1 and in_chans == out_chans:
        return nn.Identity()
    if shortcut == "pad":
        return PadShortcut(stride, out_chans - in_chans)
    conv = nn.Conv2d(in_chans, out_chans, 1, stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chans))


def _find_shortcut_problems(shortcut: str) -> Iterator[str]:
    if shortcut not in ("conv", "pad"):
        yield (
            f'shortcut={shortcut!r} is unknown: choose "conv" (1x1 convolutions) or "pad" (every'
            " stride-th pixel, padded with zeros)."
        )


def find_depth_problems(depth: int) -> Iterator[str]:
    """Check the depth of a CIFAR ResNet. Yields a sentence if it is not 6n + 2."""
    if depth < 8 or depth % 6 != 2:
        below = max(8, depth - (depth - 2) % 6)
        yield (
            f"The depth is {depth}, but a CIFAR ResNet has 6n + 2 layers with n >= 1: take {below}"
            f" or {below + 6}."
        )


@builds_network
def cifar_resnet(
    depth: int,
    num_classes: int = 10,
    in_chans: int = 3,
    widen: int = 1,
    shortcut: Shortcut = "conv",
) -> CifarResNet:
    """The `CifarResNet` of depth 6n + 2: 8, 14, 20, 26, 32, ...

    Args:
        depth: convolutions and linear layers on the longest path.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        widen: a factor for all widths. 2 gives 32, 64 and 128 channels.
        shortcut: "conv" (option B) or "pad" (option A).

    Raises:
        BadInput: if the depth is not 6n + 2, a count is less than one, or the shortcut is unknown.

    Example:
        >>> len(cifar_resnet(32).blocks)
        15

    Source: He et al., 2016, arXiv 1512.03385, section 4.2.
    """
    counts = find_count_problems(num_classes=num_classes, in_chans=in_chans, widen=widen)
    check([*find_depth_problems(depth), *counts, *_find_shortcut_problems(shortcut)])
    return CifarResNet((depth - 2) // 6, num_classes, in_chans, widen, shortcut)


def resnet8(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(8)`: 3 blocks, 4 layers, small enough for tests."""
    return cifar_resnet(8, num_classes, in_chans, widen, shortcut)


def resnet14(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(14)`: 6 blocks, 7 layers."""
    return cifar_resnet(14, num_classes, in_chans, widen, shortcut)


def resnet20(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(20)`: 9 blocks, 10 layers."""
    return cifar_resnet(20, num_classes, in_chans, widen, shortcut)


def resnet32(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(32)`: 15 blocks, 16 layers, 466,906 parameters. Most papers train it."""
    return cifar_resnet(32, num_classes, in_chans, widen, shortcut)


def resnet44(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(44)`: 21 blocks, 22 layers."""
    return cifar_resnet(44, num_classes, in_chans, widen, shortcut)


def resnet56(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(56)`: 27 blocks, 28 layers."""
    return cifar_resnet(56, num_classes, in_chans, widen, shortcut)


def resnet110(
    num_classes: int = 10, in_chans: int = 3, widen: int = 1, shortcut: Shortcut = "conv"
) -> CifarResNet:
    """`cifar_resnet(110)`: 54 blocks, 55 layers, 1,730,714 parameters."""
    return cifar_resnet(110, num_classes, in_chans, widen, shortcut)
