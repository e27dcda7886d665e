"""The papers' networks that torchvision and timm lack, as plain `nn.Module`s, and models by name.

>>> from localprop import models
>>> model = models.resnet32(num_classes=10)
>>> model = models.create_model("timm:vit_tiny_patch16_224", 10, (3, 32, 32))
"""

from localprop.models.create import create_model
from localprop.models.mlp import mlp
from localprop.models.resnet import (
    BasicBlock,
    CifarResNet,
    cifar_resnet,
    init_convs,
    resnet8,
    resnet14,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)

__all__ = [
    "BasicBlock",
    "CifarResNet",
    "cifar_resnet",
    "create_model",
    "init_convs",
    "mlp",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]
