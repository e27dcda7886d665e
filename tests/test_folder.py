"""Images in folders: a tiny generated one, read by workers and by the training process alike."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from localprop import cli
from localprop.data import Batches, load
from localprop.errors import BadInput, RunFailed
from localprop.training.config import Config, prepared
from localprop.training.trainer import train

pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

QUICK = ["--model", "resnet8", "--epochs", "2", "--workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; 12 training and 4 validation images each, of several sizes."""
    root, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 100, (20 + i, 30, 3), generator=generator, dtype=torch.uint8) + 150 * label
                Image.fromarray(pixels.numpy()).save(root / part / name / f"{i:02}.png")
    return root


def tiny(folder: Path, **options: Any) -> Any:
    return load(f"folder:{folder}", **{"image_size": 16, "workers": 0, **options})


def epoch(data: Any, split: str, number: int = 0, **options: Any) -> Tensor:
    return torch.cat([x for x, _ in Batches(data, split, 5, **options).epoch(number)])


def test_a_folder_is_a_dataset(folder: Path) -> None:
    data = tiny(folder, validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 8)
    assert (data.shape, data.classes) == ((3, 16, 16), ("dark", "light"))
    paths = [path for split in (data.train, data.validation, data.test) for path in split.paths]
    assert len({*paths}) == len(paths) == 32
    assert all("/val/" in path for path in data.test.paths)
    (images, labels), *_ = Batches(data, "test", 8)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert (images[:4] < images[4:].min()).all()
    assert len(tiny(folder, limit=4).train) == 4


def test_test_images_are_scaled_and_their_centre_is_taken(folder: Path) -> None:
    data = tiny(folder, mean=(0.25,), std=(0.5,))
    (images, _), *_ = Batches(data, "test", 1)
    with Image.open(data.test.paths[0]) as image:  # scaled by 256 / 224 of 16 / 20, which makes it 18 high
        assert image.size == (30, 20)
        scaled = image.resize((27, 18), Image.Resampling.BILINEAR).crop((6, 1, 22, 17))
    pixels = torch.tensor(list(scaled.tobytes()), dtype=torch.float32).view(16, 16, 3).permute(2, 0, 1)
    torch.testing.assert_close(images[0], (pixels / 255 - 0.25) / 0.5)


def test_training_images_are_a_function_of_seed_epoch_and_index(folder: Path) -> None:
    data = tiny(folder)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = epoch(data, "train", 2, augment=True, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(epoch(data, "train", 2, augment=True, seed=1), first)
    assert not torch.equal(epoch(data, "train", 3, augment=True, seed=1), first)
    assert not torch.equal(epoch(data, "train", 2, augment=True, seed=2), first)
    plain = epoch(data, "train", 2)
    assert torch.equal(plain, epoch(data, "train", 3))
    assert (first - plain).abs().flatten(1).amax(1).min() > 0  # every image was cropped
    shuffled = epoch(data, "train", 2, augment=True, seed=1, shuffle=True)
    assert {*map(tuple, first.flatten(1).tolist())} == {*map(tuple, shuffled.flatten(1).tolist())}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for every loader with workers
def test_workers_read_what_the_process_itself_reads(folder: Path) -> None:
    here, there = (
        tiny(folder, workers=workers, limit=12, augment="random_resized_crop,flip,cutout", cutout=6)
        for workers in (0, 2)
    )
    batches = Batches(there, "train", 5, shuffle=True, augment=True, seed=1)
    for number in (0, 1):  # the workers live on
        for (x, y), (other_x, other_y) in zip(
            Batches(here, "train", 5, shuffle=True, augment=True, seed=1).epoch(number),
            batches.epoch(number),
            strict=True,
        ):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_cutout_leaves_a_hole_of_zeros(folder: Path) -> None:
    data = tiny(folder, augment="cutout", cutout=6)
    plain, holed = epoch(data, "train"), epoch(data, "train", augment=True)
    changed = (plain != holed).any(1)
    assert (holed[changed[:, None].expand_as(holed)] == 0).all()
    assert 0 < changed.sum((1, 2)).min() <= changed.sum((1, 2)).max() == 36


def test_a_network_is_trained(folder: Path) -> None:
    config = Config(
        model="resnet8",
        data=f"folder:{folder}",
        image_size=16,
        workers=0,
        epochs=3,
        batch_size=8,
        modules=2,
        device="cpu",
    )
    dataset, learner = prepared(config)
    reports = train(learner, dataset, config)
    assert reports[-1].losses[-1] < reports[0].losses[-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"augment": "crop"}, "use random_resized_crop"),
        ({"augment": "flip,flip"}, "unknown"),
        ({"workers": -1}, "workers is -1"),
        ({"image_size": 0}, "image_size is 0"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "2 numbers for 3 channel"),
    ],
)
def test_bad_options(folder: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        tiny(folder, **change)


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no folder .*train"):
        tiny(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "dark").mkdir(parents=True)
    with pytest.raises(BadInput, match="has no images"):
        tiny(tmp_path)
    for part, names in (("train", ("dark", "light")), ("val", ("dark", "grey"))):
        for name in names:
            (tmp_path / part / name).mkdir(exist_ok=True)
            (tmp_path / part / name / "a.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"other classes in val than in train \(grey, light\)"):
        tiny(tmp_path)


def test_moments_are_those_of_imagenet_unless_given(folder: Path) -> None:
    assert tiny(folder).moments.mean == (0.485, 0.456, 0.406)
    assert tiny(folder, mean=(0.5,), std=(0.25, 0.5, 1.0)).moments == ((0.5,) * 3, (0.25, 0.5, 1.0))
    assert replace(tiny(folder), workers=3).workers == 3


# what is seen late


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_fails_the_run_by_name(folder: Path, tmp_path: Path, workers: int) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    broken = copy / "train" / "dark" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])  # truncated
    with pytest.raises(RunFailed, match=r"dark/03\.png cannot be read as an image \(.+\): replace or remove it\."):
        epoch(tiny(copy, validation=0.0, workers=workers), "train")
    broken.write_bytes(b"no image")
    assert cli.main(["train", "--data", f"folder:{copy}", "--image-size", "16", *QUICK]) == 1


def test_an_image_of_too_many_pixels_fails_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are an error
    with pytest.raises(RunFailed, match="decompression bomb"):
        epoch(tiny(folder), "test")


def test_a_cutout_of_the_whole_image_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="cutout=16 covers the 16x16 images: give a smaller --cutout"):
        Batches(tiny(folder, augment="cutout"), "train", 5, augment=True)
    assert len(Batches(tiny(folder, augment="cutout", cutout=15), "train", 5, augment=True))


def test_a_folder_lies_under_root_or_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    for name, root in (
        (folder.name, folder.parent),
        (folder.name, "~"),
        (f"~/{folder.name}", None),
        (folder, "/nowhere"),
    ):
        assert load(f"folder:{name}", root=root).train.paths[0].startswith(str(folder / "train"))
    monkeypatch.chdir(folder)
    with pytest.raises(BadInput, match=re.escape(f"There is no folder {folder}/nothing/train")):
        load("folder:nothing")
