"""torchvision: classifiers, segmentation, detection, video and optical flow."""

from __future__ import annotations

from typing import Any

import torch
from cases import Build, Case, Cases, make_images, make_labels
from torch import Tensor, nn

import localprop as lp

SAMPLES, CLASSES = 2, 5

# The number of blocks, and the size of the images.
CLASSIFIERS = {
    "alexnet": (8, 64),
    "convnext_tiny": (18, 64),
    "densenet121": (58, 64),
    "efficientnet_b0": (16, 64),
    "efficientnet_v2_s": (40, 64),
    "maxvit_t": (11, 224),
    "mnasnet0_5": (17, 64),
    "mobilenet_v2": (17, 64),
    "mobilenet_v3_small": (11, 64),
    "regnet_y_400mf": (16, 64),
    "resnet18": (8, 64),
    "resnet50": (16, 64),
    "shufflenet_v2_x0_5": (16, 64),
    "squeezenet1_1": (8, 64),
    "swin_t": (12, 64),
    "swin_v2_t": (12, 64),
    "vgg11_bn": (8, 64),
    "vit_b_32": (12, 64),
}
VIDEOS = {"r3d_18": 8, "mc3_18": 8, "r2plus1d_18": 8, "swin3d_t": 12, "mvit_v1_b": 16}
SEGMENTATION = {
    "deeplabv3_mobilenet_v3_large": 15,
    "fcn_resnet50": 16,
    "lraspp_mobilenet_v3_large": 15,
}
DETECTION = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 59,
    "retinanet_resnet50_fpn": 31,
    "ssdlite320_mobilenet_v3_large": 90,
    "maskrcnn_resnet50_fpn": 30,
}


def build_classifier(name: str, blocks: int, size: int) -> Build:
    def build() -> Case:
        import torchvision

        options: dict[str, Any] = {"image_size": size} if name == "vit_b_32" else {}
        model: Any = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
        if name == "vgg11_bn" or name == "alexnet":
            narrow_classifier(model)
        return Case(model, make_images(size, samples=SAMPLES), is_small=False, blocks=blocks)

    return build


