"""Parameters that several layers share: trained by each use, stepped once, after the last one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

import localprop as lp
from localprop.cost.alive import check_values
from localprop.report.costs import measure_peak_bytes
from localprop.schedule.schedule import Op
from localprop.tasks.batch import Batch
from tests.helpers import reference
from tests.helpers.language_models import language_model
from tests.helpers.methods import METHODS
from tests.helpers.reference import NO_CONTEXT, Context, prefixed, sgd
from tests.helpers.small_resnet import BATCHES, build_network
from tests.helpers.tied import NETWORKS, TiedReference

RULES = {
    "greedy": (lp.greedy(), reference.greedy, NO_CONTEXT),
    "backlink(1)": (lp.backlink(), reference.backlink(1), NO_CONTEXT),
    "backlink(2, 0.5)": (lp.backlink(2, 0.5), reference.backlink(2, 0.5), NO_CONTEXT),
    "interlocking(2)": (lp.interlocking(2), reference.interlocking(2), NO_CONTEXT),
    "interlocking(3)": (lp.interlocking(3), reference.interlocking(3), NO_CONTEXT),
    "interlocking(9)": (lp.interlocking(9), reference.interlocking(9), NO_CONTEXT),
    "end_to_end": (lp.end_to_end(), reference.end_to_end, NO_CONTEXT),
    "contsup": (lp.contsup(), reference.greedy, Context(True, 1)),
}
PAIRS = [(name, rule) for name in NETWORKS for rule in RULES if rule != "contsup"]
PAIRS += [("convolutions", "contsup")]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"recompute": True},
    "micro-batches": {"microbatches": 3},
    "recomputed micro-batches": {"recompute": True, "microbatches": 2},
}
pairs = pytest.mark.parametrize(("name", "rule"), PAIRS)
variants = pytest.mark.parametrize("variant", VARIANTS)
networks = pytest.mark.parametrize("name", NETWORKS)


def make_learner(
    name: str, rule: lp.Rule, *, modules: int = 4, existing: bool = False, **options: Any
) -> lp.Learner:
    model = NETWORKS[name].build()
    optimizer = sgd(list(model.parameters())) if existing else sgd
    batch = NETWORKS[name].batches()[0]
    return lp.Learner(model, rule, modules=modules, optimizer=optimizer, sample=batch, **options)


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=tolerance, msg=prefixed(name)
        )


def gradients_of(learner: lp.Learner) -> dict[str, Tensor]:
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def parameters_of(learner: lp.Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.named_parameters()}


# --- against references -----------------------------------------------------------------------


@pairs
@variants
def test_gradients_and_steps_equal_the_reference(name: str, rule: str, variant: str) -> None:
    """The reference trains copies of the uses apart and adds their gradients."""
    options, (made, method, context) = VARIANTS[variant], RULES[rule]
    _, batches, to_layers, tied = NETWORKS[name]
    learner = make_learner(name, made, **options)
    expected = TiedReference(learner, to_layers, context)
    start = parameters_of(learner)
    parts = options.get("microbatches", 1)
    for batch in batches():
        gradients = expected.gradients(method, batch, parts)
        learner.backward(batch)
        check_equal(gradients_of(learner), gradients, 1e-12)
        learner.network.zero_grad()
        learner.heads.zero_grad()
        learner.step(batch)
        expected.step(gradients)
        check_equal(parameters_of(learner), expected.parameters(), 1e-12)
    assert learner.wiring.tied.keys() == {*tied}
    assert not any(torch.equal(start[each], parameters_of(learner)[each]) for each in tied)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@networks
def test_greedy_by_hand(name: str) -> None:
    """One forward per loss, detached at the module's input; shared parameters stay shared."""
    learner = make_learner(name, lp.greedy())
    model = copy.deepcopy(learner.model)
    layers = NETWORKS[name].to_layers(model)
    heads = [copy.deepcopy(reference.aux_of(learner, k)) for k in range(4)]
    optimizer = sgd([*model.parameters(), *(p for head in heads for p in head.parameters())])
    for x, y in NETWORKS[name].batches():
        for k, module in enumerate(learner.partition.modules):
            h = x
            with torch.no_grad():
                for layer in layers[: module[0]]:
                    h = layer(h)
            for layer in layers[module[0] : module[-1] + 1]:
                h = layer(h)
            torch.autograd.backward(cross_entropy(heads[k](h), y))
        optimizer.step()
        optimizer.zero_grad()
        learner.step((x, y))
    reference.assert_same_state(learner.model, model, 1e-13)


