"""Tiny models of Hugging Face, as `hugging_face_setup.py` makes them."""

from __future__ import annotations

from typing import Any

import torch
from cases import Cases
from hugging_face_setup import (
    ATTENTION,
    BART,
    BLOCKS,
    CLASSES,
    COUNT,
    DECODER,
    ENDS,
    GPT2,
    LABELS,
    PLAIN,
    SOUND,
    TEXT,
    VISION,
    WIDTH,
    WORDS,
    Batch,
    judge_by_squares,
    make_boxes,
    make_case,
    make_ended_text,
    make_ids,
    make_language,
    make_language_model,
    make_mask,
    make_pictures,
    make_sound,
    make_tags,
    make_text,
    make_text_model,
    make_tokens,
    make_vision_model,
)

# What several blocks read: another tensor than the one that a block returns.
ENCODER = "the encoder's output goes around the decoder's blocks"
SKIPS = "stages hand on several tensors"

ENCODERS: Cases = {
    "bert": make_text_model("Bert", TEXT),
    "bert_mlm": make_case("BertForMaskedLM", "BertConfig", make_tokens, TEXT),
    "bert_token": make_case("BertForTokenClassification", "BertConfig", make_tags, TEXT | CLASSES),
    "roberta": make_text_model("Roberta", TEXT),
    "distilbert": make_text_model(
        "DistilBert",
        {"vocab_size": WORDS, "dim": WIDTH, "n_layers": BLOCKS, "n_heads": ATTENTION}
        | {"hidden_dim": 64, "max_position_embeddings": 64},
    ),
    "electra": make_text_model("Electra", TEXT | {"embedding_size": 16}),
    "albert": make_text_model("Albert", TEXT | {"embedding_size": 16}),
    "mpnet": make_text_model("MPNet", TEXT),
    "modernbert": make_text_model(
        "ModernBert", TEXT | ENDS | {"cls_token_id": 0, "sep_token_id": 2}
    ),
    "deberta_v2_relative": make_text_model(
        "DebertaV2",
        TEXT | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
    ),
    "longformer": make_text_model("Longformer", TEXT | {"attention_window": 4}),
}


def make_gpt2_text() -> Batch:
    return make_text(use_cache=False)


def make_unmasked() -> Batch:
    return {name: value for name, value in make_language().items() if name != "attention_mask"}


OPT = ENDS | {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": ATTENTION,
    "ffn_dim": 64,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": WIDTH,
    "pad_token_id": 1,
}
GPT_NEO = ENDS | {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_layers": BLOCKS,
    "num_heads": ATTENTION,
    "attention_types": [[["global", "local"], 2]],
    "max_position_embeddings": 64,
    "window_size": 8,
}
QWEN2_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MAMBA2 = {
    "state_size": 8,
    "num_heads": 8,
    "head_dim": 8,
    "n_groups": 2,
    "chunk_size": 4,
    "pad_token_id": 1,
}
WIDE_HEADS = {"head_dim": 8}

LANGUAGE_MODELS: Cases = {
    "gpt2": make_case("GPT2LMHeadModel", "GPT2Config", make_language, GPT2, causal=True),
    "gpt2_seq": make_case(
        "GPT2ForSequenceClassification", "GPT2Config", make_gpt2_text, GPT2 | CLASSES
    ),
    "gpt2_cache": make_case("GPT2LMHeadModel", "GPT2Config", make_tokens, GPT2, causal=True),
    "opt": make_language_model("OPT", OPT),
    "gpt_neo": make_language_model("GPTNeo", GPT_NEO),
    "gpt_neox": make_language_model("GPTNeoX", TEXT | ENDS),
    "gptj": make_language_model("GPTJ", GPT2 | {"rotary_dim": 4}),
    "llama": make_language_model("Llama", DECODER),
    "qwen2": make_language_model("Qwen2", DECODER),
    "qwen3": make_language_model("Qwen3", DECODER | WIDE_HEADS),
    "gemma": make_language_model("Gemma", DECODER | WIDE_HEADS),
    "gemma2": make_language_model("Gemma2", DECODER | WIDE_HEADS),
    "gemma3_text": make_language_model("Gemma3", DECODER | WIDE_HEADS, "Gemma3TextConfig"),
    "mistral": make_language_model("Mistral", DECODER),
    "phi": make_language_model("Phi", DECODER),
    "phi3": make_language_model("Phi3", DECODER),
    "olmo2": make_language_model("Olmo2", DECODER),
    "cohere": make_language_model("Cohere", DECODER),
    "mixtral": make_language_model("Mixtral", DECODER | {"num_local_experts": 4}),
    "mixtral_eager": make_language_model(
        "Mixtral", DECODER | {"num_local_experts": 4, "experts_implementation": "eager"}
    ),
    "qwen2_moe": make_language_model("Qwen2Moe", DECODER | QWEN2_MOE),
    "falcon": make_language_model("Falcon", PLAIN | {"num_attention_heads": ATTENTION}),
    "bloom": make_language_model(
        "Bloom",
        ENDS | {"vocab_size": WORDS, "hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": ATTENTION},
    ),
    "mpt": make_language_model(
        "Mpt",
        {"vocab_size": WORDS, "d_model": WIDTH, "n_layers": BLOCKS, "n_heads": ATTENTION}
        | {"max_seq_len": 64},
    ),
    "mamba": make_language_model("Mamba", PLAIN | {"state_size": 8, "pad_token_id": 1}),
    "mamba2": make_language_model("Mamba2", PLAIN | MAMBA2),
    "rwkv": make_language_model(
        "Rwkv", PLAIN | {"attention_hidden_size": WIDTH, "context_length": 64}
    ),
    "xlstm": make_case(
        "xLSTMForCausalLM",
        "xLSTMConfig",
        make_unmasked,
        PLAIN | {"num_blocks": BLOCKS, "num_heads": ATTENTION, "pad_token_id": 1},
        causal=True,
    ),
}

