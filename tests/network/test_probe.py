"""The probe run: it leaves the model alone, and refuses what does not run on the sample."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.network.probe import copy_to_meta, make_meta_input, trace_forward
from tests.helpers.towers import Pair, Tower, build_preactivated


def test_the_model_is_not_touched() -> None:
    model = lp.models.resnet8()
    before = copy.deepcopy(model.state_dict())
    model.eval()
    lp.layers_of(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training or module._forward_hooks for module in model.modules())


def test_a_trace_lists_calls_in_the_order_of_their_returns() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Identity()), nn.Linear(6, 3))
    trace = trace_forward(copy_to_meta(model), make_meta_input(torch.zeros(2, 6)))
    assert [call.name for call in trace.calls] == ["0.0", "0.1", "0", "1"]
    assert [call.creates_output for call in trace.calls] == [True, False, True, True]
    assert [call.parent.name if call.parent else "" for call in trace.calls] == ["0", "0", "", ""]


def test_a_trace_knows_which_outputs_are_written_into() -> None:
    meta, inputs = (
        copy_to_meta(build_preactivated(inplace=True)),
        make_meta_input(torch.zeros(2, 6)),
    )
    calls = trace_forward(meta, inputs.double()).calls
    modified = [call.name for call in calls if call.modified_in_place]
    assert modified == ["0", "1.linear", "1", "2.linear", "2", "3.linear", "3"]


def test_a_copy_on_meta_keeps_ties_and_asks_for_every_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)).requires_grad_(False)
    model[1].weight = model[0].weight
    meta = copy_to_meta(model.eval())
    first, second, norm = meta.children()
    assert first.weight is second.weight
    assert norm.running_mean is not None
    assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))
    assert all(parameter.requires_grad for parameter in meta.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (meta.training, model.training) == (True, False)


def test_a_model_that_returns_a_tuple_gets_advice() -> None:
    with pytest.raises(
        lp.BadInput, match=r"Pair returned a tuple of 2.*wrap the model.*`\.logits`"
    ):
        lp.layers_of(Pair(), torch.zeros(2, 6))


def test_a_sample_that_does_not_fit() -> None:
    with pytest.raises(lp.BadInput, match=r"Tower could not run on a sample of shape \(2, 5\)"):
        lp.layers_of(Tower(lambda b, x: b[0](x)), torch.zeros(2, 5, dtype=torch.float64))


def test_a_compiled_model_gets_advice() -> None:
    class Wrapper(nn.Module):
        """What torch.compile returns, as far as the probe looks at it."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no graph for meta tensors")

    with pytest.raises(lp.BadInput, match=r"before torch\.compile, or .* with model\.compile\(\)"):
        lp.layers_of(Wrapper(nn.Linear(6, 3)), torch.zeros(2, 6))
