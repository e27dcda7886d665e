"""InfoPro: local losses that keep information about the input (Wang et al., arXiv 2101.10832)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.data.dataset import Normalization
from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Head, Pool, find_width_problems
from localprop.rule.credit import LocalCredit
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import LossBuilder, TaskLoss, find_label_problems
from localprop.rule.rule import Rule
from localprop.rule.terms import Term, Terms

__all__ = ["BottleneckHead", "ContrastiveLoss", "PixelReconstruction", "infopro"]


# --- reconstruction -------------------------------------------------------------------------------


class _Upsample(nn.Module):
    """Resize maps to the image's size divided by `divisor`, rounded up."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        target = (-(-size[0] // self.divisor), -(-size[1] // self.divisor))
        if maps.shape[2:] == target:
            return maps
        return functional.interpolate(maps, target, mode="bilinear", align_corners=True)


class _Decoder(nn.ModuleList):
    """Maps features (N, C, H, W) to the logits of pixels (N, channels, *size)."""

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        for module in self:
            features = module(features, size) if isinstance(module, _Upsample) else module(features)
        return features


def _with_norm(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


def _build_decoder(in_chans: int, width: int, out_chans: int, gradual: tuple[int, ...]) -> _Decoder:
    body: list[nn.Module] = []
    if gradual:
        steps = [*pairwise((in_chans, *gradual, width))]
        for left, (narrow, wide) in zip(reversed(range(len(steps))), steps, strict=True):
            # The map grows to ..., a quarter, half and all of the image's size.
            size = 3 if left < 2 else 1
            body += _with_norm(nn.Conv2d(narrow, wide, size, padding=size // 2))
            body.append(_Upsample(2**left))
    else:
        body += [_Upsample(1), *_with_norm(nn.Conv2d(in_chans, width, 3, padding=1))]
    decoder = _Decoder([*body, nn.Conv2d(width, out_chans, 3, padding=1)])
    init_convs(decoder)
    return decoder


def _cut_patches(maps: Tensor, patches: int) -> Iterator[Tensor]:
    """Cut maps (N, C, H, W) into patches x patches, row by row."""
    height, width = maps.shape[2:]
    for i in range(patches):
        for j in range(patches):
            rows = slice(i * height // patches, (i + 1) * height // patches)
            columns = slice(j * width // patches, (j + 1) * width // patches)
            yield maps[:, :, rows, columns]


class _PixelReconstructionLoss(LocalLoss):
    uses_aux = False

    def __init__(
        self, decoders: list[_Decoder], patches: int, normalization: Normalization
    ) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(decoders)
        self.patches = patches
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(normalization, name)).view(1, -1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        pixels = inputs.network_input * self.get_buffer("std") + self.get_buffer("mean")
        pixels = pixels.clamp(0, 1)  # rounding may put a pixel a little outside
        feature_patches = _cut_patches(features, self.patches)
        pixel_patches = _cut_patches(pixels, self.patches)
        # The decoder and its cross-entropy run in the decoder's own precision.
        with torch.autocast(features.device.type, enabled=False):
            losses = [
                _compute_patch_loss(patch, target, decoder)
                for patch, target, decoder in zip(
                    feature_patches, pixel_patches, self.decoders, strict=True
                )
            ]
            return torch.stack(losses).sum()


def _compute_patch_loss(features: Tensor, pixels: Tensor, decoder: nn.Module) -> Tensor:
    """The binary cross-entropy of a patch, from logits: the log of a sigmoid may overflow."""
    dtype = next(decoder.parameters()).dtype
    logits = decoder(features.to(dtype), tuple(pixels.shape[2:]))
    return functional.binary_cross_entropy_with_logits(logits, pixels.to(dtype))


@check_arguments
@dataclass(frozen=True)
class PixelReconstruction:
    """InfoPro's reconstruction: a small decoder reconstructs the image from the features.

    This keeps information about the image in the features. The decoder resizes the maps to the
    size of the image (bilinear, corners aligned). A 3x3 convolution with bias, BatchNorm and ReLU
    and a 3x3 convolution with bias follow. The sigmoid of their output is the pixels. The loss is
    the binary cross-entropy with the input's pixels in 0..1, in float32 under autocast too. It does
    not use the auxiliary network.

    Attributes:
        width: the channels before the pixels.
        patches: features and image are cut into patches x patches. Each patch has a decoder of its
            own, and their losses are summed. HPFF uses 2.
        gradual: the form for ImageNet: the channels of convolutions before that to `width`. After
            each of them and after that one the map grows: with (128, 32) to a quarter, half and all
            of the image's size. The last two are 3x3, those before 1x1. As everywhere in the
            decoder, convolutions have a bias. InfoPro has (128, 32), at 512 channels, and MAN
            (192, 64, 32) at 1,024. The default, none, resizes the features first.

    Raises:
        BadInput: a number is below 1; inputs or features are not maps, or are smaller than the
            patches; or the learner has no `normalization` that fits the inputs.

    Example:
        >>> loss = lp.PixelReconstruction(width=12)  # Learner(..., normalization=...) belongs to it

    Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv
    2101.10832, official code. Patches: Su et al., HPFF, ECCV 2024, arXiv 2407.05638, official code.
    At 1,024 channels: Su et al., MAN, ECCV 2024, arXiv 2407.05623, official code.
    """

    width: int = 12
    patches: int = 1
    gradual: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.width, self.patches, *self.gradual) < 1:
            raise BadInput(f"{self}: each number must be 1 or more.")

    def __call__(self, point: AttachPoint) -> LocalLoss:
        check(self._find_shape_problems(point))
        assert point.normalization is not None
        in_chans, out_chans = point.features[1], point.layers.input_shape[1]
        decoders = [
            _build_decoder(in_chans, self.width, out_chans, self.gradual)
            for _ in range(self.patches**2)
        ]
        return _PixelReconstructionLoss(decoders, self.patches, point.normalization)

    def _find_shape_problems(self, point: AttachPoint) -> Iterator[str]:
        image, features = point.layers.input_shape, point.features
        if len(image) != 4 or not point.is_map():
            yield (
                f"PixelReconstruction makes images from maps (N, C, H, W), but inputs are "
                f"{tuple(image)} and module {point.module} ends with {tuple(features)}: use "
                "another loss, such as loss=TaskLoss()."
            )
        elif min(*image[2:], *features[2:]) < self.patches:
            yield (
                f"PixelReconstruction(patches={self.patches}) cannot cut features "
                f"{tuple(features)} at module {point.module}: use fewer patches."
            )
        yield from _find_normalization_problems(point.normalization, image)


def _find_normalization_problems(
    normalization: Normalization | None, image: torch.Size
) -> Iterator[str]:
    if normalization is None:
        yield (
            "PixelReconstruction needs to know how the inputs were made from pixels: give the "
            "learner normalization=Normalization(mean, std), or Normalization() if they are pixels "
            "in 0..1."
        )
    elif len(image) == 4 and any(len(numbers) not in (1, image[1]) for numbers in normalization):
        yield (
            f"{normalization} does not fit inputs of {image[1]} channels: give one number for "
            "each, or one for all."
        )


# --- contrast -------------------------------------------------------------------------------------


class _SupervisedContrastiveLoss(LocalLoss):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        outputs = aux(features)
        check(self.find_problems(inputs, outputs.shape))
        with torch.autocast(features.device.type, enabled=False):
            wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            return self._compute(functional.normalize(wide), inputs.targets)

    def find_problems(self, inputs: LossInputs, outputs: torch.Size) -> Iterable[str]:
        """Targets must be classes, int64."""
        targets = inputs.targets
        if targets.dtype != torch.int64 or targets.ndim != 1:
            yield (
                f"Targets are {targets.dtype} of shape {tuple(targets.shape)}, but ContrastiveLoss "
                "takes classes (N,) as torch.int64: give labels, not probabilities."
            )

    def _compute(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The loss of rows (N, D) of length 1."""
        same_sample = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        similarities = rows @ rows.T / self.temperature
        log_shares = similarities.masked_fill(same_sample, -torch.inf).log_softmax(1)
        positives = (labels[:, None] == labels[None]) & ~same_sample
        sums = log_shares.masked_fill(~positives, 0).sum(1)
        # A sample that is alone in its class has no positives and adds 0.
        return -(sums / positives.sum(1).clamp(min=1)).mean()


@check_arguments
@dataclass(frozen=True)
class ContrastiveLoss:
    """The supervised contrastive loss of the auxiliary network's outputs (N, D) and classes (N,).

    Equation, with z_i the outputs scaled to length 1 and P(i) the other samples of sample i's
    class::

        L = -1/N sum over i of 1/|P(i)| sum over p in P(i) of
            log( exp(z_i z_p / T) / sum over j != i of exp(z_i z_j / T) )

    A sample that is alone in its class adds 0. There is one view per sample. The loss is computed
    in float32, under autocast too. It compares the samples of one micro-batch. Give the auxiliary
    network 128 outputs: aux=Head(outputs=128).

    Attributes:
        temperature: T.

    Raises:
        BadInput: `temperature` is not positive and finite, the network has an output per token, or
            targets are not classes (int64).

    Example:
        >>> rule = lp.Rule(aux=lp.Head(outputs=128), loss=lp.ContrastiveLoss())

    Source: Khosla et al., Supervised Contrastive Learning, 2020, arXiv 2004.11362, in the form of
    Wang et al. (InfoPro), ICLR 2021, arXiv 2101.10832, official code.
    """

    temperature: float = 0.07

    def __post_init__(self) -> None:
        good = 0 < self.temperature < float("inf")
        check([] if good else [f"temperature={self.temperature} must be positive and finite."])

    def __call__(self, point: AttachPoint) -> LocalLoss:
        check(find_label_problems("ContrastiveLoss", point))
        return _SupervisedContrastiveLoss(self.temperature)


# --- the auxiliary network for ImageNet -----------------------------------------------------------


@check_arguments
@dataclass(frozen=True)
class BottleneckHead:
    """InfoPro's auxiliary network for ImageNet: a bottleneck, an average, one linear layer.

    The first and the last convolution are 1x1 with stride 1. Those between are 3x3 with stride 2.
    No convolution has a bias. Each is followed by BatchNorm and ReLU.

    Attributes:
        widths: the widths of the convolutions, two or more.

    Raises:
        BadInput: there are fewer than two widths, a width is below 1, or features are not maps.

    Example (ResNet-101, in its second group of blocks)::

        (N, 512, 28, 28) -> 128 -> 256, /2 -> 512, /2 -> (N, 2048, 7, 7) -> average -> (N, classes)

    Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv
    2101.10832, official code.
    """

    widths: tuple[int, ...] = (128, 256, 512, 2048)

    def __post_init__(self) -> None:
        check(find_width_problems("BottleneckHead", "widths", self.widths, least=2))

    def __call__(self, point: AttachPoint) -> nn.Module:
        if not point.is_map():
            raise BadInput(
                f"BottleneckHead needs maps (N, C, H, W), but module {point.module} ends with "
                f"features of shape {tuple(point.features)}: use aux=Head() for this network."
            )
        body = list[nn.Module]()
        for i, (narrow, wide) in enumerate(pairwise([point.width(), *self.widths])):
            if i in (0, len(self.widths) - 1):
                conv = nn.Conv2d(narrow, wide, 1, bias=False)
            else:
                conv = nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)
            body += _with_norm(conv)
        head = nn.Sequential(*body, Pool(1), nn.Linear(self.widths[-1], point.outputs))
        init_convs(head)
        return head


# --- the method -----------------------------------------------------------------------------------


@check_arguments
def infopro(
    contrast: bool = False,
    first: tuple[float, float] = (5.0, 0.05),
    last: tuple[float, float] = (0.2, 0.5),
    aux: AuxBuilder = Head(),  # noqa: B008 - builders are frozen
    decoder: LossBuilder = PixelReconstruction(),
) -> Rule:
    """InfoPro: greedy local learning whose modules also reconstruct the image.

    The reconstruction keeps information about the image that later modules may need.

    Equations, with R_k the decoder's loss against the image, and r = (k - 1) / (K - 2), or 0 for
    K = 2::

        L_k = a_k * R_k(h_k, x) + b_k * loss(a_k(h_k), y)        k = 1..K-1
        (a_k, b_k) = first * (1 - r) + last * r
        gradient of f_k, the decoder and the auxiliary network = dL_k

    Credit: that of `greedy`::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The learner must know how its inputs were made from pixels:
    `Learner(..., normalization=lp.Normalization(mean, std))`. A loss of weight 0 is left out. The
    weights depend on the network, the data set and K. The defaults are the official code's for
    ResNet-32 in 16 modules on CIFAR-10. Its others are, as first and last (where K = 2 only the
    first counts)::

        CIFAR-10  ResNet-32   K=2 (5, 1)      K=4  (6, 0) (1, 2)
                              K=8 (5, 0) (0, 2)       K=16 (5, 0.05) (0.2, 0.5)
                  ResNet-110  K=2 (5, 0.5)    K=4  (1, 0) (0, 1)
                              K=8 (5, 0) (0, 1)       K=16 (5, 0) (0.5, 1)
        STL-10    ResNet-110  K=2 (10, 1)     K=4  (20, 0.2) (5, 2)
                              K=8 (20, 0.2) (5, 1)    K=16 (20, 0.5) (10, 0.1)
        SVHN      ResNet-110  K=2 (1, 0.1)    K=4  (5, 0) (0.5, 1)
                              K=8 (5, 0) (0.5, 2)     K=16 (5, 0.2) (0.5, 1)
        ImageNet  ResNet-101  K=2 (5, 0.75)
                  ResNet-152  K=2 (5, 1)

    Args:
        contrast: whether the task loss is the supervised contrastive loss on `aux.hidden` outputs
            ("InfoPro (contrast)") instead of cross-entropy ("softmax"). An auxiliary network other
            than `Head` decides its number of outputs itself.
        first: the weights of reconstruction and task loss at the first module.
        last: the weights at the last module with an auxiliary network, the last but one.
        aux: the auxiliary network; `BottleneckHead()` for ImageNet.
        decoder: the reconstruction loss; `PixelReconstruction(gradual=(128, 32))` for ImageNet.

    Raises:
        BadInput: a weight is negative, both weights are 0 at a module, or the decoder does not fit
            the network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.infopro(first=(5.0, 0.0), last=(0.5, 1.0))  # ResNet-110, CIFAR-10, 16 modules

    Reference: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv
    2101.10832.
    """
    if contrast and isinstance(aux, Head) and not aux.outputs:
        aux = replace(aux, outputs=aux.hidden)
    task: LossBuilder = ContrastiveLoss() if contrast else TaskLoss()
    terms = Terms((Term(decoder, first[0], last[0]), Term(task, first[1], last[1])))
    return Rule(
        credit=LocalCredit(), aux=aux, loss=terms, reference="Wang et al. 2021, arXiv 2101.10832"
    )
