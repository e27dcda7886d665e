"""The layers of a model: where it can be cut, and what each layer uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from localprop.errors import BadInput
from localprop.tasks.batch import Batch

__all__ = ["Layers"]


_T = TypeVar("_T")


class TensorShape(NamedTuple):
    """A tensor of a forward, without its values.

    Attributes:
        shape: its shape on the sample.
        growth: by how much each of its sizes grows with a sample.
        dtype: its dtype.
        modified_in_place: whether the model later writes into it.
    """

    shape: torch.Size
    growth: tuple[int, ...]
    dtype: torch.dtype
    modified_in_place: bool


class LayerEnd(NamedTuple):
    """Where a layer ends, as its name says.

    Attributes:
        module: the name of the module that returns.
        call: which of its calls, if there are several.
        function: which function of torch after that return, if it is one that ends the layer.

    Example:
        >>> LayerEnd.parse("encoder.layer#2+1")
        LayerEnd(module='encoder.layer', call=2, function=1)
    """

    module: str
    call: int | None = None
    function: int | None = None

    @classmethod
    def parse(cls, name: str) -> LayerEnd:
        """Read the name of a layer."""
        name, _, function = name.partition("+")
        module, _, call = name.partition("#")
        return cls(module, int(call) if call else None, int(function) if function else None)

    @property
    def is_plain(self) -> bool:
        """Whether it is the return of the only call of a module."""
        return self.call is None and self.function is None


class HandedOn(NamedTuple):
    """A tensor that a layer hands on to later ones.

    Attributes:
        positions: where it stands among the tensors that the layer's last module returns.
        until: the last layer that reads it.
        modified_in_place: whether the model later writes into it.
    """

    positions: tuple[int, ...]
    until: int
    modified_in_place: bool


class Submodule(NamedTuple):
    """A module that begins and ends within one layer, and what it returns.

    Attributes:
        name: the name of the module.
        tensors: the tensors that it returns, in the order of torch's pytree.
        leaves: the leaves of what it returns, without the tensors.
        spec: their structure.
        arguments: the names of what its forward gets besides the first argument, but for what has
            its default.
    """

    name: str
    tensors: tuple[TensorShape, ...]
    leaves: tuple[Any, ...]
    spec: TreeSpec
    arguments: tuple[str, ...] = ()

    def make_output(self, tensors: Iterable[Tensor]) -> Any:
        """What the module returns, with other tensors."""
        own = iter(tensors)
        leaves = [next(own) if isinstance(leaf, _TensorPlace) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.spec)


class LayerCall(NamedTuple):
    """A call that begins and ends within one layer, and in no other such call.

    Attributes:
        name: the name of the module.
        number: which of its calls it is, counted from 1.
        is_overwritten: whether the model writes into an argument, during the call or later.
        changed: the names of arguments that the call changes without writing into a tensor: a cache
            of keys and values, say.
    """

    name: str
    number: int
    is_overwritten: bool = False
    changed: tuple[str, ...] = ()


class _TensorPlace:
    """Stands for a tensor among leaves. Layers are copied, so it is known by its class."""


def describe_submodule(
    name: str, output: Any, tensors: Iterable[TensorShape], arguments: tuple[str, ...]
) -> Submodule:
    """Describe a module by what it has got and returned."""
    leaves, spec = tree_flatten(output)
    kept = tuple(_TensorPlace() if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return Submodule(name, tuple(tensors), kept, spec, arguments)


@dataclass(frozen=True)
class Layers:
    """The layers of a model, in the order of its forward. A `Partition` groups them into modules.

    A layer ends when the module of its name returns. The last layer goes on to the model's output.
    All shapes are those of the sample, batch dimension first.

    Attributes:
        names: the name of the module at whose return each layer ends.
        shapes: the shape of the tensor that this module returns.
        growths: by how much each of its sizes grows with a sample: (1, 0, 0) for (N, T, C).
        channels: the dimension of its channels, as the next layer uses it; None where that cannot
            be told.
        handed_on: the tensors that each layer hands on, this one first; none after the last layer.
        constants: where other tensors stand among those that the layer's last module returns:
            without a gradient, but later modules get them.
        dtypes: the dtype of that tensor.
        parameters: the names of the parameters that each layer uses. A shared parameter appears in
            several layers.
        sizes: for each layer, the number of elements of each of these parameters.
        depths: for each layer, the number of weights (of convolutions, linear layers, ...) on its
            longest path.
        in_checkpoints: for each layer, whether it ends within a checkpoint of the model's own.
        submodules: the outermost modules that begin and end within each layer.
        calls: the outermost calls that begin and end within each layer and take part in the
            gradient, but for those within a checkpoint of the model's own.
        input_shape: the shape of the sample.
        input_dtype: the dtype of the sample.
        output_shape: the shape of the model's output.
        output_growth: by how much each of its sizes grows with a sample.
        output_dtype: its dtype.
        output_channel: the dimension that holds what it says of each position: classes, say.
        follows_targets: for each layer, whether its output has the positions of the network's; that
            of the encoder of an encoder-decoder has not.
        samples: the number of samples.
        frozen: the names of the parameters that require no gradient.
        not_cuttable: for every other module, why no layer ends with it.
        modified_outputs: the names of all modules whose outputs the model later writes into.
        model: the model itself.
        way: how the model was looked at: "fake", "imagined" or "real" (`lp.check`).
        unreached: the names of trainable parameters that the forward did not reach.
        others: the same layers on batches of other shapes, as `look_again` has found them.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    growths: tuple[tuple[int, ...], ...]
    channels: tuple[int | None, ...]
    handed_on: tuple[tuple[HandedOn, ...], ...]
    constants: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    parameters: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    in_checkpoints: tuple[bool, ...]
    submodules: tuple[tuple[Submodule, ...], ...]
    calls: tuple[tuple[LayerCall, ...], ...]
    input_shape: torch.Size
    input_dtype: torch.dtype
    output_shape: torch.Size
    output_growth: tuple[int, ...]
    output_dtype: torch.dtype
    output_channel: int
    follows_targets: tuple[bool, ...]
    samples: int
    frozen: frozenset[str]
    not_cuttable: Mapping[str, str] = field(repr=False, compare=False)
    modified_outputs: frozenset[str] = field(repr=False)
    model: nn.Module = field(repr=False, compare=False)
    way: str = "fake"
    unreached: tuple[str, ...] = ()
    others: dict[object, Layers] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def at(self, batch: Batch) -> Layers:
        """The layers on a batch of another shape, which somebody has looked at."""
        return self.others.get(batch.signature, self)

    def find_channel(self, layer: int) -> int | None:
        """The dimension that holds the channels of a layer's output; None if it cannot be told."""
        known = self.channels[layer]
        if known is None:  # a neighbour that keeps the shape has them where this layer has them
            near = [at for at in (layer - 1, layer + 1) if 0 <= at < len(self)]
            same = (self.channels[at] for at in near if self.shapes[at] == self.shapes[layer])
            known = next(same, None)
        return known

    def goes_around(self, layer: int) -> bool:
        """Whether the features are not all that is read after a layer's end."""
        earlier = (each for own in self.handed_on[:layer] for each in own)
        return len(self.handed_on[layer]) > 1 or any(each.until > layer for each in earlier)

    def find_end(self, layer: int) -> Submodule | None:
        """The module at whose return a layer ends, if other ranks can skip it: it is called once,
        and what it returns can be made again.
        """
        name = self.names[layer]
        return next((each for each in self.submodules[layer] if each.name == name), None)

    def select_crossing(self, layer: int, returned: Sequence[_T]) -> list[_T]:
        """Select what crosses the end of a layer: features, other tensors with a gradient, and
        constants.

        Args:
            layer: the layer.
            returned: one entry for each tensor that its last module returns.
        """
        places = [each.positions[0] for each in self.handed_on[layer]]
        return [returned[place] for place in (*places, *self.constants[layer])]

    def place_crossing(self, layer: int, crossing: Iterable[_T]) -> dict[int, _T]:
        """By its place among those that the layer's last module returns, each of the tensors that
        `select_crossing` has selected.
        """
        places = [*(each.positions for each in self.handed_on[layer])]
        places += [(place,) for place in self.constants[layer]]
        pairs = zip(places, crossing, strict=True)
        return {place: each for own, each in pairs for place in own}

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

    def shape_for(self, shape: torch.Size, growth: tuple[int, ...], count: int) -> torch.Size:
        """A shape from the sample's forward, changed to a batch of `count` samples."""
        return resize_shape(shape, growth, count - self.samples)

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = []
        for i, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            lines.append(f"{i:3d} {name:{width}} {'x'.join(map(str, shape[1:]))}")
        return "\n".join(lines)


def resize_shape(shape: torch.Size, growth: tuple[int, ...], more: int) -> torch.Size:
    """A shape after so many more samples, or fewer."""
    return torch.Size(size + more * each for size, each in zip(shape, growth, strict=True))
