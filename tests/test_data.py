"""The data: `.npz` files, splits, torchvision's formats, and batches against a slow implementation."""

import gzip
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from localprop.data import Augment, Batches, Dataset, Split, load, load_npz
from localprop.data.arrays import assemble, first_per_class, hold_out, measure
from localprop.data.batches import augmented
from localprop.errors import BadInput

RNG = np.random.default_rng(0)


def arrays(count: int = 40, **changes: Any) -> dict[str, Any]:
    good = {
        "train_images": RNG.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(count) % 4,
        "test_images": RNG.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
        "classes": np.array(["a", "b", "c", "d"]),
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays(**changes))
    return folder / "mine.npz"


def dataset(images: Tensor, augment: Augment | None = None) -> Dataset:
    split = Split(images, torch.arange(len(images)) % 4)
    return assemble("test", split, split, tuple("abcd"), augment=augment or Augment(), validation=0)


# .npz files


def test_npz_becomes_a_dataset(tmp_path: Path) -> None:
    source = arrays()
    np.savez(tmp_path / "mine.npz", **source)
    data = load_npz(tmp_path / "mine.npz", validation=0)
    assert (data.name, data.classes, data.shape) == ("mine", ("a", "b", "c", "d"), (3, 6, 5))
    assert data.train.images.dtype == torch.uint8
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), source["train_images"])
    assert data.train.labels.tolist() == source["train_labels"].tolist()
    assert data.train.labels.dtype == torch.int64
    scaled = source["train_images"] / 255
    assert data.mean == pytest.approx(scaled.mean((0, 1, 2)))
    assert data.std == pytest.approx(scaled.std((0, 1, 2)))
    assert data.augment == Augment()


def test_npz_of_grey_floats_and_byte_strings(tmp_path: Path) -> None:
    grey = RNG.random((40, 6, 5))
    path = saved(tmp_path, train_images=grey, test_images=grey[:8], classes=np.array([b"a", b"b", b"c", b"d"]))
    data = load(path, augment="crop,flip", limit=8)
    assert data.shape == (1, 6, 5)
    assert data.train.images.dtype == torch.float32
    assert data.classes == ("a", "b", "c", "d")
    assert data.augment == Augment(pad=4, reflect=True, flip=True)
    assert torch.bincount(data.train.labels).tolist() == [2, 2, 2, 2]


NAN = np.full((40, 6, 5, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"classes": None}, ["classes is missing"]),
        ({"classes": None, "test_labels": None}, ["test_labels is missing", "classes is missing"]),
        ({"train_images": np.zeros((40, 6), np.uint8)}, ["train_images has the shape", "both alike"]),
        ({"train_images": np.zeros((40, 6, 5, 3), np.int64)}, ["type int64", "both alike"]),
        ({"train_images": NAN, "test_images": NAN[:8]}, ["NaN", "NaN"]),
        ({"train_images": np.zeros((40, 3, 6, 5), np.uint8)}, ["channels first", "both alike"]),
        ({"train_labels": np.arange(39) % 4}, ["40 train_images, but 39"]),
        ({"train_labels": np.arange(40) % 5}, ["from 0 to 4, but there are 4 classes"]),
        ({"test_labels": np.arange(8) % 4 - 1}, ["from -1 to 2"]),
        ({"test_labels": np.zeros(8)}, ["type float64, but integers"]),
        ({"test_labels": np.zeros((8, 1), int)}, ["(N,) is expected"]),
        ({"test_images": np.zeros((0, 6, 5, 3), np.uint8), "test_labels": np.zeros(0, int)}, ["is empty"]),
        ({"classes": np.arange(4)}, ["strings are expected"]),
        ({"classes": np.array(["a", "b"]), "test_labels": np.arange(7) % 2}, ["0 to 3", "8 test_images"]),
        ({"train_labels": np.array(3)}, ["(N,) is expected", "40 train_images, but 0"]),
    ],
)
def test_every_problem_of_an_npz(tmp_path: Path, changes: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        load_npz(saved(tmp_path, **changes))
    assert len(caught.value.problems) == len(messages)
    for message, problem in zip(messages, caught.value.problems, strict=True):
        assert message in problem


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, classes=np.array(["a", None], dtype=object))
    with pytest.raises(BadInput, match=r"classes in .* without pickle"):
        load_npz(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY\x01\x00", pickle.dumps([1])])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"is no \.npz file"):
        load(tmp_path / "x.npz")


def test_a_damaged_and_a_missing_npz(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read"):
        load(path)
    with pytest.raises(BadInput, match="There is no file"):
        load(tmp_path / "absent.npz")


# Splits


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0, 0.9))
def test_hold_out_is_stratified_disjoint_and_fixed(labels: list[int], share: float) -> None:
    tensor = torch.tensor(labels)
    kept, held = hold_out(tensor, share)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert torch.equal(held, hold_out(tensor, share)[1])
    for label in set(labels):
        total, here = labels.count(label), int((tensor[held] == label).sum())
        assert here < total
        if share > 0 and total > 1:
            assert here >= 1
            assert abs(here - share * total) <= 1


