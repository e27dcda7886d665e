"""Attach points: what the builder of a head or a loss knows about the end of a module."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn

from localprop.data.dataset import Normalization
from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.network.layers import LayerEnd, Layers
from localprop.tasks.classification import Classification
from localprop.tasks.task import Task

__all__ = ["AttachPoint"]


@dataclass(frozen=True)
class AttachPoint:
    """The end of a module, as the builders of auxiliary networks and losses see it.

    Attributes:
        module: the module's number, from 0.
        modules: the number of modules. Modules joined under the last loss count as one.
        layer: the number of the module's last layer.
        layers: all layers of the network, with their shapes. Those after `layer` follow the module.
        features: the shape of the module's output, batch first.
        outputs: the number of outputs (classes) of the network.
        start: the number of the module's first layer.
        objective: the number of this loss among those at the module's end. It is 0 unless the
            credit table has several losses there.
        normalization: how pixels became inputs, or None if the user does not say.
        task: what the network is trained for.
    """

    module: int
    modules: int
    layer: int
    layers: Layers
    features: torch.Size
    outputs: int
    start: int = 0
    objective: int = 0
    normalization: Normalization | None = None
    task: Task = field(default=Classification())

    def dimension(self, layer: int | None = None) -> int:
        """The dimension that holds the channels of the features.

        It is the one that the next layer contracts or scales, or else the one that the layer has
        made.

        Args:
            layer: look at the output of this layer instead of the features.

        Raises:
            BadInput: it cannot be told, or the samples are not in dimension 0.
        """
        at = self.layer if layer is None else layer
        shape, growth = self.layers.shapes[at], self.layers.growths[at]
        if growth != (1, *[0] * (len(shape) - 1)):
            raise BadInput(
                f"Layer {self.layers.names[at]!r} returns features of shape {tuple(shape)} for "
                f"{self.layers.samples} samples, but heads read features whose dimension 0 counts "
                "the samples: give the model batch_first=True, cut elsewhere, or give the rule an "
                "aux of your own."
            )
        channel = self.layers.find_channel(at)
        if channel is None:
            raise BadInput(
                f"Layer {self.layers.names[at]!r} returns features of shape {tuple(shape)}, and no "
                "operation shows which dimension holds the channels: cut elsewhere, or give the "
                "rule an aux of your own."
            )
        return channel

    def width(self, layer: int | None = None) -> int:
        """The number of channels of the features, or of another layer's output."""
        return self._shape(layer)[self.dimension(layer)]

    def is_map(self, layer: int | None = None) -> bool:
        """Whether the features, or another layer's output, are convolutional maps (N, C, H, W)."""
        at = self.layer if layer is None else layer
        return len(self._shape(layer)) == 4 and self.layers.find_channel(at) == 1

    def make_fresh_copy(self, layer: int) -> nn.Module:
        """Copy a layer and initialise the copy anew.

        Modules with a `reset_parameters` method are reset, and convolutions are drawn as in the
        CIFAR ResNets. The parameters of other modules keep the copied values. A copy of the
        network's last layer leaves out the modules after its end (the classifier).

        Raises:
            BadInput: the layer consists of several modules that are not neighbours in an
                nn.Sequential, gets more from the network than its features, such as a mask, or
                holds what Python cannot copy.
        """
        try:
            copy = deepcopy(self._find_whole_module(layer))
        except (RuntimeError, TypeError) as error:  # a computed weight, a lock
            raise BadInput(
                f"Layer {self.layers.names[layer]!r} cannot be copied ({error}): use an auxiliary "
                "network that copies no layers, such as aux=Head()."
            ) from error
        for module in copy.modules():
            # torch's nn.MultiheadAttention has the second name.
            for name in ("reset_parameters", "_reset_parameters"):
                if callable(reset := getattr(module, name, None)):
                    reset()
        init_convs(copy)
        return copy.train()

    def _shape(self, layer: int | None) -> torch.Size:
        return self.features if layer is None else self.layers.shapes[layer]

    def _find_whole_module(self, layer: int) -> nn.Module:
        """The module, or the run of neighbours in an nn.Sequential, that is all of a layer."""
        name, model = LayerEnd.parse(self.layers.names[layer]).module, self.layers.model
        inside, after = self._split_submodules(layer)
        # Only the last layer goes on after its end. Its classifier is not copied, but its
        # parameters count as the layer's.
        classifier = after if layer == len(self.layers) - 1 else []
        parents = {submodule.rpartition(".")[0] for submodule in inside}
        neighbours = len(parents) == 1 and type(model.get_submodule(*parents)) is nn.Sequential
        if len(inside) > 1 and neighbours and self._contains_layer([*inside, *classifier], layer):
            return nn.Sequential(*map(model.get_submodule, inside))
        if self._contains_layer([name, *classifier], layer):
            calls = (each for each in self.layers.submodules[layer] if each.name == name)
            check(
                f"Layer {name!r} gets {' and '.join(call.arguments)} from the network besides its "
                "features, which a copy would not get: use an auxiliary network that copies no "
                "layers, such as aux=Head()."
                for call in calls
                if call.arguments
            )
            return model.get_submodule(name)
        raise BadInput(
            f"Layer {name!r} is made of several modules and cannot be copied: cut elsewhere."
        )

    def _split_submodules(self, layer: int) -> tuple[list[str], list[str]]:
        """The names of the modules of a layer up to its end, and of those that run after it."""
        end = LayerEnd.parse(self.layers.names[layer]).module
        names = [submodule.name for submodule in self.layers.submodules[layer]]
        if end not in names:
            return [end], []
        count = names.index(end) + 1
        return names[:count], names[count:]

    def _contains_layer(self, modules: list[str], layer: int) -> bool:
        """Whether these modules own all parameters of a layer."""
        model = self.layers.model
        # Not by name: a tied parameter has the name of its first owner.
        owned = {id(p) for module in modules for p in model.get_submodule(module).parameters()}
        used = map(model.get_parameter, self.layers.parameters[layer])
        return all(id(parameter) in owned for parameter in used)


