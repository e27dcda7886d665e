"""Networks of images, which `plan` and `bench` measure: with random ones, since neither memory nor time depends on values."""

from __future__ import annotations

import torch

from localprop.models import create_model, takes_tokens
from localprop.training.config import noting


def image_problems(model: str, classes: object, shape: object) -> list[str]:
    """Why images of a shape cannot be sent through a network, one sentence each.

    Args:
        model: as in a config.
        classes: outputs of the network; what is wrong with their number is not told here.
        shape: (C, H, W) of an image; for an mlp any sizes.

    Example:
        >>> image_problems("resnet8", 10, "3,x")
        ["input_shape='3,x' must be sizes of 1 or more, such as --input 3,32,32."]
        >>> image_problems("transformer", 10, (3, 32, 32))
        ['transformer takes tokens, but plan and bench measure networks of images only: choose another --model.']
    """
    found: list[str] = []
    if takes_tokens(model):
        found.append(
            f"{model} takes tokens, but plan and bench measure networks of images only: choose another --model."
        )
    if not isinstance(shape, tuple) or not all(map(is_count, shape)):
        found.append(f"input_shape={shape!r} must be sizes of 1 or more, such as --input 3,32,32.")
    elif not found:
        with noting(found), torch.random.fork_rng(devices=[]):
            create_model(model, classes if isinstance(classes, int) and classes > 0 else 1, shape)
    return found


def is_count(value: object) -> bool:
    """Whether a value is a whole number of 1 or more.

    Example:
        >>> is_count(3), is_count("3"), is_count(0)
        (True, False, False)
    """
    return isinstance(value, int) and value >= 1
