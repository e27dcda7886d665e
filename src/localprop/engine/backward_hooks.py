"""Users' full backward hooks of modules at which a segment ends.

torch wraps a module's output for them behind all forward hooks. There the cut has replaced it by
the next segment's input, and no gradient of this module would ever come. So for the time of a step
a hook that runs before the cut's does the wrapping.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import BackwardHook, RemovableHandle


class BackwardHooks:
    """Calls full backward hooks in the place of torch, until it is removed.

    It is made after the hooks of the cuts, so that its own run before them.

    Args:
        ends: the modules at which a segment ends.
    """

    def __init__(self, ends: Iterable[nn.Module]) -> None:
        self._open: dict[nn.Module, Any] = {}
        self._taken: dict[nn.Module, tuple[Any, Any]] = {}
        self._handles: list[RemovableHandle] = []
        for module in ends:
            hooks, pre_hooks = module._backward_hooks, module._backward_pre_hooks
            if pre_hooks or (hooks and module._is_full_backward_hook):
                self._taken[module] = hooks, pre_hooks
                module._backward_hooks = OrderedDict()
                module._backward_pre_hooks = OrderedDict()
                self._handles += [
                    module.register_forward_pre_hook(self._begin),
                    module.register_forward_hook(self._end, prepend=True),
                ]

    def remove(self) -> None:
        """Leave them to torch again."""
        for handle in self._handles:
            handle.remove()
        for module, (hooks, pre_hooks) in self._taken.items():
            module._backward_hooks, module._backward_pre_hooks = hooks, pre_hooks

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        hooks, pre_hooks = self._taken[module]
        self._open[module] = BackwardHook(module, [*hooks.values()], [*pre_hooks.values()])
        return self._open[module].setup_input_hook(args)

    def _end(self, module: nn.Module, args: object, output: Any) -> Any:
        """The output of a module, behind which its hooks wait for gradients."""
        hook = self._open.pop(module)
        # Without a graph there is no backward.
        return hook.setup_output_hook(output) if torch.is_grad_enabled() else output
