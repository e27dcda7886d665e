"""A model and a batch in shape alone: nothing of their size is allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.models.create import create_model
from localprop.user_code import describe_error


def create_without_data(name: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """As `create_model`, on the device `meta`.

    Raises:
        BadInput: as `create_model`; or a function of the user's needs values.

    Example:
        >>> next(create_without_data("resnet8", 10, (3, 32, 32)).parameters()).device
        device(type='meta')
    """
    with torch.device("meta"):
        model = create_model(name, num_classes, input_shape, pretrained=False)
    return model.to("meta")  # what a function has made elsewhere all the same


def make_zero_batch(model: nn.Module, input_shape: tuple[int, ...], samples: int) -> Any:
    """A batch of zeros with the usual targets of a model.

    It is (inputs, targets), or a dict with Hugging Face's names. The model runs once on the device
    `meta`, which says the shape of its outputs: (N, C) go with classes (N,), (N, T, C) with (N, T),
    (N, C, H, W) with (N, H, W). Inputs are images, or, for a model with an embedding, tokens (T,).

    Args:
        model: on the device `meta`.
        input_shape: of one sample, without the batch.
        samples: of the batch.

    Raises:
        BadInput: the model does not run on such inputs.

    Example:
        >>> with torch.device("meta"):
        ...     model = lp.models.transformer_lm(20, 16, width=8, heads=2, blocks=1)
        >>> inputs, targets = make_zero_batch(model, (16,), samples=4)
        >>> inputs.dtype, targets.shape
        (torch.int64, torch.Size([4, 16]))
    """
    reads_tokens = len(input_shape) == 1 and any(
        isinstance(module, nn.Embedding) for module in model.modules()
    )
    inputs = torch.zeros(
        (samples, *input_shape), dtype=torch.long if reads_tokens else None, device="meta"
    )
    if not hasattr(getattr(model, "config", None), "model_type"):
        output = _run(model, inputs)
        positions = output.select(-1 if output.ndim == 3 else 1, 0)
        return inputs, torch.zeros_like(positions, dtype=torch.long)
    # Hugging Face's, whose forwards often read values, which there are none of on `meta`.
    known: Any = model
    each_token = known.get_output_embeddings() is not None
    each_token |= type(model).__name__.endswith("ForTokenClassification")
    shape = inputs.shape if reads_tokens and each_token else inputs.shape[:1]
    targets = torch.zeros(shape, dtype=torch.long, device="meta")
    return {str(known.main_input_name): inputs, "labels": targets}


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            output = model(inputs)
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise TypeError("it does not return a tensor (N, C, ...)")
    except Exception as error:  # code of the user's may raise anything
        raise BadInput(
            f"{type(model).__name__} does not run on {tuple(inputs.shape)} without data, on the "
            f"device meta ({describe_error(error)}): correct --input, or call lp.plan and lp.check "
            "in Python, with a batch of yours."
        ) from error
    return output
