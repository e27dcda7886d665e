"""Runs that begin with weights of a file, and runs with frozen layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import localprop as lp
from localprop.cli import main as cli
from localprop.errors import BadInput
from localprop.training.build import build, load_data, prepare
from localprop.training.config import Config
from localprop.training.scores import score_test_split
from tests.helpers.cli import (
    QUICK,
    read_epochs,
    read_json,
    remove_checkpoints,
    run_command,
    run_train,
)

SMALL: dict[str, Any] = {"model": "resnet8", "limit": 100, "epochs": 2}


def save_weights(file: Path, classes: int = 10, name: str = "resnet8") -> nn.Module:
    """Weights of a network with statistics of its own, and the network itself."""
    torch.manual_seed(3)
    model = lp.models.create_model(name, classes, (1, 8, 8))
    model(torch.randn(16, 1, 8, 8))
    torch.save(model.state_dict(), file)
    return model.eval()


@pytest.mark.parametrize("method", ["greedy()", "backlink()", "end_to_end()", "man()", "contsup()"])
def test_outputs_before_the_first_step_are_plain_torchs(tmp_path: Path, method: str) -> None:
    plain = save_weights(tmp_path / "w.pt")
    config = Config(**SMALL, init=str(tmp_path / "w.pt"), method=method)
    learner = build(config, load_data(config))
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(learner.model.eval()(images), plain(images))
        if not len(learner.encoders):
            assert torch.equal(learner.predict(images), plain(images))


def test_a_resumed_run_does_not_read_the_file_again(tmp_path: Path) -> None:
    file, run = tmp_path / "w.pt", tmp_path / "run"
    save_weights(file, name="mlp:16")
    words = ["--init", file, "--freeze", "1.*", "--out"]
    assert run_train(*words, tmp_path / "whole") == 0

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    fields: dict[str, Any] = {"model": "mlp:16", "limit": 100, "epochs": 3}
    fields |= {"init": str(file), "freeze": "1.*"}
    with pytest.raises(KeyboardInterrupt):
        lp.train(**fields, out=str(run), on_epoch=stop)
    file.unlink()
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert read_epochs(run) == read_epochs(tmp_path / "whole")
    assert read_json(run / "config.json")["init"] == str(file)


def test_a_run_without_a_checkpoint_needs_the_file_again(tmp_path: Path) -> None:
    file, run = tmp_path / "w.pt", tmp_path / "run"
    save_weights(file, name="mlp:16")
    assert run_train("--init", file, "--out", run) == 0
    remove_checkpoints(run)
    file.unlink()
    with pytest.raises(BadInput, match="There is no file"):
        lp.train(out=str(run), resume=True)


@pytest.mark.parametrize("method", ["greedy()", "backlink()", "end_to_end()", "contsup()"])
def test_frozen_layers_stay_as_they_were(tmp_path: Path, method: str) -> None:
    plain = save_weights(tmp_path / "w.pt", classes=7)
    config = Config(**SMALL, init=str(tmp_path / "w.pt"), freeze="conv.*,blocks.0.*", method=method)
    _, learner = prepare(config)
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    known = dict(plain.named_parameters())
    for images, labels in [(torch.randn(8, 1, 8, 8), torch.arange(8))] * 2:
        learner.step((images, labels))
    for name, parameter in learner.model.named_parameters():
        frozen = name.startswith(("conv.", "blocks.0."))
        assert torch.equal(parameter, before[name]) == frozen, name
        if frozen:
            assert torch.equal(parameter, known[name])


def test_the_command_line_tells_the_map_and_the_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_weights(tmp_path / "w.pt", classes=4, name="mlp:16")
    state = {f"t{i}": value for i, value in enumerate(model.state_dict().values())}
    torch.save(state, tmp_path / "renamed.pt")
    words = ["train", *QUICK, "--init", str(tmp_path / "renamed.pt")]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert "give --init-order if only the names differ" in err
    code, _, err = run_command(capsys, *words, "--init-order")
    assert code == 0
    assert err.startswith("Note: ")
    assert "<- t0\n" in err
    assert "stay untrained (10 outputs, not 4)" in err
    assert err.count("Note:") == 1


def test_compare_begins_all_methods_with_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate that moves nothing, all score what the file's network scores."""
    save_weights(tmp_path / "w.pt", name="mlp:16")
    methods = ["--methods", "end_to_end()", "greedy()"]
    methods += ["--seeds", "2", "--rounds", "2", "--lr", "1e-30", "--json", "--freeze", "1.*"]
    words = [*QUICK, *methods, "--init", str(tmp_path / "w.pt")]
    code, out, err = run_command(capsys, "compare", *words)
    assert code == 0, err
    assert "Note: 4 of 4 tensors are those of init.\n" in err
    config = Config(model="mlp:16", limit=100, init=str(tmp_path / "w.pt"))
    dataset, learner = prepare(config)
    expected = 100 * score_test_split(learner, dataset, config).accuracy
    scores = {score for row in json.loads(out)["rows"] for score in row["accuracies"]}
    assert scores == {expected}


def test_flags_without_effect_and_wrong_patterns_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_command(capsys, "train", *QUICK, "--init-order")
    assert (code, "--init-order has no effect without --init" in err) == (2, True)
    words = ["--init", str(tmp_path / "absent.pt"), "--freeze", "nope"]
    code, _, err = run_command(capsys, "train", *QUICK, *words)
    assert code == 2
    assert "There is no file" in err
    assert "freeze='nope' matches none" in err  # both at once


def test_safetensors_have_no_order(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match="sorts its tensors by name"):
        prepare(Config(model="mlp:16", init=str(tmp_path / "w.safetensors"), init_order=True))
