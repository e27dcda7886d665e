"""The image files of a folder: `train/CLASS/...` and `val/CLASS/...`, in the order of torchvision.

What is hidden, or no file at all, would change the classes, be read twice or never end. It is
passed over and named, or refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from localprop.data.arrays import select_per_class
from localprop.errors import check

# The endings of names that torchvision's ImageFolder reads.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_MAX_NAMES = 8  # names per problem


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files and their labels.

    Args:
        paths: the paths of N files.
        labels: (N,), int64.

    Example:
        >>> len(ImageFiles(("a.png",), torch.zeros(1, dtype=torch.int64)))
        1
    """

    paths: tuple[str, ...]
    labels: Tensor

    @property
    def names(self) -> str:
        """The paths below the folder that they all lie in, one on each line."""
        start = len(os.path.commonpath(self.paths)) if self.paths else 0
        return "\n".join(path[start:] for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Tensor) -> ImageFiles:
        """Select the samples at `indices` (M,), in their order."""
        return ImageFiles(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])

    def take(self, count: int) -> ImageFiles:
        """Keep at most so many samples, with equal shares of the classes."""
        return self.select(select_per_class(self.labels, count))


def find_image_files(path: Path) -> tuple[ImageFiles, ImageFiles, tuple[str, ...], tuple[str, ...]]:
    """Find the images under `path/train` and `path/val`, with a folder for each class.

    Folders and files whose names begin with a dot are hidden. They are passed over and named, but a
    hidden folder with images among those of the classes is refused: it may be meant as a class.

    Returns:
        The files of train and of val, the names of the classes, and what was passed over.

    Raises:
        BadInput: a folder is missing or has no images, there are fewer than two classes, val has
            other classes than train, a hidden folder among the classes has images, a link leads
            back to a folder that it lies in, or an image is no file (a pipe or device).

    Example:
        >>> train, val, classes, notes = find_image_files(Path("/data/cats"))  # doctest: +SKIP
    """
    check(_find_missing_folders(path))
    notes: list[str] = []
    problems: list[str] = []
    splits = {split: _find_split(path / split, problems, notes) for split in ("train", "val")}
    check(problems)
    check(_find_class_problems(path, *(tuple(files) for files in splits.values())))
    train, test = map(_number, splits.values())
    return train, test, tuple(splits["train"]), tuple(notes)


def _number(files_of: dict[str, list[str]]) -> ImageFiles:
    labels = [label for label, files in enumerate(files_of.values()) for _ in files]
    files = tuple(file for files in files_of.values() for file in files)
    return ImageFiles(files, torch.tensor(labels))


def _describe_layout(path: Path) -> str:
    return (
        f"Images belong in {path}/train/CLASS/ and {path}/val/CLASS/, with a folder for each class."
    )


def _find_missing_folders(path: Path) -> list[str]:
    problems = []
    for split in ("train", "val"):
        if not os.path.isdir(path / split):
            has_test = split == "val" and os.path.isdir(path / "test")
            hint = f", but there is {path}/test: rename it to val." if has_test else "."
            problems.append(f"There is no folder {path / split}{hint} {_describe_layout(path)}")
    return problems


def _find_class_problems(
    path: Path, classes: tuple[str, ...], test_classes: tuple[str, ...]
) -> list[str]:
    if classes != test_classes:
        different = ", ".join(sorted({*classes} ^ {*test_classes})[:8])
        return [
            f"{path} has other classes in val than in train ({different}): give both the same"
            " folders."
        ]
    if len(classes) < 2:
        return [
            f"{path}/train has one class only, the folder {classes[0]}, but at least two are"
            f" needed: is it one level too high? {_describe_layout(path)}"
        ]
    return []


# --- one split ------------------------------------------------------------------------------------


def _find_split(path: Path, problems: list[str], notes: list[str]) -> dict[str, list[str]]:
    """The files of each class, by its name. Appends problems, and notes on what is passed over."""
    folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    hidden = [name for name in folders if name.startswith(".")]
    for name in hidden:
        files = [*_walk(path / name, [], [])]
        if files:
            problems.append(
                f"{path / name} is hidden and has {len(files)} image(s): is it a class? Remove the"
                " folder, or its dot if it is."
            )
    passed = [str(path / name) for name in hidden]
    found = {
        name: [*_walk(path / name, problems, passed)] for name in folders if name not in hidden
    }
    if passed:
        notes.append(f"Hidden, and therefore passed over: {_join_first(passed)}.")
    empty = [name for name, files in found.items() if not files]
    if empty or not found:
        what = f"no images of {_join_first(empty)}" if empty else "no images"
        problems.append(f"{path} has {what}. {_describe_layout(path.parent)}")
    return found


def _walk(folder: Path, problems: list[str], passed: list[str]) -> Iterator[str]:
    """Yield the images below a folder, folder by folder, as torchvision orders them."""
    for parent, folders, names in sorted(_list_folders(folder, problems)):
        passed += [os.path.join(parent, name) for name in (*folders, *names) if name[0] == "."]
        for name in sorted(names):
            if name[0] != "." and name.lower().endswith(IMAGE_ENDINGS):
                file = os.path.join(parent, name)
                if os.path.exists(file) and not os.path.isfile(file):
                    problems.append(f"{file} is a pipe or a device, not an image: remove it.")
                yield file


def _list_folders(folder: Path, problems: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk the folders below one: the path of each, and the names of the folders and files in it.

    Hidden folders are listed and not entered. A link to a folder that it lies in would never end.
    """
    for parent, folders, names in os.walk(folder, followlinks=True):
        loops = [name for name in folders if _is_loop(os.path.join(parent, name))]
        for name in loops:
            problems.append(
                f"{os.path.join(parent, name)} links to a folder that it lies in: remove the link."
            )
        yield parent, [*folders], names
        folders[:] = [name for name in folders if name[0] != "." and name not in loops]


def _is_loop(path: str) -> bool:
    """Whether a path is a link to a folder that it lies in, perhaps through other links."""
    if not os.path.islink(path):
        return False
    target = os.path.join(os.path.realpath(path), "")
    return any(f"{os.path.realpath(each)}/".startswith(target) for each in Path(path).parents)


def _join_first(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
