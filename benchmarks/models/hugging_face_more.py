"""Further models of Hugging Face: other families, other tasks, and other options of the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hugging_face_wrapped
import torch
from cases import Case, Cases
from hugging_face_cases import OPT, QWEN2_MOE, STAGES, SWIN, T5, make_unmasked
from hugging_face_setup import (
    ATTENTION,
    BLOCKS,
    CLASSES,
    COUNT,
    DECODER,
    GPT2,
    LABELS,
    TEXT,
    VISION,
    WIDTH,
    WORDS,
    Batch,
    judge_by_squares,
    make_case,
    make_language,
    make_language_model,
    make_pictures,
    make_text,
    make_text_model,
    make_tokens,
    make_vision_model,
)

WIDE_HEADS = {"head_dim": 8}
UNTIED = {"tie_word_embeddings": False}


def make_unlabelled() -> Batch:
    return {name: value for name, value in make_text().items() if name != "labels"}


def make_unlabelled_pictures() -> Batch:
    return {"pixel_values": make_pictures()["pixel_values"]}


def make_answers() -> Batch:
    """Texts with the positions at which their answers start and end."""
    batch = make_unlabelled()
    return batch | {
        "start_positions": torch.arange(COUNT),
        "end_positions": torch.arange(COUNT) + 2,
    }


def make_choices() -> Batch:
    """Several texts for each sample, of which one is right."""
    batch = make_unlabelled()
    repeated = {name: value[:, None].repeat(1, 2, 1) for name, value in batch.items()}
    return repeated | {"labels": torch.arange(COUNT) % 2}


def make_numbers() -> Batch:
    return make_text(labels=torch.randn(COUNT))


def make_several() -> Batch:
    return make_text(labels=torch.randint(2, (COUNT, LABELS)).float())


def make_frames() -> Batch:
    return {
        "pixel_values": torch.randn(COUNT, 2, 3, 32, 32),
        "labels": torch.arange(COUNT) % LABELS,
    }


def make_spectra() -> Batch:
    return {"input_values": torch.randn(COUNT, 32, 16), "labels": torch.arange(COUNT) % LABELS}


def make_features() -> Batch:
    return {"input_features": torch.randn(COUNT, 16, 40), "labels": torch.arange(COUNT) % LABELS}


def checkpoint_llama() -> Case:
    case = make_language_model("Llama", DECODER)()
    model: Any = case.model
    model.gradient_checkpointing_enable()
    return case


def adapt_llama() -> Case:
    """A language model whose own weights are frozen, with adapters of peft (LoRA)."""
    import peft

    case = make_language_model("Llama", DECODER)()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model: Any = peft.get_peft_model(case.model, config)
    return replace(case, model=model)


def drop_pooler() -> Case:
    """What `add_pooling_layer=False` makes."""
    case = BERT["bert_base"]()
    model: Any = case.model
    model.pooler = None
    return case


BERT: Cases = {
    "bert_base": make_case(
        "BertModel", "BertConfig", make_unlabelled, TEXT, **judge_by_squares("last_hidden_state")
    ),
    "bert_eager": make_case(
        "BertForSequenceClassification",
        "BertConfig",
        make_text,
        TEXT | CLASSES | {"attn_implementation": "eager"},
    ),
    "deberta_v2": make_text_model("DebertaV2", TEXT | {"relative_attention": False}),
    "bert_answers": make_case("BertForQuestionAnswering", "BertConfig", make_answers, TEXT),
    "bert_choices": make_case("BertForMultipleChoice", "BertConfig", make_choices, TEXT),
    "bert_regression": make_case(
        "BertForSequenceClassification", "BertConfig", make_numbers, TEXT | {"num_labels": 1}
    ),
    "bert_multi_label": make_case(
        "BertForSequenceClassification", "BertConfig", make_several, TEXT | CLASSES
    ),
    "xlnet": make_case(
        "XLNetForSequenceClassification",
        "XLNetConfig",
        make_text,
        {"vocab_size": WORDS, "d_model": WIDTH, "n_layer": BLOCKS, "n_head": ATTENTION}
        | {"d_inner": 64, "pad_token_id": 1, **CLASSES},
    ),
    "xlm_roberta": make_text_model("XLMRoberta", TEXT),
    "camembert": make_text_model("Camembert", TEXT),
    "ernie": make_text_model("Ernie", TEXT),
    "nystromformer": make_text_model(
        "Nystromformer", TEXT | {"num_landmarks": 12, "segment_means_seq_len": 12}
    ),
    "squeezebert": make_text_model("SqueezeBert", TEXT | {"embedding_size": WIDTH}),
    "funnel": make_text_model(
        "Funnel",
        {"vocab_size": WORDS, "block_sizes": [2, 2], "d_model": WIDTH, "n_head": ATTENTION}
        | {"d_head": 8, "d_inner": 64, "pad_token_id": 1},
    ),
}

DEEPSEEK = DECODER | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

DECODERS: Cases = {
    "gpt2_untied": make_case(
        "GPT2LMHeadModel", "GPT2Config", make_language, GPT2 | UNTIED, causal=True
    ),
    "opt_untied": make_language_model("OPT", OPT | UNTIED),
    "gpt2_token": make_case(
        "GPT2ForTokenClassification",
        "GPT2Config",
        lambda: make_tokens(use_cache=False, labels=torch.arange(36).view(3, 12) % LABELS),
        GPT2 | CLASSES,
    ),
    "llama_cache": make_case("LlamaForCausalLM", "LlamaConfig", make_tokens, DECODER, causal=True),
    "llama_seq": make_case(
        "LlamaForSequenceClassification",
        "LlamaConfig",
        lambda: make_text(use_cache=False),
        DECODER | CLASSES,
    ),
    "llama_checkpointing": checkpoint_llama,
    "llama_nocache": make_case(
        "LlamaForCausalLM", "LlamaConfig", make_unmasked, DECODER, causal=True
    ),
    "llama_lora": adapt_llama,
    "gemma_untied": make_language_model("Gemma", DECODER | WIDE_HEADS | UNTIED),
    "glm4": make_language_model("Glm4", DECODER | WIDE_HEADS),
    "granite": make_language_model("Granite", DECODER),
    "helium": make_language_model("Helium", DECODER | WIDE_HEADS),
    "smollm3": make_language_model("SmolLM3", DECODER),
    "stablelm": make_language_model("StableLm", DECODER),
    "starcoder2": make_language_model("Starcoder2", DECODER),
    "deepseek_v3": make_language_model("DeepseekV3", DEEPSEEK),
    "olmoe": make_language_model("Olmoe", DECODER | EXPERTS),
    "qwen3_moe": make_language_model(
        "Qwen3Moe",
        DECODER | EXPERTS | WIDE_HEADS | {"moe_intermediate_size": 32},
    ),
    "mixtral_batched": make_language_model(
        "Mixtral", DECODER | {"num_local_experts": 4, "experts_implementation": "batched_mm"}
    ),
    "qwen2_moe_eager": make_language_model(
        "Qwen2Moe", DECODER | QWEN2_MOE | {"experts_implementation": "eager"}
    ),
    "t5_encoder": make_case(
        "T5EncoderModel", "T5Config", make_unlabelled, T5, **judge_by_squares("last_hidden_state")
    ),
    "t5_untied": make_case(
        "T5ForConditionalGeneration",
        "T5Config",
        make_language,
        T5 | UNTIED,
        2 * BLOCKS,
        no_cuts="the encoder's output goes around the decoder's blocks",
    ),
}

POOLING = {"image_size": 64, "depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
VIDEO = VISION | {"num_frames": 2, "tubelet_size": 2}

VISIONS: Cases = {
    "clip_vision": make_vision_model("CLIP", {"vision_config": VISION}),
    "siglip": make_vision_model("Siglip", {"vision_config": VISION}),
    "clip_vision_base": make_case(
        "CLIPVisionModel",
        "CLIPVisionConfig",
        make_unlabelled_pictures,
        VISION,
        **judge_by_squares("last_hidden_state"),
    ),
    "dinov2_base": make_case(
        "Dinov2Model",
        "Dinov2Config",
        make_unlabelled_pictures,
        VISION,
        **judge_by_squares("last_hidden_state"),
    ),
    "swinv2": make_vision_model("Swinv2", SWIN),
    "regnet": make_vision_model("RegNet", STAGES | {"embedding_size": 8, "groups_width": 8}, 5),
    "mobilenet_v2": make_vision_model(
        "MobileNetV2", {"image_size": 32, "depth_multiplier": 0.35}, 17
    ),
    "efficientnet": make_vision_model(
        "EfficientNet",
        {"image_size": 64, "width_coefficient": 0.25, "hidden_dim": 320, "depth_coefficient": 0.3},
        9,
        64,
    ),
    "mobilevit": make_vision_model(
        "MobileViT",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
        },
        9,
    ),
    "levit": make_vision_model(
        "Levit",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4]}
        | {"depths": [2, 2, 2], "key_dim": [8, 8, 8]},
        6,
        64,
    ),
    "poolformer": make_vision_model(
        "PoolFormer", {k: POOLING[k] for k in ("depths", "hidden_sizes")}, 5
    ),
    "pvt": make_vision_model(
        "Pvt", POOLING | {"num_attention_heads": [1, 2, 3, 4], "image_size": 32}, 5
    ),
    "segformer": make_vision_model("Segformer", STAGES | {"num_attention_heads": [1, 2, 2, 4]}, 5),
    "videomae": make_case(
        "VideoMAEForVideoClassification", "VideoMAEConfig", make_frames, VIDEO | CLASSES
    ),
    "vivit": make_case(
        "VivitForVideoClassification",
        "VivitConfig",
        make_frames,
        VIDEO | CLASSES | {"tubelet_size": [2, 8, 8]},
    ),
    "ast": make_case(
        "ASTForAudioClassification",
        "ASTConfig",
        make_spectra,
        {name: VISION[name] for name in VISION if name not in ("image_size", "patch_size")}
        | {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32}
        | {"num_mel_bins": 16, **CLASSES},
    ),
    "whisper_audio": make_case(
        "WhisperForAudioClassification",
        "WhisperConfig",
        make_features,
        {"d_model": WIDTH, "encoder_layers": BLOCKS, "encoder_attention_heads": ATTENTION}
        | {"encoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 20}
        | {"classifier_proj_size": 16, "vocab_size": WORDS, "pad_token_id": 1, **CLASSES},
    ),
}

CASES: Cases = {
    **BERT,
    "bert_base_nopool": drop_pooler,
    **DECODERS,
    **VISIONS,
    **hugging_face_wrapped.CASES,
}