def test_hold_out_is_not_a_prefix() -> None:
    held = hold_out(torch.zeros(1000, dtype=torch.int64), 0.1)[1]
    assert len(held) == 100
    assert 300 < held.double().mean() < 700


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70))
def test_limit_shares_equally_and_keeps_the_order(labels: list[int], limit: int) -> None:
    tensor = torch.tensor(labels)
    chosen = first_per_class(tensor, limit).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(labels))
    counts = {label: sum(labels[i] == label for i in chosen) for label in set(labels)}
    for label, count in counts.items():
        positions = [i for i, other in enumerate(labels) if other == label]
        assert positions[:count] == [i for i in chosen if labels[i] == label]
        assert count == len(positions) or count >= max(counts.values()) - 1


def test_digits() -> None:
    data = load("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 142, 360)
    assert data.shape == (1, 8, 8)
    assert data.num_classes == 10
    assert data.train.images.min() == 0
    assert data.train.images.max() == 1
    assert torch.bincount(data.validation.labels).min() >= 13
    images = torch.cat([split.images for split in (data.train, data.validation, data.test)]).flatten(1)
    assert len({tuple(image) for image in images.tolist()}) == 1797  # all differ, so the splits are disjoint
    assert data.augment == Augment()


def test_limit_leaves_validation_and_test_alone() -> None:
    whole, small = load("digits"), load("digits", limit=95)
    assert len(small.train) == 95
    assert set(torch.bincount(small.train.labels).tolist()) == {9, 10}
    assert torch.equal(small.validation.images, whole.validation.images)
    assert torch.equal(small.test.images, whole.test.images)
    assert len(load("digits", limit=10**6).train) == len(whole.train)


def test_measure_in_chunks_and_of_constants() -> None:
    images = torch.rand(1500, 2, 3, 3)
    images[:, 1] = 0.1
    found = measure(images)
    assert found.mean == pytest.approx(images.double().mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx([images[:, 0].double().std(correction=0).item(), 1.0])


def test_every_bad_option_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        load("mnist", limit=0, augment="rotate", validation=1.0)
    words = [problem.split()[1] for problem in caught.value.problems]
    assert words == ["is", "limit", "augmentation", "validation"]


# torchvision's formats. The fake files cannot have the official check sums, so their checks are replaced.


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


def test_fashion_mnist_from_its_own_format(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    folder = tmp_path / "FashionMNIST" / "raw"
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
    data = load("fashion_mnist", root=tmp_path)
    assert np.array_equal(data.test.images.numpy(), pixels[:, None])
    assert data.classes[9] == "Ankle boot"
    assert data.augment == Augment()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10", "fashion_mnist"])
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


def test_missing_torchvision_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BadInput, match=r"pip install 'localprop\[vision\]'"):
        load("cifar10")


# Batches


def slowly(image: Tensor, augment: Augment, draw: Tensor) -> Tensor:
    """One image, as the papers say it: pad, cut out, mirror."""
    height, width = image.shape[-2:]
    mode = "reflect" if augment.reflect else "constant"
    padded = functional.pad(image.double()[None], (augment.pad,) * 4, mode=mode)[0]
    top, left = (int(float(u) * (2 * augment.pad + 1)) for u in draw[:2])
    crop = padded[:, top : top + height, left : left + width]
    return crop.flip(-1) if augment.flip and draw[2] < 0.5 else crop


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(4, True, True),
        Augment(2),
        Augment(4, False, True),
        Augment(flip=True),
        Augment(3, True),
        Augment(),
    ],
)
def test_augmentation_equals_a_slow_one(augment: Augment, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (64, 3, 7, 6), generator=generator).to(dtype)
    draws = torch.rand(64, 3, generator=generator)
    draws[0], draws[1] = 0, 1 - 2**-24  # both ends
    result = augmented(images, augment, draws)
    expected = torch.stack([slowly(*pair) for pair in zip(images, [augment] * 64, draws, strict=False)])
    assert result.dtype == dtype
    assert torch.equal(result.double(), expected)


