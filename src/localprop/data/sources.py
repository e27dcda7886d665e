"""Data sets by name.

They come from scikit-learn (digits), torchvision, `.npz` files, folders of images, and text.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localprop.arguments import check_arguments
from localprop.data.arrays import Images, Split, build_images
from localprop.data.augment import Augment
from localprop.data.dataset import Dataset, Normalization
from localprop.data.folder import IMAGENET_AUGMENT, load_folder
from localprop.data.loading import LoadingOptions, is_folder, is_npz, is_text
from localprop.data.npz import load_npz
from localprop.data.text import load_text
from localprop.errors import BadInput, check

CIFAR_AUGMENT = Augment(pad=4, reflect=True, flip=True)
CIFAR10_NORMALIZATION = Normalization(
    (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
)
HALF_NORMALIZATION = Normalization((0.5,) * 3, (0.5,) * 3)

# torchvision's class, augmentation and normalization by name. These are the values of the local
# learning literature (InfoPro's recipe, 2021, arXiv 2101.10832, which AugLocal and ContSup share).
# None: measured on the training split. That recipe takes CIFAR-10's moments for CIFAR-100, too.
TORCHVISION: dict[str, tuple[str, Augment, Normalization | None]] = {
    "cifar10": ("CIFAR10", CIFAR_AUGMENT, CIFAR10_NORMALIZATION),
    "cifar100": ("CIFAR100", CIFAR_AUGMENT, None),
    "svhn": ("SVHN", Augment(pad=2), HALF_NORMALIZATION),
    "svhn_extra": ("SVHN", Augment(pad=2), HALF_NORMALIZATION),
    "stl10": ("STL10", Augment(pad=4, flip=True), HALF_NORMALIZATION),
    "mnist": ("MNIST", Augment(), None),
    "fashion_mnist": ("FashionMNIST", Augment(), None),
    "kmnist": ("KMNIST", Augment(), None),
}
TEN_DIGITS = tuple(str(digit) for digit in range(10))
# These classes of torchvision take split="train", the others train=True.
TAKES_SPLIT = ("SVHN", "STL10")


@check_arguments
def load(name_or_path: str | Path, **options: Any) -> Dataset:
    """Load a data set by name, or from a file or folder.

    Args:
        name_or_path: "digits" (ships with scikit-learn), "cifar10", "cifar100", "svhn" (without its
            extra images), "svhn_extra" (with them: 604,388 for training), "stl10" (its labelled
            images), "mnist", "fashion_mnist", "kmnist" (Kuzushiji), a path that ends in .npz (see
            `load_npz`), "folder:PATH" (images in folders, see `load_folder`), "text" (ships with
            Python, see `load_text`), or a path that ends in .txt.
        options: the fields of `LoadingOptions`.

    Returns:
        The data set. Its validation split never contains test images.

    Raises:
        BadInput: for an unknown name or option, missing files, a failed download, and problems of a
            file.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test)
        (1295, 142, 360)
    """
    name, chosen = str(name_or_path), LoadingOptions(**options)
    check([*find_name_problems(name, chosen), *chosen.find_problems(name)])
    dataset: Any = _load_whole(name, chosen)
    if chosen.test_limit is not None:
        dataset = replace(dataset, test=dataset.test.take(chosen.test_limit))
    found: Dataset = dataset
    return found


def _load_whole(name: str, chosen: LoadingOptions) -> Dataset:
    if is_text(name):
        path = name if name == "text" else chosen.resolve_path(name)
        return load_text(path, context=chosen.context, limit=chosen.limit)
    if is_folder(name):
        return load_folder(
            chosen.resolve_path(name.removeprefix("folder:")),
            augment=augment_of(name, chosen),
            normalization=chosen.normalization_for(3),
            limit=chosen.limit,
            validation=chosen.validation,
            image_size=chosen.image_size,
            workers=chosen.workers,
        )
    return _override_normalization(_load_in_memory(name, chosen), chosen)


def augment_of(name: str, chosen: LoadingOptions) -> Augment:
    """The augmentation of a data set's training images: the chosen one, or else the usual one.

    Example:
        >>> augment_of("svhn", LoadingOptions())
        Augment(pad=2, reflect=False, flip=False, cutout=0, resized=False)
    """
    if name in TORCHVISION:
        _, usual, _ = TORCHVISION[name]
    else:
        usual = IMAGENET_AUGMENT if is_folder(name) else Augment()
    return chosen.choose_augment(usual)


def find_name_problems(name: str, chosen: LoadingOptions) -> list[str]:
    """Check that there is a data set of this name. One sentence if there is none.

    Example:
        >>> len(find_name_problems("nothing", LoadingOptions()))
        1
        >>> find_name_problems("digits", LoadingOptions())
        []
    """
    if is_npz(name) or name == "digits" or name in TORCHVISION or is_text(name) or is_folder(name):
        return []
    if name and os.path.isdir(chosen.resolve_path(name)):
        return [
            f"There is no data set {name!r}, but a folder {chosen.resolve_path(name)}: for images"
            f" in it, write folder:{name}."
        ]
    known = ", ".join(["digits", *TORCHVISION, "text"])
    return [
        f"There is no data set {name!r}: choose {known}, folder:PATH, or a path that ends in .npz"
        " or .txt."
    ]


def _load_in_memory(name: str, chosen: LoadingOptions) -> Images:
    augment, limit, validation = augment_of(name, chosen), chosen.limit, chosen.validation
    if is_npz(name):
        path = chosen.resolve_path(name)
        layout = chosen.layout
        return load_npz(path, augment=augment, limit=limit, validation=validation, layout=layout)
    normalization = None
    if name == "digits":
        train, test, classes = _load_digits()
    else:
        train, test, classes = _load_torchvision(name, chosen)
        normalization = TORCHVISION[name][2]
    return build_images(
        name,
        train,
        test,
        classes,
        augment=augment,
        normalization=normalization,
        limit=limit,
        validation=validation,
    )


def _override_normalization(images: Images, chosen: LoadingOptions) -> Images:
    """Normalise by mean= and std= if they are given."""
    normalization = chosen.normalization_for(images.shape[0])
    if normalization is None:
        return images
    return replace(images, mean=normalization.mean, std=normalization.std)


def _load_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Load the 1,797 digits of scikit-learn, 8x8, scaled from 0..16 to 0..1.

    Returns:
        The training split, the test split (a fifth of the images), and the names of the classes.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    whole = Split(images, torch.from_numpy(digits.target).long())
    train, test = train_test_split(
        np.arange(len(whole)), test_size=0.2, stratify=digits.target, random_state=0
    )
    return whole.select(torch.from_numpy(train)), whole.select(torch.from_numpy(test)), TEN_DIGITS


def _load_torchvision(name: str, chosen: LoadingOptions) -> tuple[Split, Split, tuple[str, ...]]:
    """Load a data set of torchvision.

    Returns:
        The training split, with SVHN's extra images if asked for; the test split; the names of the
        classes.
    """
    class_name, _, _ = TORCHVISION[name]
    root = chosen.root or os.environ.get("LOCALPROP_DATA") or "~/.cache/localprop"
    folder = Path(os.path.expanduser(root))
    test, classes = _load_torchvision_split(class_name, folder, "test", chosen.download)
    names = ("train", "extra") if name == "svhn_extra" else ("train",)
    splits = [_load_torchvision_split(class_name, folder, n, chosen.download)[0] for n in names]
    images = torch.cat([split.images for split in splits])
    labels = torch.cat([split.labels for split in splits])
    return Split(images, labels), test, classes


def _load_torchvision_split(
    class_name: str, root: Path, split: str, download: bool
) -> tuple[Split, tuple[str, ...]]:
    """Load one split of a data set of torchvision, and the names of its classes."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise BadInput(
            f"torchvision cannot be imported ({error}): pip install 'localprop[vision]'."
        ) from error
    arguments = {"split": split} if class_name in TAKES_SPLIT else {"train": split == "train"}
    try:
        source = getattr(datasets, class_name)(root, download=download, **arguments)
    except (RuntimeError, OSError) as error:
        # Files are missing or damaged, or the network, the disk or an archive fails.
        raise BadInput(_describe_unavailable(class_name, root, download, error)) from error
    return _convert_to_split(source), tuple(getattr(source, "classes", TEN_DIGITS))


def _describe_unavailable(class_name: str, root: Path, download: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if download:
        return (
            f"{class_name} could not be downloaded to {root} ({reason}): check the network and the"
            " disk, or put the official files there."
        )
    return (
        f"{class_name} is not complete under {root} ({reason}): pass download=True / --download, or"
        " put the official files there, or name another folder by root= / --root."
    )


def _convert_to_split(source: Any) -> Split:
    """Convert the arrays of a torchvision data set.

    Each class has its own layout: (N, C, H, W), (N, H, W, C) or (N, H, W).
    """
    images = torch.as_tensor(source.data)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2)
    labels = source.labels if hasattr(source, "labels") else source.targets
    return Split(images.contiguous(), torch.as_tensor(labels).long())
