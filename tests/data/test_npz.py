"""`.npz` files: what becomes of the arrays, and every problem of a file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from localprop.data import Augment, load, load_npz, npz
from localprop.errors import BadInput
from tests.helpers.images import load_images

RNG = np.random.default_rng(0)


def make_arrays(count: int = 40, **changes: Any) -> dict[str, Any]:
    """The arrays of a valid file. A change replaces an array, or removes it if it is None."""
    valid = {
        "train_images": RNG.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(count) % 4,
        "test_images": RNG.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
        "classes": np.array(["a", "b", "c", "d"]),
    }
    return {key: value for key, value in (valid | changes).items() if value is not None}


def save_npz(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "mine.npz", **make_arrays(**changes))
    return folder / "mine.npz"


def test_npz_becomes_a_dataset(tmp_path: Path) -> None:
    source = make_arrays()
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
    names = np.array([b"a", b"b", b"c", b"d"])
    path = save_npz(tmp_path, train_images=grey, test_images=grey[:8], classes=names)
    data = load_images(path, augment="crop,flip", limit=8)
    assert data.shape == (1, 6, 5)
    assert data.train.images.dtype == torch.float32
    assert data.classes == ("a", "b", "c", "d")
    assert data.augment == Augment(pad=4, reflect=True, flip=True)
    assert torch.bincount(data.train.labels).tolist() == [2, 2, 2, 2]


ONE_LABEL = {"train_labels": np.zeros(40, int), "test_labels": np.zeros(8, int)}
NAN = np.full((40, 6, 5, 3), np.nan, dtype=np.float32)
NO_TESTS = {"test_images": np.zeros((0, 6, 5, 3), np.uint8), "test_labels": np.zeros(0, int)}
TWO_CLASSES = {"classes": np.array(["a", "b"]), "test_labels": np.arange(7) % 2}


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"classes": None}, ["classes is missing"]),
        ({"classes": None, "test_labels": None}, ["test_labels is missing", "classes is missing"]),
        (
            {"train_images": np.zeros((40, 6), np.uint8)},
            ["train_images has the shape", "both alike"],
        ),
        ({"train_images": np.zeros((40, 6, 5, 3), np.int64)}, ["type int64", "both alike"]),
        ({"train_images": NAN, "test_images": NAN[:8]}, ["NaN", "NaN"]),
        ({"train_images": np.zeros((40, 3, 6, 5), np.uint8)}, ["channels first", "both alike"]),
        ({"train_labels": np.arange(39) % 4}, ["40 train_images, but 39"]),
        ({"train_labels": np.arange(40) % 5}, ["from 0 to 4, but there are 4 classes"]),
        ({"test_labels": np.arange(8) % 4 - 1}, ["from -1 to 2"]),
        ({"test_labels": np.zeros(8)}, ["type float64, but integers"]),
        ({"test_labels": np.zeros((8, 2), int)}, ["(N,) is expected, or (N, 4)"]),
        ({"test_labels": np.ones((8, 4), int)}, ["(N,) is expected"]),
        ({"test_labels": np.array(["z"] * 8)}, ["names that stand in classes once"]),
        ({"test_labels": np.zeros(8)}, ["whole, so store labels.astype('int64')"]),
        ({"test_labels": np.full(8, 0.5)}, ["store the position of each image's class"]),
        ({"test_images": np.full((8, 6, 5, 3), 1e39)}, ["up to 1e+39, but float32", "both alike"]),
        (NO_TESTS, ["is empty"]),
        ({"classes": np.arange(4)}, ["strings are expected"]),
        (TWO_CLASSES, ["0 to 3", "8 test_images"]),
        ({"train_labels": np.array(3)}, ["(N,) is expected", "40 train_images, but 0"]),
        (
            {**ONE_LABEL, "classes": np.array(["a"])},
            ["classes has one name only, but at least two"],
        ),
        (ONE_LABEL, ["train_labels are all 'a', but at least two classes"]),
        (
            {"train_labels": np.arange(40) % 2},
            ["test_labels have 2 class(es) that train_labels lack ('c', 'd')"],
        ),
    ],
)
def test_every_problem_of_an_npz(
    tmp_path: Path, changes: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        load_npz(save_npz(tmp_path, **changes))
    assert len(caught.value.problems) == len(messages)
    for message, problem in zip(messages, caught.value.problems, strict=True):
        assert message in problem


def test_what_loses_nothing_is_converted(tmp_path: Path) -> None:
    """Byte orders, wide floats, and every form of labels."""
    train, test = RNG.random((40, 6, 5, 3), "f4"), RNG.random((8, 6, 5, 3), "f4")
    expected = load_npz(save_npz(tmp_path, train_images=train, test_images=test))
    names = np.array(["a", "b", "c", "d"])
    for dtype in (">f4", ">f8", np.longdouble):
        for labels in (
            lambda n: (np.arange(n) % 4).astype(">i2"),
            lambda n: (np.arange(n) % 4)[:, None],
            lambda n: np.eye(4)[np.arange(n) % 4],
            lambda n: names[np.arange(n) % 4],
        ):
            found = load_npz(
                save_npz(
                    tmp_path,
                    train_images=train.astype(dtype),
                    test_images=test.astype(dtype),
                    train_labels=labels(40),
                    test_labels=labels(8),
                    classes=names.astype(">U3"),
                )
            )
            assert found.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    ("dtype", "high", "advice"),
    [
        ("uint16", 65535, r"astype\('float32'\) / WHITE.*: 65535, if all of uint16"),
        ("int64", 255, r"0\.\.255, so store images.astype\('uint8'\)"),
        ("bool", 1, r"images.astype\('float32'\)"),
        ("complex64", 1, "store numbers, one for each pixel"),
    ],
)
def test_images_of_other_types_are_told_what_keeps_them(
    tmp_path: Path, dtype: str, high: int, advice: str
) -> None:
    images = np.zeros((40, 6, 5, 3), dtype)
    images[0] = high
    with pytest.raises(BadInput, match=advice):
        load_npz(save_npz(tmp_path, train_images=images, test_images=images[:8]))


@pytest.mark.parametrize(
    ("shape", "seems"),
    [
        ((13, 32, 32), "channels first"),
        ((4, 24, 32), "channels first"),
        ((3, 6, 5), "channels first"),
        ((8, 8, 8), "channels first or last"),
        ((3, 3, 32), "channels first or last"),
        ((32, 32, 13), None),
        ((24, 32, 4), None),
        ((9, 9, 103), None),
        ((28, 28, 1), None),
    ],
)
def test_channels_first_are_told_from_channels_last(
    tmp_path: Path, shape: tuple[int, ...], seems: str | None
) -> None:
    images = RNG.integers(0, 256, (40, *shape), dtype=np.uint8)
    path = save_npz(tmp_path, train_images=images, test_images=images[:8])
    first = load_npz(path, layout="channels_first", validation=0)
    assert np.array_equal(first.train.images.numpy(), images)
    last = load_npz(path, layout="channels_last", validation=0)
    assert np.array_equal(last.train.images.permute(0, 2, 3, 1).numpy(), images)
    if seems is None:
        assert load_npz(path, validation=0).fingerprint() == last.fingerprint()
        return
    with pytest.raises(BadInput, match=f"{seems}: add --layout channels_first") as caught:
        load_npz(path)
    assert len(caught.value.problems) == 2


def test_a_file_that_claims_too_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_npz(tmp_path, train_images=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        member = archive.open("train_images.npy", "w")
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(1000))
        member.close()
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(BadInput, match=r"train_images.npy in .* claims 3000000000 bytes, but has"):
        load_npz(path)
    np.savez_compressed(path, **make_arrays(train_images=np.zeros((2000, 60, 50, 3), np.uint8)))
    monkeypatch.setattr(npz, "MAX_CLAIM", 10**6)
    with pytest.raises(BadInput, match=r"claims to unpack to 180\d+; the limit is \d+ \(1 GiB"):
        load_npz(path)


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = save_npz(tmp_path, classes=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("classes", "a b c d")
    with pytest.raises(BadInput, match=r"classes in .* \(it is no array of numpy\)"):
        load_npz(path)


def test_npz_may_name_classes_that_have_no_images(tmp_path: Path) -> None:
    path = save_npz(tmp_path, train_labels=np.arange(40) % 3, test_labels=np.arange(8) % 2)
    assert load_npz(path).num_classes == 4


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    path = save_npz(tmp_path, classes=np.array(["a", None], dtype=object))
    with pytest.raises(BadInput, match=r"classes in .* without pickle"):
        load_npz(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY\x01\x00", pickle.dumps([1])])
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"is no \.npz file"):
        load(tmp_path / "x.npz")


def test_a_damaged_and_a_missing_npz_are_refused(tmp_path: Path) -> None:
    path = save_npz(tmp_path)
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read"):
        load(path)
    with pytest.raises(BadInput, match="There is no file"):
        load(tmp_path / "absent.npz")
