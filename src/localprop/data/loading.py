"""Options of loading a data set: augmentation, normalisation, sizes."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from localprop.arguments import check_arguments
from localprop.data.augment import Augment
from localprop.data.dataset import Normalization
from localprop.errors import check

AUGMENT_WORDS = ("crop", "flip", "cutout", "random_resized_crop")
PADDINGS = ("reflect", "zeros")
LAYOUTS = ("channels_last", "channels_first")
USUAL_PAD = 4  # pixels on each side, of CIFAR-10's usual crop


@check_arguments
@dataclass(frozen=True)
class LoadingOptions:
    """Options of loading a data set. A data set ignores fields that do not concern it.

    Attributes:
        root: folder of torchvision's data sets. None means the environment variable LOCALPROP_DATA,
            or else ~/.cache/localprop. Relative paths (.npz, .txt, folder:PATH) start here too.
        download: download missing files to `root`.
        limit: keep at most this many training images (or windows of text): the first images of each
            class, with equal shares.
        test_limit: keep at most this many test images, chosen in the same way, or windows of text.
        augment: "none", or words with commas between them: "crop" (after padding), "flip",
            "cutout", "random_resized_crop" (instead of "crop", for folders of images only). None
            means the data set's usual augmentation, which is none for `.npz`.
        padding: how "crop" pads: "reflect" (if None) or "zeros".
        crop_pad: pixels that "crop" pads on each side. None means 4, or the number of the data
            set's usual augmentation.
        cutout: side of the square of "cutout", in pixels.
        mean: mean per channel, or one for all channels, of values in 0..1 if images are uint8. None
            means the data set's usual one.
        std: standard deviation, likewise.
        validation: fraction of the training images to hold out, the same images in every run. Text
            always holds out a tenth.
        layout: axes of images in an `.npz` file: "channels_last" (N, H, W, C) or "channels_first"
            (N, C, H, W). None takes the first, and refuses images whose shape does not show it.
        context: tokens in a window of text.
        image_size: height and width of images from a folder, in pixels.
        workers: number of processes that read images from a folder.

    Example:
        >>> LoadingOptions(limit=0, augment="rotate").find_problems("digits")[0]
        'The limit is 0 training samples, but at least 1 is needed: raise it.'
    """

    root: str | Path | None = None
    download: bool = False
    limit: int | None = None
    test_limit: int | None = None
    augment: str | None = None
    padding: str | None = None
    crop_pad: int | None = None
    cutout: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation: float = 0.1
    layout: str | None = None
    context: int = 128
    image_size: int = 224
    workers: int = 4

    def resolve_path(self, path: str) -> Path:
        """Resolve a path against `root`. Absolute paths stay; a leading ~ is the home folder."""
        return Path(os.path.expanduser(self.root or ""), os.path.expanduser(path))

    def find_problems(self, name: str) -> list[str]:
        """Check the options for a data set of this name. One sentence per problem."""
        problems = _find_small_values("limit", self.limit, "training samples")
        problems += _find_small_values("test_limit", self.test_limit, "test samples")
        problems += self._find_augment_problems(name) + self._find_normalization_problems(name)
        if not 0 <= self.validation < 1:
            problems.append(
                f"The validation share is {self.validation}, but 0 <= share < 1 is needed: try 0.1."
            )
        if self.padding not in (None, *PADDINGS):
            choices = " or ".join(PADDINGS)
            problems.append(f"The padding is {self.padding!r}, which is unknown: choose {choices}.")
        if self.layout not in (None, *LAYOUTS):
            choices = " or ".join(LAYOUTS)
            problems.append(f"The layout is {self.layout!r}, which is unknown: choose {choices}.")
        problems += _find_small_values("crop_pad", self.crop_pad, "pixels")
        problems += _find_small_values("cutout", self.cutout, "pixels")
        problems += _find_small_values("context", self.context, "tokens")
        problems += _find_small_values("image_size", self.image_size, "pixels")
        return problems + _find_small_values("workers", self.workers, "processes", minimum=0)

    def _split_augment_words(self) -> list[str]:
        text = "none" if self.augment is None else self.augment
        return [word.strip() for word in text.split(",")]

    def _find_augment_problems(self, name: str) -> list[str]:
        words = self._split_augment_words()
        if self.augment is None or words == ["none"]:
            return []
        given = f"The augmentation is {self.augment!r}"
        if is_text(name):
            return [f"{given}, but {name} is a text, whose windows are shifted anyway: remove it."]
        if len({*words}) < len(words) or not {*words} <= {*AUGMENT_WORDS}:
            choices = ", ".join(AUGMENT_WORDS)
            return [
                f"{given}, which is unknown: choose none, or several of {choices} with commas"
                " between them."
            ]
        if "random_resized_crop" in words and not is_folder(name):
            return ["The augmentation 'random_resized_crop' is not for images in memory: use crop."]
        if {"crop", "random_resized_crop"} <= {*words}:
            return [f"{given}, which crops twice: choose crop or random_resized_crop."]
        return []

    def _find_normalization_problems(self, name: str) -> list[str]:
        if self.mean is None and self.std is None:
            return []
        if is_text(name):
            return [f"mean= and std= do not apply to the text {name}: remove them."]
        given = f"mean={self.mean} and std={self.std}"
        if self.mean is None or self.std is None:
            return [f"{given}, but both or none are needed: add the other."]
        problems = []
        if not self.mean or not self.std or not all(map(math.isfinite, self.mean + self.std)):
            problems.append(f"{given}, but finite numbers are needed: correct them.")
        if any(value <= 0 for value in self.std):
            problems.append(f"std={self.std}, but positive numbers are needed: correct them.")
        return problems

    def choose_augment(self, usual: Augment) -> Augment:
        """Choose the augmentation of training images: the given one, or else the usual one.

        Without `augment`, `padding` and `crop_pad` still change the usual crop.
        """
        if self.augment is None:
            if self.padding is not None:
                usual = replace(usual, reflect=self.padding == "reflect")
            return replace(usual, pad=self.crop_pad) if self.crop_pad and usual.pad else usual
        words = self._split_augment_words()
        return Augment(
            pad=(self.crop_pad or USUAL_PAD) if "crop" in words else 0,
            reflect="crop" in words and self.padding != "zeros",
            flip="flip" in words,
            cutout=self.cutout if "cutout" in words else 0,
            resized="random_resized_crop" in words,
        )

    def normalization_for(self, chans: int) -> Normalization | None:
        """The given normalization for this many channels, or None if none is given.

        One number applies to all channels.

        Raises:
            BadInput: if there is neither one number nor one for each channel.
        """
        if self.mean is None or self.std is None:
            return None
        given = {"mean": self.mean, "std": self.std}
        check(
            f"{name}={values} are {len(values)} numbers for {chans} channel(s): give one for each,"
            " or one for all."
            for name, values in given.items()
            if len(values) not in (1, chans)
        )
        mean, std = (values * chans if len(values) == 1 else values for values in given.values())
        return Normalization(mean, std)


def is_npz(name: str) -> bool:
    """Whether a data set of this name is an `.npz` file."""
    return name.lower().endswith(".npz")


@check_arguments
def is_text(name: str) -> bool:
    """Whether a data set of this name is text, for a language model."""
    return name == "text" or name.lower().endswith(".txt")


def is_folder(name: str) -> bool:
    """Whether a data set of this name is a folder of images."""
    return name.startswith("folder:")


def _find_small_values(name: str, value: int | None, unit: str, minimum: int = 1) -> list[str]:
    """One sentence if a value is given and less than the minimum."""
    if value is None or value >= minimum:
        return []
    return [f"The {name} is {value} {unit}, but at least {minimum} is needed: raise it."]
