"""The engine against the reference: float64, momentum, three steps, every rule on every network that it takes."""

from __future__ import annotations

import copy

import pytest
import reference
import timm
import torch
from reference import NETWORKS, Method, Twin, assert_moved, assert_same_state, batches_of, network, sgd
from torch.nn import functional

import localprop as lp

COMBINED = lp.Rule(lp.BackwardLinks(layers=1, weight=0.5), lp.SampledLayers(2), context=lp.ContextSupply(True, 2))
COMBINED_INTERLOCKED = lp.Rule(lp.Interlocked(wise=2), context=lp.ContextSupply(previous=2))

# name -> the rule, its reference, and what the reference must know of the context
Case = tuple[lp.Rule, Method, dict[str, int]]
ANY_NETWORK: dict[str, Case] = {
    "greedy": (lp.greedy(), reference.greedy, {}),
    "greedy 0c1f": (lp.greedy(lp.Head(convs=0, linears=1)), reference.greedy, {}),
    "backlink(1)": (lp.backlink(), reference.backlink(1), {}),
    "backlink(2, 0.5)": (lp.backlink(2, 0.5), reference.backlink(2, 0.5), {}),
    "backlink(99)": (lp.backlink(99), reference.backlink(99), {}),
    "interlocking(1)": (lp.interlocking(1), reference.interlocking(1), {}),
    "interlocking(2)": (lp.interlocking(2), reference.interlocking(2), {}),
    "interlocking(3)": (lp.interlocking(3), reference.interlocking(3), {}),
    "interlocking(4)": (lp.interlocking(4), reference.interlocking(4), {}),
    "end_to_end": (lp.end_to_end(), reference.end_to_end, {}),
}
CONVOLUTIONAL: dict[str, Case] = {
    "contsup E": (lp.contsup(True, 0), reference.greedy, {"image": True}),
    "contsup R1": (lp.contsup(False, 1), reference.greedy, {"previous": 1}),
    "contsup R2": (lp.contsup(False, 2), reference.greedy, {"previous": 2}),
    "contsup R1E": (lp.contsup(), reference.greedy, {"image": True, "previous": 1}),
    "contsup R3E": (lp.contsup(True, 3), reference.greedy, {"image": True, "previous": 3}),
    "auglocal(1)": (lp.auglocal(1), reference.auglocal(1), {}),
    "auglocal(2), not joined": (lp.auglocal(2, 0, joined=False), reference.auglocal(0), {}),
    "combined": (COMBINED, reference.backlink(1, 0.5), {"image": True, "previous": 2}),
    "combined, interlocked": (COMBINED_INTERLOCKED, reference.interlocking(2), {"previous": 2}),
}
RULES = ANY_NETWORK | CONVOLUTIONAL
PAIRS = [(name, rule) for name in ("mlp", "timm_vit") for rule in ANY_NETWORK]
PAIRS += [("resnet14", rule) for rule in RULES]
PAIRS += [("resnet8", rule) for rule in ("backlink(1)", "contsup R1E", "auglocal(1)")]
PAIRS += [("torchvision_resnet18", rule) for rule in ("backlink(1)", "interlocking(2)", "combined")]


def compare(
    name: str, case: str, *, modules: int = 4, recompute: bool = False, parts: int = 1, tolerance: float = 1e-10
) -> None:
    rule, method, context = RULES[case]
    model, batches = network(name)
    before = copy.deepcopy(model)
    learner = lp.Learner(
        model, rule, modules=modules, optimizer=sgd, sample=batches[0], recompute=recompute, microbatches=parts
    )
    twin = Twin.of(learner, NETWORKS[name][1], **context)
    reference.train(twin, method, batches, parts=parts)

    for batch, expected in zip(batches, twin.losses, strict=True):
        losses = learner.step(batch)
        assert losses.modules == tuple(expected)
        for loss, k in zip(losses, losses.modules, strict=True):
            assert loss.item() == pytest.approx(expected[k].item(), abs=tolerance)

    assert_moved(before, model)
    assert_same_state(model, twin.model, tolerance)
    for k, head in twin.heads.items():
        assert_same_state(learner.heads[str(k)]["aux"], head, tolerance)
    for m, encoders in twin.encoders.items():
        for own, other in zip(learner.encoders[str(m)], encoders, strict=True):
            assert_same_state(own, other, tolerance)


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
    """Exact, running statistics included: a second forward must not count twice."""
    compare(name, case, recompute=True)


@pytest.mark.parametrize("case", ["greedy", "backlink(2, 0.5)", "interlocking(2)", "end_to_end", "combined"])
@pytest.mark.parametrize("recompute", [False, True])
def test_uneven_microbatches_weigh_their_share(case: str, recompute: bool) -> None:
    """Seven samples in parts of 3, 2 and 2."""
    compare("resnet14", case, parts=3, recompute=recompute)


@pytest.mark.parametrize("case", ["backlink(1)", "interlocking(2)", "end_to_end", "combined"])
def test_recomputed_is_bit_equal_to_stored(case: str) -> None:
    states = []
    for recompute in (False, True):
        model, batches = network("resnet14")
        learner = lp.Learner(model, RULES[case][0], modules=4, optimizer=sgd, sample=batches[0], recompute=recompute)
        for batch in batches:
            learner.step(batch)
        states.append(learner.network)
    assert_same_state(*states)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (2, 2, 2, 2), "drop_path_rate": 0.0}),
    ],
)
def test_gradients_of_models_whose_layers_are_not_written_out(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options).double()
    twin, ((images, targets), *_) = copy.deepcopy(model), batches_of((3, 56, 56), 10, size=2)
    learner = lp.Learner(model, lp.interlocking(wise=4), modules=4, optimizer=sgd, sample=(images, targets))
    learner.backward((images, targets))
    functional.cross_entropy(twin(images), targets).backward()
    for (parameter, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10, msg=lambda m, p=parameter: f"{p}: {m}")
