"""Images in folders, one per class: `train/CLASS/...` and `val/CLASS/...`, as torchvision's ImageFolder reads them."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from localprop.data.arrays import as_float, first_per_class, hold_out
from localprop.data.augment import Augment, cut_out, cutout_problems
from localprop.data.dataset import Moments, generator_of
from localprop.errors import BadInput, RunFailed, check

# The usual ones of ImageNet, which torchvision's reference recipes normalise by.
IMAGENET = Moments((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_AUGMENT = Augment(resized=True, flip=True)
Key = tuple[int, int]  # epoch and index


@dataclass(frozen=True, eq=False)
class Files:
    """Files of images and their labels.

    Args:
        paths: of N files.
        labels: (N,), int64.

    Example:
        >>> len(Files(("a.png",), torch.zeros(1, dtype=torch.int64)))
        1
    """

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Tensor) -> "Files":
        """The samples at `indices` (M,), in their order."""
        return Files(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])


@dataclass(frozen=True, eq=False)
class Folder:
    """A data set of image files, which worker processes read and scale.

    Training images are cropped at random (area 8% to 100%, side ratio 3/4 to 4/3) and scaled to `image_size`, if
    `augment.resized` says so. All others are scaled so that their shorter side is 256/224 of `image_size`, and the centre
    is taken. With `augment.pad` that side, in training and in tests, is `image_size` itself, and training images are then
    padded and cropped at random: images of that size, as TinyImageNet's of 64, are never scaled.

    All become RGB of 8 bits; of grey images of 16 bits the higher 8 are kept.

    Args:
        name: for reports.
        train: the training split.
        validation: held out of the training images; may be empty.
        test: the test split, of the folder val/.
        classes: one name per class: the folders.
        augment: how training images are augmented.
        moments: to normalise by.
        image_size: height and width of inputs, in pixels.
        workers: processes that read; with 0 the training process reads itself.

    Example:
        >>> load("folder:/data/imagenet").shape  # doctest: +SKIP
        (3, 224, 224)
    """

    name: str
    train: Files
    validation: Files
    test: Files
    classes: tuple[str, ...]
    augment: Augment
    moments: Moments
    image_size: int
    workers: int

    unit = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input."""
        return 3, self.image_size, self.image_size

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W), float32, and labels (count,), int64: zeros."""
        return torch.zeros(count, *self.shape), torch.zeros(count, dtype=torch.int64)

    def problems(self, *, augment: bool) -> list[str]:
        """Why no batches can be made: a cutout as large as the images. What else can be wrong is seen when files are read."""
        return cutout_problems(self.augment, self.image_size, self.image_size) if augment else []

    def reader(self, split: str, *, augment: bool, seed: int, device: torch.device) -> "FileReader":
        """What makes batches of the split of this name."""
        return FileReader(self, getattr(self, split), self.augment if augment else Augment(), seed=seed, device=device)


class FileReader:
    """Batches of image files: worker processes read, crop and flip, the device normalises and cuts out.

    Args:
        folder: says sizes, moments and workers.
        files: the split.
        augment: what to do to the images.
        seed: of augmentation, which is a function of (seed, epoch, index) in every worker.
        device: where batches are normalised.
    """

    held_bytes = 0

    def __init__(self, folder: Folder, files: Files, augment: Augment, *, seed: int, device: torch.device) -> None:
        self.augment = augment
        self.seed = seed
        self.device = device
        self._count = len(files)
        self._keys = _Keys()
        self._mean, self._std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in folder.moments)
        self._loader: DataLoader[tuple[Tensor, Tensor] | str] = DataLoader(
            _Images(files, _transform(folder, augment), seed),  # type: ignore[arg-type]
            batch_sampler=self._keys,
            collate_fn=_collated,
            num_workers=folder.workers,
            persistent_workers=folder.workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the loader would draw from torch's global one
        )

    def epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (N, C, H, W), float32, and labels (N,), int64, for each tensor of indices (N,).

        Raises:
            RunFailed: a file that cannot be read as an image.
        """
        chosen = list(batches)
        spots = torch.rand(self._count, 2, generator=generator_of("cutout", self.seed, number))
        self._keys.batches = [[(number, index) for index in indices.tolist()] for indices in chosen]
        for indices, read in zip(chosen, self._loader, strict=True):
            if isinstance(read, str):
                raise RunFailed(read)
            images, labels = read
            inputs = (as_float(images.to(self.device, non_blocking=True)) - self._mean) / self._std
            if self.augment.cutout:
                inputs = cut_out(inputs, self.augment.cutout, spots[indices])
            yield inputs, labels.to(self.device, non_blocking=True)