T5 = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": BLOCKS,
    "num_heads": ATTENTION,
    "decoder_start_token_id": 0,
    "pad_token_id": 1,
}
WHISPER = {k: v for k, v in BART.items() if k != "max_position_embeddings"} | {
    "num_mel_bins": 16,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "bos_token_id": 0,
    "decoder_start_token_id": 0,
}


def make_spectrograms() -> Batch:
    return {
        "input_features": torch.randn(COUNT, 16, 40),
        "labels": make_tokens()["labels"],
        "use_cache": False,
    }


ENCODER_DECODERS: Cases = {
    name: make_case(model, config, batch, options, 2 * BLOCKS, no_cuts=ENCODER)
    for name, model, config, batch, options in (
        ("t5", "T5ForConditionalGeneration", "T5Config", make_language, T5),
        (
            "bart",
            "BartForConditionalGeneration",
            "BartConfig",
            make_language,
            BART | {"bos_token_id": 0},
        ),
        (
            "marian",
            "MarianMTModel",
            "MarianConfig",
            make_language,
            BART | {"decoder_start_token_id": 1},
        ),
        (
            "bart_seq",
            "BartForSequenceClassification",
            "BartConfig",
            make_ended_text,
            BART | CLASSES | {"bos_token_id": 0},
        ),
        (
            "whisper",
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            make_spectrograms,
            WHISPER,
        ),
    )
}


def make_transcripts() -> Batch:
    return make_sound() | {"labels": torch.randint(3, WORDS, (COUNT, 5))}


def make_scenes() -> Batch:
    return make_pictures(64) | {"labels": torch.randint(0, LABELS, (COUNT, 64, 64))}


def make_masked_boxes() -> Batch:
    return make_boxes(64) | {"pixel_mask": torch.ones(COUNT, 64, 64, dtype=torch.long)}


def make_pairs() -> Batch:
    """Images and their captions."""
    return {
        "input_ids": make_ids(),
        "attention_mask": make_mask(),
        "pixel_values": make_pictures()["pixel_values"],
        "return_loss": True,
    }


def make_videos() -> Batch:
    return {
        "pixel_values": torch.randn(COUNT, 2, 3, 32, 32),
        "labels": torch.arange(COUNT) % LABELS,
    }


def make_series() -> Batch:
    return {"past_values": torch.randn(COUNT, 32, 2), "future_values": torch.randn(COUNT, 4, 2)}


STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
SEGFORMER = STAGES | {"num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}
DETR: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": ATTENTION,
    "decoder_attention_heads": ATTENTION,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
        "out_features": ["stage2"],
    },
}
PATCHTST = {
    "num_input_channels": 2,
    "context_length": 32,
    "prediction_length": 4,
    "patch_length": 4,
    "patch_stride": 4,
    "num_hidden_layers": BLOCKS,
    "d_model": WIDTH,
    "num_attention_heads": ATTENTION,
    "ffn_dim": 64,
}
CLIP: dict[str, Any] = {
    "text_config": TEXT | ENDS | {"projection_dim": 16},
    "vision_config": VISION | {"projection_dim": 16},
    "projection_dim": 16,
}

OTHERS: Cases = {
    "wav2vec2": make_case(
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        make_sound,
        SOUND | CLASSES | {"classifier_proj_size": 16},
    ),
    "wav2vec2_ctc": make_case(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", make_transcripts, SOUND | {"pad_token_id": 0}
    ),
    "hubert": make_case(
        "HubertForSequenceClassification",
        "HubertConfig",
        make_sound,
        SOUND | CLASSES | {"classifier_proj_size": 16},
    ),
    "vit": make_vision_model("ViT", VISION),
    "deit": make_vision_model("DeiT", VISION),
    "beit": make_vision_model("Beit", VISION),
    "dinov2": make_vision_model("Dinov2", VISION),
    "swin": make_vision_model("Swin", SWIN),
    "convnext": make_vision_model("ConvNext", STAGES, 5),
    "resnet": make_vision_model("ResNet", STAGES | {"embedding_size": 8, "layer_type": "basic"}, 5),
    "segformer_semantic": make_case(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        make_scenes,
        SEGFORMER | CLASSES,
        5,
        no_cuts="the head reads all stages",
    ),
    "yolos": make_case(
        "YolosForObjectDetection",
        "YolosConfig",
        lambda: make_boxes(32),
        VISION | CLASSES | {"image_size": [32, 32], "num_detection_tokens": 5},
        no_cuts="all blocks read a table of positions",
        **judge_by_squares("logits"),
    ),
    "clip": make_case(
        "CLIPModel",
        "CLIPConfig",
        make_pairs,
        CLIP,
        2 * BLOCKS,
        no_cuts="two towers",
        **judge_by_squares("logits_per_image"),
    ),
    "detr": make_case(
        "DetrForObjectDetection",
        "DetrConfig",
        make_masked_boxes,
        DETR | CLASSES,
        4,
        no_cuts=ENCODER,
        **judge_by_squares("logits"),
    ),
    "timesformer": make_case(
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        make_videos,
        VISION | CLASSES | {"num_frames": 2},
    ),
    "patchtst": make_case("PatchTSTForPrediction", "PatchTSTConfig", make_series, PATCHTST),
}

CASES: Cases = {**ENCODERS, **LANGUAGE_MODELS, **ENCODER_DECODERS, **OTHERS}


def count_cases() -> int:
    return len(CASES)
