"""Image files in folders: the order of torchvision, and what is no image, class or end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from localprop.cli import main as cli
from localprop.data import load, load_folder
from localprop.data.image_files import find_image_files
from localprop.errors import BadInput

datasets = pytest.importorskip("torchvision.datasets")
Image: Any = pytest.importorskip("PIL.Image")


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with four images each in train, and one in val."""
    for name in ("a", "b"):
        for i in range(4):
            write_image(tmp_path / "train" / name / f"{i}.png")
        write_image(tmp_path / "val" / name / "0.png")
    return tmp_path


def test_files_and_classes_are_in_the_order_of_torchvision(folder: Path) -> None:
    for name in ("a/z/1.png", "a/z-b/2.JPG", "a/z/deep/3.tiff", "b/10.webp", "B/1.bmp"):
        write_image(folder / "train" / name)
    write_image(folder / "val/B/1.png")
    (folder / "train/b/notes.txt").write_text("mine")
    (folder / "train/linked").symlink_to(folder / "val/b")
    (folder / "val/linked").symlink_to(folder / "val/b")
    train, _, classes, notes = find_image_files(folder)
    reference = datasets.ImageFolder(folder / "train")
    assert [*zip(train.paths, train.labels.tolist(), strict=True)] == reference.samples
    assert ([*classes], notes) == (reference.classes, ())


def test_hidden_folders_are_no_classes_and_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train/.ipynb_checkpoints").mkdir()
    write_image(folder / "train/a/.thumbnails/0.png")
    (folder / "train/a/._0.png").write_bytes(b"of macOS")
    data = load_folder(folder, image_size=16, workers=0)
    assert (data.classes, len(data.train) + len(data.validation)) == (("a", "b"), 8)
    (note,) = data.notes
    for name in (".ipynb_checkpoints", "a/.thumbnails", "a/._0.png"):
        assert f"{folder}/train/{name}" in note
    words = ["--image-size", "16", "--workers", "0", "--model", "resnet8", "--epochs", "2"]
    assert cli.main(["train", "--data", f"folder:{folder}", *words]) == 0
    assert note in capsys.readouterr().err
    write_image(folder / "train/.ipynb_checkpoints/0.png")
    write_image(folder / "val/.ipynb_checkpoints/0.png")
    with pytest.raises(BadInput, match=r"(?s)checkpoints is hidden and has 1 image.*is it a class"):
        load(f"folder:{folder}")


def test_links_in_a_circle_and_pipes_end(folder: Path) -> None:
    (folder / "train/a/up").symlink_to(folder / "train")
    (folder / "train/a/b").symlink_to(folder / "train/b")
    (folder / "train/b/a").symlink_to(folder / "train/a")
    os.mkfifo(folder / "val/b/pipe.png")
    with pytest.raises(BadInput) as caught:
        load(f"folder:{folder}")
    text = str(caught.value)
    for link in ("a/up", "a/b/a", "b/a/up", "b/a/b"):
        assert f"{folder}/train/{link} links to a folder that it lies in" in text
    assert f"{folder}/val/b/pipe.png is a pipe or a device" in text


def test_an_empty_class_is_named(folder: Path) -> None:
    (folder / "train/c").mkdir()
    (folder / "val/c").mkdir()
    with pytest.raises(BadInput, match=r"(?s)train has no images of c\. Images.*val has no images"):
        load(f"folder:{folder}")


def test_a_fingerprint_knows_classes_and_names_and_not_where_they_lie(folder: Path) -> None:
    def read(path: Path) -> Any:
        return load_folder(path, workers=0).fingerprint()

    before = read(folder)
    folder.rename(folder.parent / "moved")
    folder = folder.parent / "moved"
    assert read(folder) == before
    (folder / "train/a/0.png").rename(folder / "train/a/9.png")
    changed = read(folder)
    assert (changed["classes"], changed["test"]) == (before["classes"], before["test"])
    assert changed != before
    for split in ("train", "val"):
        (folder / split / "a").rename(folder / split / "c")
    assert read(folder)["classes"] == ["b", "c"]
