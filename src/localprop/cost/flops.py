"""Floating-point operations of a step, counted on fake tensors with PyTorch's own formulas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from localprop.cost.fake_engine import faked
from localprop.engine.engine import Engine
from localprop.schedule.schedule import Action
from localprop.tasks.batch import Batch


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of convolutions and matrix products; a context manager.

    `torch.utils.flop_counter.FlopCounterMode` uses the same formulas, but also follows the
    hierarchy of modules. A step that runs backwards inside a forward has no such hierarchy.

    Attributes:
        total: the operations so far; a multiplication and an addition count as two.

    Example:
        >>> import torch
        >>> with FlopCounter() as counter:
        ...     product = torch.zeros(2, 3) @ torch.zeros(3, 4)
        >>> counter.total
        48
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=output))
        return output


def count_flops(engine: Engine, optimizers: Iterable[Optimizer], batch: Batch) -> int:
    """Count the operations of one training step, forward and backward, with heads and encoders.

    Args:
        engine: its model, heads and optimizers hold fakes meanwhile, and are then as before.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
    """
    with faked(engine, optimizers, batch) as fake, FlopCounter() as counter:
        fake.step()
    total: int = counter.total
    return total


def count_flops_by_action(
    engine: Engine, optimizers: Iterable[Optimizer], batch: Batch
) -> dict[Action, int]:
    """Count the operations of each action of a step; they add up to those of `count_flops`.

    Args:
        engine: as for `count_flops`.
        optimizers: likewise.
        batch: likewise.
    """
    found: dict[Action, int] = {}
    starts: list[tuple[Action, int]] = []
    with faked(engine, optimizers, batch) as fake, FlopCounter() as counter:
        fake.step(lambda action: starts.append((action, counter.total)))
        ends = [*(start for _, start in starts[1:]), counter.total]
    for (action, start), end in zip(starts, ends, strict=True):
        found[action] = end - start
    return found
