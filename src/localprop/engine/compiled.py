"""Hooks at modules that `torch.compile` has compiled, outside of what is compiled.

A compiled module compiles its hooks, too, and would be traced again whenever they change. So hooks
stand around its compiled call, and the blocks' graphs stay whole::

    block(x)  ──►  [ compiled: hooks of the user, forward ]  ──►  hooks of the step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch._functorch.config
from torch import nn

from localprop.errors import check
from localprop.network.recomputed import Recomputed
from localprop.schedule.wiring import Wiring

Hook = Callable[[nn.Module, object, Any], Any]


class CompiledParts:
    """The compiled parts of a network, and hooks for the time of a step.

    Args:
        hooks: modules with their hooks, of which the last one runs first; those of modules that are
            not compiled are left to others.
        keep_buffers: whether backwards that are compiled in a step may run more than once. By
            default they give the memory of what was saved to their results.
    """

    def __init__(self, hooks: Iterable[tuple[nn.Module, Hook]], *, keep_buffers: bool) -> None:
        self._keep_buffers = keep_buffers
        self._hooks: dict[nn.Module, list[Hook]] = {}
        for module, hook in hooks:
            if module._compiled_call_impl is not None:
                self._hooks.setdefault(module, []).insert(0, hook)
        self._undo: list[Callable[[], object]] = []

    def hook(self) -> CompiledParts:
        """Set the hooks; `remove` removes them."""
        if self._keep_buffers:
            config: Any = torch._functorch.config
            self._undo.append(partial(setattr, config, "donated_buffer", config.donated_buffer))
            config.donated_buffer = False
        for module, own in self._hooks.items():
            call: Any = module._compiled_call_impl
            self._undo.append(partial(setattr, module, "_compiled_call_impl", call))
            module._compiled_call_impl = partial(_call_with_hooks, call, module, own)
        return self

    def remove(self) -> None:
        """Remove the hooks."""
        while self._undo:
            self._undo.pop()()


def _call_with_hooks(
    call: Callable[..., Any], module: nn.Module, hooks: list[Hook], *args: Any, **kwargs: Any
) -> Any:
    output = call(*args, **kwargs)
    for hook in hooks:
        output = hook(module, args, output)
    return output


def find_compiled_parts(
    model: nn.Module,
    hooks: Iterable[tuple[nn.Module, Hook]],
    wiring: Wiring,
    recomputed: Recomputed,
) -> CompiledParts | None:
    """Find what `torch.compile` has compiled of a network; None if it has compiled nothing.

    Args:
        model: the network.
        hooks: modules with the hooks of a step.
        wiring: says whether some backward runs more than once.
        recomputed: the layers that run again.

    Raises:
        BadInput: a hook lies inside of a module that is compiled as a whole, or a compiled module
            shall run again.
    """
    hooks = [*hooks]
    compiled = {n: m for n, m in model.named_modules() if m._compiled_call_impl is not None}
    forwards = (module.forward for module in model.modules())
    if not compiled and not any(hasattr(f, "_torchdynamo_orig_callable") for f in forwards):
        return None
    hooked, again = [module for module, _ in hooks], bool(recomputed.layers)
    check(_find_problems(model, compiled, hooked, recompute=again))
    return CompiledParts(hooks, keep_buffers=any(len(flows) > 1 for flows in wiring.flows))


def _find_problems(
    model: nn.Module, compiled: dict[str, nn.Module], hooked: list[nn.Module], *, recompute: bool
) -> Iterator[str]:
    names = {module: name for name, module in model.named_modules()}
    inside = (
        (name, names[module])
        for module in hooked
        for name, whole in compiled.items()
        if module is not whole and module in whole.modules()
    )
    for name, end in islice(inside, 1):
        where = f"The module {name!r}" if name else "The model"
        yield (
            f"{where} was compiled as a whole, but training has to look at the output of {end!r} "
            "inside of it: compile smaller modules, as in "
            "`for block in model.blocks: block.compile()`."
        )
    if compiled and recompute:
        yield (
            f"The module {next(iter(compiled))!r} is compiled, and recompute cannot watch what it "
            "saves: leave recompute out, or compile its forward, "
            "`block.forward = torch.compile(block.forward)`."
        )
