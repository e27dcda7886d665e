"""Image data from one `.npz` file of numpy arrays."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from localprop.data.arrays import Images, Split, build_images
from localprop.data.augment import Augment
from localprop.errors import BadInput, check

Array = NDArray[Any]
Arrays = dict[str, Array]
KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
NO_AUGMENT = Augment()


def load_npz(
    path: str | Path,
    *,
    augment: Augment = NO_AUGMENT,
    limit: int | None = None,
    validation: float = 0.1,
) -> Images:
    """Read images and labels from an `.npz` file. Nothing in it is ever unpickled.

    The file holds `train_images` and `test_images` (N, H, W, C) or (N, H, W), uint8 or floating;
    `train_labels` and `test_labels` (N,), integers from 0; and `classes` (K,), two or more strings.
    Every class with test images must have training images.

    Args:
        path: the file.
        augment: the augmentation of training images.
        limit: keep at most this many training images, with equal shares of the classes.
        validation: fraction of the training images to hold out.

    Raises:
        BadInput: if the file is missing or no `.npz`, or with every problem of its arrays.

    Example:
        >>> augment = Augment(pad=4, reflect=True, flip=True)
        >>> data = load_npz("cifar10.npz", augment=augment)  # doctest: +SKIP
    """
    path = Path(path)
    arrays = _read_arrays(path)
    check(find_array_problems(arrays))
    train = _make_split(arrays["train_images"], arrays["train_labels"])
    test = _make_split(arrays["test_images"], arrays["test_labels"])
    classes = tuple(arrays["classes"].astype(str).tolist())
    return build_images(
        path.stem, train, test, classes, augment=augment, limit=limit, validation=validation
    )


def _read_arrays(path: Path) -> Arrays:
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    problems = []
    arrays = {}
    try:
        # numpy would take a file that is no archive for one array or a pickle. zipfile refuses it.
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as archive:
            for key in KEYS:
                try:
                    arrays[key] = archive[key]
                except KeyError:
                    problems.append(_describe_missing_array(key, archive.files))
                except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                    problems.append(
                        f"The array {key} in {path} cannot be read ({error}): store plain numbers,"
                        " or strings of fixed length, without pickle."
                    )
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"{path} is no .npz file ({error}): write it with numpy.savez_compressed."
        ) from error
    check(problems)
    return arrays


def _describe_missing_array(key: str, present: list[str]) -> str:
    return (
        f"The array {key} is missing; the file has {', '.join(present) or 'none'}: add it under"
        " that name."
    )


def find_array_problems(arrays: Arrays) -> list[str]:
    """Check the five arrays of `KEYS`. One sentence per problem.

    Example:
        >>> len(find_array_problems({key: np.zeros(0) for key in KEYS}))
        7
    """
    classes = arrays["classes"]
    problems = _find_class_problems(classes)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        problems += _find_image_problems(f"{split}_images", images)
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


def _find_image_problems(name: str, images: Array) -> list[str]:
    shape = images.shape
    problems = []
    if images.ndim not in (3, 4):
        problems.append(
            f"{name} has the shape {shape}, but (N, H, W, C) or (N, H, W) is expected: add the"
            " missing axes."
        )
    # Images 1 or 3 pixels high are less likely than channels at the wrong axis.
    if images.ndim == 4 and shape[1] in (1, 3) and shape[3] > 4:
        problems.append(
            f"{name} has the shape {shape}, channels first: store it as .transpose(0, 2, 3, 1)."
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        problems.append(
            f"{name} has the type {images.dtype}, but uint8 or float is expected: use .astype."
        )
    elif images.dtype.kind == "f" and not np.isfinite(images).all():
        problems.append(f"{name} has values that are NaN or infinite: remove those images.")
    return problems


def _find_label_problems(name: str, labels: Array, num_classes: int) -> list[str]:
    if labels.ndim != 1:
        return [
            f"{name} has the shape {labels.shape}, but (N,) is expected: store one number per"
            " image."
        ]
    if labels.dtype.kind not in "iu":
        return [
            f"{name} has the type {labels.dtype}, but integers are expected: use"
            " .astype(numpy.int64)."
        ]
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        return [
            f"{name} runs from {labels.min()} to {labels.max()}, but there are {num_classes}"
            " classes, numbered from 0: renumber the labels or complete classes."
        ]
    return []


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


def _make_split(images: Array, labels: Array) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    dtype = torch.uint8 if images.dtype == np.uint8 else torch.float32
    return Split(
        torch.from_numpy(channels_first).to(dtype), torch.from_numpy(labels.astype(np.int64))
    )
