"""Hugging Face's models: the task is found, and its loss is the model's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.network.own_loss import check_against_own_loss
from localprop.tasks.batch import Batch
from tests.helpers.reference import sgd

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 16, "pad_token_id": 1}  # fmt: skip
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}  # fmt: skip
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
      "decoder_start_token_id": 0}  # fmt: skip
SEGFORMER = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4,
             "decoder_hidden_size": 8, "num_labels": 3}  # fmt: skip
PATCHTST = {"num_input_channels": 2, "context_length": 16, "prediction_length": 4,
            "patch_length": 4, "patch_stride": 4, "num_hidden_layers": 1, "d_model": 8,
            "num_attention_heads": 2, "ffn_dim": 8}  # fmt: skip
SOUND = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "conv_dim": (8, 8), "conv_stride": (5, 2), "pad_token_id": 0,
         "conv_kernel": (10, 3), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2, "ctc_loss_reduction": "mean"}  # fmt: skip


def ids(low: int = 3) -> Tensor:
    return torch.randint(low, 32, (5, 9))


def padded() -> Tensor:
    labels = ids()
    labels[1, 3:] = labels[4] = -100
    return labels


def image() -> dict[str, Tensor]:
    labels = torch.randint(3, (5, 32, 32))
    labels[2, :9] = 255
    return {"pixel_values": torch.randn(5, 3, 32, 32), "labels": labels}


def spans() -> dict[str, Tensor]:
    start, end = torch.randint(9, (2, 5))
    return {"input_ids": ids(), "start_positions": start, "end_positions": end}


def sound() -> dict[str, Tensor]:
    mask = torch.ones(5, 400).long()
    mask[3, 300:] = 0
    labels = ids()[:, :4]
    labels[2, 2:] = -100
    return {"input_values": torch.randn(5, 400), "attention_mask": mask, "labels": labels}


def classes(targets: Tensor) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_ids": ids(), "labels": targets}


def words() -> dict[str, Any]:
    return {"input_ids": ids(), "labels": padded(), "use_cache": False}


def series() -> dict[str, Tensor]:
    return {"past_values": torch.randn(5, 16, 2), "future_values": torch.randn(5, 4, 2)}


CASES = [
    ("BertForSequenceClassification", SIZES, {"num_labels": 3}, classes(torch.arange(5) % 3),
     lp.Classification(dim=1)),
    ("BertForSequenceClassification", SIZES, {"num_labels": 1}, classes(torch.arange(5.0)),
     lp.Regression()),
    ("BertForSequenceClassification", SIZES, {"num_labels": 3}, classes(torch.ones(5, 3)),
     lp.MultiLabel()),
    ("BertForTokenClassification", SIZES, {"num_labels": 9}, lambda: classes(ids() % 9)(),
     lp.TokenClassification()),
    ("BertForMaskedLM", SIZES, {}, lambda: classes(padded())(), lp.MaskedLM()),
    ("BertForQuestionAnswering", SIZES, {}, spans, None),
    ("GPT2LMHeadModel", GPT2, {}, words, lp.CausalLM()),
    ("T5ForConditionalGeneration", T5, {}, words, lp.Classification(dim=-1)),
    ("SegformerForSemanticSegmentation", SEGFORMER, {}, image, lp.Segmentation()),
    ("PatchTSTForPrediction", PATCHTST, {}, series, lp.Regression()),
    ("Wav2Vec2ForCTC", SOUND, {}, sound, None),
]  # fmt: skip
each_case = pytest.mark.parametrize(
    ("name", "sizes", "options", "make", "task"),
    CASES,
    ids=[f"{name}{options.get('num_labels', '')}" for name, _, options, _, _ in CASES],
)


def build(name: str, **options: Any) -> Any:
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(**options)).train()


@each_case
def test_the_task_is_found_and_its_loss_is_the_models_own(
    name: str, sizes: Any, options: Any, make: Callable[[], Any], task: lp.Task | None
) -> None:
    model, batch = build(name, **sizes, **options), make()
    found = lp.find_task(model, batch)
    assert task is None or found == task
    check_against_own_loss(found, model, Batch.of(batch))
    model.eval()
    with torch.no_grad():
        output = found.forward(model, batch)
        loss, own = found.loss(output, batch), model(**batch).loss
    torch.testing.assert_close(loss, own, rtol=1e-6, atol=0)
    assert [*found.find_problems(batch, output.shape)] == []


@each_case
def test_the_models_own_losses_of_parts_sum_to_the_whole(
    name: str, sizes: Any, options: Any, make: Callable[[], Any], task: lp.Task | None
) -> None:
    model, batch = build(name, **sizes, **options).eval().double(), make()
    batch = {key: _widen(key, value) for key, value in batch.items()}
    found = lp.find_task(model, batch)
    whole, total = found.weight(batch), 0.0
    assert whole is not None
    for part in (slice(1), slice(1, 4), slice(4, 5)):
        piece = {k: v[part] if isinstance(v, Tensor) else v for k, v in batch.items()}
        weight = found.weight(piece)
        assert weight is not None
        if weight:  # one part has no labels
            with torch.no_grad():
                total += float(weight) / float(whole) * float(model(**piece).loss)
    with torch.no_grad():
        own = float(model(**batch).loss)
    assert total == pytest.approx(own, rel=1e-6)  # some models compute their loss in float32


def _widen(key: str, value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_a_sum_over_samples_has_no_known_weight() -> None:
    task = lp.find_task(build("Wav2Vec2ForCTC", **{**SOUND, "ctc_loss_reduction": "sum"}), sound())
    assert task.weight(sound()) is None


def test_a_subclass_is_known_by_its_base() -> None:
    class Mine(transformers.BertForMaskedLM):  # type: ignore[misc, name-defined]
        pass

    model = Mine(transformers.BertConfig(**SIZES))
    assert lp.find_task(model, {"input_ids": ids(), "labels": ids()}) == lp.MaskedLM()


def test_a_wrapped_model_is_known_by_its_targets() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build("BertForSequenceClassification", **SIZES, num_labels=3)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids=tokens).logits
            return logits

    batch = (ids(), torch.arange(5) % 3)
    model = Wrapped()
    task = lp.find_task(model, batch)
    assert task == lp.Classification()
    check_against_own_loss(task, model, Batch.of(batch))  # it has none
    assert task.loss(task.forward(model, batch), batch).ndim == 0


def test_models_without_a_usual_task_are_named() -> None:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "image_size": 16, "patch_size": 8}  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**SIZES, "eos_token_id": 2}, vision_config=vision)
    )
    batch = {"input_ids": ids(), "pixel_values": torch.randn(5, 3, 16, 16), "return_loss": True}
    with pytest.raises(lp.BadInput, match="No task is usual for CLIPModel"):
        lp.find_task(model, batch)


def test_another_loss_than_the_models_own_is_refused_and_leaves_no_trace() -> None:
    model = build("BertForSequenceClassification", **SIZES, num_labels=3)
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_hook(lambda module, inputs, output: module.calls.add_(1) and None)
    batch = {"input_ids": ids(), "labels": torch.arange(5) % 3}
    states = torch.get_rng_state(), random.getstate()
    with pytest.raises(lp.BadInput, match=r"BertForSequenceClassification itself computes \d"):
        check_against_own_loss(lp.Classification(label_smoothing=0.5), model, Batch.of(batch))
    assert model.training
    assert model.bert.training
    assert model.calls == 0
    assert model.config.problem_type is None
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]


def test_labels_that_are_shifted_twice_are_refused() -> None:
    model = build("GPT2LMHeadModel", **GPT2)
    with pytest.raises(lp.BadInput, match="GPT2LMHeadModel itself computes"):
        check_against_own_loss(lp.Classification(dim=-1), model, Batch.of(words()))


def test_a_compiled_model_is_known_by_what_it_runs() -> None:
    compiled: Any = torch.compile(build("GPT2LMHeadModel", **GPT2))
    assert lp.find_task(compiled, words()) == lp.CausalLM()


def test_a_learner_compares_the_task_that_it_finds() -> None:
    class Smoothed(transformers.BertForSequenceClassification):  # type: ignore[misc, name-defined]
        def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
            result = super().forward(*args, labels=labels, **kwargs)
            if labels is not None:
                result.loss = functional.cross_entropy(result.logits, labels, label_smoothing=0.3)
            return result

    model = Smoothed(transformers.BertConfig(**SIZES, num_labels=3))
    batch = {"input_ids": ids(), "labels": torch.arange(5) % 3}
    arguments: Any = {"modules": 1, "optimizer": sgd, "sample": batch}
    with pytest.raises(lp.BadInput, match="Smoothed itself computes"):
        lp.Learner(model, lp.greedy(), **arguments)
    lp.Learner(model, lp.greedy(), task=lp.Classification(label_smoothing=0.3), **arguments)
