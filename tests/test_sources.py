"""torchvision's data sets, from small files in their real formats."""

import gzip
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localprop.data import Augment, load
from localprop.data.arrays import measure
from localprop.errors import BadInput

# torchvision's formats. The fake files cannot have the official check sums, so their checks are replaced.

RNG = np.random.default_rng(0)


def fake_cifar(root: Path, labels: str, parts: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    pixels = {}
    for name, count in parts.items():
        pixels[name] = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels[name], labels: [i % 10 for i in range(count)]}
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(pickle.dumps(content))
    return pixels


def test_cifar10_from_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path))
    parts = {f"data_batch_{i}": 20 for i in range(1, 6)} | {"test_batch": 10}
    folder = tmp_path / "cifar-10-batches-py"
    pixels = fake_cifar(folder, "labels", parts)
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    data = load("cifar10")
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 10)
    assert data.classes == tuple(names)
    assert data.augment == Augment(pad=4, reflect=True, flip=True)
    assert data.mean == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert np.array_equal(data.test.images.numpy(), pixels["test_batch"].reshape(10, 3, 32, 32))


def test_cifar100_from_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-100-python"
    fake_cifar(folder, "fine_labels", {"train": 40, "test": 10})
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    data = load("cifar100", root=tmp_path, augment="none")
    assert (len(data.train), len(data.validation), data.num_classes) == (30, 10, 100)
    assert data.augment == Augment()
    assert data.mean == measure(data.train.images).mean


def test_svhn_from_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    io = pytest.importorskip("scipy.io")
    monkeypatch.setattr(datasets.svhn, "check_integrity", lambda *_: True)
    pixels = RNG.integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
    for part in ("train", "test"):
        io.savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": np.arange(40)[:, None] % 10 + 1})
    data = load("svhn", root=tmp_path)
    assert np.array_equal(data.test.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert data.test.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # the files call the zero 10
    assert (data.augment, data.mean, data.std) == (Augment(pad=2), (0.5,) * 3, (0.5,) * 3)
    assert data.classes == tuple("0123456789")
    more = RNG.integers(0, 256, (32, 32, 3, 50), dtype=np.uint8)
    io.savemat(tmp_path / "extra_32x32.mat", {"X": more, "y": np.arange(50)[:, None] % 10 + 1})
    both = load("svhn_extra", root=tmp_path, validation=0)
    assert np.array_equal(both.train.images.numpy(), np.concatenate([pixels, more], 3).transpose(3, 2, 0, 1))
    assert (len(both.train.labels), len(both.test)) == (90, 40)


def test_stl10_from_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    for part in ("train", "test"):
        RNG.integers(0, 256, 20 * 3 * 96 * 96, dtype=np.uint8).tofile(folder / f"{part}_X.bin")
        (np.arange(20, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    data = load("stl10", root=tmp_path)
    assert data.shape == (3, 96, 96)
    assert (len(data.train), len(data.validation), data.augment) == (10, 10, Augment(pad=4, flip=True))
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize(
    ("name", "own", "last"),
    [("mnist", "MNIST", "9 - nine"), ("fashion_mnist", "FashionMNIST", "Ankle boot"), ("kmnist", "KMNIST", "wo")],
)
def test_the_mnists_from_their_own_format(tmp_path: Path, name: str, own: str, last: str) -> None:
    pytest.importorskip("torchvision")
    folder = tmp_path / own / "raw"
    folder.mkdir(parents=True)
    pixels = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        images, labels = struct.pack(">4i", 2051, 30, 28, 28), struct.pack(">2i", 2049, 30)
        for stem, content in (
            (f"{part}-images-idx3-ubyte", images + pixels.tobytes()),
            (f"{part}-labels-idx1-ubyte", labels + bytes(i % 10 for i in range(30))),
        ):
            (folder / stem).write_bytes(content)
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
    data = load(name, root=tmp_path)
    assert np.array_equal(data.test.images.numpy(), pixels[:, None])
    assert data.classes[9] == last
    assert data.augment == Augment()


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "svhn", "svhn_extra", "stl10", "mnist", "fashion_mnist", "kmnist"]
)
def test_absent_files_are_explained(tmp_path: Path, name: str) -> None:
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


def test_a_path_lies_under_root_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    images, labels = RNG.integers(0, 256, (4, 8, 8), dtype=np.uint8), np.arange(4)
    parts = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "own.npz", classes=np.array(list("abcd")), **parts)
    (tmp_path / "own.txt").write_text("localprop " * 200)
    for name in ("own.npz", "own.txt", "OWN.NPZ", "OWN.TXT"):
        (tmp_path / name.lower()).rename(tmp_path / name)
        for path, root in ((name, tmp_path), (name, "~"), (f"~/{name}", None), (tmp_path / name, "/nowhere")):
            assert len(load(path, root=root).train)


def test_a_folder_by_its_name_alone_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name, root in (("own", None), ("own", tmp_path), (tmp_path / "own", None)):
        with pytest.raises(BadInput, match=f"folder .*own: for images in it, write folder:{name}"):
            load(name, root=root)
    for name in ("other", ""):
        with pytest.raises(BadInput, match=f"There is no data set '{name}': choose digits"):
            load(name)


def test_missing_torchvision_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BadInput, match=r"pip install 'localprop\[vision\]'"):
        load("cifar10")
