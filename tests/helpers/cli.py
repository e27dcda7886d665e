"""Runs of the command line, and the files that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localprop.cli import main as cli

QUICK = ["--model", "mlp:16", "--limit", "100", "--epochs", "3"]
CHECKPOINTS = ["best.safetensors", "epoch-00002.safetensors", "epoch-00003.safetensors"]
FILES = sorted([*CHECKPOINTS, "config.json", "env.json", "metrics.jsonl", "summary.json"])


def run_train(*words: object, quick: bool = True) -> int:
    """Run `localprop train`, by default a short run, and return the exit code."""
    return cli.main(["train", *(QUICK if quick else []), *map(str, words)])


def names_in(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a run."""
    for file in folder.glob("*.safetensors"):
        file.unlink()


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run that has ended, without the seconds."""
    return [report | {"seconds": 0} for report in read_json(folder / "summary.json")["epochs"]]


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err
