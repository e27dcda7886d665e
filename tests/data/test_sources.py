"""Data sets by name: digits, and torchvision's data sets from small files in their real formats.

The small files cannot have the official check sums, so the tests replace torchvision's checks.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from localprop.data import Augment, Batches, Images, load
from localprop.data.arrays import measure_normalization
from localprop.errors import BadInput
from tests.helpers.images import load_images

RNG = np.random.default_rng(0)

# scikit-learn's digits


def test_digits_are_split_into_three_disjoint_splits() -> None:
    data = load_images("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 142, 360)
    assert data.shape == (1, 8, 8)
    assert data.num_classes == 10
    assert data.train.images.min() == 0
    assert data.train.images.max() == 1
    assert torch.bincount(data.validation.labels).min() >= 13
    splits = (data.train, data.validation, data.test)
    images = torch.cat([split.images for split in splits]).flatten(1)
    # All images differ, so no two splits share one.
    assert len({tuple(image) for image in images.tolist()}) == 1797
    assert data.augment == Augment()


def test_limit_leaves_validation_and_test_alone() -> None:
    whole, small = load_images("digits"), load_images("digits", limit=95)
    assert len(small.train) == 95
    assert set(torch.bincount(small.train.labels).tolist()) == {9, 10}
    assert torch.equal(small.validation.images, whole.validation.images)
    assert torch.equal(small.test.images, whole.test.images)
    assert len(load("digits", limit=10**6).train) == len(whole.train)


def test_all_bad_options_are_reported_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        load("imagenet", limit=0, augment="rotate", validation=1.0)
    words = [problem.split()[1] for problem in caught.value.problems]
    assert words == ["is", "limit", "augmentation", "validation"]


def test_mean_and_std_replace_the_usual_ones() -> None:
    data, usual = load_images("digits", mean=(0.5,), std=(0.25,)), load_images("digits")
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    (images, _), *_ = Batches(data, "test", 360)
    torch.testing.assert_close(images * 0.25 + 0.5, data.test.images)
    assert data.make_zero_batch(3)[0].shape == (3, 1, 8, 8)
    assert usual.normalization == (usual.mean, usual.std)


def test_the_validation_share_is_that_of_each_class() -> None:
    held = [len(load("digits", validation=share).validation) for share in (0.0, 0.1, 0.5)]
    assert held == pytest.approx([0, 143.7, 718.5], abs=5)  # rounded for each of ten classes


# torchvision's data sets


def write_cifar(root: Path, label_key: str, counts: dict[str, int]) -> dict[str, NDArray[np.uint8]]:
    """Write files of the given numbers of images, and return their pixels."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = {}
    for name, count in counts.items():
        pixels[name] = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels[name], label_key: [i % 10 for i in range(count)]}
        (root / name).write_bytes(pickle.dumps(content))
    return pixels


def test_cifar10_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path))
    counts = {f"data_batch_{i}": 20 for i in range(1, 6)} | {"test_batch": 10}
    folder = tmp_path / "cifar-10-batches-py"
    pixels = write_cifar(folder, "labels", counts)
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    data = load_images("cifar10")
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 10)
    assert data.classes == tuple(names)
    assert data.augment == Augment(pad=4, reflect=True, flip=True)
    assert data.mean == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert np.array_equal(data.test.images.numpy(), pixels["test_batch"].reshape(10, 3, 32, 32))


def test_cifar100_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, "fine_labels", {"train": 40, "test": 10})
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    data = load_images("cifar100", root=tmp_path, augment="none")
    assert (len(data.train), len(data.validation), data.num_classes) == (30, 10, 100)
    assert data.augment == Augment()
    assert data.mean == measure_normalization(data.train.images).mean