def channel_dimension(shape: torch.Size, image: tuple[int, ...] = ()) -> int:
    """The dimension that holds the channels of a batch of features, judged by the shape alone.

    The channels of four-dimensional features come last if the aspect ratio of dimensions 1 and 2
    is closer to the image's than that of dimensions 2 and 3. (Ratios differ a little because odd
    sides are rounded when a layer halves them.) Without an image, or with a square one, the
    channels come last if dimensions 1 and 2 are equal and dimension 3 differs. All other features
    have their channels last.

    Args:
        shape: the shape of the features, batch first.
        image: the shape of the network's input, batch first.

    Example:
        >>> channel_dimension(torch.Size((2, 32, 32, 50)), image=(2, 3, 64, 100))
        1
        >>> channel_dimension(torch.Size((2, 32, 32, 50)))
        3
    """
    if len(shape) != 4:
        return len(shape) - 1
    if len(image) != 4 or image[2] == image[3]:
        return 3 if shape[1] == shape[2] != shape[3] else 1
    mismatch_last = _compare_aspect(shape[1], shape[2], image)
    mismatch_first = _compare_aspect(shape[2], shape[3], image)
    return 3 if mismatch_last < mismatch_first else 1


def _compare_aspect(height: int, width: int, image: tuple[int, ...]) -> float:
    """How far height / width is from the image's aspect ratio, as the absolute log of a ratio."""
    return abs(math.log(height * image[3] / (width * image[2])))


def is_map(shape: torch.Size, image: tuple[int, ...] = ()) -> bool:
    """Whether features are convolutional maps (N, C, H, W).

    Args:
        shape: the shape of the features, batch first.
        image: the shape of the network's input, batch first.
    """
    return len(shape) == 4 and channel_dimension(shape, image) == 1
