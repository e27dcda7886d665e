"""Build networks of Hugging Face's transformers, untrained, without a download."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from localprop.errors import BadInput, check
from localprop.models.libraries import describe_unknown_model, import_library
from localprop.user_code import describe_error

# For tokens: the usual head of a model that has several, in this order.
_HEADS = ("AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModelForCausalLM")


def build_hugging_face_model(
    name: str, options: Mapping[str, Any], num_classes: int, shape: tuple[int, ...]
) -> nn.Module:
    """Build an untrained network of transformers.

    With images (C, H, W), it classifies them. With tokens (T,), it is a language model with the
    vocabulary of its configuration: of the whole sequence, of masked tokens, or of the next one. A
    config.json that names its architecture gets that one.

    Args:
        name: a model type such as "llama", or a path of a config.json or of its folder.
        options: fields of the configuration that replace its own.
        num_classes: the classes of images or sequences.
        shape: of one sample, without the batch.

    Raises:
        BadInput: transformers is not installed, there is no such model type or path, the
            configuration cannot be read or built, or it does not fit the data.
    """
    transformers = import_library("transformers")
    config = _make_config(transformers, name, options)
    _fit_to_data(config, options, num_classes, shape)
    try:
        make = _find_maker(transformers, config, name, shape)
        model: nn.Module = make(config)
    except BadInput:
        raise
    except Exception as error:  # code of many authors may raise anything
        raise BadInput(
            f"The model hf:{name} cannot be built ({describe_error(error)}): correct its "
            "configuration, or the options after the name."
        ) from error
    tokens = getattr(config, "vocab_size", num_classes)
    head = model.get_output_embeddings()  # type: ignore[operator]
    if len(shape) == 1 and head is not None and tokens < num_classes:
        raise BadInput(
            f"hf:{name} has a vocabulary of {tokens}, but the data have {num_classes} tokens: add "
            f",vocab_size={num_classes} to the name."
        )
    return model


def _make_config(transformers: Any, name: str, options: Mapping[str, Any]) -> Any:
    known = transformers.CONFIG_MAPPING
    path = Path(os.path.expanduser(name))
    try:
        if name in known:
            return transformers.AutoConfig.for_model(name, **options)
        if not name or not os.path.exists(path):
            hint = describe_unknown_model("transformers", name, known)
            raise BadInput(f"{hint} Or give the path of a config.json; nothing is downloaded.")
        return transformers.AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, **options
        )
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"The configuration of hf:{name} cannot be read ({describe_error(error)}): correct "
            "it, or the options after the name."
        ) from error


def _fit_to_data(
    config: Any, options: Mapping[str, Any], num_classes: int, shape: tuple[int, ...]
) -> None:
    """Set what the data decide. Caches are for generation, and in the way of recomputation."""
    config.num_labels = num_classes
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0
    if len(shape) != 3:
        return
    channels, height, width = shape
    fitting = {"num_channels": channels, "image_size": height if height == width else shape[1:]}
    for field, value in fitting.items():
        if field not in options and hasattr(config, field):
            setattr(config, field, value)


def _find_maker(transformers: Any, config: Any, name: str, shape: tuple[int, ...]) -> Any:
    """The class of the architecture that the configuration names, or the usual one."""
    for architecture in config.architectures or ():
        if isinstance(architecture, str) and architecture.startswith(("Auto", "_")):
            continue
        found = getattr(transformers, str(architecture), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            named: Any = found
            return named._from_config
    heads = ("AutoModelForImageClassification",) if len(shape) == 3 else _HEADS
    makers = [getattr(transformers, head) for head in heads]
    fitting = [make for make in makers if type(config) in make._model_mapping]
    if config.is_encoder_decoder is False:
        fitting = [make for make in fitting if make is not transformers.AutoModelForSeq2SeqLM]
    what = "tokens (T,)" if len(shape) == 1 else "images (C, H, W)"
    check(
        []
        if fitting
        else [
            f"hf:{name} has no usual head for samples of {shape}, which are read as {what}: give "
            "another shape, or a function of your own that returns the model, my_code.py:make."
        ]
    )
    return fitting[0].from_config
