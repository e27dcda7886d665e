"""Image data from one `.npz` file of numpy arrays.

What can be converted without a loss is converted: byte order, floats of any width, and labels that
are one-hot, (N, 1) or names of classes. Anything else is refused with the exact conversion.
"""

import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from localprop.arguments import check_arguments
from localprop.data.arrays import Images, Split, build_images
from localprop.data.augment import Augment
from localprop.errors import BadInput, check

Array = NDArray[Any]
Arrays = dict[str, Array]
KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
NO_AUGMENT = Augment()
# A file that claims more bytes than this, and more than this many times its own size, is refused:
# a few megabytes could otherwise fill the memory. Photos compress by 2, drawings by 20.
MAX_CLAIM, MAX_EXPANSION = 2**30, 200
# What numpy and zipfile raise for a member that is damaged, encrypted, too large or no array.
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
FLOAT32_MAX = float(np.finfo(np.float32).max)


@check_arguments
def load_npz(
    path: str | Path,
    *,
    augment: Augment = NO_AUGMENT,
    limit: int | None = None,
    validation: float = 0.1,
    layout: str | None = None,
) -> Images:
    """Read images and labels from an `.npz` file. Nothing in it is ever unpickled.

    The file holds `train_images` and `test_images` (N, H, W, C) or (N, H, W), uint8 or floating;
    `train_labels` and `test_labels`, as integers from 0 or names of classes (N,) or (N, 1), or
    one-hot (N, K); and `classes` (K,), two or more strings. Every class with test images must have
    training images.

    Args:
        path: the file.
        augment: the augmentation of training images.
        limit: keep at most this many training images, with equal shares of the classes.
        validation: fraction of the training images to hold out.
        layout: "channels_last" (N, H, W, C) or "channels_first" (N, C, H, W). None takes the first,
            and refuses images whose shape does not show it.

    Raises:
        BadInput: if the file is missing or no `.npz`, claims more than `MAX_CLAIM` bytes and
            `MAX_EXPANSION` times its own size, or with every problem of its arrays.

    Example:
        >>> augment = Augment(pad=4, reflect=True, flip=True)
        >>> data = load_npz("cifar10.npz", augment=augment)  # doctest: +SKIP
    """
    path = Path(path)
    arrays = _convert(_read_arrays(path))
    check(find_array_problems(arrays, layout))
    train, test = (
        _make_split(arrays[f"{split}_images"], arrays[f"{split}_labels"], layout)
        for split in ("train", "test")
    )
    classes = tuple(arrays["classes"].astype(str).tolist())
    return build_images(
        path.stem, train, test, classes, augment=augment, limit=limit, validation=validation
    )


def _read_arrays(path: Path) -> Arrays:
    if not os.path.isfile(path):
        raise BadInput(f"There is no file {path}: check the path.")
    problems = []
    arrays = {}
    try:
        # numpy would take a file that is no archive for one array or a pickle. zipfile refuses it.
        with zipfile.ZipFile(path) as members:
            check(_find_size_problems(path, members))
        with np.load(path, allow_pickle=False) as archive:
            for key in KEYS:
                try:
                    arrays[key] = archive[key]
                    if not isinstance(arrays[key], np.ndarray):  # numpy returns its bytes
                        raise ValueError("it is no array of numpy")
                except KeyError:
                    problems.append(_describe_missing_array(key, archive.files))
                except UNREADABLE as error:
                    problems.append(
                        f"The array {key} in {path} cannot be read ({error}): store plain numbers,"
                        " or strings of fixed length, without pickle."
                    )
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BadInput(
            f"{path} is no .npz file ({error}): write it with numpy.savez_compressed."
        ) from error
    check(problems)
    return arrays


