"""MONAI and segmentation_models_pytorch, and classifiers of pytorchcv and efficientnet_pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Build, Case, Cases, make_images, make_labels
from torch import Tensor, nn

SAMPLES, CLASSES = 2, 3
SKIPS = "skips go around levels"


class ClassesLast(nn.Module):
    """A model whose classes come last, as some losses want them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.model(images)
        return output.movedim(1, -1)


class First(nn.Module):
    """A model that returns its scores and more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)[0]
        return scores


# --- MONAI ----------------------------------------------------------------------------------------


def build_monai(
    name: str,
    blocks: int,
    options: dict[str, Any],
    shape: tuple[int, ...],
    *,
    dense: bool = False,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    **fields: Any,
) -> Build:
    """A constructor of a case of MONAI.

    Args:
        name: of the class.
        blocks: their number.
        options: of the class.
        shape: of a sample, channels first.
        dense: whether each position has a label.
        wrap: what stands around the model.
        fields: of the case.
    """

    def build() -> Case:
        from monai.networks import nets

        model: nn.Module = getattr(nets, name)(**options)
        labels = make_labels(SAMPLES, CLASSES)
        if dense:
            labels = torch.randint(CLASSES, (SAMPLES, *shape[1:]))
        batch = (torch.randn(SAMPLES, *shape), labels)
        return Case(wrap(model) if wrap else model, batch, blocks=blocks, **fields)

    return build


VOLUME, PICTURE = (1, 32, 32, 32), (1, 32, 32)
LEVELS = {"channels": (8, 16, 16, 32), "strides": (2, 2, 2), "num_res_units": 1}
IN_AND_OUT = {"in_channels": 1, "out_channels": CLASSES}
VIT = {"hidden_size": 48, "mlp_dim": 96, "num_heads": 4}
DENSENET = {"init_features": 8, "growth_rate": 8, "block_config": (2, 2, 2)}
RESNET = {
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [8, 16, 16, 32],
    "n_input_channels": 1,
    "num_classes": CLASSES,
}

MONAI: Cases = {
    "densenet3d": build_monai("DenseNet", 9, {"spatial_dims": 3, **IN_AND_OUT, **DENSENET}, VOLUME),
    "resnet3d": build_monai("ResNet", 5, {"spatial_dims": 3, **RESNET}, VOLUME, channel=1),
    "resnet1d_groupnorm": build_monai(
        "ResNet",
        5,
        {"spatial_dims": 1, "norm": ("group", {"num_groups": 4}), **RESNET},
        (1, 64),
        channel=1,
    ),
    "seresnet": build_monai(
        "SEResNet50",
        17,
        {"spatial_dims": 2, "in_channels": 1, "num_classes": CLASSES},
        (1, 64, 64),
        channel=1,
    ),
    "seresnet1d": build_monai(
        "SEResNet50",
        17,
        {"spatial_dims": 1, "in_channels": 1, "num_classes": CLASSES},
        (1, 192),
        channel=1,
    ),
    "vit3d": build_monai(
        "ViT",
        5,
        {"in_channels": 1, "img_size": VOLUME[1:], "patch_size": 16, "num_layers": 4, **VIT}
        | {"classification": True, "num_classes": CLASSES},
        VOLUME,
        wrap=First,
        channel=2,
    ),
    "unetr": build_monai(
        "UNETR",
        12,
        {"img_size": VOLUME[1:], "feature_size": 8, **IN_AND_OUT, **VIT},
        VOLUME,
        dense=True,
        no_cuts=SKIPS,
    ),
    **{
        name: build_monai(
            "UNet",
            5,
            {"spatial_dims": len(shape) - 1, **IN_AND_OUT, **LEVELS},
            shape,
            dense=True,
            wrap=wrap,
            channel=1,
            no_cuts=SKIPS,
        )
        for name, shape, wrap in (
            ("unet2d", PICTURE, None),
            ("unet3d", VOLUME, None),
            ("unet3d_last", VOLUME, ClassesLast),
        )
    },
    "segresnet": build_monai(
        "SegResNet",
        8,
        {"spatial_dims": 3, "init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
        | IN_AND_OUT,
        VOLUME,
        dense=True,
        channel=1,
        no_cuts=SKIPS,
    ),
    "basic_unet": build_monai(
        "BasicUNet",
        9,
        {"spatial_dims": 2, "features": (8, 8, 16, 16, 16, 8), **IN_AND_OUT},
        PICTURE,
        dense=True,
        channel=1,
        no_cuts=SKIPS,
    ),
}


# --- segmentation_models_pytorch ------------------------------------------------------------------


def build_segmenter(name: str, last: bool) -> Build:
    """A segmentation model on a ResNet-18, whose classes come first or last."""

    def build() -> Case:
        import segmentation_models_pytorch as smp

        make = getattr(smp, name)
        model: nn.Module = make("resnet18", encoder_weights=None, classes=CLASSES)
        batch = (torch.rand(SAMPLES, 3, 64, 64), torch.randint(CLASSES, (SAMPLES, 64, 64)))
        wrapped = ClassesLast(model) if last else model
        return Case(wrapped, batch, is_small=False, blocks=9, channel=1, no_cuts=SKIPS)

    return build


SEGMENTERS = ("Unet", "FPN", "DeepLabV3Plus", "Linknet", "PSPNet", "Segformer")


# --- others ---------------------------------------------------------------------------------------


def build_pytorchcv(name: str, blocks: int) -> Build:
    def build() -> Case:
        from pytorchcv.model_provider import get_model

        model: Any = get_model(name, num_classes=CLASSES, pretrained=False)
        images, _ = make_images(224, samples=SAMPLES)
        return Case(model, (images, make_labels(SAMPLES, CLASSES)), blocks=blocks)

    return build


PYTORCHCV = {
    "diaresnet10": 5,
    "mobilenet_wd4": 14,
    "octresnet10_ad2": 5,
    "preresnet10": 5,
    "resnet10": 5,
    "shufflenet_g1_wd4": 17,
}


def build_efficientnet() -> Case:
    from efficientnet_pytorch import EfficientNet

    model: Any = EfficientNet.from_name("efficientnet-b0", num_classes=5)
    return Case(model, make_images(64, samples=SAMPLES), blocks=17)


CASES: Cases = {
    **{f"monai:{name}": build for name, build in MONAI.items()},
    **{f"smp:{name}": build_segmenter(name, last=False) for name in SEGMENTERS},
    **{f"smp:{name}+last": build_segmenter(name, last=True) for name in SEGMENTERS},
    **{f"pytorchcv:{name}": build_pytorchcv(name, n) for name, n in PYTORCHCV.items()},
    "efficientnet_pytorch:b0": build_efficientnet,
}
