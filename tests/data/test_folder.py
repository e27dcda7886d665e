"""Images in folders: a tiny generated data set, read by workers and by the training process."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from localprop.cli import main as cli
from localprop.data import Batches, load
from localprop.data.folder import Folder
from localprop.errors import BadInput, RunFailed
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.trainer import train

pytest.importorskip("torchvision")
if TYPE_CHECKING:
    from PIL import Image
else:
    Image = pytest.importorskip("PIL.Image")

QUICK = ["--model", "resnet8", "--epochs", "2", "--workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 12 training and 4 validation images each, of several sizes."""
    root, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shape = (20 + i, 30, 3)
                noise = torch.randint(0, 100, shape, generator=generator, dtype=torch.uint8)
                pixels = noise + 150 * label
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{i:02}.png")
    return root


def load_tiny(folder: Path, **options: Any) -> Folder:
    dataset = load(f"folder:{folder}", **{"image_size": 16, "workers": 0, **options})
    assert isinstance(dataset, Folder)
    return dataset


def read_inputs(
    data: Folder,
    split: str,
    number: int = 0,
    *,
    shuffle: bool = False,
    augment: bool = False,
    seed: int = 0,
) -> Tensor:
    """All inputs of an epoch."""
    batches = Batches(data, split, 5, shuffle=shuffle, augment=augment, seed=seed)
    return torch.cat([inputs for inputs, _ in batches.epoch(number)])


def as_set(inputs: Tensor) -> set[tuple[float, ...]]:
    """The images without their order."""
    return {tuple(image) for image in inputs.flatten(1).tolist()}


