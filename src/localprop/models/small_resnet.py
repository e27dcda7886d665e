"""torchvision's residual networks for small images, without the pool after the stem."""

from torch import nn

from localprop.errors import check
from localprop.models.libraries import import_library
from localprop.models.problems import builds_network, find_count_problems

STRIDES = {3: 1, 7: 2}  # stride of the stem's convolution, by its kernel size


@builds_network
def small_resnet(name: str, num_classes: int = 10, in_chans: int = 3, kernel: int = 3) -> nn.Module:
    """A residual network of torchvision with a stem for small images.

    Convolutions are initialised as in torchvision. A network of n residual blocks has n + 1 layers.
    n is 8 for resnet18, 16 for resnet34 and resnet50, 33 for resnet101 and 50 for resnet152. The
    example of interlocking backpropagation trains resnet34 (21,282,122 parameters) under the name
    ResNet-32, in 18 modules: there the classifier is one more layer.

    Args:
        name: torchvision's.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        kernel: size of the stem's convolution: 3, with stride 1; or 7, with stride 2, which is
            torchvision's own (TRGL uses it on TinyImageNet).

    Raises:
        BadInput: if a count is less than one, for another kernel, or if torchvision is not
            installed.

    Example:
        >>> small_resnet("resnet18")(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    problems = list(find_count_problems(num_classes=num_classes, in_chans=in_chans))
    if kernel not in STRIDES:
        problems.append(f"kernel={kernel} is unknown: choose 3 (stride 1) or 7 (stride 2).")
    check(problems)
    build = import_library("torchvision.models").get_model
    model: nn.Module = build(name, weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_chans, 64, kernel, STRIDES[kernel], padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
