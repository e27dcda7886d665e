"""What a stage leaves out: modules that it does not run, and memory of parameters."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

import localprop as lp
from localprop.schedule.stage import Stage, list_idle, released
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring


def wire_chain(model: nn.Sequential) -> Wiring:
    layers = lp.layers_of(model, torch.zeros(2, 4))
    return wire(lp.greedy(), lp.Partition.uniform(layers, len(layers)))


def make_chain() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)))


def test_idle_modules_are_those_of_other_layers_and_their_heads() -> None:
    model = make_chain()
    wiring = wire_chain(model)
    idle = list_idle(wiring, Stage(range(1, 3)), model)
    inside = {id(each) for module in idle for each in module.modules()}
    for layer, block in enumerate(model):
        assert {id(each) in inside for each in block.modules()} == {layer in (0, 3)}
    heads = {key: id(head) in inside for key, head in wiring.heads.items()}
    assert heads == {"0": True, "1": False, "2": False, "3": True}


def test_a_module_with_a_parameter_of_the_stage_is_not_idle() -> None:
    model = make_chain()
    first, second, third = (model.get_submodule(f"{block}.0") for block in range(3))
    third.weight = first.weight
    wiring = wire_chain(model)
    idle = list_idle(wiring, Stage(range(2, 4)), model)
    inside = {id(each) for module in idle for each in module.modules()}
    assert id(first) not in inside
    assert id(second) in inside


def list_data(model: nn.Module) -> list[tuple[int, Tensor]]:
    return [(each.data_ptr(), each.detach().clone()) for each in model.parameters()]


def test_released_parameters_come_back_even_after_a_failure() -> None:
    model = make_chain()
    wiring = wire_chain(model)
    before = list_data(model)
    with suppress(KeyError), released(wiring, Stage(range(1, 3)), model):
        gone = [bool(each.isnan().all()) for each in model.parameters()]
        assert gone == [True] * 2 + [False] * 4 + [True] * 2
        weight = next(model.parameters())
        assert weight.untyped_storage().nbytes() == weight.itemsize
        raise KeyError
    for (place, data), (place_now, data_now) in zip(before, list_data(model), strict=True):
        assert place == place_now
        assert torch.equal(data, data_now)
