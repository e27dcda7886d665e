"""VGG networks as the local learning literature uses them: every convolution is a layer.

A layer is [dropout] [max-pool] convolution, batch norm, nonlinearity. Dropout and the pool stand at the start of the layer
that follows, so that a local loss sees the features before both.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from localprop.errors import check
from localprop.models.problems import count_problems, dropout_problems
from localprop.models.resnet import init_convs, init_linears

Plan = Sequence[int | Literal["M"]]  # widths of convolutions; M is a max-pool that halves the map

VGG8B: Plan = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
VGG11B: Plan = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")
VGG13: Plan = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG19: Plan = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M")

LARGE = 64  # pixels; images with a larger side enter a VGG-8b or VGG-11b by a strided 7x7 convolution
HIDDEN = 1024  # width of the hidden linear layer of these two
SIDE = 7  # pixels; what the classifier of VGG-13 and VGG-19 expects of the last map


class VGG(nn.Module):
    """Layers in a row, and a readout that belongs to the last of them.

    Args:
        layers: each a module of one convolution or linear layer.
        readout: from the last layer's features to logits; nothing where a layer does that.

    Example:
        >>> VGG([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 30)], nn.Flatten())(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015,
    arXiv 1409.1556.
    """

    def __init__(self, layers: Iterable[nn.Module], readout: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Identity() if readout is None else readout

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        for layer in self.layers:  # a call of the list would hold its argument until the last layer is done
            x = layer(x)
        logits: Tensor = self.readout(x)
        return logits


class Readout(nn.Module):
    """A hidden linear layer and what follows it: a classifier, or another readout.

    Nested and not in a list, so that its linear layers are no layers to be cut between.

    Args:
        hidden: the first part.
        rest: what follows.

    Example:
        >>> Readout(nn.Linear(8, 4), nn.Linear(4, 10))(torch.zeros(2, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, hidden: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.hidden = hidden
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of `hidden` to the output of `rest`."""
        logits: Tensor = self.rest(self.hidden(x))
        return logits


def _unit(**parts: nn.Module) -> nn.Sequential:
    """The parts in a row, by name: names of parameters do not depend on whether there is dropout."""
    return nn.Sequential(OrderedDict(parts))


def _convolutions(
    plan: Plan, in_chans: int, *, large: bool = False, leaky: bool = False, dropout: float = 0.0
) -> tuple[list[nn.Module], dict[str, nn.Module]]:
    """A layer per width of the plan, and what stands at the start of the layer after them."""
    units: list[nn.Module] = []
    entry: dict[str, nn.Module] = {}
    for width in plan:
        if width == "M":
            entry["pool"] = nn.MaxPool2d(2)
            continue
        kernel, stride = (7, 2) if large and not units else (3, 1)
        conv = nn.Conv2d(in_chans, width, kernel, stride, padding=kernel // 2)
        units.append(_unit(**entry, conv=conv, norm=nn.BatchNorm2d(width), act=_nonlinearity(leaky)))
        in_chans, entry = width, {"drop": nn.Dropout2d(dropout)} if dropout else {}
    return units, entry


def _nonlinearity(leaky: bool) -> nn.Module:
    return nn.LeakyReLU(0.01, inplace=True) if leaky else nn.ReLU(inplace=True)


# --- VGG-8b and VGG-11b: a hidden layer and a classifier that are layers of their own ---------------------------------


def _vgg_b(
    plan: Plan,
    num_classes: int,
    input_shape: tuple[int, int, int],
    feat_mult: int,
    leaky: bool,
    dropout: float,
    zero_output: bool,
) -> VGG:
    check(_problems(plan, num_classes, input_shape, feat_mult, dropout))
    in_chans, *sides = input_shape
    large = max(sides) > LARGE
    wide: Plan = [step if step == "M" else step * feat_mult for step in plan]
    units, entry = _convolutions(wide, in_chans, large=large, leaky=leaky, dropout=dropout)
    height, width = (_last_side(plan, side, large) for side in sides)
    linear = nn.Linear(512 * feat_mult * height * width, HIDDEN)
    norm = nn.BatchNorm1d(HIDDEN)
    hidden = _unit(**entry, flatten=nn.Flatten(), linear=linear, norm=norm, act=_nonlinearity(leaky))
    output = nn.Linear(HIDDEN, num_classes)
    if zero_output:
        nn.init.zeros_(output.weight)
    drop = {"drop": nn.Dropout(dropout)} if dropout else {}
    return VGG([*units, hidden, _unit(**drop, linear=output)])


def _last_side(plan: Plan, side: int, large: bool) -> int:
    return ((side + 1) // 2 if large else side) >> plan.count("M")


def _problems(
    plan: Plan, num_classes: int, input_shape: tuple[int, int, int], feat_mult: int, dropout: float
) -> list[str]:
    counts = count_problems(num_classes=num_classes, in_chans=input_shape[0], feat_mult=feat_mult)
    problems = [*counts, *dropout_problems(dropout)]
    large, least = max(input_shape[1:]) > LARGE, 1 << plan.count("M")
    if any(_last_side(plan, side, large) < 1 for side in input_shape[1:]):
        least = 2 * least if large else least
        problems.append(f"The input shape is {input_shape}, but {least} pixels a side are needed: use larger images.")
    return problems


def vgg8b(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    feat_mult: int = 1,
    leaky: bool = False,
    dropout: float = 0.0,
    zero_output: bool = False,
) -> VGG:
    """VGG-8b: six convolutions, a hidden linear layer of 1024 and a classifier, 8 layers; 8,903,434 parameters.

    Convolutions have a bias. Images with a side of more than 64 pixels enter by a 7x7 convolution of stride 2. Weights
    are drawn as PyTorch does: our reading, except for `zero_output`.

    Args:
        num_classes: outputs of the classifier.
        input_shape: (C, H, W) of the images, which fixes the hidden layer's inputs.
        feat_mult: a factor for the widths of the convolutions; the "2x" and "3x" networks of the paper.
        leaky: LeakyReLU of slope 0.01 (the paper's for similarity losses) instead of ReLU.
        dropout: probability; of whole channels after a convolution, of single numbers after the hidden layer.
        zero_output: the classifier's weight begins as zeros, as the paper's code has it under local losses.

    Raises:
        BadInput: if a count is less than one, the images are too small, or the probability lies outside [0, 1).

    Example:
        >>> vgg8b(feat_mult=2).layers[0].conv
        Conv2d(3, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))

    Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals (PredSim), ICML 2019, arXiv 1901.06656,
    official code.
    """
    return _vgg_b(VGG8B, num_classes, input_shape, feat_mult, leaky, dropout, zero_output)


def vgg11b(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    feat_mult: int = 1,
    leaky: bool = False,
    dropout: float = 0.0,
    zero_output: bool = False,
) -> VGG:
    """VGG-11b: `vgg8b` with nine convolutions, 11 layers; 11,559,946 parameters.

    Args:
        num_classes: outputs of the classifier.
        input_shape: (C, H, W) of the images.
        feat_mult: a factor for the widths of the convolutions.
        leaky: LeakyReLU instead of ReLU.
        dropout: probability.
        zero_output: the classifier's weight begins as zeros.

    Raises:
        BadInput: as `vgg8b` does.

    Example:
        >>> len(vgg11b().layers)
        11

    Source: Nøkland, Eidnes, 2019, arXiv 1901.06656, official code.
    """
    return _vgg_b(VGG11B, num_classes, input_shape, feat_mult, leaky, dropout, zero_output)


# --- VGG-13 and VGG-19: a readout that belongs to the last convolution ------------------------------------------------


def _vgg(plan: Plan, num_classes: int, in_chans: int, hidden: int, dropout: float) -> VGG:
    counts = count_problems(num_classes=num_classes, in_chans=in_chans, hidden=hidden)
    check([*counts, *dropout_problems(dropout)])
    units, entry = _convolutions(plan, in_chans)
    drop = {"drop": nn.Dropout(dropout)} if dropout else {}
    squeeze = {**entry, "squeeze": nn.AdaptiveAvgPool2d(SIDE), "flatten": nn.Flatten()}
    first = _unit(**squeeze, linear=nn.Linear(512 * SIDE * SIDE, hidden), act=nn.ReLU(inplace=True), **drop)
    second = _unit(linear=nn.Linear(hidden, hidden), act=nn.ReLU(inplace=True), **drop)
    model = VGG(units, Readout(first, Readout(second, nn.Linear(hidden, num_classes))))
    init_convs(model)
    init_linears(model)
    for unit in model.modules():
        if isinstance(unit, nn.Conv2d) and unit.bias is not None:
            nn.init.zeros_(unit.bias)
    return model


def vgg13(num_classes: int = 1000, in_chans: int = 3, hidden: int = 4096, dropout: float = 0.0) -> VGG:
    """VGG-13 with batch norm: ten convolutions, 10 layers, the last one with the pool and three linear layers behind it.

    The last map is pooled to 7x7, which 224x224 images have already: smaller ones, of 32 pixels and more, work too.
    Convolutions are drawn with fan-out, linear weights from N(0, 0.01 squared); biases are 0, as in DGL's code.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        hidden: width of the two hidden linear layers.
        dropout: probability, behind both; 0 in DGL, 0.5 in AugLocal.

    Raises:
        BadInput: if a count is less than one, or the probability lies outside [0, 1).

    Example:
        >>> vgg13(10, hidden=16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: Simonyan, Zisserman, 2015, arXiv 1409.1556; in this form Belilovsky, Eickenberg, Oyallon, Decoupled Greedy
    Learning of CNNs, ICML 2020, arXiv 1901.08164, and Ma et al., ICLR 2024, arXiv 2402.17318, official codes.
    """
    return _vgg(VGG13, num_classes, in_chans, hidden, dropout)


def vgg19(num_classes: int = 1000, in_chans: int = 3, hidden: int = 4096, dropout: float = 0.0) -> VGG:
    """VGG-19 with batch norm: `vgg13` with sixteen convolutions, 16 layers.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        hidden: width of the two hidden linear layers.
        dropout: probability, behind both.

    Raises:
        BadInput: as `vgg13` does.

    Example:
        >>> len(vgg19(10, hidden=16).layers)
        16

    Source: that of `vgg13`.
    """
    return _vgg(VGG19, num_classes, in_chans, hidden, dropout)