@networks
@pytest.mark.parametrize("modules", [1, 2, 4, 6])
def test_end_to_end_equals_a_plain_loop(name: str, modules: int) -> None:
    modules = min(modules, len(lp.layers_of(NETWORKS[name].build(), NETWORKS[name].batches()[0])))
    learner = make_learner(name, lp.end_to_end(), modules=modules)
    model = copy.deepcopy(learner.model)
    optimizer = sgd(model.parameters())
    for x, y in NETWORKS[name].batches():
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        learner.step((x, y))
    reference.assert_same_state(learner.model, model, 1e-15)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_adds_what_it_gives_the_uses_alone(method: Any) -> None:
    """The same network with parameters of their own has the gradients that are added here."""
    tied, untied = build_network().double(), build_network().double()
    names = ["3.conv1.weight", "4.conv2.weight", "5.conv1.weight"]
    for model in (tied, untied):
        weight = model.get_parameter(names[0])
        for name in names[1:]:
            own = weight if model is tied else nn.Parameter(weight.detach().clone())
            model.get_submodule(name.removesuffix(".weight")).register_parameter("weight", own)
    images, labels = BATCHES[0]
    batch, found = (images.double(), labels), []
    for model in (tied, untied):
        learner = lp.Learner(
            model,
            method(),
            modules=4,
            optimizer=lambda p: SGD(p, lr=0.1),
            sample=batch,
            normalization=lp.Normalization(),
        )
        before = parameters_of(learner)
        learner.step(batch)
        after = parameters_of(learner)
        found.append({name: after[name] - before[name] for name in after})
    together, apart = found
    apart[names[0]] += apart.pop(names[1]) + apart.pop(names[2])
    # After the step, some heads average or copy the network's parameters, which differ by then.
    for each in found:
        for name in [name for name in each if name.startswith("heads.")]:
            del each[name]
    check_equal(together, apart, 1e-12)


# --- one step, and when -----------------------------------------------------------------------


@pairs
@pytest.mark.parametrize("microbatches", [1, 2])
def test_each_parameter_is_in_one_optimizer(name: str, rule: str, microbatches: int) -> None:
    learner = make_learner(name, RULES[rule][0], microbatches=microbatches)
    owned = [id(p) for o in learner.optimizers for group in o.param_groups for p in group["params"]]
    assert len(owned) == len(set(owned))
    assert {*owned} == {id(p) for p in learner.parameters()}


@pairs
def test_a_shared_parameter_changes_once_after_its_last_backward(name: str, rule: str) -> None:
    learner = make_learner(name, RULES[rule][0])
    versions: dict[str, list[int]] = {each: [] for each in NETWORKS[name].tied}
    actions = []

    def observe(action: Any) -> None:
        actions.append(action)
        for each, seen in versions.items():
            seen.append(learner.model.get_parameter(each)._version)

    learner.step(NETWORKS[name].batches()[0], observe=observe)
    for each, (step, layers) in learner.wiring.tied.items():
        seen = [*versions[each], learner.model.get_parameter(each)._version]
        changes = [i for i in range(len(actions)) if seen[i] != seen[i + 1]]
        assert [str(actions[i]) for i in changes] == [f"{step}S"]
        users = {s for s, one in enumerate(learner.wiring.segments) if {*layers} & {*one.layers}}
        backwards = [
            i
            for i, a in enumerate(actions)
            if a.segment in users and a.op in (Op.F, Op.B, Op.W, Op.L)
        ]
        assert max(backwards) < changes[0]


def test_other_parameters_do_not_wait() -> None:
    """Whatever the credit, the step is left to the segment that has its last backward last."""
    untied, tied = (language_model(tied=tied)[0] for tied in (False, True))
    batch = language_model()[1][0]
    for rule, _, context in RULES.values():
        if context == NO_CONTEXT:
            one, other = (
                lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)
                for model in (untied, tied)
            )
            assert str(one.schedule) == str(other.schedule)


# --- optimizers, states, costs ----------------------------------------------------------------


@networks
@pytest.mark.parametrize("rule", ["greedy", "backlink(1)", "end_to_end"])
@variants
def test_an_existing_optimizer_steps_the_same(name: str, rule: str, variant: str) -> None:
    factory, existing = (
        make_learner(name, RULES[rule][0], existing=existing, **VARIANTS[variant])
        for existing in (False, True)
    )
    for batch in NETWORKS[name].batches():
        factory.step(batch)
        existing.step(batch)
    reference.assert_same_state(factory.network, existing.network)


