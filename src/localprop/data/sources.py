"""Data sets by name: digits from scikit-learn, five from torchvision, and `.npz` files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localprop.data.arrays import Augment, Dataset, Moments, Split, assemble
from localprop.data.npz import load_npz
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
    "stl10": ("STL10", Augment(pad=4, flip=True), HALF),
    "fashion_mnist": ("FashionMNIST", Augment(), None),
}
TEN_DIGITS = tuple(str(digit) for digit in range(10))
BY_SPLIT = ("svhn", "stl10")  # torchvision's split="train", where the others have train=True
AUGMENTS = {
    "none": Augment(),
    "crop": Augment(pad=4, reflect=True),
    "flip": Augment(flip=True),
    "crop,flip": CIFAR_AUGMENT,
}


def load(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    download: bool = False,
    limit: int | None = None,
    augment: str | None = None,
    validation: float = 0.1,
) -> Dataset:
    """Load a data set by name, or from an `.npz` file.

    Args:
        name_or_path: "digits" (ships with scikit-learn), "cifar10", "cifar100", "svhn" (without its extra
            images), "stl10" (its labelled images), "fashion_mnist", or a path that ends in .npz (see
            `load_npz`).
        root: folder of torchvision's data sets; if None, the environment variable LOCALPROP_DATA or else
            ~/.cache/localprop.
        download: fetch what is absent under `root`.
        limit: keep that many training images at most, the first of each class, with equal shares.
        augment: "none", "crop", "flip" or "crop,flip"; the data set's own if None (none for `.npz`).
        validation: share of the training images that is held out, always the same ones.

    Returns:
        The data set; the validation split never contains test images.

    Raises:
        BadInput: for an unknown name or option, absent files, a failed download, and problems of an `.npz`.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test)
        (1295, 142, 360)
    """
    name = str(name_or_path)
    check(_problems(name, limit, augment, validation))
    chosen = None if augment is None else AUGMENTS[augment]
    if name.endswith(".npz"):
        return load_npz(name, augment=chosen or Augment(), limit=limit, validation=validation)
    if name == "digits":
        train, test, classes = _digits()
        return assemble(name, train, test, classes, augment=chosen or Augment(), limit=limit, validation=validation)
    class_name, usual, moments = TORCHVISION[name]
    folder = Path(root or os.environ.get("LOCALPROP_DATA") or "~/.cache/localprop").expanduser()
    (train, classes), (test, _) = (_torchvision(class_name, folder, part, download) for part in ("train", "test"))
    return assemble(
        name,
        train,
        test,
        classes,
        augment=usual if chosen is None else chosen,
        moments=moments,
        limit=limit,
        validation=validation,
    )


def _problems(name: str, limit: int | None, augment: str | None, validation: float) -> list[str]:
    problems = []
    if not name.endswith(".npz") and name != "digits" and name not in TORCHVISION:
        known = ", ".join(["digits", *TORCHVISION])
        problems.append(f"There is no data set {name!r}: choose {known}, or a path that ends in .npz.")
    if limit is not None and limit < 1:
        problems.append(f"The limit is {limit} training images, but at least 1 is needed: raise it.")
    if augment is not None and augment not in AUGMENTS:
        known = " or ".join(f"'{kind}'" for kind in AUGMENTS)
        problems.append(f"The augmentation is {augment!r}, which is unknown: choose {known}.")
    if not 0 <= validation < 1:
        problems.append(f"The validation share is {validation}, but 0 <= share < 1 is needed: try 0.1.")
    return problems


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
    which = {"split": part} if class_name.lower() in BY_SPLIT else {"train": part == "train"}
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
