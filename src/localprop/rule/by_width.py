"""Auxiliary networks and losses that differ with the width of the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.rule.attach import AttachPoint
from localprop.rule.local_loss import LocalLoss

__all__ = ["HeadByWidth", "LossByWidth"]

Built = TypeVar("Built", bound=nn.Module)


@dataclass(frozen=True)
class _ByWidth(Generic[Built]):
    choices: tuple[tuple[int, Callable[[AttachPoint], Built]], ...] = ()

    def __post_init__(self) -> None:
        check(self._find_problems())

    def choose(self, point: AttachPoint) -> Built:
        """What the builder for this width makes."""
        build = dict(self.choices).get(point.width())
        if build is None:
            widths = " and ".join(map(str, self._widths)) or "no"
            raise BadInput(
                f"{type(self).__name__} has choices for {widths} channels, but module "
                f"{point.module} ends with {point.width()}: add a pair for them."
            )
        return build(point)

    @property
    def _widths(self) -> list[int]:
        return [width for width, _ in self.choices]

    def _find_problems(self) -> Iterator[str]:
        if len({*self._widths}) < len(self.choices) or any(width < 1 for width in self._widths):
            yield (
                f"{type(self).__name__} has the widths {self._widths}: each must be 1 or more, and "
                "stand once."
            )


@check_arguments
@dataclass(frozen=True)
class HeadByWidth(_ByWidth[nn.Module]):
    """One of several auxiliary networks, chosen by the channels of the features.

    Attributes:
        choices: pairs of a number of channels and the builder for features of so many.

    Raises:
        BadInput: a width is below 1 or stands there twice; or, where it builds, the features have
            another width.

    Example:
        >>> wide = lp.BottleneckHead((256, 256, 512, 2048))
        >>> aux = lp.HeadByWidth(((512, lp.BottleneckHead()), (1024, wide)))

    Source: the official code of MAN++ (Su et al., 2025, arXiv 2507.16279), whose heads for ImageNet
    have one form at 512 channels and another at 1,024.
    """

    def __call__(self, point: AttachPoint) -> nn.Module:
        return self.choose(point)


@check_arguments
@dataclass(frozen=True)
class LossByWidth(_ByWidth[LocalLoss]):
    """One of several losses, chosen by the channels of the features.

    Attributes:
        choices: pairs of a number of channels and the builder for features of so many.

    Raises:
        BadInput: a width is below 1 or stands there twice; or, where it builds, the features have
            another width.

    Example:
        >>> narrow = lp.PixelReconstruction(gradual=(128, 32))
        >>> wide = lp.PixelReconstruction(gradual=(192, 64, 32))
        >>> loss = lp.LossByWidth(((512, narrow), (1024, wide)))

    Source: the official code of MAN++ (Su et al., 2025, arXiv 2507.16279), whose decoders for
    ImageNet have one form at 512 channels and another at 1,024.
    """

    def __call__(self, point: AttachPoint) -> LocalLoss:
        return self.choose(point)
