"""The hooks at the ends of segments, by the kind of their cuts.

A segment ends at the return of a module, of one of several calls of a module, or of a function of
torch between two modules, where a residual is added outside of a block::

    h1 = attention(h0)       h2 = h0 + h1               ... = mlp(h2)
             └ return: a mode goes on   └ the result is cut    └ the mode goes off
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from localprop.engine.interrupts import interruptible, uninterrupted
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
        # All functions after one return are waited for together.
        self._functions: dict[tuple[nn.Module, int | None], FunctionCuts]
        self._functions = defaultdict(FunctionCuts)
        for segment, name in ends.items():
            end, hook = LayerEnd.parse(name), cast(Hook, partial(cut, segment))
            module = model.get_submodule(end.module)
            if end.function is not None:
                self._functions[module, end.call].cuts[end.function] = partial(hook, module, ())
                continue
            self.segments[module] = segment
            if end.call is None:
                self._hooks.append((module, hook))
            else:
                self._repeated[module].cuts[end.call].append(hook)
        for (module, number), functions in self._functions.items():
            if number is None:  # registered first, it comes after a cut at the return
                self._hooks.insert(0, (module, functions))
            else:
                self._repeated[module].cuts[number].append(functions)
        self.wait = bool(self._repeated or self._functions)

    def __iter__(self) -> Iterator[tuple[nn.Module, Hook]]:
        """Each module with its hook, to be registered in this order, each in front of others."""
        yield from self._hooks
        yield from self._repeated.items()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the context a forward may run, and is cut; Ctrl-C leaves no hook behind."""
        with uninterrupted():
            handles = [module.register_forward_hook(hook, prepend=True) for module, hook in self]
            self.begin()
            try:
                with interruptible():
                    yield
            finally:
                self.end()
                for handle in handles:
                    handle.remove()

    def begin(self) -> None:
        """A forward begins."""
        for repeated in self._repeated.values():
            repeated.count = 0

    def end(self) -> None:
        """It has ended, or failed."""
        for functions in self._functions.values():
            functions.close()


class CutCalls:
    """The hook of a module at single calls of which segments end: it counts the calls.

    Attributes:
        cuts: what happens at the return of a call, by its number, counted from 1, in this order.
        count: how many calls of this forward have returned.
    """

    def __init__(self) -> None:
        self.cuts: dict[int, list[Hook]] = defaultdict(list)
        self.count = 0

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """What takes the place of the output."""
        # A model that checkpoints its own blocks calls them again in a backward.
        if torch._C._current_graph_task_id() != -1:
            return output
        self.count += 1
        for cut in self.cuts.get(self.count, ()):
            output = cut(module, args, output)
        return output


class FunctionCuts:
    """The hook at the return of a module, after which functions are waited for.

    Attributes:
        cuts: gives what takes the place of a function's result, by its number among those that
            count (`FunctionMode`), from 1.
    """

    def __init__(self) -> None:
        self.cuts: dict[int, Callable[[Any], Any]] = {}
        self._count = 0
        self._mode: FunctionMode | None = None
        self._handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """Wait from here on."""
        # A model that checkpoints its own blocks calls them again in a backward.
        if torch._C._current_graph_task_id() == -1:
            self.close()
            self._count, self._mode = 0, FunctionMode(self._look)
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

    def _look(self, arguments: tuple[Any, ...], start: int, result: Any) -> Any:
        self._count += 1
        cut = self.cuts.get(self._count)
        if cut is None:
            return result
        # Auxiliary networks run in the cut. Here torch has put the mode aside.
        assert self._handle is not None
        self._handle.remove()
        result = cut(result)
        self._watch()
        return result
