"""Hugging Face models as they are: dict batches with masks and labels of -100, their own loss.

Gradients are those of one plain forward per loss, in which what lies before the loss's credit runs
without gradients. Nothing is cut, detached or replaced there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.rule.table import Entry, T
from tests.helpers.reference import sgd

transformers = pytest.importorskip("transformers")

WORDS, WIDTH, SAMPLES, LENGTH = 64, 32, 3, 12
SIZES = {"vocab_size": WORDS, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
TEXT = SIZES | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
Build = Callable[[], nn.Module]

MODELS: dict[str, Build] = {
    # A classifier of padded sequences.
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**TEXT, num_labels=3)
    ),
    # The output layer is the embedding.
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **SIZES, n_embd=WIDTH, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    ),
    # Blocks return tuples.
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(**SIZES, hidden_size=WIDTH, n_layer=4, n_head=4)
    ),
    # The experts of a token depend on values.
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4)
    ),
}
REACH = {"greedy": 0, "one module back": 1, "full reach": 3}


def make_batch(name: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, WORDS, (SAMPLES, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    if name == "bert":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(SAMPLES)}
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}


def train_back(reach: int) -> lp.Rule:
    """Each loss trains its own module, and so many before it."""

    def trains(loss: int, layer: int, module: int) -> Entry | None:
        return T if loss - reach <= module <= loss else None

    return lp.Rule(lambda partition: lp.make_table(partition, trains))


def compute_gradients(learner: lp.Learner, batch: Any) -> dict[str, Tensor]:
    """The gradients of all parameters, by plain forwards."""
    layers, task = learner.partition.layers, learner.wiring.task
    named = dict(learner.named_parameters())
    total: dict[str, Tensor] = {}
    for k, row in enumerate(learner.wiring.table.rows):
        first = next(layer for layer, entry in enumerate(row) if entry is not None)
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append(output if isinstance(output, Tensor) else output[0])

        handles = []
        if first:
            start = learner.model.get_submodule(layers.names[first - 1])
            handles.append(
                start.register_forward_hook(lambda *_: torch.set_grad_enabled(True) and None)
            )
        is_last = k == len(learner.partition.modules) - 1
        end = layers.names[learner.partition.modules[k][-1]]
        if not is_last:
            handles.append(learner.model.get_submodule(end).register_forward_hook(keep))
        with torch.set_grad_enabled(first == 0):
            seen.append(task.forward(learner.model, batch))
        for handle in handles:
            handle.remove()
        head: Any = learner.heads[str(k)]
        inputs = lp.LossInputs(batch["input_ids"], batch["labels"], batch=batch)
        loss = head["loss"](seen[0], head["aux"], inputs)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                total[name] = total[name] + gradient if name in total else gradient
    return total


@pytest.mark.parametrize("reach", REACH.values(), ids=REACH)
@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str, reach: int) -> None:
    torch.manual_seed(0)
    model, batch = MODELS[name]().train(), make_batch(name)
    learner = lp.Learner(model, train_back(reach), modules=4, optimizer=sgd, sample=batch)
    losses = learner.backward(batch)
    with torch.no_grad():
        own = model(**batch).loss
    torch.testing.assert_close(losses.task, own)
    expected = compute_gradients(learner, batch)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter_name, parameter in learner.named_parameters():
        gradient, wanted = parameter.grad, expected.get(parameter_name)
        if gradient is None or wanted is None:
            assert gradient is None or not gradient.any(), parameter_name
            assert wanted is None or not wanted.any(), parameter_name
            continue
        # Some gradients are 0 but for rounding: the biases of attention's keys.
        floor = float(wanted.abs().max()) + 1e-4 * largest
        assert float((gradient - wanted).abs().max()) < 1e-5 * floor, parameter_name


def test_batches_of_other_lengths() -> None:
    """Padded to another length, and a short last batch."""
    torch.manual_seed(0)
    batch = make_batch("gpt2")
    learner = lp.Learner(MODELS["gpt2"](), lp.greedy(), modules=4, optimizer=sgd, sample=batch)
    shorter = {
        key: value[:2, :7] if isinstance(value, Tensor) else value for key, value in batch.items()
    }
    for each in (batch, shorter, batch):
        assert all(torch.isfinite(loss) for loss in learner.step(each))
    assert learner.predict(shorter).shape == (2, 7, WORDS)


def test_micro_batches_weigh_by_labels_that_count() -> None:
    torch.manual_seed(0)
    batch = make_batch("gpt2")
    batch["labels"][0, 2:] = -100
    model = MODELS["gpt2"]()
    gradients = []
    for microbatches in (1, 3):
        learner = lp.Learner(
            model,
            lp.end_to_end(),
            modules=2,
            optimizer=sgd,
            sample=batch,
            microbatches=microbatches,
        )
        learner.backward(batch)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_contexts_reach_a_network_that_takes_and_returns_dictionaries() -> None:
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 1, 1], num_labels=3
        )
    )
    batch = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.arange(4) % 3}
    learner = lp.Learner(model, lp.contsup(), modules=3, optimizer=sgd, sample=batch)
    for parameter in learner.encoders.parameters():
        nn.init.normal_(parameter, std=0.1)  # so that contexts can be seen
    output = learner.network.train()(pixel_values=batch["pixel_values"])
    assert not output.logits.equal(model(pixel_values=batch["pixel_values"]).logits)
    loss = learner.backward(batch).task
    torch.testing.assert_close(loss, functional.cross_entropy(output.logits, batch["labels"]))
    model.eval()
    expected = learner.network.eval()(pixel_values=batch["pixel_values"]).logits
    assert learner.predict(batch).equal(expected)


def test_a_reading_of_memory_says_for_which_shapes_it_holds() -> None:
    model, batch = MODELS["bert"](), make_batch("bert")
    learner = lp.Learner(model, lp.greedy(), modules=2, optimizer=sgd, sample=batch)
    assert f"input_ids: an int64 tensor ({SAMPLES}, {LENGTH})" in learner.memory().batch