@networks
@pytest.mark.parametrize("rule", ["greedy", "backlink(2, 0.5)", "interlocking(3)", "end_to_end"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_recomputed_is_bit_equal_to_stored(name: str, rule: str, microbatches: int) -> None:
    learners = [
        make_learner(name, RULES[rule][0], recompute=recompute, microbatches=microbatches)
        for recompute in (False, True)
    ]
    for batch in NETWORKS[name].batches():
        for learner in learners:
            learner.step(batch)
    reference.assert_same_state(learners[0].network, learners[1].network)


@networks
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("rule", ["greedy", "interlocking(2)"])
def test_a_resumed_step_is_bit_equal(name: str, rule: str, existing: bool) -> None:
    first, second = (
        make_learner(name, RULES[rule][0], existing=existing, microbatches=2) for _ in range(2)
    )
    one, two, three = NETWORKS[name].batches()[:3]
    first.step(one)
    first.step(two)
    state = first.state_dict()
    assert state is not None
    momenta = [key for key in state["optimizer"] if key.endswith("momentum_buffer")]
    assert {f"state.{each}.momentum_buffer" for each in NETWORKS[name].tied} <= {*momenta}
    second.load_state_dict(state)
    for expected, loss in zip(first.step(three), second.step(three), strict=True):
        assert torch.equal(expected, loss)
    reference.assert_same_state(first.network, second.network)


@pytest.mark.parametrize("existing", [False, True])
def test_a_network_is_tied_untied_and_frozen_on_the_way(existing: bool) -> None:
    learner = make_learner("chain", lp.greedy(), existing=existing)
    twin = make_learner("chain", lp.greedy(), existing=existing)
    batch = NETWORKS["chain"].batches()[0]
    for each in (learner, twin):
        each.step(batch)
    learner.rebuild()
    for each in (learner, twin):
        each.step(batch)
    reference.assert_same_state(learner.model, twin.model)

    layers = [learner.model.get_submodule(f"{i}") for i in range(6)]
    layers[4].register_parameter("weight", nn.Parameter(torch.randn(6, 6).double()))
    layers[0].get_parameter("weight").requires_grad_(False)
    if existing:
        with pytest.raises(lp.BadInput, match=r"lacks parameters of the model \(4\.weight\)"):
            learner.rebuild()
        learner.optimizers[0].add_param_group({"params": [layers[4].get_parameter("weight")]})
    learner.rebuild()
    assert learner.wiring.tied.keys() == {"2.bias"}
    before = parameters_of(learner)
    learner.step(batch)
    after = parameters_of(learner)
    kept = {name for name in after if torch.equal(before[name], after[name])}
    assert kept == {"0.weight"}


@networks
@pytest.mark.parametrize("rule", ["greedy", "backlink(1)", "interlocking(3)", "end_to_end"])
@variants
def test_only_what_the_plan_lists_is_alive(name: str, rule: str, variant: str) -> None:
    learner = make_learner(name, RULES[rule][0], **VARIANTS[variant])
    learner.step(NETWORKS[name].batches()[0])
    check_values(learner.engine, Batch.of(NETWORKS[name].batches()[1]), number=1)


@networks
@pytest.mark.parametrize("rule", ["greedy", "interlocking(2)", "end_to_end"])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_memory_is_predicted(name: str, rule: str, microbatches: int) -> None:
    learner = make_learner(name, RULES[rule][0], microbatches=microbatches)
    batch = NETWORKS[name].batches()[0]
    predicted = learner.memory(batch).peak_bytes
    learner.step(batch)
    assert measure_peak_bytes(learner, Batch.of(batch)) == pytest.approx(predicted, rel=0.005)


def test_explain_names_ties_and_when_they_are_stepped() -> None:
    text = make_learner("language model", lp.greedy()).explain()
    assert (
        "loss3 .|.|.|TT\n"
        "tied: 'embed.tokens.weight', used by the layers 0 'embed', 4 'blocks.3'; stepped once, by "
        "3S, after the last backward of them all\n"
    ) in text


# --- more -------------------------------------------------------------------------------------


def test_a_read_out_that_heads_copy_is_copied_after_its_step() -> None:
    model, batches = language_model(tied=True)
    learner = lp.Learner(model, lp.solo(), modules=4, optimizer=sgd, sample=batches[0])
    for batch in batches:
        learner.step(batch)
        for k in range(3):
            readout = reference.aux_of(learner, k).get_parameter("readout")
            assert torch.equal(readout, model.embed.tokens.weight)


def test_a_segment_whose_parameters_are_all_stepped_elsewhere() -> None:
    torch.manual_seed(0)
    first, second, last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    second.weight, second.bias = first.weight, first.bias
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last).double()
    batch = NETWORKS["chain"].batches()[0]
    plain = copy.deepcopy(model)
    own: dict[str, Any] = {"modules": 3, "optimizer": sgd, "sample": batch, "atomic": False}
    learner = lp.Learner(model, lp.greedy(), **own)
    assert str(learner.schedule) == "0F 0L 0H 0B 1F 1L 1H 1B 1S 2F 2L 2B 2S"
    learner.step(batch)
    learner = lp.Learner(plain, lp.end_to_end(), **own)
    assert str(learner.schedule) == "0F 1F 2F 2L 2B 2S 1B 0B 0S"
    learner.step(batch)
