"""Looks at what ends a layer: the return of a module or of a function after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from localprop.engine.cut_hooks import CutHooks


def watch_end(model: nn.Module, name: str, look: Callable[[Any], object]) -> RemovableHandle:
    """Call a function with what ends a layer, in one forward; nothing is changed.

    Args:
        model: the model.
        name: of the layer (`localprop.network.layers.LayerEnd`).
        look: the function.
    """

    def note(segment: int, module: nn.Module, args: object, output: Any) -> Any:
        # Activation checkpointing runs a module again, in a backward.
        if torch._C._current_graph_task_id() == -1:
            look(output)
        return output

    ((module, hook),) = CutHooks(model, {0: name}, note)
    return module.register_forward_hook(hook)
