"""The papers' auxiliary networks that are no "XcYf": their builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs, init_linears
from localprop.rule.auxiliary import Pool, Site, gathered


@dataclass(frozen=True)
class Bare:
    """No auxiliary network: the features themselves, for losses that need none.

    Example:
        >>> rule = lp.greedy(aux=lp.Bare())
    """

    def __call__(self, site: Site) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class MlpSrHead:
    """DGL's auxiliary network "MLP-SR": pool to a quarter, 1x1 convolutions, pool to 2x2, linear layers.

    Convolutions have no bias and are followed by BatchNorm and ReLU, as are the linear layers but the last. Maps that are
    smaller than `pooled` after the first pool stay as they are. Features that are no maps skip the convolutions, and of a
    network with an output per token each token is classified, with LayerNorm in the place of BatchNorm; that is our reading.

    Attributes:
        convs: 1x1 convolutions.
        linears: linear layers before the last.
        bias: whether they have a bias.
        size: the side of the maps after the first pool; 0: a quarter of the side, rounded up.
        width: the channels that the convolutions make; 0: those of the features.
        pooled: the side of the maps after the second pool.
        hidden: the width of the linear layers; 0: the numbers after the second pool, four per channel.
        std: the linear layers' weights are drawn from N(0, std squared), their biases are 0; 0: both as PyTorch does.

    Raises:
        BadInput: negative counts or a negative std, or maps pooled to nothing.

    Example (the published head of a 16-channel module)::

        (N, 16, 32, 32) -> 8x8 -> three times conv 1x1 16->16 -> 2x2 -> (N, 64) -> 64 -> 64 -> 64 -> (N, classes)

    DGL draws the linear layers with a std of 0.01, as :func:`localprop.dgl` does. AugLocal's re-implementation is
    `MlpSrHead(linears=2, bias=False)`, that of MAN++ `MlpSrHead(size=8, width=128, pooled=1, hidden=512)`.

    Source: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv 1901.08164, official code.
    """

    convs: int = 3
    linears: int = 3
    bias: bool = True
    size: int = 0
    width: int = 0
    pooled: int = 2
    hidden: int = 0
    std: float = 0.0

    def __post_init__(self) -> None:
        low: list[tuple[str, float, int]] = [
            ("convs", self.convs, 0),
            ("linears", self.linears, 0),
            ("size", self.size, 0),
            ("width", self.width, 0),
            ("pooled", self.pooled, 1),
            ("hidden", self.hidden, 0),
            ("std", self.std, 0),
        ]
        check(
            f"MlpSrHead({name}={value}): {name} must be {least} or more." for name, value, least in low if value < least
        )

    def __call__(self, site: Site) -> nn.Module:
        body, width = self._front(site)
        each_token = len(site.layers.output_shape) > 2
        for _ in range(self.linears):
            wide = self.hidden or width
            norm = nn.LayerNorm(wide) if each_token else nn.BatchNorm1d(wide)
            body += [nn.Linear(width, wide, bias=self.bias), norm, nn.ReLU()]
            width = wide
        head = nn.Sequential(*body, nn.Linear(width, site.outputs))
        init_convs(head)
        if self.std:
            init_linears(head, self.std)
        return head

    def _front(self, site: Site) -> tuple[list[nn.Module], int]:
        """What stands before the linear layers, and how many numbers it makes."""
        width = site.width()
        if not site.is_map():
            return [gathered(site, width)], width
        small = [self.size or -(-side // 4) for side in site.features[2:]]
        body = _to_size(site.features[2:], small)
        for _ in range(self.convs):
            wide = self.width or width
            body += [nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
            width = wide
        pooled = [min(self.pooled, side) for side in small]
        return [*body, *_to_size(small, pooled), nn.Flatten()], width * pooled[0] * pooled[1]


def _to_size(before: Sequence[int], after: Sequence[int]) -> list[nn.Module]:
    """An adaptive average pool, none if the size is met already."""
    return [] if list(before) == list(after) else [nn.AdaptiveAvgPool2d((after[0], after[1]))]


class _PaddedPool(nn.Module):
    """Averages over windows of a size; zeros fill the last ones."""

    def __init__(self, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, maps: Tensor) -> Tensor:
        down, right = (-side % kernel for side, kernel in zip(maps.shape[2:], self.kernel, strict=True))
        return functional.avg_pool2d(functional.pad(maps, (0, right, 0, down)), self.kernel)


@dataclass(frozen=True)
class PooledHead:
    """PredSim's auxiliary classifier: an average pool, as fine as `features` numbers allow, and one linear layer.

    The sides of the pool's kernel double in turn, the height first, until no more numbers than that are left. The linear
    layer has a bias, and weights that start at zero. Sides that the kernel does not divide are padded with zeros, at the end:
    our reading. Vectors are classified as they are, tokens after their average.

    Attributes:
        features: the most numbers that the linear layer reads.

    Raises:
        BadInput: no features.

    Example (2,048 features)::

        (N, 128, 32, 32) -> 8x8 averages -> (N, 128 * 4 * 4) -> (N, classes)
        (N, 256, 32, 32) -> 16x8 averages -> (N, 256 * 2 * 4) -> (N, classes)

    Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv 1901.06656, official code:
    2,048 for CIFAR-10, SVHN and STL-10, 4,096 for wider networks and CIFAR-100, 1,024 for MNIST.
    """

    features: int = 2048

    def __post_init__(self) -> None:
        check([f"PooledHead(features={self.features}): features must be 1 or more."] if self.features < 1 else [])

    def __call__(self, site: Site) -> nn.Module:
        width = site.width()
        if not site.is_map():
            body: list[nn.Module] = [gathered(site, width)]
        else:
            kernel = self.kernel(site.features)
            width *= -(-site.features[2] // kernel[0]) * -(-site.features[3] // kernel[1])
            body = [_PaddedPool(kernel), nn.Flatten()]
        classifier = nn.Linear(width, site.outputs)
        nn.init.zeros_(classifier.weight)
        return nn.Sequential(*body, classifier)

    def kernel(self, shape: torch.Size) -> tuple[int, int]:
        """The (height, width) of the pool's windows on maps (N, C, H, W); a whole map at most."""
        _, width, *sides = shape
        kernel, turn = [1, 1], 0
        while width * -(-sides[0] // kernel[0]) * -(-sides[1] // kernel[1]) > self.features:
            if kernel[0] >= sides[0] and kernel[1] >= sides[1]:
                break
            kernel[turn] *= 2
            turn = 1 - turn
        return kernel[0], kernel[1]


@dataclass(frozen=True)
class ConvHead:
    """Interlocking backpropagation's auxiliary network: 3x3 convolutions, a global average, one linear layer.

    Convolutions have stride 1, a bias, BatchNorm and ReLU. Features that are no maps skip them, which is our reading.

    Attributes:
        convs: the width of each convolution.
        norm: whether BatchNorm stands before each ReLU.

    Raises:
        BadInput: widths below 1.

    Example (the example script's conv128_bn_conv64_bn_gbpl_fc on 128 channels, 222,410 parameters for 10 classes)::

        (N, 128, H, W) -> conv 128->128 -> conv 128->64 -> average -> (N, classes)

    Source: Gomez et al., Interlocking Backpropagation, JMLR 23(171), 2022, arXiv 2010.04116, official code.
    """

    convs: tuple[int, ...] = (128, 64)
    norm: bool = True

    def __post_init__(self) -> None:
        check(_widths_problems("ConvHead", "convs", self.convs))

    def __call__(self, site: Site) -> nn.Module:
        body, width = list[nn.Module](), site.width()
        for wide in self.convs if site.is_map() else ():
            norm = [nn.BatchNorm2d(wide)] if self.norm else []
            body += [nn.Conv2d(width, wide, 3, padding=1), *norm, nn.ReLU(inplace=True)]
            width = wide
        head = nn.Sequential(*body, gathered(site, width), nn.Linear(width, site.outputs))
        init_convs(head)
        return head


@dataclass(frozen=True)
class OneConvHead:
    """TRGL's auxiliary network "1CNN": a 3x3 convolution, ReLU, an average pool, BatchNorm, and a linear layer, in that order.

    The convolution keeps width and size and has no bias. Features that are no maps are averaged after LayerNorm, as in the
    official code for Swin.

    Attributes:
        pools: the side of the pool's windows at the network's first size of maps, at its second, ...; the last one serves
            those that follow, too. A window larger than the map is the whole map.

    Raises:
        BadInput: windows below 1.

    Example (ResNet-110 on STL-10, the last size)::

        (N, 64, 24, 24) -> conv 64->64 -> 8x8 averages -> (N, 64 * 3 * 3) -> (N, classes)

    The default is that of ResNet-110 on STL-10; ResNet-101 and ResNet-152 take (8, 8, 8, 4) on CIFAR-100 and TinyImageNet.

    Source: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the Minimizing Movement Scheme
    (TRGL), NeurIPS 2023, official code.
    """

    pools: tuple[int, ...] = (16, 16, 8)

    def __post_init__(self) -> None:
        check(_widths_problems("OneConvHead", "pools", self.pools, least=1))

    def __call__(self, site: Site) -> nn.Module:
        width = site.width()
        if not site.is_map():
            return nn.Sequential(*_normed_tokens(site), nn.Linear(width, site.outputs))
        height, broad = site.features[2:]
        pool = self.pools[min(_stage(site), len(self.pools) - 1)]
        kernel = min(pool, height), min(pool, broad)
        numbers = width * (height // kernel[0]) * (broad // kernel[1])
        head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(kernel),
            nn.BatchNorm2d(width),
            nn.Flatten(),
            nn.Linear(numbers, site.outputs),
        )
        init_convs(head)
        return head


def _normed_tokens(site: Site) -> list[nn.Module]:
    """LayerNorm and an average, if any; after it where the channels come first."""
    norm, dimension = nn.LayerNorm(site.width()), site.dimension()
    average = nn.Identity() if len(site.layers.output_shape) > 2 else Pool(dimension)
    return [norm, average] if dimension == len(site.features) - 1 else [average, norm]


def _stage(site: Site) -> int:
    """How many sizes of maps the network has before that of the features."""
    sizes = [site.layers.shapes[layer][2:] for layer in range(site.layer + 1) if site.is_map(layer)]
    return sum(before != after for before, after in pairwise(sizes))


@dataclass(frozen=True)
class BottleneckHead:
    """InfoPro's auxiliary network for ImageNet: narrow, halve the map with 3x3 convolutions, widen, average, one linear layer.

    The first and the last convolution are 1x1 with stride 1, those between 3x3 with stride 2; none has a bias, each is
    followed by BatchNorm and ReLU.

    Attributes:
        widths: of the convolutions; two or more.

    Raises:
        BadInput: fewer than two widths, widths below 1, features that are no maps.

    Example (ResNet-101 cut in its second stage)::

        (N, 512, 28, 28) -> 128 -> 256, /2 -> 512, /2 -> (N, 2048, 7, 7) -> average -> (N, classes)

    Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832, official code.
    """

    widths: tuple[int, ...] = (128, 256, 512, 2048)

    def __post_init__(self) -> None:
        check(_widths_problems("BottleneckHead", "widths", self.widths, least=2))

    def __call__(self, site: Site) -> nn.Module:
        if not site.is_map():
            raise BadInput(
                f"BottleneckHead needs maps (N, C, H, W), but module {site.module} ends with features of shape "
                f"{tuple(site.features)}: use aux=Head() for this network."
            )
        body = list[nn.Module]()
        for i, (narrow, wide) in enumerate(pairwise([site.width(), *self.widths])):
            size = 1 if i in (0, len(self.widths) - 1) else 3
            conv = nn.Conv2d(narrow, wide, size, stride=1 if size == 1 else 2, padding=size // 2, bias=False)
            body += [conv, nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        head = nn.Sequential(*body, Pool(1), nn.Linear(self.widths[-1], site.outputs))
        init_convs(head)
        return head


def _widths_problems(part: str, name: str, widths: tuple[int, ...], least: int = 0) -> list[str]:
    problems = [f"{part}({name}={widths}): give {least} or more numbers."] if len(widths) < least else []
    low = any(width < 1 for width in widths)
    return [*problems, f"{part}({name}={widths}): each must be 1 or more."] if low else problems
