"""Batches against a slow implementation: augmentation, order, normalisation."""

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from localprop.data import Augment, Batches, Images, Split
from localprop.data.arrays import assemble
from localprop.data.augment import augmented, cut_out
from localprop.errors import BadInput


def dataset(images: Tensor, augment: Augment | None = None) -> Images:
    split = Split(images, torch.arange(len(images)) % 4)
    return assemble("test", split, split, tuple("abcd"), augment=augment or Augment(), validation=0)


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


def holed(image: Tensor, side: int, draw: Tensor) -> Tensor:
    """One image, pixel by pixel: zero where both distances to the centre are within half a side."""
    result = image.clone()
    height, width = image.shape[-2:]
    row, col = int(float(draw[0]) * height), int(float(draw[1]) * width)
    for i in range(max(0, row - side // 2), min(height, row + side - side // 2)):
        for j in range(max(0, col - side // 2), min(width, col + side - side // 2)):
            result[:, i, j] = 0
    return result


@pytest.mark.parametrize("side", [1, 2, 3, 4, 16])
def test_cutout_equals_a_slow_one(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images, draws = torch.rand(40, 2, 7, 6, generator=generator) + 1, torch.rand(40, 2, generator=generator)
    draws[0], draws[1] = 0, 1 - 2**-24  # both ends
    result = cut_out(images, side, draws)
    assert torch.equal(
        result, torch.stack([holed(image, side, draw) for image, draw in zip(images, draws, strict=True)])
    )
    if side < 6:
        holes = (result == 0).all(1).sum((1, 2))
        assert holes.max() == side**2  # clipped at the border, whole inside


def test_cutout_comes_after_normalisation_and_belongs_to_the_sample() -> None:
    images = torch.rand(30, 1, 6, 6) + 5
    data = dataset(images, Augment(cutout=4))
    plain, *_ = (x for x, _ in Batches(data, "train", 30).epoch(2))
    ordered, shuffled = (
        torch.cat([x for x, _ in Batches(data, "train", 7, augment=True, shuffle=shuffle, seed=1).epoch(2)])
        for shuffle in (False, True)
    )
    hole = ordered != plain
    assert (ordered[hole] == 0).all()
    assert hole.flatten(1).any(1).all()
    assert {tuple(x) for x in ordered.flatten(1).tolist()} == {tuple(x) for x in shuffled.flatten(1).tolist()}
    other, *_ = (x for x, _ in Batches(data, "train", 30, augment=True, seed=1).epoch(3))
    assert not torch.equal(other, ordered)


def test_cutout_leaves_the_draws_of_crop_and_flip_alone() -> None:
    images = torch.rand(30, 1, 6, 6) + 5
    first, second = (
        next(Batches(dataset(images, Augment(2, False, True, cutout)), "train", 30, augment=True).epoch(1))[0]
        for cutout in (0, 3)
    )
    kept = second != 0
    assert torch.equal(first[kept], second[kept])
    assert 0 < kept.double().mean() < 1


def test_the_draws_of_an_epoch_are_what_they_always_were() -> None:
    """Published figures hang on these bits: order and crops come from these two generators, in this way."""

    def generator(purpose: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{purpose} 3 5".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    images = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    data = dataset(images, Augment(2, True, True))
    found = torch.cat([x for x, _ in Batches(data, "train", 8, shuffle=True, augment=True, seed=3).epoch(5)])
    order = torch.randperm(20, generator=generator("order"))
    draws = torch.rand(20, 3, generator=generator("augment"))
    wanted = torch.stack([slowly(images[i], data.augment, draws[i]) for i in order.tolist()])
    torch.testing.assert_close(found, ((wanted / 255 - data.mean[0]) / data.std[0]).float())


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
    data = dataset(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), Augment(4, True, True, cutout=4))
    options: dict[str, Any] = {"shuffle": True, "augment": True, "seed": 2}
    here, there = (Batches(data, "train", 16, device=device, **options) for device in ("cpu", "cuda"))
    for (x, y), (gpu_x, gpu_y) in zip(here.epoch(1), there.epoch(1), strict=True):
        assert gpu_x.is_cuda
        assert there.held_bytes == data.train.images.nbytes + data.train.labels.nbytes > here.held_bytes == 0
        torch.testing.assert_close(gpu_x.cpu(), x)
        assert torch.equal(gpu_y.cpu(), y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_large_split_stays_in_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8))
    moved = Batches(data, "train", 16, device="cuda")
    monkeypatch.setattr("localprop.data.arrays.MOST_HELD_BYTES", 10)
    kept = Batches(data, "train", 16, device="cuda")
    assert (moved.held_bytes > 0, kept.held_bytes) == (True, 0)
    for (x, y), (other_x, other_y) in zip(moved, kept, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
