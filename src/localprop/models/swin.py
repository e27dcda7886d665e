"""timm's Swin-T for small images, whose stages end with their patch merging."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from localprop.errors import check
from localprop.models.libraries import build_timm_model
from localprop.models.problems import builds_network, find_count_problems


class SwinT(nn.Module):
    """The modules of a Swin transformer of timm, in a row.

    timm puts a patch merging at the start of a stage, where the network cannot be cut after it.
    Here the embedding, the blocks and the mergings are layers, as in torchvision's form.

    Args:
        whole: timm's network; its modules are used, not copied.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = [whole.patch_embed]
        for stage in whole.layers:
            merging = [] if isinstance(stage.downsample, nn.Identity) else [stage.downsample]
            layers += [*merging, *stage.blocks]
        self.layers = nn.Sequential(*layers)
        self.norm: nn.Module = whole.norm
        self.head: nn.Module = whole.head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.head(self.norm(self.layers(images)))
        return logits


@builds_network
def swin_t(
    num_classes: int = 10, input_shape: tuple[int, int, int] = (3, 32, 32), window: int = 8
) -> SwinT:
    """Swin-T with windows for small images.

    Patches have 4x4 pixels, and the stages 2, 2, 6 and 2 blocks. A stage whose map is no larger
    than the window has one window of the map's size. Paths are dropped at rates that grow from 0
    to 0.1. The network has 16 layers: the embedding, 12 blocks, and 3 patch mergings, each after
    the blocks of its stage.

    Args:
        num_classes: outputs of the classifier.
        input_shape: (C, H, W) of the images.
        window: side of the windows, in patches.

    Raises:
        BadInput: a count is less than one, or timm is not installed or refuses the size.

    Example:
        >>> swin_t(10, (3, 96, 96), window=6)(torch.zeros(2, 3, 96, 96)).shape
        torch.Size([2, 10])

    Source: Liu et al., Swin Transformer, 2021, arXiv 2103.14030; windows of 8, and of 6 on 96-pixel
    images, as in the official code of Karkar et al., TRGL, NeurIPS 2023.
    """
    check([*find_count_problems(num_classes=num_classes, window=window)])
    options = {"window_size": window, "drop_path_rate": 0.1}
    name = "swin_tiny_patch4_window7_224"
    return SwinT(build_timm_model(name, options, num_classes, input_shape))
