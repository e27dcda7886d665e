"""The layers of a model: where it can be cut, and what each layer uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from localprop.errors import BadInput

__all__ = ["Layers"]


class Submodule(NamedTuple):
    """A module that begins and ends within one layer, and the tensor that it returns.

    Attributes:
        name: the name of the module.
        shape: the shape of the tensor.
        dtype: its dtype.
        modified_in_place: whether the model later writes into the tensor.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    modified_in_place: bool


@dataclass(frozen=True)
class Layers:
    """The layers of a model, in the order of its forward. A `Partition` groups them into modules.

    A layer ends when the module of its name returns. The last layer goes on to the model's output.
    All shapes are those of the sample, batch dimension first.

    Attributes:
        names: the name of the module at whose return each layer ends.
        shapes: the shape of the tensor that this module returns.
        dtypes: the dtype of that tensor.
        parameters: the names of the parameters that each layer uses. A shared parameter appears in
            several layers.
        sizes: for each layer, the number of elements of each of these parameters.
        depths: for each layer, the number of weights (of convolutions, linear layers, ...) on its
            longest path.
        modified_in_place: for each layer, whether the model later writes into its output in place.
        submodules: the outermost modules that begin and end within each layer.
        input_shape: the shape of the sample.
        input_dtype: the dtype of the sample.
        output_shape: the shape of the model's output.
        frozen: the names of the parameters that require no gradient.
        not_cuttable: for every other module, why no layer ends with it.
        modified_outputs: the names of all modules whose outputs the model later writes into.
        model: the model itself.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    parameters: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    modified_in_place: tuple[bool, ...]
    submodules: tuple[tuple[Submodule, ...], ...]
    input_shape: torch.Size
    input_dtype: torch.dtype
    output_shape: torch.Size
    frozen: frozenset[str]
    not_cuttable: Mapping[str, str] = field(repr=False, compare=False)
    modified_outputs: frozenset[str] = field(repr=False)
    model: nn.Module = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def sizes_of(self, layer: int) -> Iterator[tuple[str, int]]:
        """The names of a layer's parameters, each with its number of elements."""
        return zip(self.parameters[layer], self.sizes[layer], strict=True)

    def layer_of(self, name: str) -> int:
        """The layer within which the module `name` runs.

        Raises:
            BadInput: the module runs in no layer, or in several.
        """
        for layer, submodules in enumerate(self.submodules):
            if any(f"{name}.".startswith(f"{submodule.name}.") for submodule in submodules):
                return layer
        raise BadInput(f"The model has no module {name!r} that runs once, within one layer.")

    def shape_for(self, shape: torch.Size, count: int) -> torch.Size:
        """A shape from the sample's forward, changed to a batch of `count` samples."""
        return torch.Size((count, *shape[1:])) if shape[:1] == self.input_shape[:1] else shape

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = []
        for i, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            lines.append(f"{i:3d} {name:{width}} {'x'.join(map(str, shape[1:]))}")
        return "\n".join(lines)


# --- the second run: each layer alone -------------------------------------------------------------
