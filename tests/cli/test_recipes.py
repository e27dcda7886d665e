"""`localprop recipes`: the listing of published experiments."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from localprop import experiments
from tests.helpers.cli import run_command


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(capsys, "recipes", "resnet32_cifar10_dgl")
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines()]
    assert listed == [f"resnet32_cifar10_dgl_k{k}" for k in (2, 4, 8, 16)]
    code, out, _ = run_command(capsys, "recipes", "--json")
    assert code == 0
    assert len(json.loads(out)["recipes"]) == len(experiments.names())


def test_a_listing_needs_no_torch() -> None:
    program = (
        "import sys; from localprop.cli.main import main; main(['recipes']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0
