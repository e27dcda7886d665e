"""VGG networks as the local learning literature uses them: every convolution is a layer.

A layer is [dropout] [max-pool] convolution, batch norm, nonlinearity. Dropout and pool come at the
start of the next layer, so that a local loss reads the features before both.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from localprop.errors import check
from localprop.models.problems import builds_network, find_count_problems, find_dropout_problems
from localprop.models.resnet import init_convs, init_linears

Plan = Sequence[
    int | Literal["M"]
]  # Widths of convolutions. "M" is a max-pool that halves the map.

VGG8B: Plan = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
VGG11B: Plan = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")
VGG13: Plan = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG19: Plan = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M")

# VGG-8b and VGG-11b begin with a strided 7x7 convolution if a side of the images has more pixels.
LARGE = 64
HIDDEN = 1024  # width of the hidden linear layer of VGG-8b and VGG-11b
SIDE = 7  # pixels per side of the last map that the classifier of VGG-13 and VGG-19 expects


class VGG(nn.Module):
    """A sequence of layers, and a readout that belongs to the last layer.

    Args:
        layers: modules with one convolution or linear layer each.
        readout: maps the last layer's features to logits. None if the last layer returns logits.

    Example:
        >>> network = VGG([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 30)], nn.Flatten())
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
    2015, arXiv 1409.1556.
    """

    def __init__(self, layers: Iterable[nn.Module], readout: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Identity() if readout is None else readout

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        # A loop, because a call of `self.layers` would hold its argument until the last layer ends.
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.readout(x)
        return logits


class Readout(nn.Module):
    """A hidden linear layer, followed by a classifier or another readout.

    Readouts are nested instead of listed. Modules in a list would be layers, which a partition may
    cut between.

    Args:
        hidden: the hidden linear layer.
        rest: the classifier or readout after it.

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


def _build_layer(**modules: nn.Module) -> nn.Sequential:
    """Chain named modules. Names of parameters thus do not depend on whether there is dropout."""
    return nn.Sequential(OrderedDict(modules))


