"""Cuts at single calls of a module that a forward calls several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Hook = Callable[[nn.Module, object, Any], Any]


class CutCalls:
    """The hook of such a module: it counts calls, and passes those on at which a segment ends.

    Attributes:
        cuts: what happens at the return of a call, by its number, counted from 1.
        count: how many calls of this forward have returned.
    """

    def __init__(self) -> None:
        self.cuts: dict[int, Hook] = {}
        self.count = 0

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """What takes the place of the output."""
        # A model that checkpoints its own blocks calls them again in a backward.
        if torch._C._current_graph_task_id() != -1:
            return output
        self.count += 1
        cut = self.cuts.get(self.count)
        return output if cut is None else cut(module, args, output)
