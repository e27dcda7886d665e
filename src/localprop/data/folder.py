"""Images in folders, one per class: `train/CLASS/...` and `val/CLASS/...`.

The layout is that of torchvision's ImageFolder.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from localprop.arguments import check_arguments
from localprop.data.arrays import hold_out, to_float
from localprop.data.augment import Augment, cut_out, find_cutout_problems
from localprop.data.dataset import SPLITS, Normalization, hash_all, make_generator
from localprop.data.image_files import ImageFiles, find_image_files
from localprop.errors import BadInput, RunFailed

# The usual values for ImageNet. torchvision's reference recipes normalise by them.
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_AUGMENT = Augment(resized=True, flip=True)
SampleKey = tuple[int, int]  # epoch and sample index


@dataclass(frozen=True, eq=False)
class Folder:
    """A data set of image files, which worker processes read and scale.

    If `augment.resized` is set, training images are cropped at random (area 8% to 100%, aspect
    ratio 3/4 to 4/3) and scaled to `image_size`. All other images are scaled so that their shorter
    side is 256/224 of `image_size`, and the centre is cropped.

    If `augment.pad` is set, the shorter side becomes `image_size` itself, in training and in tests.
    Training images are then padded and cropped at random. Images that have this size already, such
    as TinyImageNet's of 64 pixels, are thus never scaled.

    All images become RGB of 8 bits. Grey images of 16 bits keep their higher 8 bits.

    Args:
        name: the name in reports.
        train: the training split.
        validation: held out of the training images. It may be empty.
        test: the test split, from the folder val/.
        classes: one name per class, the names of the folders.
        augment: the augmentation of training images.
        normalization: mean and standard deviation per channel.
        image_size: height and width of inputs, in pixels.
        workers: number of processes that read. With 0, the training process reads.
        notes: what the folders have that is no image or class, one sentence each.

    Example:
        >>> load("folder:/data/imagenet").shape  # doctest: +SKIP
        (3, 224, 224)
    """

    name: str
    train: ImageFiles
    validation: ImageFiles
    test: ImageFiles
    classes: tuple[str, ...]
    augment: Augment
    normalization: Normalization
    image_size: int
    workers: int
    notes: tuple[str, ...] = ()

    unit = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input."""
        return 3, self.image_size, self.image_size

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def fingerprint(self) -> dict[str, Any]:
        """The classes, and of each split the number of files and a hash of their names."""
        splits = {name: getattr(self, name) for name in SPLITS}
        return {"classes": [*self.classes]} | {
            name: f"{len(files)} {self.unit}, {hash_all(files.names, files.labels)}"
            for name, files in splits.items()
        }

    def make_zero_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Make images (count, C, H, W), float32, and labels (count,), int64, of zeros."""
        return torch.zeros(count, *self.shape), torch.zeros(count, dtype=torch.int64)

    def find_problems(self, *, augment: bool) -> list[str]:
        """Check that cutout is smaller than the images. Reading files may raise other problems."""
        if not augment:
            return []
        return find_cutout_problems(self.augment, self.image_size, self.image_size)

    def make_reader(
        self, split: str, *, augment: bool, seed: int, device: torch.device
    ) -> "FileReader":
        """Make the reader of the split of this name."""
        files = getattr(self, split)
        chosen = self.augment if augment else Augment()
        return FileReader(self, files, chosen, seed=seed, device=device)


class FileReader:
    """Makes batches of image files.

    Worker processes read, crop and flip. The device normalises and cuts out.

    Args:
        folder: the data set, for sizes, normalization and workers.
        files: the split.
        augment: the augmentation.
        seed: seed of the augmentation, which is a function of (seed, epoch, index) in every worker.
        device: the device of the batches.
    """

    held_bytes = 0

    def __init__(
        self,
        folder: Folder,
        files: ImageFiles,
        augment: Augment,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.augment = augment
        self.seed = seed
        self.device = device
        self._count = len(files)
        self._sampler = _EpochSampler()
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in folder.normalization
        )
        self._loader: DataLoader[tuple[Tensor, Tensor] | str] = DataLoader(
            _FileDataset(files, _build_transform(folder, augment), seed),  # type: ignore[arg-type]
            batch_sampler=self._sampler,
            collate_fn=_collate,
            num_workers=folder.workers,
            persistent_workers=folder.workers > 0,
            pin_memory=device.type == "cuda",
            # Without a generator of its own, the loader would draw from torch's global one.
            generator=torch.Generator(),
        )

    def read_epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a batch for each tensor of sample indices (N,).

        Yields:
            Normalized images (N, C, H, W), float32, and labels (N,), int64.

        Raises:
            RunFailed: if a file cannot be read as an image.
        """
        order = list(batches)
        centres = torch.rand(self._count, 2, generator=make_generator("cutout", self.seed, number))
        self._sampler.batches = [[(number, index) for index in b.tolist()] for b in order]
        for indices, batch in zip(order, self._loader, strict=True):
            if isinstance(batch, str):
                raise RunFailed(batch)
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            inputs = (to_float(images) - self._mean) / self._std
            if self.augment.cutout:
                inputs = cut_out(inputs, self.augment.cutout, centres[indices])
            yield inputs, labels


