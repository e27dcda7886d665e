"""The data: `.npz` files and splits."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from localprop.data import Augment, Batches, Images, Options, Split, load, load_npz
from localprop.data.arrays import assemble, first_per_class, hold_out, measure
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


def dataset(images: Tensor, augment: Augment | None = None) -> Images:
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


ONE = {"train_labels": np.zeros(40, int), "test_labels": np.zeros(8, int)}
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
        (
            {"train_labels": np.zeros(40, int), "test_labels": np.zeros(8, int), "classes": np.array(["a"])},
            ["classes has one name only, but at least two"],
        ),
        (ONE, ["train_labels are all 'a', but at least two classes"]),
        ({"train_labels": np.arange(40) % 2}, ["test_labels have 2 class(es) that train_labels lack ('c', 'd')"]),
    ],
)
def test_every_problem_of_an_npz(tmp_path: Path, changes: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        load_npz(saved(tmp_path, **changes))
    assert len(caught.value.problems) == len(messages)
    for message, problem in zip(messages, caught.value.problems, strict=True):
        assert message in problem


def test_npz_may_name_classes_that_have_no_images(tmp_path: Path) -> None:
    trained, tested = np.arange(40) % 3, np.arange(8) % 2
    assert load_npz(saved(tmp_path, train_labels=trained, test_labels=tested)).num_classes == 4


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
        load("imagenet", limit=0, augment="rotate", validation=1.0)
    words = [problem.split()[1] for problem in caught.value.problems]
    assert words == ["is", "limit", "augmentation", "validation"]


@pytest.mark.parametrize(
    ("options", "augment"),
    [
        ({"augment": "crop"}, Augment(4, reflect=True)),
        ({"augment": "crop,flip"}, Augment(4, reflect=True, flip=True)),
        ({"augment": "flip, crop", "padding": "zeros"}, Augment(4, flip=True)),
        ({"augment": "cutout"}, Augment(cutout=16)),
        ({"augment": "flip,cutout", "cutout": 2}, Augment(flip=True, cutout=2)),
        ({"augment": "none", "cutout": 2}, Augment()),
        ({}, Augment()),
    ],
)
def test_augmentation_in_words(options: dict[str, Any], augment: Augment) -> None:
    assert load("digits", **options).augment == augment


def test_padding_alone_changes_the_usual_augmentation() -> None:
    usual = Augment(pad=4, reflect=True, flip=True)
    assert Options(padding="zeros").augmentation(usual) == Augment(pad=4, flip=True)
    assert Options().augmentation(usual) == usual


def test_mean_and_std_replace_the_usual_ones() -> None:
    data = load("digits", mean=(0.5,), std=(0.25,))
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    (images, _), *_ = Batches(data, "test", 360)
    torch.testing.assert_close(images * 0.25 + 0.5, data.test.images)
    assert data.sample(3)[0].shape == (3, 1, 8, 8)
    assert load("digits").moments == (load("digits").mean, load("digits").std)


def test_the_validation_share() -> None:
    held = [len(load("digits", validation=share).validation) for share in (0.0, 0.1, 0.5)]
    assert held == pytest.approx([0, 143.7, 718.5], abs=5)  # rounded for each of ten classes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"augment": "random_resized_crop"}, "use crop"),
        ({"augment": "crop,rotate"}, "unknown"),
        ({"augment": ""}, "unknown"),
        ({"padding": "mirror"}, "choose reflect or zeros"),
        ({"cutout": 0}, "cutout is 0"),
        ({"mean": (0.5,)}, "both or none"),
        ({"mean": (0.5,), "std": (0.0,)}, "positive"),
        ({"mean": (), "std": ()}, "finite numbers"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "2 numbers for 1 channel"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "finite numbers"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        load("digits", **options)
