"""What makes a network's steps faster on its device, and changes no more than rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

_AS_IT_IS = torch.preserve_format
_EXPLAINED = {
    "bf16": (
        "bf16: convolutions and matrix products compute with 8 significant bits (autocast); "
        "their outputs take half the bytes, and parameters and optimizers stay in float32.",
    ),
    "fp16": (
        "fp16: convolutions and matrix products compute with 11 significant bits, up to 65504 "
        "(autocast); their outputs take half the bytes, and parameters and optimizers stay in "
        "float32. One GradScaler scales all losses; a segment or head whose gradients overflow "
        "leaves its step out, and the next scale is smaller.",
    ),
}


class FastSteps(NamedTuple):
    """What `choose_fast_steps` takes.

    Attributes:
        precision: "bf16", or the one that was given.
        channels_last: whether convolutions compute with the channels of a pixel side by side.
        reasons: a sentence for each: what it changes, or why it was left out.
        is_on: whether anything was to be chosen.
    """

    precision: str
    channels_last: bool
    reasons: tuple[str, ...]
    is_on: bool = True

    def explain(self, optimizers: Iterable[Optimizer]) -> list[str]:
        """The reasons, and what optimizers of the user's could take."""
        kinds = {type(each).__name__: each.defaults for each in optimizers} if self.is_on else {}
        return [*self.reasons, *(_explain_fused(*kind) for kind in kinds.items())]


def _explain_fused(name: str, defaults: dict[str, object]) -> str:
    if defaults.get("fused"):
        return f"fused {name}: a step is one kernel, which may round in another order."
    if "fused" in defaults:
        return (
            f"fused {name} is left out: the optimizer is yours; give it fused=True, by which a "
            "step is one kernel."
        )
    return f"A fused optimizer is left out: {name} has none."


def choose_fast_steps(model: nn.Module, precision: str, *, fast: bool = True) -> FastSteps:
    """Choose what gains on the device of a model, by rule and not by a measurement.

    So the same run makes the same choices again, on every rank.

    Args:
        model: as it will be trained.
        precision: as given.
        fast: whether to choose; if not, all stays as it is.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4).double())
        >>> choose_fast_steps(model, "fp32").precision
        'fp32'
    """
    if not fast:
        return FastSteps(precision, False, _EXPLAINED.get(precision, ()), is_on=False)
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    reasons = []
    channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if channels_last:
        reasons.append(
            "channels last: convolutions keep the channels of a pixel side by side; sums are made "
            "in another order, and the bytes are the same."
        )
    else:
        reasons.append("channels last is left out: the model has no nn.Conv2d.")
    if precision == "fp32":
        if dtype is not torch.float32:
            reasons.append(f"bf16 is left out: parameters are {dtype}.")
        elif not computes_in_bf16(device):
            reasons.append(f"bf16 is left out: this {device.type} has no instructions for it.")
        else:
            precision = "bf16"
    if device.type == "cuda" and precision != "fp32":
        reasons.append(f"TF32 is left out: products are in {precision}, which is faster.")
    return FastSteps(precision, channels_last, (*reasons, *_EXPLAINED.get(precision, ())))


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16, which make autocast gain."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def find_memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format of a model's convolutions: `torch.channels_last` if one is stored so.

    Example:
        >>> model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        >>> find_memory_format(model), find_memory_format(torch.nn.Conv2d(3, 4, 3))
        (torch.channels_last, torch.preserve_format)
    """
    last = torch.channels_last
    weights = (p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous())
    return last if any(w.is_contiguous(memory_format=last) for w in weights) else _AS_IT_IS