def test_draws_differ_between_samples_and_reach_every_crop() -> None:
    images = torch.zeros(500, 1, 9, 9)
    images[:, :, 4, 4] = 1
    batches = Batches(dataset(images, Augment(pad=1, flip=True)), "train", 500, augment=True)
    (result, _), *_ = batches
    peaks = torch.bincount(result.flatten(1).argmax(1))
    assert torch.count_nonzero(peaks) == 9
    assert peaks[peaks > 0].min() > 500 / 9 / 2


def test_batches_are_normalised_and_cover_the_split() -> None:
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    data = dataset(images)
    batches = Batches(data, "train", 4)
    found = list(batches)
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    assert len(batches) == 3
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    result = torch.cat([inputs for inputs, _ in found])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result * std + mean, images / 255)
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.equal(torch.cat([labels for _, labels in found]), data.train.labels)
    assert [len(labels) for _, labels in Batches(data, "train", 4, drop_last=True)] == [4, 4]


def epoch(seed: int, number: int, batch_size: int = 8) -> Tensor:
    images = torch.arange(40.0).view(40, 1, 1, 1) + torch.rand(40, 1, 6, 6, generator=torch.Generator())
    data = dataset(images, Augment(pad=2, flip=True))
    batches = Batches(data, "train", batch_size, shuffle=True, augment=True, seed=seed)
    return torch.cat([inputs for inputs, _ in batches.epoch(number)])


def test_order_and_draws_are_functions_of_seed_and_epoch() -> None:
    first = epoch(seed=3, number=5)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(epoch(seed=3, number=5), first)
    assert torch.equal(epoch(seed=3, number=5, batch_size=7), first)  # neither knows of batches
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(epoch(seed=3, number=6), first)
    assert not torch.equal(epoch(seed=4, number=5), first)


def test_the_order_is_a_permutation() -> None:
    batches = Batches(dataset(torch.arange(40.0).view(40, 1, 1, 1)), "train", 7, shuffle=True)
    orders = [torch.cat([x for x, _ in batches.epoch(n)]).flatten() for n in range(2)]
    assert torch.equal(orders[0].sort().values, orders[1].sort().values)
    assert not torch.equal(*orders)


def test_draws_belong_to_the_sample_and_not_to_its_place() -> None:
    images = torch.rand(40, 1, 6, 6)
    data = dataset(images, Augment(pad=2, flip=True))
    ordered, shuffled = (
        torch.cat([x for x, _ in Batches(data, "train", 9, shuffle=shuffle, augment=True, seed=1).epoch(2)])
        for shuffle in (False, True)
    )
    assert {tuple(x) for x in ordered.flatten(1).tolist()} == {tuple(x) for x in shuffled.flatten(1).tolist()}
    fewer = dataset(images[:10], Augment(pad=2, flip=True))
    (first, _), *_ = Batches(fewer, "train", 10, augment=True, seed=1).epoch(2)
    mean, std = data.mean[0], data.std[0]
    torch.testing.assert_close(first * fewer.std[0] + fewer.mean[0], ordered[:10] * std + mean)


def test_bad_batches() -> None:
    data = dataset(torch.zeros(10, 1, 4, 4), Augment(pad=4, reflect=True))
    with pytest.raises(BadInput) as caught:
        Batches(data, "training", 0, augment=True)
    assert len(caught.value.problems) == 3
    with pytest.raises(BadInput, match="make no batch of 16"):
        Batches(data, "train", 16, drop_last=True)
    with pytest.raises(BadInput, match="validation split has 0 images"):
        Batches(data, "validation", 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    data = dataset(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), Augment(4, True, True))
    options: dict[str, Any] = {"shuffle": True, "augment": True, "seed": 2}
    here, there = (Batches(data, "train", 16, device=device, **options) for device in ("cpu", "cuda"))
    for (x, y), (gpu_x, gpu_y) in zip(here.epoch(1), there.epoch(1), strict=True):
        assert gpu_x.is_cuda
        torch.testing.assert_close(gpu_x.cpu(), x)
        assert torch.equal(gpu_y.cpu(), y)
