"""How the cases of Hugging Face are made: models as they are. Batches are dictionaries with masks,
padding has labels of -100, the loss and the outputs are their own. Dropout is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Case
from torch import Tensor, nn

import localprop as lp

WORDS, WIDTH, BLOCKS, ATTENTION, LENGTH, COUNT, LABELS = 64, 32, 4, 4, 12, 3, 3
Batch = dict[str, Any]

ENDS = {"bos_token_id": 0, "eos_token_id": 2}
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": ATTENTION,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
DECODER = TEXT | ENDS | {"num_key_value_heads": 2}
PLAIN = {k: TEXT[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")} | ENDS
GPT2 = ENDS | {
    "vocab_size": WORDS,
    "n_embd": WIDTH,
    "n_layer": BLOCKS,
    "n_head": ATTENTION,
    "n_positions": 64,
    "pad_token_id": 1,
}
BART = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "encoder_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_attention_heads": ATTENTION,
    "decoder_attention_heads": ATTENTION,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
SOUND = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": ATTENTION,
    "intermediate_size": 64,
    "vocab_size": WORDS,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "mask_time_length": 2,
}
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": ATTENTION,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
CLASSES = {"num_labels": LABELS}
PARTS = ("text", "vision")  # of configurations


# --- batches --------------------------------------------------------------------------------------


def make_ids() -> Tensor:
    return torch.randint(3, WORDS, (COUNT, LENGTH))


def make_mask() -> Tensor:
    mask = torch.ones(COUNT, LENGTH, dtype=torch.long)
    mask[1, -3:] = 0
    return mask


def make_text(**more: Any) -> Batch:
    """Padded sequences with one label each."""
    labels = torch.arange(COUNT) % LABELS
    return {"input_ids": make_ids(), "attention_mask": make_mask(), "labels": labels, **more}


def make_tokens(**more: Any) -> Batch:
    """Padded sequences whose words are their labels."""
    ids, mask = make_ids(), make_mask()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
        **more,
    }


def make_language() -> Batch:
    return make_tokens(use_cache=False)


def make_tags() -> Batch:
    batch = make_tokens()
    return batch | {"labels": (make_ids() % LABELS).masked_fill(batch["labels"] < 0, -100)}


def make_pictures(size: int = 32) -> Batch:
    return {
        "pixel_values": torch.randn(COUNT, 3, size, size),
        "labels": torch.arange(COUNT) % LABELS,
    }


def make_sound() -> Batch:
    return {
        "input_values": torch.randn(COUNT, 800),
        "attention_mask": torch.ones(COUNT, 800, dtype=torch.long),
        "labels": torch.arange(COUNT) % LABELS,
    }


def make_ended_text() -> Batch:
    """Sequences that end with the token at which an encoder-decoder classifies."""
    ids = make_ids()
    ids[:, -1] = 2
    return {"input_ids": ids, "labels": torch.arange(COUNT) % LABELS}


def make_boxes(size: int) -> Batch:
    """Images with objects: labels are a list of dictionaries."""
    labels = [
        {"class_labels": torch.tensor([0, 1]), "boxes": torch.rand(2, 4) * 0.3 + 0.2}
        for _ in range(COUNT)
    ]
    return {"pixel_values": torch.randn(COUNT, 3, size, size), "labels": labels}


# --- cases ----------------------------------------------------------------------------------------


def turn_off_dropout(config: Any) -> Any:
    """A configuration without dropout and without masking of sound."""
    parts: tuple[Any, ...] = tuple(getattr(config, f"{part}_config", None) for part in PARTS)
    for each in (config, *parts):
        for name, value in [*getattr(each, "__dict__", {}).items()]:
            if "drop" in name and isinstance(value, float):
                setattr(each, name, 0.0)
        if hasattr(each, "apply_spec_augment"):
            each.apply_spec_augment = False
    return config


def compute_own_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def make_case(
    model: str,
    config: str,
    make_batch: Callable[[], Batch],
    options: dict[str, Any],
    blocks: int = BLOCKS,
    **more: Any,
) -> Callable[[], Case]:
    """A constructor of a case.

    Args:
        model: the name of the model's class.
        config: that of its configuration's class.
        make_batch: makes a batch.
        options: of the configuration.
        blocks: the number of blocks.
        more: fields of the case.
    """

    def build() -> Case:
        import transformers

        own = dict(options)
        experts = own.pop("experts_implementation", None)
        for name, value in own.items():
            if name == "backbone_config":
                own[name] = transformers.ResNetConfig(**value)
        found = turn_off_dropout(getattr(transformers, config)(**own))
        if experts is not None:
            found._experts_implementation = experts
        fields = {"own_loss": compute_own_loss, **more}
        return Case(getattr(transformers, model)(found), make_batch(), blocks=blocks, **fields)

    return build


def make_language_model(name: str, options: dict[str, Any], config: str = "") -> Callable[[], Case]:
    return make_case(
        f"{name}ForCausalLM", config or f"{name}Config", make_language, options, causal=True
    )


def make_text_model(name: str, options: dict[str, Any]) -> Callable[[], Case]:
    return make_case(
        f"{name}ForSequenceClassification", f"{name}Config", make_text, {**options, **CLASSES}
    )


def make_vision_model(name: str, options: dict[str, Any], blocks: int = 4) -> Callable[[], Case]:
    return make_case(
        f"{name}ForImageClassification",
        f"{name}Config",
        make_pictures,
        {**options, **CLASSES},
        blocks,
    )


def judge_by_squares(output: str) -> dict[str, Any]:
    """A task for models whose own loss is that of no single tensor, and no loss of their own."""

    def forward(model: nn.Module, batch: Any) -> Any:
        # Without labels, which are lists of dictionaries for detection.
        return getattr(model(**{k: v for k, v in batch.items() if k != "labels"}), output)

    def loss(values: Tensor, batch: Any) -> Tensor:
        return values.square().mean()

    return {
        "task": lp.task(forward=forward, loss=loss, targets=lambda batch: batch),
        "own_loss": None,
    }
