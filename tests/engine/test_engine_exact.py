"""The engine against the reference: float64, momentum, two steps, every rule on every network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional

import localprop as lp
from tests.helpers import reference
from tests.helpers.layers import cut_once
from tests.helpers.reference import (
    ANY_NETWORK,
    NETWORKS,
    Case,
    Context,
    ReferenceModel,
    assert_moved,
    assert_same_state,
    aux_of,
    batches_of,
    children_of,
    network,
    prefixed,
    sgd,
)

COMBINED = lp.Rule(
    lp.BackwardLinks(layers=1, weight=0.5), lp.SampledLayers(2), context=lp.ContextSupply(True, 2)
)
COMBINED_INTERLOCKED = lp.Rule(lp.InterlockingCredit(wise=2), context=lp.ContextSupply(previous=2))

CONVOLUTIONAL: dict[str, Case] = {
    "contsup E": Case(lp.contsup(True, 0), reference.greedy, Context(image=True)),
    "contsup R1": Case(lp.contsup(False, 1), reference.greedy, Context(previous=1)),
    "contsup R2": Case(lp.contsup(False, 2), reference.greedy, Context(previous=2)),
    "contsup R1E": Case(lp.contsup(), reference.greedy, Context(True, 1)),
    "contsup R3E": Case(lp.contsup(True, 3), reference.greedy, Context(True, 3)),
    "auglocal(1)": Case(lp.auglocal(1), reference.auglocal(1)),
    "auglocal(2), not joined": Case(lp.auglocal(2, 0, joined=False), reference.auglocal(0)),
    "combined": Case(COMBINED, reference.backlink(1, 0.5), Context(True, 2)),
    "combined, interlocked": Case(
        COMBINED_INTERLOCKED, reference.interlocking(2), Context(previous=2)
    ),
}
RULES = ANY_NETWORK | CONVOLUTIONAL
PAIRS = [(name, rule) for name in ("mlp", "timm_vit") for rule in ANY_NETWORK]
PAIRS += [("resnet14", rule) for rule in RULES]
PAIRS += [("resnet8", rule) for rule in ("backlink(1)", "contsup R1E", "auglocal(1)")]
PAIRS += [("torchvision_resnet18", rule) for rule in ("backlink(1)", "interlocking(2)", "combined")]


def compare(
    name: str,
    case: str,
    *,
    modules: int = 4,
    recompute: bool = False,
    microbatches: int = 1,
    tolerance: float = 1e-10,
) -> None:
    """Losses of each step, and in the end the model, the heads and the encoders, are equal."""
    rule, method, context = RULES[case]
    model, (*batches, _) = network(name)  # the second of two shows the momentum
    before = copy.deepcopy(model)
    learner = lp.Learner(
        model,
        rule,
        partition=cut_once(model, batches[0], modules),
        optimizer=sgd,
        sample=batches[0],
        recompute=recompute,
        microbatches=microbatches,
    )
    expected = ReferenceModel.of(learner, NETWORKS[name][1], context)
    reference.train(expected, method, batches, microbatches=microbatches)
    for batch, expected_losses in zip(batches, expected.losses, strict=True):
        losses = learner.step(batch)
        assert losses.modules == tuple(expected_losses)
        for loss, k in zip(losses, losses.modules, strict=True):
            assert loss.item() == pytest.approx(expected_losses[k].item(), abs=tolerance)
    assert_moved(before, model)
    assert_equals(learner, expected, tolerance)


def assert_equals(learner: lp.Learner, expected: ReferenceModel, tolerance: float) -> None:
    assert_same_state(learner.model, expected.model, tolerance)
    for k, head in expected.heads.items():
        assert_same_state(aux_of(learner, k), head, tolerance)
    for m, encoders in expected.encoders.items():
        found = children_of(learner.encoders, str(m))
        for encoder, expected_encoder in zip(found, encoders, strict=True):
            assert_same_state(encoder, expected_encoder, tolerance)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_engine_equals_reference(name: str, case: str) -> None:
    compare(name, case)


@pytest.mark.parametrize("case", ["backlink(1)", "interlocking(3)", *CONVOLUTIONAL])
def test_one_layer_per_module(case: str) -> None:
    compare("resnet14", case, modules=7)


@pytest.mark.parametrize(
    ("name", "case"),
    [("mlp", case) for case in ANY_NETWORK]
    + [("resnet14", case) for case in RULES]
    + [("timm_vit", "backlink(1)"), ("torchvision_resnet18", "contsup R1E")],
)
def test_recomputed_segments_equal_reference(name: str, case: str) -> None:
    """Exact, including running statistics: a recompute must not update them twice."""
    compare(name, case, recompute=True)


@pytest.mark.parametrize(
    "case", ["greedy", "backlink(2, 0.5)", "interlocking(2)", "end_to_end", "combined"]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_uneven_microbatches_weigh_their_share(case: str, recompute: bool) -> None:
    """Seven samples in micro-batches of 3, 2 and 2."""
    compare("resnet14", case, microbatches=3, recompute=recompute)


@pytest.mark.parametrize("case", ["backlink(1)", "interlocking(2)", "end_to_end", "combined"])
def test_recomputed_is_bit_equal_to_stored(case: str) -> None:
    networks = []
    for recompute in (False, True):
        model, batches = network("resnet14")
        learner = lp.Learner(
            model,
            RULES[case].rule,
            partition=cut_once(model, batches[0], 4),
            optimizer=sgd,
            sample=batches[0],
            recompute=recompute,
        )
        for batch in batches:
            learner.step(batch)
        networks.append(learner.network)
    stored, recomputed = networks
    assert_same_state(stored, recomputed)


SWIN = {"img_size": 56, "depths": (2, 2, 2, 2), "drop_path_rate": 0.0}


@pytest.mark.parametrize(
    ("name", "options"), [("convnext_atto", {}), ("swin_tiny_patch4_window7_224", SWIN)]
)
def test_gradients_of_models_whose_layers_are_not_written_out(
    name: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options).double()
    expected, ((images, targets), *_) = copy.deepcopy(model), batches_of((3, 56, 56), 10, size=2)
    learner = lp.Learner(
        model, lp.interlocking(wise=4), modules=4, optimizer=sgd, sample=(images, targets)
    )
    learner.backward((images, targets))
    torch.autograd.backward(functional.cross_entropy(expected(images), targets))
    for (parameter, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10, msg=prefixed(parameter))