def _find_size_problems(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Check what the arrays claim to be before any memory is taken for them."""
    claimed = 0
    for member in archive.infolist():
        if member.filename.removesuffix(".npy") not in KEYS:
            continue
        claimed += member.file_size
        size = _read_claimed_size(archive, member)
        if size is not None and size > member.file_size:
            yield (
                f"The array {member.filename} in {path} claims {size} bytes, but has"
                f" {member.file_size}: it is damaged; write it again."
            )
    size = path.stat().st_size
    limit = max(MAX_CLAIM, MAX_EXPANSION * size)
    if claimed > limit:
        yield (
            f"{path} has {size} bytes and claims to unpack to {claimed}; the limit is {limit}"
            f" (1 GiB, or {MAX_EXPANSION} times the file): write it with numpy.savez."
        )


def _read_claimed_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int | None:
    """The bytes of an array by its header; None if it has none, which reading it reports."""
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
                file
            )
    except (*UNREADABLE, NotImplementedError):
        return None
    return math.prod(shape) * dtype.itemsize


def _describe_missing_array(key: str, present: list[str]) -> str:
    return (
        f"The array {key} is missing; the file has {', '.join(present) or 'none'}: add it under"
        " that name."
    )


def _convert(arrays: Arrays) -> Arrays:
    """Convert what can be converted without a loss: byte order, and forms of labels."""
    # torch takes the machine's own byte order alone.
    native = {
        key: array.astype(array.dtype.newbyteorder("="), copy=False)
        for key, array in arrays.items()
    }
    classes = native["classes"]
    for key in ("train_labels", "test_labels"):
        native[key] = _convert_labels(native[key], classes)
    return native


def _convert_labels(labels: Array, classes: Array) -> Array:
    """Convert labels (N, 1), one-hot labels (N, K), and names of classes. Others stay."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] == classes.size and labels.dtype.kind in "biuf":
        is_one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        return np.asarray(labels.argmax(1)) if is_one_hot else labels
    if _are_names(labels) and _are_names(classes):
        numbers = {name: number for number, name in enumerate(classes.astype(str).tolist())}
        names = labels.astype(str).tolist()
        if len(numbers) == classes.size and {*names} <= numbers.keys():
            return np.array([numbers[name] for name in names], np.int64)
    return labels


def _are_names(array: Array) -> bool:
    return array.ndim == 1 and array.dtype.kind in "US"


def find_array_problems(arrays: Arrays, layout: str | None = None) -> list[str]:
    """Check the five arrays of `KEYS`. One sentence per problem.

    Example:
        >>> len(find_array_problems({key: np.zeros(0) for key in KEYS}))
        7
    """
    classes = arrays["classes"]
    problems = _find_class_problems(classes)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        problems += _find_image_problems(f"{split}_images", images, layout)
        problems += _find_label_problems(f"{split}_labels", labels, classes.size)
        problems += _find_length_problems(split, images, labels)
    problems += _find_mismatch_problems(arrays["train_images"], arrays["test_images"])
    if problems:
        return problems
    return _find_coverage_problems(arrays["train_labels"], arrays["test_labels"], classes)


def _find_class_problems(classes: Array) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind not in "US" or classes.size == 0:
        return [
            f"classes has the shape {classes.shape} and type {classes.dtype}, but (K,) strings are"
            " expected: store numpy.array(['cat', 'dog'])."
        ]
    if classes.size == 1:
        return [
            "classes has one name only, but at least two are needed: add the others, and images of"
            " them."
        ]
    return []


def _find_image_problems(name: str, images: Array, layout: str | None) -> list[str]:
    problems = []
    if images.ndim not in (3, 4):
        problems.append(
            f"{name} has the shape {images.shape}, but (N, H, W, C) or (N, H, W) is expected: give"
            " it 3 or 4 axes."
        )
    if images.ndim == 4 and layout is None:
        problems += _find_layout_problems(name, images.shape)
    return problems + _find_value_problems(name, images)


def _find_layout_problems(name: str, shape: tuple[int, ...]) -> list[str]:
    """Refuse (N, a, b, c) unless its shape shows that c counts the channels.

    Images are mostly square, and have fewer channels than pixels on a side. Images 1 or 3 pixels
    high are less likely than channels at that axis.
    """
    _, a, b, c = shape
    last = a == b or c < min(a, b) or (c in (1, 3) and a > 4)
    first = b == c or a < min(b, c) or (a in (1, 3) and c > 4)
    if last and not first:
        return []
    seems = "channels first" if first and not last else "which may be channels first or last"
    return [
        f"{name} has the shape {shape}, {seems}: add --layout channels_first (layout= in Python) if"
        f" an image has {a} channels, or --layout channels_last if it has {c}."
    ]


def _find_value_problems(name: str, images: Array) -> list[str]:
    kind = images.dtype.kind
    if kind == "f":
        if not np.isfinite(images).all():
            return [f"{name} has values that are NaN or infinite: remove those images."]
        largest = max(-float(images.min(initial=0)), float(images.max(initial=0)))
        if largest > FLOAT32_MAX:
            return [
                f"{name} has values up to {largest:.3g}, but float32, in which a network computes,"
                f" ends at {FLOAT32_MAX:.3g}: divide train_images and test_images by the same"
                f" number, for instance {largest:.3g}."
            ]
    elif images.dtype != np.uint8:
        return [
            f"{name} has the type {images.dtype}, but uint8 or float is expected:"
            f" {_advise_conversion(images)}"
        ]
    return []


def _advise_conversion(images: Array) -> str:
    """The line that makes images of another type readable, and loses nothing."""
    if images.dtype.kind not in "biu" or images.size == 0:
        return "store numbers, one for each pixel and channel."
    low, high = int(images.min()), int(images.max())
    if low >= 0 and high <= 1:
        return "store images.astype('float32')."
    if low >= 0 and high <= 255:
        return f"its values lie in {low}..{high}, so store images.astype('uint8')."
    white = np.iinfo(images.dtype).max
    return (
        f"its values lie in {low}..{high}, so store images.astype('float32') / WHITE, where WHITE"
        f" is the value of white, the same for both arrays: {white}, if all of {images.dtype} is"
        f" used, or for instance 4095 of 12 bits."
    )


def _find_label_problems(name: str, labels: Array, num_classes: int) -> list[str]:
    if labels.ndim != 1:
        return [
            f"{name} has the shape {labels.shape}, but (N,) is expected, or (N, {num_classes}) with"
            " a single 1 in each row: store one number per image."
        ]
    if labels.dtype.kind not in "iu":
        return [
            f"{name} has the type {labels.dtype}, but integers are expected:"
            f" {_advise_integers(labels)}"
        ]
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        return [
            f"{name} runs from {labels.min()} to {labels.max()}, but there are {num_classes}"
            " classes, numbered from 0: renumber the labels or complete classes."
        ]
    return []


def _advise_integers(labels: Array) -> str:
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels % 1 == 0).all():
        return "they are whole, so store labels.astype('int64')."
    if labels.dtype.kind == "b":
        return "store labels.astype('int64'), with the class of False before that of True."
    if labels.dtype.kind in "US":
        return "store names that stand in classes once, or their positions there."
    return "store the position of each image's class in classes."


