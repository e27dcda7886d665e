"""The hooks of others that see what autograd saves, as a checkpoint of the model's own has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_saved_tensor_hooks() -> bool:
    """Whether somebody's hooks see what is saved now, as in a checkpoint of the model's own."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


@contextmanager
def unhooked_saved_tensors() -> Iterator[None]:
    """Within the context, autograd saves tensors itself.

    A model that checkpoints its own blocks may be cut within a checkpoint. That counts what is
    saved, by hooks, and expects as much in its recomputation. What local losses save is not the
    model's: it must not be counted.
    """
    hooks = []
    while (top := torch._C._autograd._top_saved_tensors_default_hooks(False)) is not None:
        hooks.append(top)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)
