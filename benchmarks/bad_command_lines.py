"""Command lines with something odd in them, drawn at random, and the odd files that they name.

A command line that works gets one to three changes: an odd value of a flag, a method, phases or a
model in odd words, a flag of another command, or a file that is damaged: a plan, a checkpoint, a
result, an archive of images, a folder of images or a text.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from odd_words import ARGUMENTS, FLAGS, LITERALS, METHODS, NUMBERS, PARTS, TEXTS

from localprop.cli import main as cli

_SMALL = ["--model", "mlp:8", "--limit", "20", "--epochs", "2", "--batch-size", "10"]
_SMALL_NETWORK = ["--model", "resnet8", "--input", "3,8,8"]
USUAL: dict[str, list[str]] = {
    "train": _SMALL,
    "show": _SMALL,
    "compare": [*_SMALL, "--rounds", "2", "--seeds", "1", "--methods", "greedy()"],
    "check": ["resnet8", "--input", "3,8,8"],
    "plan": [*_SMALL_NETWORK, "--batch", "4", "--methods", "greedy"],
    "simulate": [
        *_SMALL_NETWORK,
        "--batch",
        "4",
        "--ranks",
        "2",
        "--rounds",
        "2",
        "--methods",
        "greedy",
    ],
    "bench": ["memory", *_SMALL_NETWORK, "--batch-size", "4", "--methods", "greedy"],
    "evaluate": ["run"],
    "export": ["run", "--out", "network.pt"],
    "recipes": [],
}


def make_files(folder: Path) -> None:
    """Make the files that command lines name: a run, a plan, images in a file and in a folder."""
    from PIL import Image

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = ["train", *_SMALL, "--out", str(folder / "run")]
        plan = ["plan", *USUAL["plan"], "--out", str(folder / "plan.json")]
        assert cli.main(run) == cli.main(plan) == 0
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{split}_{kind}": values
        for split in ("train", "test")
        for kind, values in (
            ("images", generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)),
            ("labels", np.arange(20) % 4),
        )
    }
    np.savez(folder / "images.npz", classes=np.array(["a", "b", "c", "d"]), **arrays)
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            (folder / "images" / split / kind).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / kind / f"{number}.png")
    (folder / "text.txt").write_text("to be or not to be " * 200)


def draw_command_line(draw: random.Random, made: Path, folder: Path) -> list[str]:
    """Draw the words of a command line.

    Args:
        draw: draws.
        made: the folder of `make_files`.
        folder: an empty folder, which gets a copy, some of it damaged; the working directory of
            the command.
    """
    shutil.copytree(made, folder, dirs_exist_ok=True)
    command = draw.choice([*USUAL])
    words = [command, *USUAL[command]]
    changes: list[Callable[[], None]] = [
        *[lambda: _add_odd_flag(draw, command, words)] * 4,
        *[lambda: _add_method(draw, command, words)] * 2,
        lambda: _change_word(draw, words),
        lambda: _damage_file(draw, command, words, folder),
    ]
    if command in ("evaluate", "export", "train", "show", "compare"):
        changes += [lambda: _damage_file(draw, command, words, folder)] * 4
    for _ in range(draw.choice((1, 1, 2, 3))):
        draw.choice(changes)()
    return words


def _add_odd_flag(draw: random.Random, command: str, words: list[str]) -> None:
    flags = FLAGS[command] or FLAGS[draw.choice([*FLAGS])] or {"nope": TEXTS}
    flag = draw.choice([*flags])
    pool = flags[flag] if draw.random() < 0.85 else [*NUMBERS, *TEXTS]
    words += [f"--{flag}", draw.choice(pool)]
    if draw.random() < 0.1:
        words.append(draw.choice(["--json", "--resume", "--fast", "--no-nesterov", "--download"]))


def _add_method(draw: random.Random, command: str, words: list[str]) -> None:
    flag = "--methods" if "--methods" in words else "--method"
    text = draw_method(draw)
    if flag in words:
        words[words.index(flag) + 1] = text
    elif command in ("train", "show"):
        words += [flag, text]
    else:
        words.append(text)


def draw_method(draw: random.Random, depth: int = 0) -> str:
    """Draw the text of a method, which may be any nonsense."""
    if depth > 3 or (depth and draw.random() < 0.5):
        return draw.choice(LITERALS)
    name = draw.choice(
        [*METHODS, *PARTS, draw.choice(["nope", "os:system", "json:dumps", "a.b", "x"])]
    )
    arguments = [
        f"{draw.choice(ARGUMENTS)}={draw_method(draw, depth + 1)}"
        for _ in range(draw.choice((0, 1, 1, 2)))
    ]
    text = f"{name}({', '.join(arguments)})"
    if draw.random() < 0.1:
        place = draw.randrange(len(text) + 1)
        text = text[:place] + draw.choice([*"()=,:@#\\'\"\n\t;\x1b", "**", "for"]) + text[place:]
    return text


def _change_word(draw: random.Random, words: list[str]) -> None:
    place = draw.randrange(1, len(words) + 1)
    words[place : place + draw.choice((0, 1))] = [draw.choice([*TEXTS, *NUMBERS])]


# --- files ----------------------------------------------------------------------------------------


def _damage_file(draw: random.Random, command: str, words: list[str], folder: Path) -> None:
    """Damage a file that the command reads."""
    if command in ("evaluate", "export"):
        _damage(draw, _choose_file(draw, folder / "run"))
    elif command == "train" and draw.random() < 0.5:
        if draw.random() < 0.5:
            words[:] = ["train", "--out", "run", "--resume"]
            _damage(draw, _choose_file(draw, folder / "run"))
        else:
            words[1:] = ["--plan", "plan.json", "--data", "images.npz"]
            _damage(draw, folder / "plan.json")
    elif command in ("train", "show", "compare"):
        name = draw.choice(["images.npz", "folder:images", "text.txt"])
        words += ["--data", name]
        if name == "images.npz":
            _damage_arrays(draw, folder / name)
        elif name == "text.txt":
            words += ["--model", "transformer:width=8,heads=2,blocks=1", "--context", "8"]
            _damage(draw, folder / name)
        else:
            words += ["--image-size", "8", "--workers", "0"]
            _damage(draw, _choose_file(draw, folder / "images"))


def _choose_file(draw: random.Random, folder: Path) -> Path:
    return draw.choice([*sorted(path for path in folder.rglob("*") if path.is_file())] or [folder])


def _damage(draw: random.Random, path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and draw.random() < 0.7:
        path.write_text("\n".join(_change_json(draw, line) for line in _split_json(path)))
        return
    place = draw.randrange(len(content) + 1)
    choices: list[Callable[[], object]] = [
        lambda: path.write_bytes(content[:place]),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(
            content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
        ),
        lambda: path.write_bytes(draw.randbytes(200)),
        lambda: path.write_bytes(content * 2),
        lambda: path.write_bytes(b"[" * 100_000),
        path.unlink,
        lambda: _replace_by_folder(path),
        lambda: _replace_by_circle(path),
        lambda: path.rename(path.with_name("\x1b[31mred" + path.suffix)),
    ]
    draw.choice(choices)()


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _split_json(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _change_json(draw: random.Random, text: str) -> str:
    """Replace a value, somewhere inside."""
    values: list[Any] = [
        *(None, True, -1, 0, 1.5, 2**64, 10**30, "", "word", "\x1b[31m", [], {}, [[]], {"a": 1}),
        *(float("nan"), float("inf"), "9" * 30, [-1], [None], "../x"),
    ]
    content = json.loads(text)
    top: Any = {"content": content}
    parent: Any = top
    key: Any = "content"
    while isinstance(parent[key], dict | list) and parent[key] and draw.random() < 0.8:
        parent = parent[key]
        key = draw.choice([*(parent if isinstance(parent, dict) else range(len(parent)))])
    if isinstance(parent, dict) and draw.random() < 0.2:
        del parent[key]
    else:
        parent[key] = draw.choice(values)
    return json.dumps(top.get("content"))


def _damage_arrays(draw: random.Random, path: Path) -> None:
    try:
        arrays: dict[str, Any] = dict(np.load(path, allow_pickle=True))
    except Exception:  # it has been damaged before
        arrays = {}
    if draw.random() < 0.3 or not arrays:
        _damage(draw, path)
        return
    name = draw.choice([*arrays])
    old = arrays[name]
    odd: list[Any] = [
        *(old.astype(object), old.astype("S1"), old[:0], old[:3], old[..., None], old.ravel()),
        *(np.zeros(()), np.zeros((20, 0)), np.zeros((20, 1, 1, 1)), np.zeros((20, 8, 8, 300))),
        *(np.full(20, 10**9), np.zeros(20, [("a", int)]), np.array(["\x1b[31m", "b"] * 10)),
    ]
    if old.dtype.kind != "U":  # names are no numbers
        odd += [old.astype(kind) for kind in (np.longdouble, np.float16, complex, bool, ">i4")]
        odd += [old.astype("M8[s]"), old.astype(np.uint64) + 2**63, old.astype(np.int64) - 300]
        odd.append(old.astype(float) * np.nan)
    arrays[name] = draw.choice(odd)
    if draw.random() < 0.2:
        arrays["\x1b[31mname" if draw.random() < 0.5 else "classes"] = draw.choice(odd)
    if draw.random() < 0.1:
        del arrays[name]
    np.savez(path, **arrays)
