"""Data sets by name: digits from scikit-learn, several from torchvision, `.npz` files, folders of images, and text."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localprop.data.arrays import Images, Split, assemble
from localprop.data.augment import Augment
from localprop.data.dataset import Dataset, Moments
from localprop.data.folder import IMAGENET_AUGMENT, load_folder
from localprop.data.npz import load_npz
from localprop.data.options import Options, is_folder, is_text
from localprop.data.text import load_text
from localprop.errors import BadInput, check

CIFAR_AUGMENT = Augment(pad=4, reflect=True, flip=True)
HALF = Moments((0.5,) * 3, (0.5,) * 3)

# The augmentation and moments of the local learning literature (InfoPro's recipe, 2021, arXiv 2101.10832,
# which AugLocal and ContSup share); None: measured on the training split.
TORCHVISION: dict[str, tuple[str, Augment, Moments | None]] = {
    "cifar10": (
        "CIFAR10",
        CIFAR_AUGMENT,
        Moments((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    ),
    "cifar100": ("CIFAR100", CIFAR_AUGMENT, None),
    "svhn": ("SVHN", Augment(pad=2), HALF),
    "svhn_extra": ("SVHN", Augment(pad=2), HALF),
    "stl10": ("STL10", Augment(pad=4, flip=True), HALF),
    "mnist": ("MNIST", Augment(), None),
    "fashion_mnist": ("FashionMNIST", Augment(), None),
    "kmnist": ("KMNIST", Augment(), None),
}
TEN_DIGITS = tuple(str(digit) for digit in range(10))
BY_SPLIT = ("SVHN", "STL10")  # torchvision's split="train", where the others have train=True


def load(name_or_path: str | Path, **options: Any) -> Dataset:
    """Load a data set by name, or from a file or folder.

    Args:
        name_or_path: "digits" (ships with scikit-learn), "cifar10", "cifar100", "svhn" (without its extra
            images), "svhn_extra" (with them: 604,388 for training), "stl10" (its labelled images), "mnist", "fashion_mnist",
            "kmnist" (Kuzushiji), a path that ends in .npz (see `load_npz`), "folder:PATH" (images in folders, see
            `load_folder`), "text" (ships with Python, see `load_text`), or a path that ends in .txt.
        options: the fields of :class:`Options`.

    Returns:
        The data set; the validation split never contains test images.

    Raises:
        BadInput: for an unknown name or option, absent files, a failed download, and problems of a file.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test)
        (1295, 142, 360)
    """
    name, chosen = str(name_or_path), Options(**options)
    check([*name_problems(name, chosen), *chosen.problems(name)])
    if is_text(name):
        where = name if name == "text" else chosen.path(name)
        return load_text(where, context=chosen.context, limit=chosen.limit)
    if is_folder(name):
        return load_folder(
            chosen.path(name.removeprefix("folder:")),
            augment=augment_of(name, chosen),
            moments=chosen.moments_of(3),
            limit=chosen.limit,
            validation=chosen.validation,
            image_size=chosen.image_size,
            workers=chosen.workers,
        )
    return _in_memory(name, chosen)


def augment_of(name: str, chosen: Options) -> Augment:
    """How training images of the data set of a name are augmented: as chosen, else as is usual for it.

    Example:
        >>> augment_of("svhn", Options())
        Augment(pad=2, reflect=False, flip=False, cutout=0, resized=False)
    """
    usual = TORCHVISION[name][1] if name in TORCHVISION else IMAGENET_AUGMENT if is_folder(name) else Augment()
    return chosen.augmentation(usual)


def _is_npz(name: str) -> bool:
    return name.lower().endswith(".npz")


def name_problems(name: str, chosen: Options) -> list[str]:
    """Why there is no data set of a name, one sentence.

    Example:
        >>> len(name_problems("nothing", Options())), name_problems("digits", Options())
        (1, [])
    """
    if _is_npz(name) or name == "digits" or name in TORCHVISION or is_text(name) or is_folder(name):
        return []
    if name and chosen.path(name).is_dir():
        return [
            f"There is no data set {name!r}, but a folder {chosen.path(name)}: for images in it, write folder:{name}."
        ]
    known = ", ".join(["digits", *TORCHVISION, "text"])
    return [f"There is no data set {name!r}: choose {known}, folder:PATH, or a path that ends in .npz or .txt."]


def _in_memory(name: str, chosen: Options) -> Images:
    shares: dict[str, Any] = {"limit": chosen.limit, "validation": chosen.validation}
    if _is_npz(name):
        return _normalised(load_npz(chosen.path(name), augment=augment_of(name, chosen), **shares), chosen)
    if name == "digits":
        train, test, classes = _digits()
        return _normalised(assemble(name, train, test, classes, augment=augment_of(name, chosen), **shares), chosen)
    class_name, _, moments = TORCHVISION[name]
    folder = Path(os.path.expanduser(chosen.root or os.environ.get("LOCALPROP_DATA") or "~/.cache/localprop"))
    names = ("test", "train", *(["extra"] if name == "svhn_extra" else []))
    (test, classes), *parts = (_torchvision(class_name, folder, part, chosen.download) for part in names)
    train = Split(torch.cat([part.images for part, _ in parts]), torch.cat([part.labels for part, _ in parts]))
    augment = augment_of(name, chosen)
    return _normalised(assemble(name, train, test, classes, augment=augment, moments=moments, **shares), chosen)


def _normalised(images: Images, chosen: Options) -> Images:
    moments = chosen.moments_of(images.shape[0])
    return images if moments is None else replace(images, mean=moments.mean, std=moments.std)


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    """The 1,797 digits of scikit-learn, 8x8, scaled from 0..16 to 0..1; a fifth of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    whole = Split(images, torch.from_numpy(digits.target).long())
    train, test = train_test_split(np.arange(len(whole)), test_size=0.2, stratify=digits.target, random_state=0)
    return whole.select(torch.from_numpy(train)), whole.select(torch.from_numpy(test)), TEN_DIGITS


def _torchvision(class_name: str, root: Path, part: str, download: bool) -> tuple[Split, tuple[str, ...]]:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise BadInput(f"torchvision cannot be imported ({error}): pip install 'localprop[vision]'.") from error
    which = {"split": part} if class_name in BY_SPLIT else {"train": part == "train"}
    try:
        source = getattr(datasets, class_name)(root, download=download, **which)
    except (RuntimeError, OSError) as error:  # absent or damaged files; network, disk or archive trouble
        raise BadInput(_unavailable(class_name, root, download, error)) from error
    return _as_split(source), tuple(getattr(source, "classes", TEN_DIGITS))


def _unavailable(class_name: str, root: Path, download: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if download:
        return (
            f"{class_name} could not be downloaded to {root} ({reason}): check the network and the disk, or"
            " put the official files there."
        )
    return (
        f"{class_name} is not complete under {root} ({reason}): pass download=True / --download, or put the"
        " official files there, or name another folder by root= / --root."
    )


def _as_split(source: Any) -> Split:
    """Torchvision's arrays, of which each class has its own: (N, C, H, W), (N, H, W, C) or (N, H, W)."""
    images = torch.as_tensor(source.data)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2)
    labels = source.labels if hasattr(source, "labels") else source.targets
    return Split(images.contiguous(), torch.as_tensor(labels).long())
