"""Typed access to the submodules of a network."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def find_module(model: nn.Module, name: str, module_class: type[_Module]) -> _Module:
    """Find a submodule by its dotted name, and check its class."""
    module = model.get_submodule(name)
    assert isinstance(module, module_class), type(module)
    return module


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
