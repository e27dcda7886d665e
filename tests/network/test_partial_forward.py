"""A range of layers that runs alone: what it skips, what it puts back, and what it cannot see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.network.partial_forward import find_isolation_problems, skip_layers
from localprop.tasks.batch import Batch
from tests.helpers.bundles import BundledLanguageModel
from tests.helpers.language_models import make_padded_batches
from tests.helpers.towers import Tower, build_preactivated, forward_in_order


def find_layers(model: nn.Module) -> lp.Layers:
    return lp.layers_of(model, torch.zeros(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_forward_from_a_later_layer_gives_the_same_output(first: int, inplace: bool) -> None:
    model = build_preactivated(inplace)
    inputs = torch.randn(5, 6, dtype=torch.float64)
    at_cut: list[Tensor] = []
    end = model.get_submodule(find_layers(model).names[first - 1])
    handle = end.register_forward_hook(lambda module, args, output: at_cut.append(output.clone()))
    expected = model(inputs)
    handle.remove()
    batch = Batch.of(inputs)
    with skip_layers(model, find_layers(model), first, batch, lambda: {0: at_cut[0].clone()}):
        assert torch.equal(model(torch.full_like(inputs, torch.nan)), expected)


def test_all_that_crosses_a_cut_is_what_a_later_layer_begins_with() -> None:
    """Tuples and dicts of tensors, some without a gradient; a block writes into one of them."""
    model, (ids, _) = BundledLanguageModel(), make_padded_batches()[1]
    layers, batch, forward = lp.layers_of(model, ids), Batch.of(ids), lp.Task().forward
    without = replace(layers, constants=((),) * len(layers))
    for first in range(1, len(layers)):
        later = range(first, len(layers))
        assert not find_isolation_problems(model, layers, later, forward, batch)
        missed = find_isolation_problems(model, without, later, forward, batch)
        assert len(missed) == (len(layers.constants[first - 1]) > 0)


def test_skipped_layers_do_not_run() -> None:
    tower = Tower(forward_in_order)
    layers = find_layers(tower)
    ran: list[str] = []
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    inputs = torch.zeros(5, 6, dtype=torch.float64)
    batch = Batch.of(inputs)
    with skip_layers(tower, layers, 2, batch, lambda: {0: torch.zeros_like(inputs)}):
        tower(inputs)
    assert ran == ["blocks.2.linear", "blocks.3.linear", "head"]


def test_a_forward_of_the_users_on_an_instance_comes_back() -> None:
    tower = Tower(forward_in_order)
    layers = find_layers(tower)

    def double(x: Tensor) -> Tensor:
        return 2 * x

    tower.blocks[0].forward = double
    with skip_layers(tower, layers, 1, Batch.of(torch.zeros(2, 6)), lambda: {}):
        assert tower.blocks[0].forward is not double
    assert tower.blocks[0].forward is double
    assert "forward" not in vars(tower.blocks[1])


def test_data_that_passes_a_cut_without_a_gradient_is_refused() -> None:
    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        first: Tensor = blocks[0](x)
        return forward_in_order(blocks[1:], first) + first.detach()

    model = Tower(forward).train()
    layers = find_layers(model)
    like, forward_batch = Batch.of(torch.zeros(4, 6, dtype=torch.float64)), lp.Task().forward
    # It begins where the data is made.
    assert not find_isolation_problems(model, layers, range(1, 4), forward_batch, like)
    (problem,) = find_isolation_problems(model, layers, range(2, 4), forward_batch, like)
    assert "'blocks.2' to 'blocks.3' give another output when they run alone" in problem
    assert model.training
