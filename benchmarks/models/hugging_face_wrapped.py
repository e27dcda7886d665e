"""Models of Hugging Face behind a module of the user's: one tensor in, one tensor out.

The mask is made in the forward, of the ids that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases import Case, Cases
from hugging_face_setup import (
    BLOCKS,
    CLASSES,
    COUNT,
    DECODER,
    GPT2,
    LABELS,
    TEXT,
    make_ids,
    make_mask,
    turn_off_dropout,
)
from torch import Tensor, arange, nn

PADDING = 0


class Masked(nn.Module):
    """The scores of a text model, whose ids of 0 are padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=ids, attention_mask=(ids != PADDING).long()).logits
        return scores


def make_padded_ids() -> Tensor:
    return make_ids().masked_fill(make_mask() == 0, PADDING)


def make_labelled() -> tuple[Tensor, Tensor]:
    return make_padded_ids(), arange(COUNT) % LABELS


def make_next_words() -> tuple[Tensor, Tensor]:
    """Padded texts and the next word of each position."""
    ids = make_padded_ids()
    return ids[:, :-1], ids[:, 1:].masked_fill(ids[:, 1:] == PADDING, -100)


def build_masked(
    model: str, config: str, make_batch: Callable[[], Any], options: dict[str, Any], **more: Any
) -> Callable[[], Case]:
    def build() -> Case:
        import transformers

        found = turn_off_dropout(getattr(transformers, config)(**options))
        inner = getattr(transformers, model)(found)
        return Case(Masked(inner), make_batch(), blocks=BLOCKS, **more)

    return build


def build_masked_bert(options: dict[str, Any]) -> Callable[[], Case]:
    return build_masked(
        "BertForSequenceClassification", "BertConfig", make_labelled, TEXT | CLASSES | options
    )


CASES: Cases = {
    "bert_masked": build_masked_bert({}),
    "bert_eager_masked": build_masked_bert({"attn_implementation": "eager"}),
    "gpt2_untied_masked": build_masked(
        "GPT2LMHeadModel",
        "GPT2Config",
        make_next_words,
        GPT2 | {"tie_word_embeddings": False, "use_cache": False},
        causal=True,
    ),
    "llama_masked": build_masked(
        "LlamaForCausalLM",
        "LlamaConfig",
        make_next_words,
        DECODER | {"use_cache": False},
        causal=True,
    ),
}