def test_svhn_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    io = pytest.importorskip("scipy.io")
    monkeypatch.setattr(datasets.svhn, "check_integrity", lambda *_: True)
    pixels = RNG.integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
    labels = np.arange(40)[:, None] % 10 + 1
    for split in ("train", "test"):
        io.savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    data = load_images("svhn", root=tmp_path)
    assert np.array_equal(data.test.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert data.test.labels[:10].tolist() == [*range(1, 10), 0]  # The files call the zero 10.
    assert (data.augment, data.mean, data.std) == (Augment(pad=2), (0.5,) * 3, (0.5,) * 3)
    assert data.classes == tuple("0123456789")
    extra = RNG.integers(0, 256, (32, 32, 3, 50), dtype=np.uint8)
    io.savemat(tmp_path / "extra_32x32.mat", {"X": extra, "y": np.arange(50)[:, None] % 10 + 1})
    both = load_images("svhn_extra", root=tmp_path, validation=0)
    all_pixels = np.concatenate([pixels, extra], 3)
    assert np.array_equal(both.train.images.numpy(), all_pixels.transpose(3, 2, 0, 1))
    assert (len(both.train.labels), len(both.test)) == (90, 40)


def test_stl10_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    for split in ("train", "test"):
        RNG.integers(0, 256, 20 * 3 * 96 * 96, dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        (np.arange(20, dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
    data = load_images("stl10", root=tmp_path)
    assert data.shape == (3, 96, 96)
    assert (len(data.train), len(data.validation)) == (10, 10)
    assert data.augment == Augment(pad=4, flip=True)
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]


def write_mnist(folder: Path, pixels: NDArray[np.uint8]) -> None:
    """Write both splits with the same 30 images and labels, plain and compressed."""
    folder.mkdir(parents=True)
    image_file = struct.pack(">4i", 2051, 30, 28, 28) + pixels.tobytes()
    label_file = struct.pack(">2i", 2049, 30) + bytes(i % 10 for i in range(30))
    for split in ("train", "t10k"):
        files = {"images-idx3": image_file, "labels-idx1": label_file}
        for stem, content in files.items():
            (folder / f"{split}-{stem}-ubyte").write_bytes(content)
            (folder / f"{split}-{stem}-ubyte.gz").write_bytes(gzip.compress(content))


@pytest.mark.parametrize(
    ("name", "class_name", "last"),
    [
        ("mnist", "MNIST", "9 - nine"),
        ("fashion_mnist", "FashionMNIST", "Ankle boot"),
        ("kmnist", "KMNIST", "wo"),
    ],
)
def test_the_mnists_are_read_from_their_files(
    tmp_path: Path, name: str, class_name: str, last: str
) -> None:
    pytest.importorskip("torchvision")
    pixels = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    write_mnist(tmp_path / class_name / "raw", pixels)
    data = load_images(name, root=tmp_path)
    assert np.array_equal(data.test.images.numpy(), pixels[:, None])
    assert data.classes[9] == last
    assert data.augment == Augment()


@pytest.mark.parametrize(
    "name",
    ["cifar10", "cifar100", "svhn", "svhn_extra", "stl10", "mnist", "fashion_mnist", "kmnist"],
)
def test_missing_files_are_explained(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(BadInput, match="--download"):
        load(name, root=tmp_path)


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)
    with pytest.raises(BadInput, match=r"could not be downloaded .*no route to host"):
        load("cifar10", root=tmp_path, download=True)


def test_missing_torchvision_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BadInput, match=r"pip install 'localprop\[vision\]'"):
        load("cifar10")


# paths


def test_a_path_lies_under_root_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    images, labels = RNG.integers(0, 256, (4, 8, 8), dtype=np.uint8), np.arange(4)
    arrays: dict[str, Any] = {f"{split}_images": images for split in ("train", "test")}
    arrays |= {f"{split}_labels": labels for split in ("train", "test")}
    np.savez(tmp_path / "own.npz", classes=np.array(list("abcd")), **arrays)
    (tmp_path / "own.txt").write_text("localprop " * 200)
    for name in ("own.npz", "own.txt", "OWN.NPZ", "OWN.TXT"):
        (tmp_path / name.lower()).rename(tmp_path / name)
        for path, root in (
            (name, tmp_path),
            (name, "~"),
            (f"~/{name}", None),
            (tmp_path / name, "/nowhere"),
        ):
            assert len(load(path, root=root).train)


def test_a_folder_by_its_name_alone_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name, root in (("own", None), ("own", tmp_path), (tmp_path / "own", None)):
        with pytest.raises(BadInput, match=f"folder .*own: for images in it, write folder:{name}"):
            load(name, root=root)
    for name in ("other", ""):
        with pytest.raises(BadInput, match=f"There is no data set '{name}': choose digits"):
            load(name)


def test_a_part_of_the_test_data() -> None:
    """Images with equal shares of the classes, and the first windows of a text."""
    whole, part = load("digits"), load("digits", test_limit=20)
    assert isinstance(part, Images)
    assert isinstance(whole, Images)
    assert part.test.labels.bincount().tolist() == [2] * 10
    assert torch.equal(part.train.images, whole.train.images)
    text: Any = load("text", context=16, test_limit=5)
    assert len(text.test) == 5
    assert torch.equal(text.test.tokens, cast(Any, load("text", context=16)).test.tokens[:81])
    with pytest.raises(BadInput, match="The test_limit is 0 test samples"):
        load("digits", test_limit=0)
