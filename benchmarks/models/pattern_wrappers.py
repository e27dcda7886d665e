"""Models that are held, stored or run in an unusual way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Build, Case, Cases, make_images, make_labels
from torch import nn

Change = Callable[[nn.Module], nn.Module]


def build_resnet(change: Change, dtype: torch.dtype = torch.float32, no_cuts: str = "") -> Build:
    """A ResNet-18 of torchvision after a change."""

    def build() -> Case:
        import torchvision

        images, labels = make_images(64)
        model = change(torchvision.models.resnet18(num_classes=5))
        batch = (images.to(dtype), labels)
        return Case(model, batch, blocks=9, channel=1, no_cuts=no_cuts, is_small=False)

    return build


def compile_model(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def spread(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def trace(model: nn.Module) -> nn.Module:
    """A module whose additions are functions: no module returns a block's output."""
    return torch.fx.symbolic_trace(model)


def synchronize(model: nn.Module) -> nn.Module:
    """As for several devices. In one process such a norm is a plain one."""
    changed: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return changed


def store_channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def build_checkpointed(name: str, blocks: int, size: int) -> Build:
    """A model of timm that runs its blocks again in the backward."""

    def build() -> Case:
        import timm

        options: dict[str, Any] = {"img_size": size} if name.startswith("vit") else {}
        model: Any = timm.create_model(name, num_classes=5, **options)
        model.set_grad_checkpointing(True)
        return Case(model, make_images(size), blocks=blocks)

    return build


def build_lazy() -> Case:
    layers = (nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(5))
    return Case(nn.Sequential(*layers), (torch.randn(6, 8), make_labels(6)))


def build_scripted() -> Case:
    pairs = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)]
    model = torch.jit.script(nn.Sequential(*pairs, nn.Linear(8, 5)))
    return Case(model, (torch.randn(6, 8), make_labels(6)), blocks=5)


CASES: Cases = {
    "resnet18": build_resnet(lambda model: model),
    "bfloat16_resnet18": build_resnet(lambda model: model.bfloat16(), torch.bfloat16),
    "float64_resnet18": build_resnet(lambda model: model.double(), torch.float64),
    "channels_last_resnet18": build_resnet(store_channels_last),
    "compiled_resnet18": build_resnet(compile_model, no_cuts="it is compiled as a whole"),
    "compiled_in_place_resnet18": build_resnet(compile_in_place),
    "dataparallel_resnet18": build_resnet(spread),
    "fx_resnet18": build_resnet(trace, no_cuts="no module returns the sum"),
    "syncbn_resnet18": build_resnet(synchronize),
    "checkpointed_resnet18": build_checkpointed("resnet18", 8, 64),
    "checkpointed_vit": build_checkpointed("vit_tiny_patch16_224", 12, 64),
    "lazy": build_lazy,
    "scripted": build_scripted,
}
