"""The papers' networks that torchvision and timm lack, as plain `nn.Module`s, and models by name.

>>> from localprop import models
>>> model = models.resnet32(num_classes=10)
>>> model = models.create_model("timm:vit_tiny_patch16_224", 10, (3, 32, 32))
"""

from localprop.models.create import create_model, takes_images, takes_tokens
from localprop.models.densenet import DenseLayer, DenseNetBC, densenet_bc_100_12
from localprop.models.grouped import ConvClassifier, GroupedResNet, grouped_resnet
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
from localprop.models.small_resnet import small_resnet
from localprop.models.swin import SwinT, swin_t
from localprop.models.transformer import TransformerBlock, TransformerLM, transformer_lm
from localprop.models.vgg import VGG, vgg8b, vgg11b, vgg13, vgg19

__all__ = [
    "VGG",
    "BasicBlock",
    "CifarResNet",
    "ConvClassifier",
    "DenseLayer",
    "DenseNetBC",
    "GroupedResNet",
    "SwinT",
    "TransformerBlock",
    "TransformerLM",
    "cifar_resnet",
    "create_model",
    "densenet_bc_100_12",
    "grouped_resnet",
    "init_convs",
    "mlp",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "small_resnet",
    "swin_t",
    "takes_images",
    "takes_tokens",
    "transformer_lm",
    "vgg8b",
    "vgg11b",
    "vgg13",
    "vgg19",
]
