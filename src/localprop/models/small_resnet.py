"""torchvision's residual networks for small images: the stem is a 3x3 convolution, and nothing is pooled."""

from torch import nn

from localprop.errors import check
from localprop.models.libraries import library
from localprop.models.problems import count_problems


def _small(name: str, num_classes: int, in_chans: int) -> nn.Module:
    """torchvision's network with the stem replaced; convolutions are drawn as torchvision does."""
    check(count_problems(num_classes=num_classes, in_chans=in_chans))
    model: nn.Module = library("torchvision.models").get_model(name, weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def resnet18_cifar(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """torchvision's resnet18 for small images: 8 basic blocks, 9 layers.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if a count is less than one, or torchvision is not installed.

    Example:
        >>> resnet18_cifar()(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    return _small("resnet18", num_classes, in_chans)


def resnet34_cifar(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """torchvision's resnet34 for small images: 16 basic blocks, 17 layers; 21,282,122 parameters.

    Interlocking backpropagation's example trains it under the name of ResNet-32, in 18 pieces: there the classifier is one
    more.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if a count is less than one, or torchvision is not installed.

    Example:
        >>> resnet34_cifar()(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    return _small("resnet34", num_classes, in_chans)


def resnet50_cifar(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """torchvision's resnet50 for small images: 16 bottleneck blocks, 17 layers.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if a count is less than one, or torchvision is not installed.

    Example:
        >>> resnet50_cifar()(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    return _small("resnet50", num_classes, in_chans)


def resnet101_cifar(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """torchvision's resnet101 for small images: 33 bottleneck blocks, 34 layers.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if a count is less than one, or torchvision is not installed.

    Example:
        >>> resnet101_cifar()(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    return _small("resnet101", num_classes, in_chans)


def resnet152_cifar(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """torchvision's resnet152 for small images: 50 bottleneck blocks, 51 layers.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.

    Raises:
        BadInput: if a count is less than one, or torchvision is not installed.

    Example:
        >>> resnet152_cifar()(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    return _small("resnet152", num_classes, in_chans)