def narrow_classifier(model: Any) -> None:
    """Linear layers of 4096 units, of 64 here: they are most of the parameters."""
    wide = [i for i, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
    widths = [model.classifier[wide[0]].in_features, 64, 64, CLASSES]
    for i, number in enumerate(wide):
        model.classifier[number] = nn.Linear(widths[i], widths[i + 1])


def build_video_classifier(name: str, blocks: int) -> Build:
    def build() -> Case:
        import torchvision

        frames, size = (16, 224) if name == "mvit_v1_b" else (8, 32)
        model: Any = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
        batch = (torch.rand(SAMPLES, 3, frames, size, size), make_labels(SAMPLES))
        return Case(model, batch, is_small=False, blocks=blocks)

    return build


class ClassesLast(nn.Module):
    """A segmentation model that returns one tensor, whose classes come last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.model(images)["out"]
        return output.movedim(1, -1)


def build_segmenter(name: str, blocks: int, last: bool = False) -> Build:
    """A dictionary of outputs, and a label for each pixel."""

    def build() -> Case:
        import torchvision

        options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        model: Any = torchvision.models.get_model(name, **options)
        batch = (torch.rand(SAMPLES, 3, 64, 64), torch.randint(CLASSES, (SAMPLES, 64, 64)))
        wrapped = ClassesLast(model) if last else model
        return Case(wrapped, batch, is_small=False, blocks=blocks, channel=1)

    return build


def add_losses(model: nn.Module, batch: Any) -> Tensor:
    total: Tensor = sum(model(*batch).values())
    return total


def build_detector(name: str, blocks: int) -> Build:
    """A list of images, and a list of dictionaries, as a user has them: the batch as a whole."""

    def build() -> Case:
        import torchvision

        options: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if not name.startswith("ssd"):  # others resize images to 800 pixels, and take 13 GB
            options |= {"min_size": 128, "max_size": 128}
        model: Any = torchvision.models.get_model(name, num_classes=CLASSES, **options)
        images = [torch.rand(3, 64, 64) for _ in range(SAMPLES)]
        targets = [
            {
                "boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]),
                "labels": torch.tensor([1]),
                "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
            }
            for _ in range(SAMPLES)
        ]
        return Case(
            model,
            (images, targets),
            lp.task(forward=add_losses, loss=lambda total, targets: total),
            batch_dims=None,
            is_small=False,
            blocks=blocks,
            no_cuts="levels of a pyramid",
        )

    return build


class PyramidClassifier(nn.Module):
    """A detector's backbone whose coarsest level classifies; the finer levels are not used."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.last = backbone, nn.Linear(256, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.last(self.backbone(images)["pool"].mean((2, 3)))
        return scores


def build_detector_backbone() -> Case:
    import torchvision

    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    detector: Any = torchvision.models.get_model("fasterrcnn_mobilenet_v3_large_320_fpn", **options)
    model = PyramidClassifier(detector.backbone)
    return Case(model, make_images(64, samples=SAMPLES), is_small=False, blocks=15)


def build_with_auxiliaries(name: str, size: int, blocks: int, auxiliaries: bool) -> Build:
    """GoogLeNet and Inception return outputs in the middle, too, unless they are told not to."""

    def build() -> Case:
        import torchvision

        model: Any = torchvision.models.get_model(
            name, weights=None, num_classes=CLASSES, init_weights=False, aux_logits=auxiliaries
        )
        task = lp.task(forward=take_logits, loss=lp.Classification()) if auxiliaries else None
        batch = make_images(size, samples=SAMPLES)
        return Case(model, batch, task, is_small=False, blocks=blocks)

    return build


def take_logits(model: nn.Module, batch: Any) -> Tensor:
    output = model(batch[0])
    logits: Tensor = getattr(output, "logits", output)
    return logits


def build_quantized(name: str, blocks: int) -> Build:
    """A model that can be quantized later."""

    def build() -> Case:
        import torchvision

        make = getattr(torchvision.models.quantization, name)
        model: Any = make(weights=None, quantize=False, num_classes=CLASSES)
        return Case(model, make_images(64, samples=SAMPLES), is_small=False, blocks=blocks)

    return build


def build_for_aware_training() -> Case:
    """A ResNet-18 that trains for its quantization, with observers in it."""
    import torchvision
    from torch.ao import quantization

    model: Any = torchvision.models.quantization.resnet18(quantize=False, num_classes=CLASSES)
    model.train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    quantization.prepare_qat(model, inplace=True)  # type: ignore[no-untyped-call]
    return Case(model, make_images(64, samples=SAMPLES), is_small=False, blocks=8)


def build_optical_flow() -> Case:
    """RAFT: two images in, a list of flows out."""
    import torchvision

    model: Any = torchvision.models.optical_flow.raft_small(weights=None)
    inputs = (torch.rand(SAMPLES, 3, 128, 128), torch.rand(SAMPLES, 3, 128, 128))
    task = lp.task(
        forward=lambda model, batch: model(*batch[0], num_flow_updates=2)[-1],
        loss=nn.functional.l1_loss,
    )
    batch = (inputs, torch.randn(SAMPLES, 2, 128, 128))
    return Case(
        model,
        batch,
        task,
        is_small=False,
        blocks=20,
        no_cuts="each update runs the same block again",
    )


CASES: Cases = {
    **{name: build_classifier(name, *rest) for name, rest in CLASSIFIERS.items()},
    **{name: build_video_classifier(name, blocks) for name, blocks in VIDEOS.items()},
    **{name: build_segmenter(name, blocks) for name, blocks in SEGMENTATION.items()},
    **{
        f"{name}+last": build_segmenter(name, blocks, last=True)
        for name, blocks in SEGMENTATION.items()
    },
    **{name: build_detector(name, blocks) for name, blocks in DETECTION.items()},
    "fasterrcnn_mobilenet_v3_large_320_fpn+backbone": build_detector_backbone,
    "googlenet": build_with_auxiliaries("googlenet", 64, 9, auxiliaries=True),
    "googlenet+noaux": build_with_auxiliaries("googlenet", 64, 9, auxiliaries=False),
    "inception_v3": build_with_auxiliaries("inception_v3", 299, 11, auxiliaries=True),
    "inception_v3+noaux": build_with_auxiliaries("inception_v3", 96, 11, auxiliaries=False),
    "quantized_resnet18": build_quantized("resnet18", 8),
    "quantized_mobilenet_v2": build_quantized("mobilenet_v2", 17),
    "qat_resnet18": build_for_aware_training,
    "raft_small": build_optical_flow,
}
