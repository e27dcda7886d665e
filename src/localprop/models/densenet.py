"""Densely connected networks for small images."""

import torch
from torch import Tensor, nn

from localprop.errors import check
from localprop.models.problems import builds_network, find_count_problems
from localprop.models.resnet import init_convs

BOTTLENECK = 4  # The 1x1 convolution of a dense layer is 4 times as wide as the layer's growth.


class DenseLayer(nn.Module):
    """A bottleneck layer that appends channels to its input.

    The new channels are the output of BN-ReLU-conv1x1-BN-ReLU-conv3x3.

    Args:
        in_chans: channels of the output of `entry`.
        growth: channels that the layer adds.
        entry: applied first: a stem, a transition, or an identity.

    Example:
        >>> DenseLayer(24, 12, nn.Identity())(torch.zeros(1, 24, 8, 8)).shape
        torch.Size([1, 36, 8, 8])

    Source: Huang et al., Densely Connected Convolutional Networks, 2017, arXiv 1608.06993.
    """

    def __init__(self, in_chans: int, growth: int, entry: nn.Module) -> None:
        super().__init__()
        width = BOTTLENECK * growth
        self.entry = entry
        self.branch = nn.Sequential(
            nn.BatchNorm2d(in_chans),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_chans, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of `entry` to (N, in_chans + growth, H, W)."""
        x = self.entry(x)
        return torch.cat([x, self.branch(x)], 1)


class DenseNetBC(nn.Module):
    """DenseNet-BC for 32x32 images, with three blocks of bottleneck layers.

    A transition between blocks halves the side of the feature maps and the channels.

    Every dense layer is a layer of the network, so that a cut passes on all features so far. The
    stem belongs to the first dense layer, and a transition to the dense layer after it, as a pool
    does in the VGG networks. This is our reading, since it is not known where the published local
    networks are cut. Three blocks of 16 then divide into 2, 4, 8 or 16 equal modules.

    Args:
        layers_per_block: dense layers in each of the three blocks.
        growth: k, the channels that each layer adds. The stem has 2k.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if a count is less than one.

    Example:
        >>> DenseNetBC(2, growth=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: Huang et al., Densely Connected Convolutional Networks, 2017, arXiv 1608.06993,
    sections 3 and 4.2.
    """

    def __init__(
        self, layers_per_block: int, growth: int, num_classes: int = 10, in_chans: int = 3
    ) -> None:
        counts = {"layers_per_block": layers_per_block, "growth": growth}
        check(find_count_problems(**counts, num_classes=num_classes, in_chans=in_chans))
        super().__init__()
        self.layers, width = nn.Sequential(), 2 * growth
        entry: nn.Module = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        for block in range(3):
            if block:
                entry, width = _build_transition(width), width // 2
            for _ in range(layers_per_block):
                self.layers.append(DenseLayer(width, growth, entry))
                entry, width = nn.Identity(), width + growth
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        # A loop, because a call of `self.layers` would hold its argument until the last layer ends.
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.fc(self.pool(self.relu(self.norm(x))).flatten(1))
        return logits


def _build_transition(width: int) -> nn.Sequential:
    """Halve the channels (compression 0.5) and the side."""
    conv = nn.Conv2d(width, width // 2, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), conv, nn.AvgPool2d(2))


@builds_network
def densenet_bc_100_12(num_classes: int = 10, in_chans: int = 3) -> DenseNetBC:
    """DenseNet-BC of depth 100 and growth 12: three blocks of 16 bottleneck layers, 48 layers.

    Convolutions are initialised as in the CIFAR ResNets (our reading), the rest as PyTorch does.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Example:
        >>> len(densenet_bc_100_12().layers)
        48

    Source: Huang et al., 2017, arXiv 1608.06993. Trained by local losses in Wang et al., Revisiting
    Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832.
    """
    return DenseNetBC(16, 12, num_classes, in_chans)
