"""Tiny models of transformers, and texts of unequal lengths."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

WORDS, CLASSES = 16, 3


def make_language_model() -> nn.Module:
    """Two blocks without dropout; the output layer is the embedding."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    options |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    options |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.GPT2Config(vocab_size=WORDS, **options)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def make_classifier() -> nn.Module:
    """Two layers without dropout."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": CLASSES,
    }
    config = transformers.BertConfig(vocab_size=WORDS, **options)
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def make_texts(count: int, *, classes: bool = False) -> list[dict[str, Tensor]]:
    """Texts of 4 to 12 tokens, the first of which are a prompt without labels; or with a class."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, 13, (), generator=draw))
        ids = torch.randint(1, WORDS, (length,), generator=draw)
        prompt = int(torch.randint(0, length - 2, (), generator=draw))
        labels = (
            ids[-1] % CLASSES if classes else ids.clone().index_fill(0, torch.arange(prompt), -100)
        )
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def pad(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of the length 6 or 12, as its longest text needs."""
    ids = [row["input_ids"] for row in rows]
    labels = [row["labels"] for row in rows]
    masks = [torch.ones_like(each) for each in ids]
    return {
        "input_ids": pad_evenly(ids, 0),
        "attention_mask": pad_evenly(masks, 0),
        "labels": pad_evenly(labels, -100) if labels[0].ndim else torch.stack(labels),
    }


def pad_evenly(texts: list[Tensor], value: int) -> Tensor:
    """The texts as rows, whose length is a multiple of 6."""
    padded = pad_sequence(texts, batch_first=True, padding_value=value)
    return functional.pad(padded, (0, -padded.shape[1] % 6), value=value)
