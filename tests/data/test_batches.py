"""Batches against a slow implementation: order, augmentation, normalisation."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from localprop.data import Augment, Batches, Images
from localprop.errors import BadInput
from tests.helpers.images import build_dataset
from tests.helpers.slow_augment import crop_and_flip_slowly

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def read_inputs(
    data: Images,
    epoch: int,
    batch_size: int,
    *,
    shuffle: bool = False,
    augment: bool = False,
    seed: int = 0,
) -> Tensor:
    """All training inputs of an epoch."""
    batches = Batches(data, "train", batch_size, shuffle=shuffle, augment=augment, seed=seed)
    return torch.cat([inputs for inputs, _ in batches.epoch(epoch)])


def as_set(inputs: Tensor) -> set[tuple[float, ...]]:
    """The images without their order."""
    return {tuple(image) for image in inputs.flatten(1).tolist()}


# cutout


def test_cutout_comes_after_normalisation_and_belongs_to_the_sample() -> None:
    data = build_dataset(torch.rand(30, 1, 6, 6) + 5, Augment(cutout=4))
    plain = read_inputs(data, 2, 30)
    ordered = read_inputs(data, 2, 7, augment=True, seed=1)
    shuffled = read_inputs(data, 2, 7, augment=True, shuffle=True, seed=1)
    hole = ordered != plain
    assert (ordered[hole] == 0).all()
    assert hole.flatten(1).any(1).all()
    assert as_set(ordered) == as_set(shuffled)
    other = read_inputs(data, 3, 30, augment=True, seed=1)
    assert not torch.equal(other, ordered)


def test_cutout_leaves_the_draws_of_crop_and_flip_alone() -> None:
    images = torch.rand(30, 1, 6, 6) + 5
    whole, cut = (
        read_inputs(build_dataset(images, Augment(2, False, True, cutout)), 1, 30, augment=True)
        for cutout in (0, 3)
    )
    kept = cut != 0
    assert torch.equal(whole[kept], cut[kept])
    assert 0 < kept.double().mean() < 1


# draws


def make_generator_anew(purpose: str) -> torch.Generator:
    """The generator of seed 3 and epoch 5."""
    digest = hashlib.blake2b(f"{purpose} 3 5".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def test_the_draws_of_an_epoch_never_change() -> None:
    """Published figures depend on these bits: order and crops come from these two generators."""
    images = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    data = build_dataset(images, Augment(2, True, True))
    found = read_inputs(data, 5, 8, shuffle=True, augment=True, seed=3)
    order = torch.randperm(20, generator=make_generator_anew("order"))
    draws = torch.rand(20, 3, generator=make_generator_anew("augment"))
    wanted = torch.stack(
        [crop_and_flip_slowly(images[i], data.augment, draws[i]) for i in order.tolist()]
    )
    torch.testing.assert_close(found, ((wanted / 255 - data.mean[0]) / data.std[0]).float())


def test_draws_differ_between_samples_and_reach_every_crop() -> None:
    images = torch.zeros(500, 1, 9, 9)
    images[:, :, 4, 4] = 1
    data = build_dataset(images, Augment(pad=1, flip=True))
    result = read_inputs(data, 0, 500, augment=True)
    peaks = torch.bincount(result.flatten(1).argmax(1))
    assert torch.count_nonzero(peaks) == 9
    assert peaks[peaks > 0].min() > 500 / 9 / 2


def read_augmented_epoch(seed: int, number: int, batch_size: int = 8) -> Tensor:
    noise = torch.rand(40, 1, 6, 6, generator=torch.Generator())
    data = build_dataset(torch.arange(40.0).view(40, 1, 1, 1) + noise, Augment(pad=2, flip=True))
    return read_inputs(data, number, batch_size, shuffle=True, augment=True, seed=seed)


def test_order_and_draws_are_functions_of_seed_and_epoch() -> None:
    first = read_augmented_epoch(seed=3, number=5)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(read_augmented_epoch(seed=3, number=5), first)
    # Neither depends on the size of batches.
    assert torch.equal(read_augmented_epoch(seed=3, number=5, batch_size=7), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(read_augmented_epoch(seed=3, number=6), first)
    assert not torch.equal(read_augmented_epoch(seed=4, number=5), first)


def test_the_order_is_a_permutation() -> None:
    data = build_dataset(torch.arange(40.0).view(40, 1, 1, 1))
    first, second = (read_inputs(data, n, 7, shuffle=True).flatten() for n in range(2))
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_draws_belong_to_the_sample_and_not_to_its_position() -> None:
    images = torch.rand(40, 1, 6, 6)
    data = build_dataset(images, Augment(pad=2, flip=True))
    ordered = read_inputs(data, 2, 9, augment=True, seed=1)
    shuffled = read_inputs(data, 2, 9, augment=True, shuffle=True, seed=1)
    assert as_set(ordered) == as_set(shuffled)
    fewer = build_dataset(images[:10], Augment(pad=2, flip=True))
    first = read_inputs(fewer, 2, 10, augment=True, seed=1)
    mean, std = data.mean[0], data.std[0]
    torch.testing.assert_close(first * fewer.std[0] + fewer.mean[0], ordered[:10] * std + mean)


# batches


def test_batches_are_normalised_and_cover_the_split() -> None:
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    data = build_dataset(images)
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


def test_all_problems_of_batches_are_reported() -> None:
    data = build_dataset(torch.zeros(10, 1, 4, 4), Augment(pad=4, reflect=True))
    with pytest.raises(BadInput) as caught:
        Batches(data, "training", 0, augment=True)
    assert len(caught.value.problems) == 3
    with pytest.raises(BadInput, match="make no batch of 16"):
        Batches(data, "train", 16, drop_last=True)
    with pytest.raises(BadInput, match="validation split has 0 images"):
        Batches(data, "validation", 16)


@pytest.mark.gpu
@needs_cuda
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    data = build_dataset(images, Augment(4, True, True, cutout=4))
    on_cpu, on_gpu = (
        Batches(data, "train", 16, shuffle=True, augment=True, seed=2, device=device)
        for device in ("cpu", "cuda")
    )
    for (x, y), (gpu_x, gpu_y) in zip(on_cpu.epoch(1), on_gpu.epoch(1), strict=True):
        assert gpu_x.is_cuda
        assert on_gpu.held_bytes == data.train.images.nbytes + data.train.labels.nbytes
        assert on_gpu.held_bytes > on_cpu.held_bytes == 0
        torch.testing.assert_close(gpu_x.cpu(), x)
        assert torch.equal(gpu_y.cpu(), y)


@pytest.mark.gpu
@needs_cuda
def test_a_large_split_stays_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = build_dataset(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8))
    moved = Batches(data, "train", 16, device="cuda")
    monkeypatch.setattr("localprop.data.arrays.MAX_HELD_BYTES", 10)
    kept = Batches(data, "train", 16, device="cuda")
    assert (moved.held_bytes > 0, kept.held_bytes) == (True, 0)
    for (x, y), (other_x, other_y) in zip(moved, kept, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
