"""Weights from files, by name and in order; parameters that are frozen by name."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from localprop import models
from localprop.errors import BadInput
from localprop.models.freeze import freeze
from localprop.models.weights import load_weights, read_weights


def make(classes: int = 10, width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, width, 3),
            norm=nn.BatchNorm2d(width),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            classifier=nn.Linear(width, classes),
        )
    )


def trained(classes: int = 10, width: int = 4) -> nn.Sequential:
    """With statistics that a new model does not have."""
    torch.manual_seed(1)
    model = make(classes, width)
    model(torch.randn(8, 3, 8, 8))
    return model


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"tensor{number}": value for number, value in enumerate(state.values())}


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_outputs_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    source, model, file = trained(), make(), tmp_path / name
    if file.suffix == ".pt":
        torch.save(source.state_dict(), file)
    else:
        save_file(source.state_dict(), file)
    assert load_weights(model, read_weights(file)) == "9 of 9 tensors are those of init."
    assert torch.equal(model.eval()(IMAGES), source.eval()(IMAGES))


def test_in_order_names_do_not_count_and_the_map_is_told() -> None:
    source, model = trained(), make()
    note = load_weights(model, renamed(source.state_dict()), in_order=True).splitlines()
    assert torch.equal(model.eval()(IMAGES), source.eval()(IMAGES))
    assert len(note) == 10
    assert note[:2] == ["9 of 9 tensors are those of init:", "  stem.weight <- tensor0"]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_classifier_of_another_size_stays_as_it_is(in_order: bool) -> None:
    source, model = trained(classes=1000), make()
    before = model.state_dict()["classifier.weight"].clone()
    state = source.state_dict()
    note = load_weights(model, renamed(state) if in_order else state, in_order=in_order)
    assert "classifier.weight, classifier.bias stay untrained (10 outputs, not 1000)" in note
    assert torch.equal(model.state_dict()["classifier.weight"], before)
    assert torch.equal(model.eval()[:3](IMAGES), source.eval()[:3](IMAGES))


@pytest.mark.parametrize("in_order", [False, True])
def test_files_without_counters_of_batches_fit(in_order: bool) -> None:
    source, model = trained(), make()
    state = source.state_dict()
    del state["norm.num_batches_tracked"]
    load_weights(model, state, in_order=in_order)
    assert torch.equal(model.eval()(IMAGES), source.eval()(IMAGES))


def test_tied_tensors_may_be_in_the_file_once() -> None:
    source, model = (
        models.create_model("transformer:width=8,heads=2,blocks=1,tied=True", 5, (6,))
        for _ in range(2)
    )
    state = source.state_dict()
    pointers = [tensor.data_ptr() for tensor in state.values()]
    (tied,) = [name for i, name in enumerate(state) if pointers[i] in pointers[:i]]
    del state[tied]
    load_weights(model, state)
    tokens = torch.arange(5)[None]
    assert torch.equal(model(tokens), source(tokens))


def test_all_differences_are_named_at_once_and_nothing_changes() -> None:
    model, state = make(), trained(width=6).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state["extra"] = state.pop("stem.bias")
    with pytest.raises(BadInput) as caught:
        load_weights(model, state)
    missing, unexpected, shapes = caught.value.problems
    assert missing.startswith("init lacks stem.bias: ")
    assert unexpected.startswith("init also has extra, which the model lacks: ")
    assert "stem.weight (4, 3, 3, 3) and stem.weight (6, 3, 3, 3), norm.weight" in shapes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_order_counts_and_shapes_must_be_equal() -> None:
    state = trained().state_dict()
    del state["stem.bias"]
    with pytest.raises(BadInput) as caught:
        load_weights(make(), state, in_order=True)
    number, shapes = caught.value.problems
    assert "init has 7 tensors, and the model 8" in number
    assert "classifier.weight (10, 4) and classifier.bias (10,)" in shapes


def test_whole_numbers_are_no_weights() -> None:
    state = {name: value.long() for name, value in trained().state_dict().items()}
    with pytest.raises(BadInput, match=r"stem.weight torch.float32 and stem.weight torch.int64"):
        load_weights(make(), state)


def test_checkpoints_that_hold_a_network_are_opened(tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save({"epoch": 3, "model": state}, tmp_path / "last.pt")
    assert read_weights(tmp_path / "last.pt").keys() == state.keys()
    heads = {"heads/0.weight": torch.ones(2)}
    prefixed = {f"model/{name}": value for name, value in state.items()}
    for name in ("last.safetensors", "last.ckpt"):  # as a checkpoint of localprop
        save_file({**prefixed, **heads}, tmp_path / name)
        assert read_weights(tmp_path / name).keys() == state.keys()


class _Code:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (_Code, "ran", True)


def test_files_that_are_no_weights_are_refused_and_run_no_code(tmp_path: Path) -> None:
    torch.save({"stem.weight": _Code()}, tmp_path / "code.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"lr": 0.1, "stem": torch.zeros(2)}, tmp_path / "mixed.pt")
    torch.save({}, tmp_path / "empty.pt")
    (tmp_path / "damaged.pt").write_text("no weights")
    (tmp_path / "damaged.safetensors").write_text("no weights")
    refusals = {
        "code.pt": "cannot be read as weights",
        "list.pt": "holds list where named tensors",
        "mixed.pt": "holds float where named tensors",
        "empty.pt": "holds dict where named tensors",
        "damaged.pt": "cannot be read as weights",
        "damaged.safetensors": "cannot be read as weights",
        "absent.pt": "There is no file",
    }
    for name, message in refusals.items():
        with pytest.raises(BadInput, match=message):
            read_weights(tmp_path / name)
    assert not _Code.ran


def test_freezing_by_patterns() -> None:
    model = make()
    freeze(model, "stem.*, *.bias")
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trains == ["norm.weight", "classifier.weight"]


def test_patterns_that_match_nothing_or_everything_are_refused() -> None:
    model = make()
    with pytest.raises(BadInput) as caught:
        freeze(model, "stem.*,nope.*,other")
    first, second = caught.value.problems
    assert first.startswith("freeze='nope.*' matches none of the parameters, which are stem.weight")
    assert second.startswith("freeze='other' matches none")
    with pytest.raises(BadInput, match="matches all 6 parameters"):
        freeze(model, "*.weight,*.bias")
    assert all(parameter.requires_grad for parameter in model.parameters())
