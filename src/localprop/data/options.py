"""What data sets are loaded with: augmentation, normalisation, sizes."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from localprop.data.augment import Augment
from localprop.data.dataset import Moments
from localprop.errors import check

WORDS = ("crop", "flip", "cutout", "random_resized_crop")
PADDINGS = ("reflect", "zeros")


@dataclass(frozen=True)
class Options:
    """What a data set is loaded with; fields that a data set has no use for are left alone.

    Attributes:
        root: folder of torchvision's data sets; if None, the environment variable LOCALPROP_DATA or else
            ~/.cache/localprop. Also where a path begins (.npz, .txt, folder:PATH) that is no absolute one.
        download: fetch what is absent under `root`.
        limit: keep that many training images (or windows of text) at most; of images the first of each class, with
            equal shares.
        augment: "none", or words with commas: "crop" (after padding), "flip", "cutout",
            "random_resized_crop" (folders of images only, in the place of "crop"); the data set's own if None (none for
            `.npz`).
        padding: of "crop": "reflect" (if None) or "zeros".
        crop_pad: of "crop": pixels on each side; if None, 4, or as many as the data set's own augmentation has.
        cutout: side of the square of "cutout", in pixels.
        mean: per channel, or one for all, of values in 0..1 where images are uint8; the data set's own if None.
        std: likewise.
        validation: share of the training images that is held out, always the same ones; of text always a tenth.
        context: tokens in a window of text.
        image_size: height and width of images from a folder, in pixels.
        workers: processes that read images from a folder.

    Example:
        >>> Options(limit=0, augment="rotate").problems("digits")[0]
        'The limit is 0 training samples, but at least 1 is needed: raise it.'
    """

    root: str | Path | None = None
    download: bool = False
    limit: int | None = None
    augment: str | None = None
    padding: str | None = None
    crop_pad: int | None = None
    cutout: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation: float = 0.1
    context: int = 128
    image_size: int = 224
    workers: int = 4

    def path(self, given: str) -> Path:
        """Where a file or folder is: beneath `root`, unless its path is absolute; a leading ~ is the home directory."""
        return Path(os.path.expanduser(self.root or ""), os.path.expanduser(given))

    def problems(self, name: str) -> list[str]:
        """What is wrong with the values for a data set of this name, one sentence each."""
        problems = [] if self.limit is None else _too_small("limit", self.limit, "training samples")
        problems += self._augment_problems(name) + self._moment_problems(name)
        if not 0 <= self.validation < 1:
            problems.append(f"The validation share is {self.validation}, but 0 <= share < 1 is needed: try 0.1.")
        if self.padding not in (None, *PADDINGS):
            problems.append(f"The padding is {self.padding!r}, which is unknown: choose {' or '.join(PADDINGS)}.")
        problems += [] if self.crop_pad is None else _too_small("crop_pad", self.crop_pad, "pixels")
        problems += _too_small("cutout", self.cutout, "pixels") + _too_small("context", self.context, "tokens")
        problems += _too_small("image_size", self.image_size, "pixels")
        return problems + _too_small("workers", self.workers, "processes", least=0)

    def _words(self) -> list[str]:
        return [word.strip() for word in ("none" if self.augment is None else self.augment).split(",")]

    def _augment_problems(self, name: str) -> list[str]:
        words = self._words()
        if self.augment is None or words == ["none"]:
            return []
        if is_text(name):
            return [
                f"The augmentation is {self.augment!r}, but {name} is a text, whose windows are shifted anyway: leave it out."
            ]
        if len({*words}) < len(words) or not {*words} <= {*WORDS}:
            return [
                f"The augmentation is {self.augment!r}, which is unknown: choose none, or several of {', '.join(WORDS)} with"
                " commas between them."
            ]
        if "random_resized_crop" in words and not is_folder(name):
            return ["The augmentation 'random_resized_crop' is not for images in memory: use crop."]
        if {"crop", "random_resized_crop"} <= {*words}:
            return [f"The augmentation is {self.augment!r}, which crops twice: choose crop or random_resized_crop."]
        return []

    def _moment_problems(self, name: str) -> list[str]:
        if self.mean is None and self.std is None:
            return []
        if is_text(name):
            return [f"There is mean= or std=, but {name} is a text, which is not normalised: leave both out."]
        if self.mean is None or self.std is None:
            return [f"mean={self.mean} and std={self.std}, but both or none are needed: add the other."]
        problems = []
        if not self.mean or not self.std or not all(map(math.isfinite, self.mean + self.std)):
            problems.append(f"mean={self.mean} and std={self.std}, but finite numbers are needed: correct them.")
        if any(value <= 0 for value in self.std):
            problems.append(f"std={self.std}, but positive numbers are needed: correct them.")
        return problems

    def augmentation(self, usual: Augment) -> Augment:
        """What to do to training images: as given, else what is usual for the data."""
        if self.augment is None:
            usual = usual if self.padding is None else replace(usual, reflect=self.padding == "reflect")
            return replace(usual, pad=self.crop_pad) if self.crop_pad and usual.pad else usual
        words = self._words()
        return Augment(
            pad=(self.crop_pad or 4) if "crop" in words else 0,
            reflect="crop" in words and self.padding != "zeros",
            flip="flip" in words,
            cutout=self.cutout if "cutout" in words else 0,
            resized="random_resized_crop" in words,
        )

    def moments_of(self, chans: int) -> Moments | None:
        """What to normalise so many channels by, if it is given; one number is for all of them.

        Raises:
            BadInput: neither one number nor one for each channel.
        """
        if self.mean is None or self.std is None:
            return None
        given = {"mean": self.mean, "std": self.std}
        check(
            f"{name}={values} are {len(values)} numbers for {chans} channel(s): give one for each, or one for all."
            for name, values in given.items()
            if len(values) not in (1, chans)
        )
        mean, std = (values * chans if len(values) == 1 else values for values in given.values())
        return Moments(mean, std)


def is_text(name: str) -> bool:
    """Whether a data set of this name is text, for a language model."""
    return name == "text" or name.lower().endswith(".txt")


def is_folder(name: str) -> bool:
    """Whether a data set of this name is a folder of images."""
    return name.startswith("folder:")


def _too_small(name: str, value: int, unit: str, least: int = 1) -> list[str]:
    return [f"The {name} is {value} {unit}, but at least {least} is needed: raise it."] if value < least else []