def read_pixels(image: Image.Image) -> Tensor:
    """Pixels (C, H, W), uint8."""
    pixels = torch.tensor(list(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def test_a_folder_is_a_dataset(folder: Path) -> None:
    data = load_tiny(folder, validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 8)
    assert (data.shape, data.classes) == ((3, 16, 16), ("dark", "light"))
    paths = [path for split in (data.train, data.validation, data.test) for path in split.paths]
    assert len({*paths}) == len(paths) == 32
    assert all("/val/" in path for path in data.test.paths)
    (images, labels), *_ = Batches(data, "test", 8)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert (images[:4] < images[4:].min()).all()
    assert len(load_tiny(folder, limit=4).train) == 4


def test_test_images_are_scaled_and_their_centre_is_cropped(folder: Path) -> None:
    data = load_tiny(folder, mean=(0.25,), std=(0.5,))
    (images, _), *_ = Batches(data, "test", 1)
    with Image.open(data.test.paths[0]) as image:
        assert image.size == (30, 20)
        # The shorter side becomes 256 / 224 of 16, which is 18 pixels.
        scaled = image.resize((27, 18), Image.Resampling.BILINEAR).crop((6, 1, 22, 17))
    torch.testing.assert_close(images[0], (read_pixels(scaled) / 255 - 0.25) / 0.5)


def test_training_images_are_a_function_of_seed_epoch_and_index(folder: Path) -> None:
    data = load_tiny(folder)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = read_inputs(data, "train", 2, augment=True, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(read_inputs(data, "train", 2, augment=True, seed=1), first)
    assert not torch.equal(read_inputs(data, "train", 3, augment=True, seed=1), first)
    assert not torch.equal(read_inputs(data, "train", 2, augment=True, seed=2), first)
    plain = read_inputs(data, "train", 2)
    assert torch.equal(plain, read_inputs(data, "train", 3))
    assert (first - plain).abs().flatten(1).amax(1).min() > 0  # every image was cropped
    shuffled = read_inputs(data, "train", 2, augment=True, seed=1, shuffle=True)
    assert as_set(first) == as_set(shuffled)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_a_crop_moves_each_image_by_up_to_four_pixels(folder: Path, padding: str) -> None:
    """Images are scaled to the size of the input, padded, and cropped by their own draws."""
    data = load_tiny(folder, augment="crop", padding=padding, mean=(0.0,), std=(1.0,))
    plain, moved = read_inputs(data, "train"), read_inputs(data, "train", augment=True, seed=1)
    assert torch.equal(read_inputs(data, "train", augment=True, seed=1), moved)
    assert not torch.equal(read_inputs(data, "train", 1, augment=True, seed=1), moved)
    with Image.open(data.train.paths[0]) as image:
        scaled = image.resize((24, 16), Image.Resampling.BILINEAR).crop((4, 0, 20, 16))
    assert torch.equal((plain[0] * 255).round().byte(), read_pixels(scaled))
    padded = functional.pad(plain, (4,) * 4, mode="reflect" if padding == "reflect" else "constant")
    offsets: set[tuple[int, int]] = set()
    for crop, whole in zip(moved, padded, strict=True):
        offsets.update(find_offsets(crop, whole))
    assert len(offsets) > 10
    assert {0, 8} <= {row for row, _ in offsets} <= {*range(9)}


def find_offsets(crop: Tensor, whole: Tensor) -> list[tuple[int, int]]:
    """The rows and columns at which a crop (C, H, W) lies in a larger image; at least one."""
    side = crop.shape[-1]
    starts = range(whole.shape[-1] - side + 1)
    found = []
    for row in starts:
        for col in starts:
            if torch.equal(whole[:, row : row + side, col : col + side], crop):
                found.append((row, col))
    assert found
    return found


# Python 3.12 warns about every loader with workers.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_what_the_process_itself_reads(folder: Path) -> None:
    augment = "random_resized_crop,flip,cutout"
    alone, with_workers = (
        Batches(
            load_tiny(folder, workers=workers, limit=12, augment=augment, cutout=6),
            "train",
            5,
            shuffle=True,
            augment=True,
            seed=1,
        )
        for workers in (0, 2)
    )
    for number in (0, 1):  # the workers stay alive
        pairs = zip(alone.epoch(number), with_workers.epoch(number), strict=True)
        for (x, y), (other_x, other_y) in pairs:
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_cutout_leaves_a_hole_of_zeros(folder: Path) -> None:
    data = load_tiny(folder, augment="cutout", cutout=6)
    plain, cut = read_inputs(data, "train"), read_inputs(data, "train", augment=True)
    changed = (plain != cut).any(1)
    assert (cut[changed[:, None].expand_as(cut)] == 0).all()
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
    dataset, learner = prepare(config)
    reports = train(learner, dataset, config)
    assert reports[-1].losses[-1] < reports[0].losses[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": "crop,random_resized_crop", "limit": 0}, "(?s)limit is 0.*crops twice"),
        ({"augment": "flip,flip"}, "unknown"),
        ({"workers": -1}, "workers is -1"),
        ({"image_size": 0}, "image_size is 0"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "2 numbers for 3 channel"),
    ],
)
def test_bad_options_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_tiny(folder, **change)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no folder .*train"):
        load_tiny(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "dark").mkdir(parents=True)
    with pytest.raises(BadInput, match="has no images"):
        load_tiny(tmp_path)
    for split, names in (("train", ("dark", "light")), ("val", ("dark", "grey"))):
        for name in names:
            (tmp_path / split / name).mkdir(exist_ok=True)
            (tmp_path / split / name / "a.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"other classes in val than in train \(grey, light\)"):
        load_tiny(tmp_path)


def write_split(root: Path, split: str, *classes: str, pixels: NDArray[Any] | None = None) -> None:
    """Write one image for each class."""
    if pixels is None:
        pixels = np.zeros((20, 20), np.uint8)
    for name in classes:
        (root / split / name).mkdir(parents=True)
        Image.fromarray(pixels).save(root / split / name / "a.tif")


def test_messages_show_the_layout(tmp_path: Path) -> None:
    layout = re.escape(f"Images belong in {tmp_path}/train/CLASS/ and {tmp_path}/val/CLASS/")
    with pytest.raises(BadInput, match=f"{layout}.*\n.*no folder {tmp_path}/val.*{layout}"):
        load_tiny(tmp_path)
    for split in ("train", "test"):
        write_split(tmp_path, split, "dark", "light")
    hint = f"there is {tmp_path}/test: rename it to val. {layout}"
    with pytest.raises(BadInput, match=hint) as caught:
        load_tiny(tmp_path)
    assert len(caught.value.problems) == 1
    (tmp_path / "test").rename(tmp_path / "val")
    assert load_tiny(tmp_path).num_classes == 2


def test_one_class_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_split(tmp_path, split, "images/dark", "images/light")
    message = r"one class only, the folder images, .*one level too high\? Images belong in"
    with pytest.raises(BadInput, match=message):
        load_tiny(tmp_path)


def test_normalization_is_that_of_imagenet_unless_given(folder: Path) -> None:
    assert load_tiny(folder).normalization.mean == (0.485, 0.456, 0.406)
    given = load_tiny(folder, mean=(0.5,), std=(0.25, 0.5, 1.0))
    assert given.normalization == ((0.5,) * 3, (0.25, 0.5, 1.0))
    assert replace(load_tiny(folder), workers=3).workers == 3


# bits of pixels


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_of_grey_lose_the_lower_eight(tmp_path: Path, dtype: str) -> None:
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20) * 164
    for split in ("train", "val"):
        write_split(tmp_path, split, "dark", "light", pixels=pixels.astype(dtype))
    data = load_tiny(tmp_path, augment="crop", image_size=20, mean=(0.0,), std=(1.0,))
    images = (read_inputs(data, "test") * 255).round()
    assert images.amax() == 255
    expected = torch.tensor(pixels // 256, dtype=torch.float32)
    assert torch.equal(images, expected.expand(2, 3, 20, 20))


@pytest.mark.parametrize(("dtype", "mode"), [("int32", "I"), ("float32", "F")])
def test_an_unknown_white_fails_the_run(tmp_path: Path, dtype: str, mode: str) -> None:
    for split in ("train", "val"):
        write_split(tmp_path, split, "dark", "light", pixels=np.ones((20, 20), dtype))
    message = rf"val/dark/a\.tif has pixels of Pillow's mode {mode}, .*convert such files to 8 bits"
    with pytest.raises(RunFailed, match=message):
        read_inputs(load_tiny(tmp_path), "test")


# problems that appear while files are read


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_fails_the_run_by_name(folder: Path, tmp_path: Path, workers: int) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    broken = copy / "train" / "dark" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])  # truncated
    message = r"dark/03\.png cannot be read as an image \(.+\): replace or remove it\."
    with pytest.raises(RunFailed, match=message):
        read_inputs(load_tiny(copy, validation=0.0, workers=workers), "train")
    broken.write_bytes(b"no image")
    assert cli.main(["train", "--data", f"folder:{copy}", "--image-size", "16", *QUICK]) == 1


def test_an_image_of_too_many_pixels_fails_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many.
    with pytest.raises(RunFailed, match="decompression bomb"):
        read_inputs(load_tiny(folder), "test")


def test_a_cutout_of_the_whole_image_is_refused(folder: Path) -> None:
    message = "cutout=16 covers the 16x16 images: give a smaller --cutout"
    with pytest.raises(BadInput, match=message):
        Batches(load_tiny(folder, augment="cutout"), "train", 5, augment=True)
    smaller = load_tiny(folder, augment="cutout", cutout=15)
    assert len(Batches(smaller, "train", 5, augment=True))


def test_a_folder_lies_under_root_or_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    for name, root in (
        (folder.name, folder.parent),
        (folder.name, "~"),
        (f"~/{folder.name}", None),
        (folder, "/nowhere"),
    ):
        dataset = load(f"folder:{name}", root=root)
        assert isinstance(dataset, Folder)
        assert dataset.train.paths[0].startswith(str(folder / "train"))
    monkeypatch.chdir(folder)
    with pytest.raises(BadInput, match=re.escape(f"There is no folder {folder}/nothing/train")):
        load("folder:nothing")