class _Keys:
    """The batches of the epoch that the loader is asked for next, each a list of (epoch, index)."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Images:
    """Reads one image for a key; torch's loader copies it to its workers."""

    def __init__(self, files: Files, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.files = files
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | str:
        """An image (C, H, W), uint8, and its label; or why there is none, which a worker could not raise as it is."""
        from PIL import Image

        (epoch, index), path = key, self.files.paths[key[1]]
        try:
            with Image.open(path) as opened:
                if opened.mode in ("I", "F"):
                    return _unknown_range(path, opened.mode)
                image = _eight_bits(opened).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of them are Pillow's
            return f"{path} cannot be read as an image ({error}): replace or remove it."
        with torch.random.fork_rng(devices=[]):
            # torchvision draws from the global generator, which is put back.
            torch.default_generator.set_state(generator_of("file", self.seed, epoch, index).get_state())
            pixels: Tensor = self.transform(image)
        return pixels, int(self.files.labels[index])


def _eight_bits(image: Any) -> Any:
    """Of 16-bit grey the higher byte, which Pillow keeps of 16-bit colour too; its own `convert` makes all above 255 white."""
    from PIL import Image

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I;16") else image


def _unknown_range(path: str, mode: str) -> str:
    return (
        f"{path} has pixels of Pillow's mode {mode}, which do not say how bright white is: convert such files to 8 bits, with"
        " Image.fromarray((numpy.asarray(image) * (255 / WHITE)).astype('uint8')), where WHITE is the value of white."
    )


def _collated(read: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """Images (N, C, H, W) and labels (N,), or why the first one that is missing cannot be read."""
    failures = [each for each in read if isinstance(each, str)]
    return failures[0] if failures else tuple(default_collate(read))


def _transform(folder: Folder, augment: Augment) -> Callable[[Any], Tensor]:
    from torchvision import transforms

    size = folder.image_size
    if augment.resized:
        steps = [transforms.RandomResizedCrop(size)]
    else:
        shorter = size if folder.augment.pad else round(size * 256 / 224)
        steps = [transforms.Resize(shorter), transforms.CenterCrop(size)]
    if augment.pad:
        mode = "reflect" if augment.reflect else "constant"
        steps.append(transforms.RandomCrop(size, padding=augment.pad, padding_mode=mode))
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip())
    composed: Callable[[Any], Tensor] = transforms.Compose([*steps, transforms.PILToTensor()])
    return composed


def load_folder(
    path: str | Path,
    *,
    augment: Augment = IMAGENET_AUGMENT,
    moments: Moments | None = None,
    limit: int | None = None,
    validation: float = 0.1,
    image_size: int = 224,
    workers: int = 4,
) -> Folder:
    """Find the images under `path/train` and `path/val`, a folder for each class.

    Args:
        path: the folder; "~" is the home folder.
        augment: how training images are augmented.
        moments: to normalise by, of values in 0..1; those of ImageNet if None.
        limit: keep that many training images at most, with equal shares of the classes.
        validation: share of the training images that is held out, always the same ones.
        image_size: height and width of inputs, in pixels.
        workers: processes that read.

    Raises:
        BadInput: a folder that is missing or has no images, fewer than two classes, other classes in val than in train, no
            torchvision.

    Example:
        >>> data = load_folder("/data/imagenet", workers=16)  # doctest: +SKIP
    """
    path = Path(os.path.expanduser(path)).absolute()
    check(_missing(path))
    (train, classes), (test, others) = (_found(path / part) for part in ("train", "val"))
    if classes != others:
        differ = ", ".join(sorted({*classes} ^ {*others})[:8])
        raise BadInput(f"{path} has other classes in val than in train ({differ}): give both the same folders.")
    if len(classes) < 2:
        raise BadInput(
            f"{path}/train has one class only, the folder {classes[0]}, but at least two are needed: is it one level too"
            f" high? {_layout(path)}"
        )
    kept, held_out = hold_out(train.labels, validation)
    training = train.select(kept)
    if limit is not None:
        training = training.select(first_per_class(training.labels, limit))
    return Folder(
        path.name, training, train.select(held_out), test, classes, augment, moments or IMAGENET, image_size, workers
    )


def _layout(path: Path) -> str:
    return f"Images belong in {path}/train/CLASS/ and {path}/val/CLASS/, with a folder for each class."


def _missing(path: Path) -> list[str]:
    problems = []
    for part in ("train", "val"):
        if not (path / part).is_dir():
            renamed = part == "val" and (path / "test").is_dir()
            what = f", but there is {path}/test: rename it to val." if renamed else "."
            problems.append(f"There is no folder {path / part}{what} {_layout(path)}")
    return problems


def _found(path: Path) -> tuple[Files, tuple[str, ...]]:
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise BadInput(f"torchvision cannot be imported ({error}): pip install 'localprop[vision]'.") from error
    try:
        found = ImageFolder(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path} has no images ({error}). {_layout(path.parent)}") from error
    return Files(tuple(file for file, _ in found.samples), torch.tensor(found.targets)), tuple(found.classes)
