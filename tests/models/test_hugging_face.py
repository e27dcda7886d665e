"""Networks of transformers by their model type or configuration: untrained, never downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import localprop as lp
from localprop.errors import BadInput
from localprop.models.sample import create_without_data, make_zero_batch

pytest.importorskip("transformers")

SMALL = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32"
T5 = "t5,d_model=16,d_kv=8,d_ff=32,num_layers=2,num_heads=2,vocab_size=50"


@pytest.mark.parametrize(
    ("name", "shape", "kind", "names", "targets"),
    [
        (f"llama,vocab_size=50,{SMALL}", (8,), "LlamaForCausalLM", "input_ids", (4, 8)),
        (f"bert,vocab_size=50,{SMALL}", (8,), "BertForMaskedLM", "input_ids", (4, 8)),
        (T5, (8,), "T5ForConditionalGeneration", "input_ids", (4, 8)),
        (f"vit,patch_size=4,{SMALL}", (1, 8, 8), "ViTForImageClassification", "pixel_values", (4,)),
    ],
)
def test_kinds(
    name: str, shape: tuple[int, ...], kind: str, names: str, targets: tuple[int, ...]
) -> None:
    model = create_without_data(f"hf:{name}", 7, shape)
    assert type(model).__name__ == kind
    assert all(parameter.is_meta for parameter in model.parameters())
    batch = make_zero_batch(model, shape, 4)
    assert [*batch] == [names, "labels"]
    assert batch["labels"].shape == targets
    layers = lp.check(model, batch).layers
    assert layers is not None
    outputs = 7 if kind.startswith("ViT") else 50
    assert layers.output_shape == (*targets, outputs)


def test_a_configuration_of_a_file_with_an_architecture(tmp_path: Path) -> None:
    values: dict[str, Any] = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2}
    values |= {"vocab_size": 50, "architectures": ["GPT2ForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps({**values, "pad_token_id": 0}))
    for path in (tmp_path, tmp_path / "config.json"):
        model = create_without_data(f"hf:{path}", 7, (8,))
        assert type(model).__name__ == "GPT2ForSequenceClassification"
        assert make_zero_batch(model, (8,), 4)["labels"].shape == (4,)


def test_a_model_trains_on_tokens_and_targets() -> None:
    model = lp.models.create_model(f"hf:llama,vocab_size=50,{SMALL}", 50, (8,))
    batch = torch.randint(50, (4, 8)), torch.randint(50, (4, 8))
    learner = lp.Learner(
        model,
        lp.greedy(),
        modules=2,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        sample=batch,
        task=lp.Classification(dim=-1),
        recompute=True,
    )
    assert torch.isfinite(torch.stack([*learner.step(batch)])).all()


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("lama", (8,), "did you mean llama"),
        ("some/model", (8,), "nothing is downloaded"),
        ("", (8,), "nothing is downloaded"),
        ("llama,3", (8,), "without a name"),
        (f"llama,vocab_size=5,{SMALL}", (8,), "a vocabulary of 5, but the data have 7 tokens"),
        ("llama,hidden_size='x'", (8,), "cannot be"),
        ("bert,hidden_size=17", (8,), "cannot be built"),
        ("llama", (3, 8, 8), "no usual head for samples of (3, 8, 8)"),
        ("vit", (8,), "no usual head for samples of (8,)"),
    ],
)
def test_what_cannot_be_built(name: str, shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        create_without_data(f"hf:{name}", 7, shape)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"model_type": 3}', '{"model_type": "no"}', "{}"]
)
def test_damaged_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match="cannot be read"):
        create_without_data(f"hf:{tmp_path}", 7, (8,))


def test_a_configuration_runs_no_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    hostile = {"model_type": "no", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(hostile))
    with pytest.raises(BadInput, match="cannot be read"):
        create_without_data(f"hf:{tmp_path}", 7, (8,))
