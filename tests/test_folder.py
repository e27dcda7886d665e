"""Images in folders: a tiny generated one, read by workers and by the training process alike."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

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


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_a_crop_moves_each_image_by_up_to_four_pixels(folder: Path, padding: str) -> None:
    """Images are scaled to the input's size and no further, padded, and cropped where their own draws say."""
    data = tiny(folder, augment="crop", padding=padding, mean=(0.0,), std=(1.0,))
    plain, moved = epoch(data, "train"), epoch(data, "train", augment=True, seed=1)
    assert torch.equal(epoch(data, "train", augment=True, seed=1), moved)
    assert not torch.equal(epoch(data, "train", 1, augment=True, seed=1), moved)
    with Image.open(data.train.paths[0]) as image:
        scaled = image.resize((24, 16), Image.Resampling.BILINEAR).crop((4, 0, 20, 16))
    assert torch.equal((plain[0] * 255).round().byte(), bytes_of(scaled))
    padded = functional.pad(plain, (4,) * 4, mode="reflect" if padding == "reflect" else "constant")
    offsets = {offset for own, wide in zip(moved, padded, strict=True) for offset in found_at(own, wide)}
    assert len(offsets) > 10
    assert {0, 8} <= {row for row, _ in offsets} <= {*range(9)}


def bytes_of(image: Any) -> Tensor:
    """Pixels (C, H, W), uint8."""
    return torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)


def found_at(part: Tensor, whole: Tensor) -> list[tuple[int, int]]:
    """The rows and columns at which a part (C, H, W) lies in a larger image; there must be one."""
    side, spots = part.shape[-1], range(whole.shape[-1] - part.shape[-1] + 1)
    found = [(i, j) for i in spots for j in spots if torch.equal(whole[:, i : i + side, j : j + side], part)]
    assert found
    return found


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
        ({"augment": "crop,random_resized_crop", "limit": 0}, "(?s)limit is 0.*crops twice"),
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


def written(root: Path, *classes: str, part: str = "train", pixels: Any = None) -> Path:
    for name in classes:
        (root / part / name).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 20), np.uint8) if pixels is None else pixels).save(root / part / name / "a.tif")
    return root


def test_the_layout_is_told(tmp_path: Path) -> None:
    layout = re.escape(f"Images belong in {tmp_path}/train/CLASS/ and {tmp_path}/val/CLASS/")
    with pytest.raises(BadInput, match=f"{layout}.*\n.*no folder {tmp_path}/val.*{layout}"):
        tiny(tmp_path)
    written(written(tmp_path, "dark", "light"), "dark", "light", part="test")
    with pytest.raises(BadInput, match=f"there is {tmp_path}/test: rename it to val. {layout}") as caught:
        tiny(tmp_path)
    assert len(caught.value.problems) == 1
    (tmp_path / "test").rename(tmp_path / "val")
    assert tiny(tmp_path).num_classes == 2


def test_one_class_is_refused(tmp_path: Path) -> None:
    written(written(tmp_path, "images/dark", "images/light"), "images/dark", "images/light", part="val")
    with pytest.raises(BadInput, match=r"one class only, the folder images, .*one level too high\? Images belong in"):
        tiny(tmp_path)


def test_moments_are_those_of_imagenet_unless_given(folder: Path) -> None:
    assert tiny(folder).moments.mean == (0.485, 0.456, 0.406)
    assert tiny(folder, mean=(0.5,), std=(0.25, 0.5, 1.0)).moments == ((0.5,) * 3, (0.25, 0.5, 1.0))
    assert replace(tiny(folder), workers=3).workers == 3


# depths of pixels


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bits_of_grey_lose_the_lower_eight(tmp_path: Path, kind: str) -> None:
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20) * 164
    for part in ("train", "val"):
        written(tmp_path, "dark", "light", part=part, pixels=pixels.astype(kind))
    data = tiny(tmp_path, augment="crop", image_size=20, mean=(0.0,), std=(1.0,))
    images = (epoch(data, "test") * 255).round()
    assert images.amax() == 255
    assert torch.equal(images, torch.tensor(pixels // 256, dtype=torch.float32).expand(2, 3, 20, 20))


@pytest.mark.parametrize(("kind", "mode"), [("int32", "I"), ("float32", "F")])
def test_an_unknown_white_fails_the_run(tmp_path: Path, kind: str, mode: str) -> None:
    for part in ("train", "val"):
        written(tmp_path, "dark", "light", part=part, pixels=np.ones((20, 20), kind))
    with pytest.raises(
        RunFailed, match=rf"val/dark/a\.tif has pixels of Pillow's mode {mode}, .*convert such files to 8 bits"
    ):
        epoch(tiny(tmp_path), "test")


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
