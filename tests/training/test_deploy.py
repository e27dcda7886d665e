"""Runs after their training: exported files and figures are those of the learner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import localprop as lp
from localprop.cli import main as cli
from localprop.data import Batches
from localprop.errors import BadInput
from localprop.training.build import load_data
from localprop.training.config import Config
from localprop.training.deploy import load_run
from localprop.training.scores import evaluate
from tests.helpers.cli import read_json, run_command

# One worker trains the run.
pytestmark = pytest.mark.xdist_group("deploy")

CONTSUP: dict[str, Any] = {
    "model": "resnet8",
    "method": "contsup()",
    "modules": 3,
    "limit": 300,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network has encoders of contexts."""
    folder = tmp_path_factory.mktemp("runs") / "contsup"
    lp.train(**CONTSUP, out=str(folder), on_note=str)
    return folder


def test_an_exported_network_scores_what_the_learner_scored(run: Path, tmp_path: Path) -> None:
    """Also without localprop, and for any number of samples. Without encoders it does not."""
    found = lp.export(run, tmp_path / "n.pt2", tmp_path / "n.pt", tmp_path / "n.safetensors")
    assert found["input_shape"] == (1, 8, 8)
    network = torch.export.load(tmp_path / "n.pt2").module()
    data = load_data(Config(**CONTSUP))
    batches = Batches(data, "test", 64)
    score, summary = evaluate(network, batches), read_json(run / "summary.json")
    assert score.accuracy == summary["test_accuracy"] > 0.2
    assert score.loss == pytest.approx(summary["test_loss"], rel=1e-6)
    assert evaluate(network, Batches(data, "test", 97)).accuracy == score.accuracy

    _, _, learner = load_run(run)
    state = learner.network.state_dict()
    for saved in (torch.load(tmp_path / "n.pt"), load_file(tmp_path / "n.safetensors")):
        assert saved.keys() == state.keys()
        assert all(torch.equal(saved[name], value) for name, value in state.items())
    assert any(name.startswith("encoders.") for name in state)
    assert evaluate(learner.model.eval(), batches).loss != pytest.approx(score.loss, rel=1e-3)


def test_onnx_predicts_what_the_learner_predicts(run: Path, tmp_path: Path) -> None:
    """By onnx's own reference implementation, for any number of samples."""
    reference: Any = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    lp.export(run, tmp_path / "n.onnx")
    network = reference.ReferenceEvaluator(str(tmp_path / "n.onnx"))

    def predict(inputs: Tensor) -> Tensor:
        (outputs,) = network.run(None, {network.input_names[0]: inputs.numpy()})
        return torch.from_numpy(outputs)

    _, dataset, learner = load_run(run)
    for size in (64, 97):
        inputs, _ = next(iter(Batches(dataset, "test", size)))
        torch.testing.assert_close(predict(inputs), learner.predict(inputs), rtol=1e-4, atol=1e-5)
    accuracy = evaluate(predict, Batches(dataset, "test", 64)).accuracy
    assert accuracy == read_json(run / "summary.json")["test_accuracy"]


def test_evaluate_gives_the_figures_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = read_json(run / "summary.json")
    found = lp.evaluate(run)
    assert (found["test_accuracy"], found["test_loss"]) == (
        summary["test_accuracy"],
        summary["test_loss"],
    )
    assert [row["module"] for row in found["modules"]] == [0, 1, 2]
    assert found["modules"] == summary["modules"]
    config, dataset, learner = load_run(run)
    for row in found["modules"]:
        correct = count = 0
        for images, labels in Batches(dataset, "test", config.batch_size):
            outputs = learner.predict(images, module=row["module"])
            correct, count = correct + int((outputs.argmax(1) == labels).sum()), count + len(labels)
        assert row["test_accuracy"] == correct / count
    code, out, _ = run_command(capsys, "evaluate", str(run))
    assert code == 0
    assert f"{summary['test_accuracy']:.4f}" in out.splitlines()[-1]


def test_other_data_are_normalised_as_those_of_the_training(run: Path, tmp_path: Path) -> None:
    digits: Any = load_data(Config(**CONTSUP))
    images = {name: getattr(digits, name).images for name in ("train", "test")}
    file = tmp_path / "brighter.npz"
    arrays = {
        "train_images": images["train"].squeeze(1).numpy() // 2,  # with another mean
        "train_labels": digits.train.labels.numpy(),
        "test_images": images["test"].squeeze(1).numpy(),
        "test_labels": digits.test.labels.numpy(),
        "classes": numpy.array(digits.classes),
    }
    numpy.savez(file, **arrays)
    assert lp.evaluate(run, data=str(file))["test_accuracy"] == lp.evaluate(run)["test_accuracy"]
    arrays["classes"] = arrays["classes"][::-1]
    numpy.savez(file, **arrays)
    with pytest.raises(BadInput, match=r"The classes of .* are 9, 8.*in this order"):
        lp.evaluate(run, data=str(file))
    arrays |= {name: arrays[name].repeat(2, 1) for name in ("train_images", "test_images")}
    numpy.savez(file, **arrays)
    with pytest.raises(BadInput, match=r"inputs of .* are \(1, 16, 8\)") as caught:
        lp.evaluate(run, data=str(file))
    assert len(caught.value.problems) == 2
    with pytest.raises(BadInput, match="data of the same kind"):
        lp.evaluate(run, data="text")


def test_what_cannot_be_exported_is_refused_at_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    files = [tmp_path / "n.onnx", tmp_path / "n.xyz", tmp_path / "absent" / "n.pt"]
    words = ["export", str(tmp_path / "no_run"), "--out", *map(str, files)]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    for part in ("onnx", r"must end in \.pt, \.safetensors", "there is no folder", "holds no run"):
        assert re.search(part, err), part
    assert not [*tmp_path.iterdir()]


def test_a_network_that_torch_cannot_trace_leaves_no_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("a branch depends on data")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(BadInput, match=r"a branch depends on data.*\.pt or \.safetensors"):
        lp.export(run, tmp_path / "n.pt2")
    assert not [*tmp_path.iterdir()]


def test_a_run_needs_a_checkpoint(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(BadInput, match="has no checkpoint yet"):
        lp.evaluate(tmp_path)
    assert cli.main(["evaluate", str(tmp_path / "absent")]) == 2


def test_runs_in_phases_and_frozen_runs_are_loaded(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model": "mlp:16", "limit": 100, "epochs": 2, "freeze": "1.*"}
    phases = "greedy() for 1; end_to_end() for 1"
    summary = lp.train(**fields, phases=phases, out=str(tmp_path / "run"))
    assert lp.evaluate(tmp_path / "run")["test_accuracy"] == summary["test_accuracy"]


def test_evaluate_takes_fields_of_data_alone() -> None:
    with pytest.raises(BadInput, match="There is no field 'lr' here"):
        lp.evaluate("runs/a", lr=0.1)
