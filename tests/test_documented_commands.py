"""The commands of README and docs, as they are written.

Short ones that need nothing from the network run whole, long ones whole under `-m long`. Those that
need data run up to loading, and build all that they would train on a small stand-in of its shape.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from localprop import experiments
from localprop.cli.flags import collect_fields
from localprop.cli.main import _build_parser, main
from localprop.experiments.blank_data import load_shape
from localprop.report.method_spec import parse_methods
from localprop.training.build import prepare
from localprop.training.config import Config

ROOT = Path(__file__).parent.parent
WHOLE, LONG, BUILT, ELSEWHERE = "whole", "long", "built", "elsewhere"
# By its first words that tell it apart, how each command is run, and why not whole.
HOW = {
    "compare": (LONG, "3 minutes"),
    "compare --data FILE.npz": (BUILT, "the file is the reader's; 30 epochs on images"),
    "compare --task lm": (LONG, "some minutes"),
    "check my_code.py:make": (ELSEWHERE, "tests/test_first_page.py"),
    "compare --model my_code.py:make": (ELSEWHERE, "tests/test_first_page.py"),
    "report runs/mine": (ELSEWHERE, "tests/test_first_page.py"),
    "report runs/a": (ELSEWHERE, "tests/report/page/test_write.py"),
    "train --config runs/a/config.json": (ELSEWHERE, "tests/training/test_config_file.py"),
    "recipes backlink": (WHOLE, ""),
    "show resnet32_cifar10_backlink_k16": (WHOLE, ""),
    "train resnet32_cifar10_backlink_k16": (BUILT, "downloads CIFAR-10; 400 epochs"),
    "train --data cifar10 --download": (BUILT, "downloads CIFAR-10"),
    "export runs/a": (ELSEWHERE, "tests/training/test_deploy.py"),
    "compare --model resnet14": (LONG, "a minute for each method"),
    "analyse runs/a": (ELSEWHERE, "tests/report/test_run_analysis.py"),
    "analyse runs/digits": (ELSEWHERE, "tests/report/test_run_analysis.py"),
    "report runs/digits": (ELSEWHERE, "tests/report/page/test_learned.py"),
    "evaluate runs/a": (ELSEWHERE, "tests/training/test_deploy.py"),
    "train --model timm:tf_efficientnet_lite0": (ELSEWHERE, "tests/test_examples.py"),
    "train --phases": (LONG, "20 epochs"),
    "show --model resnet110": (LONG, "half a minute: ResNet-110 with copied layers"),
    "simulate --model resnet32 --ranks 4": (LONG, "measures all methods"),
    "simulate --model resnet110 --ranks 16": (LONG, "measures all methods on ResNet-110"),
    "bench memory": (LONG, "ResNet-110"),
    "plan --model resnet32": (LONG, "half a minute: ResNet-32 with three methods"),
    "plan --model my_code.py:make": (ELSEWHERE, "tests/models/test_user_functions.py"),
    "train --model resnet32 --out runs/a --log": (BUILT, "many epochs of ResNet-32"),
    "train --plan plan.json": (ELSEWHERE, "tests/training/test_plan_file.py"),
    "check hf:gpt2": (WHOLE, ""),
    "bench speed": (LONG, "a minute for each method"),
    "show --model resnet8": (ELSEWHERE, "tests/methods/test_adding_a_method.py"),
    "train --model resnet8": (ELSEWHERE, "tests/methods/test_adding_a_method.py"),
    "train --out runs/two_ahead": (ELSEWHERE, "tests/methods/test_adding_a_method.py"),
    "compare --model resnet8": (ELSEWHERE, "tests/methods/test_adding_a_method.py"),
    "simulate --model resnet8": (ELSEWHERE, "tests/methods/test_adding_a_method.py"),
}


def list_commands() -> Iterator[str]:
    """The words after `localprop` of each command, without what stands behind a #."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))):
        for line in page.read_text().splitlines():
            if line.startswith("    localprop "):
                yield line.split("  #")[0].split("      #")[0].strip().removeprefix("localprop ")


def find_how(command: str) -> str:
    """The longest key of `HOW` that the command begins with."""
    keys = [key for key in HOW if f"{command} ".startswith(f"{key} ")]
    assert keys, f"`localprop {command}` is not in the list of this file: say how it is tested."
    return HOW[max(keys, key=len)][0]


def list_launches() -> list[str]:
    """The commands of README that begin with torchrun."""
    lines = (ROOT / "README.md").read_text().splitlines()
    found = [line for line in lines if line.startswith("    torchrun ")]
    return [line.split("      #")[0].strip() for line in found]


COMMANDS = list(dict.fromkeys(list_commands()))


def those(how: str) -> list[str]:
    return [command for command in COMMANDS if find_how(command) == how]


def test_the_list_has_each_command_and_no_other() -> None:
    used = {max((k for k in HOW if f"{c} ".startswith(f"{k} ")), key=len) for c in COMMANDS}
    assert used == {*HOW}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    assert _build_parser().parse_args(shlex.split(command)).run


@pytest.mark.parametrize(
    "command",
    [
        *those(WHOLE),
        *(
            pytest.param(command, marks=[pytest.mark.long, pytest.mark.timeout(3600)])
            for command in those(LONG)
        ),
    ],
)
def test_commands_run(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", those(BUILT))
def test_commands_that_need_data_build_what_they_train(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = numpy.zeros((64, 32, 32, 3), numpy.uint8), numpy.arange(64) % 10
    splits: dict[str, Any] = {f"{split}_images": images for split in ("train", "test")}
    splits |= {f"{split}_labels": labels for split in ("train", "test")}
    numpy.savez("FILE.npz", classes=numpy.array([*"abcdefghij"]), **splits)
    args = _build_parser().parse_args(shlex.split(command))
    config = Config(**experiments.fields_of(getattr(args, "recipe", None), collect_fields(args)))
    methods = [spec.method for spec in parse_methods(args.methods)] if "methods" in args else []
    for method in methods or [config.method]:
        _, learner = prepare(replace(config, method=method), load_shape)
        assert len(learner.partition.modules) == (config.modules or len(learner.partition.modules))


def test_launches_of_the_command_line_parse() -> None:
    """They need CIFAR-10; tests/cli/test_train_on_ranks.py launches `localprop train` on digits."""
    program, command = list_launches()
    assert program == "torchrun --nproc-per-node 4 train.py"
    words = shlex.split(command)
    assert words[:5] == ["torchrun", "--nproc-per-node", "4", "-m", "localprop"]
    assert _build_parser().parse_args(words[5:]).run


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_first_block_of_the_readme_runs_on_ranks(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", *list_launches()[0].split()[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(torchrun, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
