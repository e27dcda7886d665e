"""torchvision's residual networks for small images: after the stem's convolution nothing is pooled."""

from torch import nn

from localprop.errors import check
from localprop.models.libraries import library
from localprop.models.problems import count_problems

STRIDES = {3: 1, 7: 2}  # of the stem's convolution, by its kernel


def small_resnet(name: str, num_classes: int = 10, in_chans: int = 3, kernel: int = 3) -> nn.Module:
    """A residual network of torchvision with a stem for small images; convolutions are drawn as torchvision does.

    Of n residual blocks the network has n + 1 layers: resnet18 8, resnet34 and resnet50 16, resnet101 33, resnet152 50.
    Interlocking backpropagation's example trains resnet34, of 21,282,122 parameters, under the name of ResNet-32, in 18
    pieces: there the classifier is one more.

    Args:
        name: torchvision's.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        kernel: of the stem's convolution: 3, of stride 1; or 7, of stride 2, which is torchvision's own (TRGL's TinyImageNet).

    Raises:
        BadInput: if a count is less than one, for another kernel, or if torchvision is not installed.

    Example:
        >>> small_resnet("resnet18")(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    unknown = [] if kernel in STRIDES else [f"kernel={kernel} is unknown: choose 3 (stride 1) or 7 (stride 2)."]
    check([*count_problems(num_classes=num_classes, in_chans=in_chans), *unknown])
    model: nn.Module = library("torchvision.models").get_model(name, weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_chans, 64, kernel, STRIDES[kernel], padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
