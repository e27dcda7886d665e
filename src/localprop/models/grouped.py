"""Residual networks of grouped convolutions, to be trained group by group."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from localprop.errors import check
from localprop.models.problems import builds_network, find_count_problems
from localprop.models.resnet import (
    STAGE_WIDTHS,
    BasicBlock,
    find_depth_problems,
    init_convs,
    list_layer_widths,
)


class ConvClassifier(nn.Module):
    """A classifier that is one layer of the network.

    It is a 3x3 convolution of stride 2 to twice the channels, an average over all pixels and two
    linear layers.

    Args:
        in_chans: channels of the features.
        num_classes: outputs.
        hidden: width of the hidden linear layer.

    Example:
        >>> ConvClassifier(64, 10)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 10])

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023,
    arXiv 2301.07635, official code.
    """

    def __init__(self, in_chans: int, num_classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 2 * in_chans, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * in_chans)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(2 * in_chans, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, in_chans, H, W) to logits (N, num_classes)."""
        x = self.pool(self.relu(self.bn(self.conv(x)))).flatten(1)
        logits: Tensor = self.fc(self.relu(self.hidden(x)))
        return logits


class GroupedResNet(nn.Module):
    """A CIFAR ResNet of grouped convolutions: the stem, 3n blocks and a classifier in one list.

    Group g of every layer reads group g of the layer before. The stem and the start of a module are
    exceptions and read all channels: the first convolution of the module's first block, and the 1x1
    convolution of that block's shortcut, if it has one.

    Args:
        blocks_per_stage: n. The network has 3n + 2 layers.
        groups: G.
        ends: the numbers of the layers that end a module. The stem is 0, the last block 3n.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        widen: a factor for all widths, and for the 128 of the classifier's hidden layer.

    Example:
        >>> network = GroupedResNet(1, groups=2, ends=(1, 3))
        >>> [block.conv1.groups for block in network.layers[1:-1]]
        [2, 1, 2]

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023,
    arXiv 2301.07635, official code.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        groups: int,
        ends: Sequence[int],
        num_classes: int = 10,
        in_chans: int = 3,
        widen: int = 1,
    ) -> None:
        super().__init__()
        widths = list_layer_widths(blocks_per_stage, widen)
        conv = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        stem = nn.Sequential(conv, nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        blocks = []
        for previous, (in_width, out_width) in enumerate(pairwise(widths)):
            stride = 1 if in_width == out_width else 2
            # The first convolution of a module mixes the groups of the module before.
            mixing = previous in ends
            blocks.append(BasicBlock(in_width, out_width, stride, groups=groups, mixing=mixing))
        classifier = ConvClassifier(widths[-1], num_classes, hidden=128 * widen)
        self.layers = nn.Sequential(stem, *blocks, classifier)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        # A loop, because a call of `self.layers` would hold its argument until the last layer ends.
        for layer in self.layers:
            x = layer(x)
        return x


@builds_network
def grouped_resnet(
    depth: int = 32,
    groups: int = 2,
    ends: Sequence[int] = (7, 15),
    num_classes: int = 10,
    in_chans: int = 3,
    widen: int = 1,
) -> GroupedResNet:
    """The `GroupedResNet` of depth 6n + 2, with a `ConvClassifier` instead of a linear layer.

    Args:
        depth: depth of the CIFAR ResNet whose widths and blocks the network has.
        groups: G. It must divide all widths.
        ends: the layers that end a module, in increasing order, from 0 (the stem) to 3n (the last
            block). The default cuts ResNet-32 into two modules and the classifier. An empty
            sequence gives grouped convolutions throughout.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        widen: a factor for all widths. 2 gives 32, 64 and 128 channels, and a hidden layer of 256
            in the classifier.

    Raises:
        BadInput: if the depth is not 6n + 2, the groups do not divide the widths, the ends do not
            increase or are no layers, or a count is less than one.

    Example:
        >>> len(grouped_resnet(32, groups=2, ends=(7, 15)).layers)
        17

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023,
    arXiv 2301.07635, official code.
    """
    counts = find_count_problems(
        groups=groups, num_classes=num_classes, in_chans=in_chans, widen=widen
    )
    problems = [*find_depth_problems(depth), *counts]
    check(problems)
    last_block = depth // 2 - 1
    check([*_find_group_problems(groups, widen), *_find_end_problems(ends, last_block)])
    return GroupedResNet((depth - 2) // 6, groups, ends, num_classes, in_chans, widen)


def _find_group_problems(groups: int, widen: int) -> Iterator[str]:
    narrowest = STAGE_WIDTHS[0] * widen
    if narrowest % groups:
        divisors = ", ".join(str(i) for i in range(1, narrowest + 1) if narrowest % i == 0)
        yield (
            f"groups={groups} do not divide the {narrowest} channels of the stem: take one of"
            f" {divisors}."
        )


def _find_end_problems(ends: Sequence[int], last_block: int) -> Iterator[str]:
    if list(ends) != sorted({end for end in ends if 0 <= end <= last_block}):
        yield (
            f"ends={tuple(ends)} must increase and lie between 0 (the stem) and {last_block} (the"
            " last block)."
        )
