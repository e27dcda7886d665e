"""Batches enter as users have them, and outputs are found."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.tasks.task import call_model, find_targets, read_output

X, Y = torch.randn(2, 3), torch.tensor([0, 1])


class Recorder(nn.Module):
    """Returns what it was called with."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


@pytest.mark.parametrize(
    ("batch", "called", "targets"),
    [
        (X, ((X,), {}), None),
        ((X,), ((X,), {}), None),
        ((X, Y), ((X,), {}), Y),
        ([X, Y], ((X,), {}), Y),
        (((X, 3, None), Y), ((X, 3, None), {}), Y),
        (({"a": X, "use_cache": False}, Y), ((), {"a": X, "use_cache": False}), Y),
        ({"a": X, "name": "no", "labels": Y}, ((), {"a": X, "name": "no"}), Y),
        (UserDict({"a": X, "label": Y}), ((), {"a": X}), Y),
        ({"past_values": X, "future_values": Y}, ((), {"past_values": X}), Y),
        ({"a": X, "labels": [{"boxes": X}]}, ((), {"a": X}), [{"boxes": X}]),
    ],
)  # fmt: skip
def test_batches_enter(batch: Any, called: Any, targets: Any) -> None:
    assert call_model(Recorder(), batch) == called
    assert find_targets(batch) is targets or find_targets(batch) == targets


def test_labels_stay_where_an_encoder_decoder_makes_inputs_of_them() -> None:
    model = Recorder(is_encoder_decoder=True)
    assert call_model(model, {"a": X, "labels": Y}) == ((), {"a": X, "labels": Y})
    assert call_model(model, ({"a": X}, Y)) == ((), {"a": X, "labels": Y})
    assert call_model(model, (X, Y)) == ((X,), {"labels": Y})
    given = {"a": X, "decoder_input_ids": Y, "labels": Y}
    assert call_model(model, given) == ((), {"a": X, "decoder_input_ids": Y})


@pytest.mark.parametrize("batch", [(X, X, Y), "text", None, ()])
def test_other_batches_are_refused(batch: Any) -> None:
    with pytest.raises(lp.BadInput, match=r"this one is .*forward=lambda model, batch: model"):
        call_model(Recorder(), batch)


@dataclasses.dataclass
class Output:
    logits: Tensor
    states: Tensor


@pytest.mark.parametrize(
    "result",
    [
        X,
        {"loss": torch.zeros(()), "logits": X, "states": X + 1},
        {"out": X, "aux": X + 1},
        {"loss": torch.zeros(()), "scores": X, "choice": Y},
        Output(X, X + 1),
        (X,),
        (X, Y, None),
        [None, X],
    ],
)  # fmt: skip
def test_outputs_are_found(result: Any) -> None:
    assert read_output(result) is X


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ((X, (X, X)), r"\(a float32 tensor \(2, 3\), .*model\(batch\[0\]\)\[0\]"),
        ({"a": X, "b": X}, r"\{a: a float32 tensor \(2, 3\), b: .*model\(\*\*batch\).xyz"),
        (Y, None),
        ((Y, None), "an? int64|None"),
        ("text", "returns str"),
    ],
)
def test_other_outputs_are_refused(result: Any, words: str | None) -> None:
    if words is None:  # a tensor is taken as it is
        assert read_output(result) is result
        return
    with pytest.raises(lp.BadInput, match=words):
        read_output(result)


def test_a_task_runs_the_model() -> None:
    assert lp.Task().forward(nn.Identity(), (X, Y)) is X
    assert lp.Task().targets((X, Y)) is Y
    assert lp.Task().targets({"a": X, "labels": [1]}) is None
    assert lp.Task().weight((X, Y)) is None
    with pytest.raises(NotImplementedError, match="Task has no loss"):
        lp.Task().loss(X, (X, Y))
