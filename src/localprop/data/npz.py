"""Image data from one `.npz` file of numpy arrays."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from localprop.data.arrays import Images, Split, assemble
from localprop.data.augment import Augment
from localprop.errors import BadInput, check

Array = NDArray[Any]
Arrays = dict[str, Array]
KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
NOTHING = Augment()


def load_npz(
    path: str | Path, *, augment: Augment = NOTHING, limit: int | None = None, validation: float = 0.1
) -> Images:
    """Read images and labels from an `.npz` file; nothing in it is ever unpickled.

    The file holds `train_images` and `test_images` (N, H, W, C) or (N, H, W), uint8 or floating;
    `train_labels` and `test_labels` (N,), integers from 0; `classes` (K,), two or more strings. Every class that is tested
    has training images.

    Args:
        path: the file.
        augment: how training images are augmented.
        limit: keep that many training images at most, with equal shares of the classes.
        validation: share of the training images that is held out.

    Raises:
        BadInput: if the file is missing or no `.npz`, with every problem that its arrays have.

    Example:
        >>> data = load_npz("cifar10.npz", augment=Augment(pad=4, reflect=True, flip=True))  # doctest: +SKIP
    """
    path = Path(path)
    arrays = _read(path)
    check(problems_of(arrays))
    train, test = (_split(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test"))
    classes = tuple(arrays["classes"].astype(str).tolist())
    return assemble(path.stem, train, test, classes, augment=augment, limit=limit, validation=validation)


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    problems = []
    arrays = {}
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as archive:
            for key in KEYS:
                try:
                    arrays[key] = archive[key]
                except KeyError:
                    problems.append(_missing(key, archive.files))
                except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                    problems.append(
                        f"The array {key} in {path} cannot be read ({error}): store plain numbers, or strings"
                        " of fixed length, without pickle."
                    )
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no .npz file ({error}): write it with numpy.savez_compressed.") from error
    check(problems)
    return arrays


def _missing(key: str, found: list[str]) -> str:
    return f"The array {key} is missing; the file has {', '.join(found) or 'none'}: add it under that name."


def problems_of(arrays: Arrays) -> list[str]:
    """What is wrong with the five arrays of `KEYS`, one sentence per problem.

    Example:
        >>> len(problems_of({key: np.zeros(0) for key in KEYS}))
        7
    """
    classes = arrays["classes"]
    problems = _class_problems(classes)
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        problems += _image_problems(f"{part}_images", images)
        problems += _label_problems(f"{part}_labels", labels, classes.size)
        problems += _length_problems(part, images, labels)
    problems += _mismatches(arrays["train_images"], arrays["test_images"])
    return problems or _untrained(arrays["train_labels"], arrays["test_labels"], classes)


def _class_problems(classes: Array) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind not in "US" or classes.size == 0:
        return [
            f"classes has the shape {classes.shape} and type {classes.dtype}, but (K,) strings are expected:"
            " store numpy.array(['cat', 'dog'])."
        ]
    if classes.size == 1:
        return ["classes has one name only, but at least two are needed: add the others, and images of them."]
    return []


def _image_problems(name: str, images: Array) -> list[str]:
    shape = images.shape
    problems = []
    if images.ndim not in (3, 4):
        problems.append(
            f"{name} has the shape {shape}, but (N, H, W, C) or (N, H, W) is expected: add the missing axes."
        )
    if images.ndim == 4 and shape[1] in (1, 3) and shape[3] > 4:
        problems.append(f"{name} has the shape {shape}, channels first: store it as .transpose(0, 2, 3, 1).")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        problems.append(f"{name} has the type {images.dtype}, but uint8 or float is expected: use .astype.")
    elif images.dtype.kind == "f" and not np.isfinite(images).all():
        problems.append(f"{name} has values that are NaN or infinite: remove those images.")
    return problems


def _label_problems(name: str, labels: Array, num_classes: int) -> list[str]:
    if labels.ndim != 1:
        return [f"{name} has the shape {labels.shape}, but (N,) is expected: store one number per image."]
    if labels.dtype.kind not in "iu":
        return [f"{name} has the type {labels.dtype}, but integers are expected: use .astype(numpy.int64)."]
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        return [
            f"{name} runs from {labels.min()} to {labels.max()}, but there are {num_classes} classes,"
            " numbered from 0: renumber the labels or complete classes."
        ]
    return []


def _length_problems(part: str, images: Array, labels: Array) -> list[str]:
    count, labelled = (array.shape[0] if array.ndim else 0 for array in (images, labels))
    if count != labelled:
        return [f"There are {count} {part}_images, but {labelled} {part}_labels: store one label per image."]
    if images.size == 0:
        return [f"{part}_images is empty, with the shape {images.shape}: at least one image is needed."]
    return []


def _mismatches(train: Array, test: Array) -> list[str]:
    if (train.shape[1:], train.dtype) == (test.shape[1:], test.dtype):
        return []
    return [
        f"train_images are {train.dtype} of shape {train.shape[1:]}, but test_images are {test.dtype} of"
        f" shape {test.shape[1:]}: store both alike."
    ]


def _untrained(train: Array, test: Array, classes: Array) -> list[str]:
    """What labels that are valid one by one lack together."""
    names = classes.astype(str).tolist()
    trained, tested = ({*labels.tolist()} for labels in (train, test))
    if len(trained) == 1:
        return [
            f"train_labels are all {names[train[0]]!r}, but at least two classes are needed: add images of the others."
        ]
    if absent := sorted(tested - trained):
        few = ", ".join(repr(names[label]) for label in absent[:8])
        return [
            f"test_labels have {len(absent)} class(es) that train_labels lack ({few}): add training images of them, or"
            " remove them from the test."
        ]
    return []


def _split(images: Array, labels: Array) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    dtype = torch.uint8 if images.dtype == np.uint8 else torch.float32
    return Split(torch.from_numpy(channels_first).to(dtype), torch.from_numpy(labels.astype(np.int64)))