def _find_length_problems(split: str, images: Array, labels: Array) -> list[str]:
    image_count, label_count = (array.shape[0] if array.ndim else 0 for array in (images, labels))
    if image_count != label_count:
        return [
            f"There are {image_count} {split}_images, but {label_count} {split}_labels: store one"
            " label per image."
        ]
    if images.size == 0:
        return [
            f"{split}_images is empty, with the shape {images.shape}: at least one image is needed."
        ]
    return []


def _find_mismatch_problems(train: Array, test: Array) -> list[str]:
    if (train.shape[1:], train.dtype) == (test.shape[1:], test.dtype):
        return []
    return [
        f"train_images are {train.dtype} of shape {train.shape[1:]}, but test_images are"
        f" {test.dtype} of shape {test.shape[1:]}: store both alike."
    ]


def _find_coverage_problems(train: Array, test: Array, classes: Array) -> list[str]:
    """Check which classes the labels cover. Each array of labels must be valid."""
    names = classes.astype(str).tolist()
    train_labels, test_labels = {*train.tolist()}, {*test.tolist()}
    if len(train_labels) == 1:
        return [
            f"train_labels are all {names[train[0]]!r}, but at least two classes are needed: add"
            " images of the others."
        ]
    if missing := sorted(test_labels - train_labels):
        listed = ", ".join(repr(names[label]) for label in missing[:8])
        return [
            f"test_labels have {len(missing)} class(es) that train_labels lack ({listed}): add"
            " training images of them, or remove them from the test."
        ]
    return []


def _make_split(images: Array, labels: Array, layout: str | None) -> Split:
    if images.ndim == 3:
        images = images[:, None]
    elif layout != "channels_first":
        images = images.transpose(0, 3, 1, 2)
    pixels = images if images.dtype == np.uint8 else images.astype(np.float32)
    return Split(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64))
    )
