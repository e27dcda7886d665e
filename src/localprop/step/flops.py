"""Floating-point operations of a step, counted on fake tensors by PyTorch's own formulas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from localprop.rule.losses import Batch
from localprop.step.engine import Engine
from localprop.step.twin import Twin


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of convolutions and matrix products; a context manager.

    torch.utils.flop_counter.FlopCounterMode has the same formulas, but also follows the hierarchy of modules, which a step
    that runs backwards inside a forward does not have.

    Example:
        >>> import torch
        >>> with Flops() as counted:
        ...     product = torch.zeros(2, 3) @ torch.zeros(3, 4)
        >>> counted.total
        48
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=made))
        return made


def flops_of(engine: Engine, optimizers: Iterable[Optimizer], batch: Batch) -> int:
    """The operations of one training step, forward and backward, heads and encoders included.

    Args:
        engine: copied as fakes, and left alone.
        optimizers: those that the caller steps himself.
        batch: only shapes and dtypes are used.
    """
    twin = Twin(engine, optimizers, batch)
    with twin.mode, Flops() as counted:
        twin.step()
    total: int = counted.total
    return total