def _build_conv_layers(
    plan: Plan, in_chans: int, *, large: bool = False, leaky: bool = False, dropout: float = 0.0
) -> tuple[list[nn.Module], dict[str, nn.Module]]:
    """Build a layer for each width of the plan.

    Returns:
        The layers, and the pool and dropout that the next layer begins with.
    """
    layers: list[nn.Module] = []
    entry: dict[str, nn.Module] = {}
    for width in plan:
        if width == "M":
            entry["pool"] = nn.MaxPool2d(2)
            continue
        kernel, stride = (7, 2) if large and not layers else (3, 1)
        conv = nn.Conv2d(in_chans, width, kernel, stride, padding=kernel // 2)
        norm, act = nn.BatchNorm2d(width), _build_activation(leaky)
        layers.append(_build_layer(**entry, conv=conv, norm=norm, act=act))
        in_chans, entry = width, {"drop": nn.Dropout2d(dropout)} if dropout else {}
    return layers, entry


def _build_activation(leaky: bool) -> nn.Module:
    return nn.LeakyReLU(0.01, inplace=True) if leaky else nn.ReLU(inplace=True)


# --- VGG-8b and VGG-11b: the hidden layer and the classifier are two more layers ------------------


def _build_vgg_b(
    plan: Plan,
    num_classes: int,
    input_shape: tuple[int, int, int],
    feat_mult: int,
    leaky: bool,
    dropout: float,
    zero_output: bool,
) -> VGG:
    check(_find_problems(plan, num_classes, input_shape, feat_mult, dropout))
    in_chans, *sides = input_shape
    large = max(sides) > LARGE
    widened: Plan = [step if step == "M" else step * feat_mult for step in plan]
    layers, entry = _build_conv_layers(widened, in_chans, large=large, leaky=leaky, dropout=dropout)
    height, width = (_compute_last_side(plan, side, large) for side in sides)
    linear = nn.Linear(512 * feat_mult * height * width, HIDDEN)
    norm, act = nn.BatchNorm1d(HIDDEN), _build_activation(leaky)
    hidden = _build_layer(**entry, flatten=nn.Flatten(), linear=linear, norm=norm, act=act)
    output = nn.Linear(HIDDEN, num_classes)
    if zero_output:
        nn.init.zeros_(output.weight)
    drop = {"drop": nn.Dropout(dropout)} if dropout else {}
    return VGG([*layers, hidden, _build_layer(**drop, linear=output)])


def _compute_last_side(plan: Plan, side: int, large: bool) -> int:
    """Pixels per side of the last map: the strided convolution rounds up, each pool rounds down."""
    after_first = (side + 1) // 2 if large else side
    return after_first >> plan.count("M")


def _find_problems(
    plan: Plan, num_classes: int, input_shape: tuple[int, int, int], feat_mult: int, dropout: float
) -> list[str]:
    counts = find_count_problems(
        num_classes=num_classes, in_chans=input_shape[0], feat_mult=feat_mult
    )
    problems = [*counts, *find_dropout_problems(dropout)]
    large = max(input_shape[1:]) > LARGE
    if any(_compute_last_side(plan, side, large) < 1 for side in input_shape[1:]):
        halvings = plan.count("M") + (1 if large else 0)
        problems.append(
            f"The input shape is {input_shape}, but {1 << halvings} pixels a side are needed: use"
            " larger images."
        )
    return problems


@builds_network
def vgg8b(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    feat_mult: int = 1,
    leaky: bool = False,
    dropout: float = 0.0,
    zero_output: bool = False,
) -> VGG:
    """VGG-8b: six convolutions, a hidden linear layer of 1024 and a classifier.

    It has 8 layers and 8,903,434 parameters. Convolutions have a bias. If a side of the images has
    more than 64 pixels, the first convolution is 7x7 with stride 2. Weights are initialised as in
    PyTorch, except for `zero_output` (our reading).

    Args:
        num_classes: outputs of the classifier.
        input_shape: (C, H, W) of the images. It determines the inputs of the hidden layer.
        feat_mult: a factor for the widths of the convolutions, as in the paper's "2x" and "3x"
            networks.
        leaky: LeakyReLU of slope 0.01 instead of ReLU. The paper uses it with similarity losses.
        dropout: probability, for whole channels after a convolution and for single numbers after
            the hidden layer.
        zero_output: initialise the classifier's weight with zeros, as the paper's code does under
            local losses.

    Raises:
        BadInput: if a count is less than one, the images are too small, or the probability lies
            outside [0, 1).

    Example:
        >>> vgg8b(feat_mult=2).layers[0].conv
        Conv2d(3, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))

    Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals (PredSim), ICML 2019,
    arXiv 1901.06656, official code.
    """
    return _build_vgg_b(VGG8B, num_classes, input_shape, feat_mult, leaky, dropout, zero_output)


@builds_network
def vgg11b(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    feat_mult: int = 1,
    leaky: bool = False,
    dropout: float = 0.0,
    zero_output: bool = False,
) -> VGG:
    """VGG-11b: `vgg8b` with nine convolutions. It has 11 layers and 11,559,946 parameters.

    Args:
        num_classes: outputs of the classifier.
        input_shape: (C, H, W) of the images.
        feat_mult: a factor for the widths of the convolutions.
        leaky: LeakyReLU instead of ReLU.
        dropout: probability.
        zero_output: initialise the classifier's weight with zeros.

    Raises:
        BadInput: in the same cases as `vgg8b`.

    Example:
        >>> len(vgg11b().layers)
        11

    Source: Nøkland, Eidnes, 2019, arXiv 1901.06656, official code.
    """
    return _build_vgg_b(VGG11B, num_classes, input_shape, feat_mult, leaky, dropout, zero_output)


# --- VGG-13 and VGG-19: the linear layers are a readout of the last convolution -------------------


def _build_vgg(plan: Plan, num_classes: int, in_chans: int, hidden: int, dropout: float) -> VGG:
    counts = find_count_problems(num_classes=num_classes, in_chans=in_chans, hidden=hidden)
    check([*counts, *find_dropout_problems(dropout)])
    layers, entry = _build_conv_layers(plan, in_chans)
    squeeze = {**entry, "squeeze": nn.AdaptiveAvgPool2d(SIDE), "flatten": nn.Flatten()}
    first_linear = nn.Linear(512 * SIDE * SIDE, hidden)
    drop = {"drop": nn.Dropout(dropout)} if dropout else {}
    first = _build_layer(**squeeze, linear=first_linear, act=nn.ReLU(inplace=True), **drop)
    second = _build_layer(linear=nn.Linear(hidden, hidden), act=nn.ReLU(inplace=True), **drop)
    model = VGG(layers, Readout(first, Readout(second, nn.Linear(hidden, num_classes))))
    init_convs(model)
    init_linears(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


@builds_network
def vgg13(
    num_classes: int = 1000, in_chans: int = 3, hidden: int = 4096, dropout: float = 0.0
) -> VGG:
    """VGG-13 with batch norm: ten convolutions, 10 layers.

    The last layer includes the last pool and the three linear layers. The last map is pooled to
    7x7. 224x224 images have such a map already, and smaller ones of at least 32 pixels work too.
    Convolutions are drawn with fan-out, and linear weights from N(0, 0.01 squared). Biases are 0,
    as in DGL's code.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        hidden: width of the two hidden linear layers.
        dropout: probability, after both hidden layers. DGL uses 0, AugLocal 0.5.

    Raises:
        BadInput: if a count is less than one, or the probability lies outside [0, 1).

    Example:
        >>> vgg13(10, hidden=16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: Simonyan, Zisserman, 2015, arXiv 1409.1556. This form: Belilovsky, Eickenberg, Oyallon,
    Decoupled Greedy Learning of CNNs, ICML 2020, arXiv 1901.08164, and Ma et al., ICLR 2024,
    arXiv 2402.17318, official code of both.
    """
    return _build_vgg(VGG13, num_classes, in_chans, hidden, dropout)


@builds_network
def vgg19(
    num_classes: int = 1000, in_chans: int = 3, hidden: int = 4096, dropout: float = 0.0
) -> VGG:
    """VGG-19 with batch norm: `vgg13` with sixteen convolutions and 16 layers.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        hidden: width of the two hidden linear layers.
        dropout: probability, after both hidden layers.

    Raises:
        BadInput: in the same cases as `vgg13`.

    Example:
        >>> len(vgg19(10, hidden=16).layers)
        16

    Source: as for `vgg13`.
    """
    return _build_vgg(VGG19, num_classes, in_chans, hidden, dropout)
