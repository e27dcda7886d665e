"""The hooks at the ends of segments, by the kind of their cuts.

A segment ends at the return of a module, of one of several calls of a module, or of a function of
torch between two modules, where a residual is added outside of a block::

    h1 = attention(h0)       h2 = h0 + h1               ... = mlp(h2)
             └ return: a mode goes on   └ the result is cut    └ the mode goes off
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from localprop.network.calls import FunctionMode
from localprop.network.layers import LayerEnd

Hook = Callable[[nn.Module, object, Any], Any]


class CutHooks:
    """The hooks at the ends of segments.

    Args:
        model: the primary network.
        ends: the names of the segments' ends.
        cut: called with the segment, the module, its arguments and its output; gives what takes the
            place of the output.

    Attributes:
        segments: by module, the last segment that ends at its return.
        wait: whether some of them count, and must be told where a forward begins and ends.
    """

    def __init__(
        self,
        model: nn.Module,
        ends: Mapping[int, str],
        cut: Callable[[int, nn.Module, object, Any], Any],
    ) -> None:
        self.segments: dict[nn.Module, int] = {}
        self._hooks: list[tuple[nn.Module, Hook]] = []
        self._repeated: dict[nn.Module, CutCalls] = defaultdict(CutCalls)
        self._functions: list[FunctionCut] = []
        for segment, name in ends.items():
            end, hook = LayerEnd.parse(name), cast(Hook, partial(cut, segment))
            module = model.get_submodule(end.module)
            if end.function is None:
                self.segments[module] = segment
            else:
                hook = FunctionCut(end.function, partial(hook, module, ()))
                self._functions.append(hook)
            if end.call is None:
                self._hooks.append((module, hook))
            else:
                self._repeated[module].cuts[end.call] = hook
        self.wait = bool(self._repeated or self._functions)

    def __iter__(self) -> Iterator[tuple[nn.Module, Hook]]:
        """Each module with its hook."""
        yield from self._hooks
        yield from self._repeated.items()

    def begin(self) -> None:
        """A forward begins."""
        for repeated in self._repeated.values():
            repeated.count = 0

    def end(self) -> None:
        """It has ended, or failed."""
        for function in self._functions:
            function.close()


class CutCalls:
    """The hook of a module at single calls of which segments end: it counts the calls.

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


class FunctionCut:
    """The hook at the return of a module, after which a function is waited for.

    Args:
        number: which of the functions that count (`FunctionMode`) ends the segment, from 1.
        cut: what takes the place of its result.
    """

    def __init__(self, number: int, cut: Callable[[Tensor], Tensor]) -> None:
        self._number, self._cut = number, cut
        self._left = 0
        self._mode: FunctionMode | None = None
        self._handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """Wait from here on."""
        # A model that checkpoints its own blocks calls them again in a backward.
        if torch._C._current_graph_task_id() == -1:
            self.close()
            self._left, self._mode = self._number, FunctionMode(self._look)
            # It begins in one hook and ends in another.
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            self._watch()
        return output

    def close(self) -> None:
        """Wait no more."""
        if self._handle is not None:
            self._handle.remove()
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._mode, self._handle = None, None

    def _watch(self) -> None:
        # The mode costs a little at each function, so the next module ends it.
        self._handle = register_module_forward_pre_hook(lambda *_: self.close())

    def _look(self, arguments: tuple[Any, ...], start: int, result: Tensor) -> Tensor:
        self._left -= 1
        if self._left:
            return result
        # Auxiliary networks run in the cut. Here torch has put the mode aside.
        assert self._handle is not None
        self._handle.remove()
        result = self._cut(result)
        self._watch()
        return result
