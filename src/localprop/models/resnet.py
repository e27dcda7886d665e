"""Residual networks for small images, as the local learning literature uses them.

The blocks are one flat `nn.Sequential`, so that every residual block is a layer of its own and a network of
depth 6n + 2 has 3n + 1 layers: the stem and 3n blocks.
"""

import math
from itertools import pairwise

from torch import Tensor, nn

from localprop.errors import check

STEM_WIDTH = 16
STAGE_WIDTHS = (16, 32, 64)


def init_convs(module: nn.Module) -> None:
    """Draw every convolution below `module` from N(0, 2 / (k * k * out_channels)); leave the rest as it is.

    Batch norms (weight 1, bias 0), linear layers and convolution biases keep PyTorch's defaults. Auxiliary
    networks are initialised by the same function as the primary network.

    Args:
        module: changed in place; draws come from torch's global generator.

    Example:
        >>> init_convs(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)))

    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852 (fan-out form).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus a shortcut: (N, I, H, W) -> (N, O, H / stride, W / stride).

    The shortcut is the identity, or a 1x1 convolution with batch norm where the shape changes (option B).

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        stride: stride of the first convolution and of the shortcut.

    Example:
        >>> BasicBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(in_chans, out_chans, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to (N, out_chans, ceil(H / stride), ceil(W / stride))."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(residual + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """The residual network for 32x32 images with n blocks in each of three stages of 16, 32 and 64 channels.

    It differs from the paper's CIFAR network in its shortcuts, which are 1x1 convolutions (option B) instead
    of padding (option A): this is the network that InfoPro, AugLocal and ContSup train.

    Args:
        blocks_per_stage: n; the depth is 6n + 2.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Example:
        >>> CifarResNet(5)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385, section 4.2.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, STEM_WIDTH, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(STEM_WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(*_stages(blocks_per_stage))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(STAGE_WIDTHS[-1], num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn(self.conv(x)))
        # A loop, since a call of `self.blocks` would hold its argument, a whole feature map, until the last block is done.
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _shortcut(in_chans: int, out_chans: int, stride: int) -> nn.Module:
    if stride == 1 and in_chans == out_chans:
        return nn.Identity()
    conv = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chans))


def _stages(blocks_per_stage: int) -> list[BasicBlock]:
    widths = [STEM_WIDTH] + [width for width in STAGE_WIDTHS for _ in range(blocks_per_stage)]
    return [BasicBlock(a, b, stride=1 if a == b else 2) for a, b in pairwise(widths)]


def cifar_resnet(depth: int, num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """The `CifarResNet` of a depth 6n + 2: 8, 14, 20, 26, 32, ...

    Args:
        depth: convolutions and linear layers on the longest path.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if the depth is not 6n + 2, or a count is less than one.

    Example:
        >>> len(cifar_resnet(32).blocks)
        15

    Source: He et al., 2016, arXiv 1512.03385, section 4.2.
    """
    problems = []
    if depth < 8 or depth % 6 != 2:
        below = max(8, depth - (depth - 2) % 6)
        problems.append(
            f"The depth is {depth}, but a CIFAR ResNet has 6n + 2 layers with n >= 1: take {below} or {below + 6}."
        )
    for name, count in (("num_classes", num_classes), ("in_chans", in_chans)):
        if count < 1:
            problems.append(f"{name} is {count}, but at least 1 is needed: pass a positive number.")
    check(problems)
    return CifarResNet((depth - 2) // 6, num_classes, in_chans)


def resnet8(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(8)`: 3 blocks, 4 layers; small enough for tests."""
    return cifar_resnet(8, num_classes, in_chans)


def resnet14(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(14)`: 6 blocks, 7 layers."""
    return cifar_resnet(14, num_classes, in_chans)


def resnet20(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(20)`: 9 blocks, 10 layers."""
    return cifar_resnet(20, num_classes, in_chans)


def resnet32(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(32)`: 15 blocks, 16 layers, 466,906 parameters; the field's usual network."""
    return cifar_resnet(32, num_classes, in_chans)


def resnet44(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(44)`: 21 blocks, 22 layers."""
    return cifar_resnet(44, num_classes, in_chans)


def resnet56(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(56)`: 27 blocks, 28 layers."""
    return cifar_resnet(56, num_classes, in_chans)


def resnet110(num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """`cifar_resnet(110)`: 54 blocks, 55 layers, 1,730,714 parameters."""
    return cifar_resnet(110, num_classes, in_chans)
