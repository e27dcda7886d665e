"""Models that a function of the user's makes, in a module or in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from localprop.cli.main import main
from localprop.errors import BadInput
from localprop.models import create_model
from localprop.models.create import names_function
from localprop.models.sample import create_without_data, make_zero_batch
from localprop.user_code import import_named

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

number = 3
runs = []

@dataclass
class Sizes:
    width: int = 4

def make_plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

def make(num_classes, input_shape, width=4):
    size = torch.Size(input_shape).numel()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, num_classes)
    )

def make_pixels():
    return nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1))

def make_elsewhere():
    with torch.device("cpu"):
        return make_plain()

def make_nothing():
    return None

def needs_more(path):
    return None

def fail():
    raise OSError("no weights here")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "models_of_a_user.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path / "models_of_a_user.py")


def test_a_function_gets_what_it_has_arguments_for(file: str) -> None:
    for source in (file, "models_of_a_user"):
        model = create_model(f"{source}:make,width=6", 7, (1, 8, 8))
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
        assert model[1].out_features == 6  # type: ignore[index]
        assert create_model(f"{source}:make_plain", 7, (1, 8, 8))(torch.zeros(2, 64)).shape[1] == 10


def test_a_file_runs_once(file: str) -> None:
    assert import_named(file, "runs") is import_named(file, "runs")


def test_nothing_is_allocated(file: str) -> None:
    model = create_without_data(f"{file}:make_elsewhere", 10, (1, 8, 8))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_targets_follow_the_outputs(file: str) -> None:
    model = create_without_data(f"{file}:make_pixels", 7, (3, 8, 8))
    inputs, targets = make_zero_batch(model, (3, 8, 8), 4)
    assert (inputs.shape, targets.shape, targets.dtype) == ((4, 3, 8, 8), (4, 8, 8), torch.int64)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fail", "failed (OSError: no weights here)"),
        ("make_nothing", "returned a NoneType"),
        ("needs_more", "failed (TypeError"),
        ("number", "is a int"),
        ("maker", "did you mean make"),
        ("make,width", "without a name"),
        ("make,depth=3", "failed (TypeError"),
    ],
)
def test_what_makes_no_model(name: str, problem: str, file: str) -> None:
    with pytest.raises(BadInput) as caught:
        create_model(f"{file}:{name}", 10, (1, 8, 8))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("os", "part of Python"),
        ("no_such_module", "cannot be imported (ModuleNotFoundError"),
        ("no/such/file.py", "cannot be run (FileNotFoundError"),
    ],
)
def test_what_cannot_be_imported(module: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        create_model(f"{module}:make", 10, (1, 8, 8))
    assert problem in str(caught.value)


def test_a_file_that_fails_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "fails.py"
    path.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(BadInput, match="ZeroDivisionError"):
            import_named(str(path), "make")
    assert not any(str(path) in name for name in sys.modules)


@pytest.mark.parametrize(
    "name", ["resnet32", "mlp:512", "vgg8b:dropout=0.2", "timm:resnet18", "hf:llama", "mlp:widen"]
)
def test_names_of_models_are_no_functions(name: str) -> None:
    assert not names_function(name)


def test_commands(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:make_plain", "--input", "1,8,8"]) == 0
    assert "modules=2 to 2 work" in capsys.readouterr().out
    assert main(["check", "mlp:8,8,8", "--input", "1,8,8", "--batch", "4"]) == 0
    assert "(4, 1, 8, 8)" in capsys.readouterr().out
    words = ["train", "--model", f"{file}:make", "--epochs", "2", "--limit", "200"]
    assert main([*words, "--batch-size", "32"]) == 0


def test_a_model_that_does_not_run(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mlp:8", "--batch", "0"]) == 2
    assert main(["plan", "--model", f"{file}:make_plain", "--input", "5"]) == 2
    assert "does not run on (128, 5)" in capsys.readouterr().err