class _EpochSampler:
    """Yields the batches of the epoch that is read next, each a list of (epoch, index).

    The loader and its workers live for the whole run, so each epoch's batches are set here before
    the loader is iterated.
    """

    def __init__(self) -> None:
        self.batches: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _FileDataset:
    """Reads one image for a key. torch's loader copies this object to its workers."""

    def __init__(self, files: ImageFiles, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.files = files
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int] | str:
        """Read an image (C, H, W), uint8, and its label.

        Returns a message instead if the file cannot be read. The message of an exception would
        reach the training process with the worker's traceback in it.
        """
        epoch, index = key
        image = _open_rgb(self.files.paths[index])
        if isinstance(image, str):
            return image
        with torch.random.fork_rng(devices=[]):
            # torchvision draws from the global generator. `fork_rng` restores it afterwards.
            generator = make_generator("file", self.seed, epoch, index)
            torch.default_generator.set_state(generator.get_state())
            pixels = self.transform(image)
        return pixels, int(self.files.labels[index])


def _open_rgb(path: str) -> Any:
    """Open a Pillow image as RGB of 8 bits, or return a message if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            if opened.mode in ("I", "F"):
                return _describe_unknown_range(path, opened.mode)
            return _convert_to_8_bits(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises all of these for damaged files.
        return f"{path} cannot be read as an image ({error}): replace or remove it."


def _convert_to_8_bits(image: Any) -> Any:
    """Keep the higher byte of 16-bit grey images.

    Pillow does the same for 16-bit colour, but its `convert` turns grey values above 255 white.
    """
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _describe_unknown_range(path: str, mode: str) -> str:
    return (
        f"{path} has pixels of Pillow's mode {mode}, which does not say which value is white:"
        " convert such files to 8 bits, with"
        " Image.fromarray((numpy.asarray(image) * (255 / WHITE)).astype('uint8')), where WHITE is"
        " the value of white."
    )


def _collate(samples: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """Stack images (N, C, H, W) and labels (N,), or return the message of the first failure."""
    failures = [sample for sample in samples if isinstance(sample, str)]
    return failures[0] if failures else tuple(default_collate(samples))


def _build_transform(folder: Folder, augment: Augment) -> Callable[[Any], Tensor]:
    """Build the transform from a Pillow image to a tensor (C, H, W), uint8."""
    from torchvision import transforms

    size = folder.image_size
    if augment.resized:
        steps = [transforms.RandomResizedCrop(size)]
    else:
        # `folder.augment` and not `augment`: tests scale images as training does.
        shorter_side = size if folder.augment.pad else round(size * 256 / 224)
        steps = [transforms.Resize(shorter_side), transforms.CenterCrop(size)]
    if augment.pad:
        mode = "reflect" if augment.reflect else "constant"
        steps.append(transforms.RandomCrop(size, padding=augment.pad, padding_mode=mode))
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip())
    composed: Callable[[Any], Tensor] = transforms.Compose([*steps, transforms.PILToTensor()])
    return composed


@check_arguments
def load_folder(
    path: str | Path,
    *,
    augment: Augment = IMAGENET_AUGMENT,
    normalization: Normalization | None = None,
    limit: int | None = None,
    validation: float = 0.1,
    image_size: int = 224,
    workers: int = 4,
) -> Folder:
    """Find the images under `path/train` and `path/val`, with a folder for each class.

    Args:
        path: the folder. "~" is the home folder.
        augment: the augmentation of training images.
        normalization: mean and standard deviation of values in 0..1. None takes those of ImageNet.
        limit: keep at most this many training images, with equal shares of the classes.
        validation: fraction of the training images to hold out, the same images in every run.
        image_size: height and width of inputs, in pixels.
        workers: number of processes that read.

    Raises:
        BadInput: as `find_image_files`, or if torchvision is not installed.

    Example:
        >>> data = load_folder("/data/imagenet", workers=16)  # doctest: +SKIP
    """
    path = Path(os.path.expanduser(path)).absolute()
    train, test, classes, notes = find_image_files(path)
    if importlib.util.find_spec("torchvision") is None:
        raise BadInput("torchvision is not installed: pip install 'localprop[vision]'.")
    kept, held_out = hold_out(train.labels, validation)
    training = train.select(kept)
    if limit is not None:
        training = training.take(limit)
    return Folder(
        name=path.name,
        train=training,
        validation=train.select(held_out),
        test=test,
        classes=classes,
        augment=augment,
        normalization=normalization or IMAGENET,
        image_size=image_size,
        workers=workers,
        notes=notes,
    )
