"""Heads of networks with an output for each position: pixels, tokens, steps of a series.

::

    features (N, 16, 32, 32) ──► convolutions ──► norm and linear layers at each position
                                 (N, 32, 32, classes) ──► (N, classes, 64, 64), as the network's

A head then makes an output of the shape of the network's own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import BadInput
from localprop.network.layers import Layers
from localprop.rule.attach import AttachPoint
from localprop.tasks.task import Task

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class PositionNorm(nn.LayerNorm):
    """A LayerNorm over the channels of each position, which then come last.

    Args:
        width: the number of channels.
        channel: the dimension that holds them.

    Example:
        >>> import torch
        >>> PositionNorm(16, 1)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 8, 8, 16])
    """

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width)
        self.channel = channel

    def forward(self, features: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(features.movedim(self.channel, -1))


class MatchOutput(nn.Module):
    """An auxiliary network whose output for each position is brought to the network's layout.

    Outputs between positions are interpolated.

    Args:
        aux: maps features to (N, positions..., outputs); it may have fewer positions than they.
        channel: the dimension of the network's output that holds what each position has.
        features_channel: the dimension of the features that holds their channels.
        ratios: of the network's positions to those of the features.
    """

    def __init__(
        self, aux: nn.Module, channel: int, features_channel: int, ratios: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.aux, self.channel, self.ratios = aux, channel, ratios
        self.features_channel = features_channel

    def forward(self, features: Tensor) -> Tensor:
        """The auxiliary network's output, in the shape of the network's."""
        output: Tensor = self.aux(features).movedim(-1, 1)
        positions = _positions(features.shape, self.features_channel)
        size = [round(n * ratio) for n, ratio in zip(positions, self.ratios, strict=True)]
        if list(output.shape[2:]) != size:
            output = functional.interpolate(
                output, size=size, mode=_MODES[len(size)], align_corners=False
            )
        return output.movedim(1, self.channel)


class Reshape(nn.Module):
    """An auxiliary network whose outputs of a sample are brought to the network's shape.

    Args:
        aux: maps features to (N, outputs).
        shape: the shape of the network's output for one sample.
    """

    def __init__(self, aux: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.aux, self.shape = aux, shape

    def forward(self, features: Tensor) -> Tensor:
        """The auxiliary network's output, in the shape of the network's."""
        output: Tensor = self.aux(features)
        return output.reshape(*output.shape[:-1], *self.shape)


class WithoutChannel(nn.Module):
    """An auxiliary network whose outputs (N, 1) become (N,), as the network's are.

    Outputs of another width, which some losses read, stay as they are.

    Args:
        aux: maps features to (N, outputs).
    """

    def __init__(self, aux: nn.Module) -> None:
        super().__init__()
        self.aux = aux

    def forward(self, features: Tensor) -> Tensor:
        """The auxiliary network's output, in the shape of the network's."""
        output: Tensor = self.aux(features)
        return output.squeeze(-1)


def has_positions(point: AttachPoint) -> bool:
    """Whether a head makes an output for each position of its features.

    Raises:
        BadInput: the network has outputs for positions that the features do not have.
    """
    outputs = point.layers.output_shape
    if len(outputs) <= 2 or makes_whole(point):
        return False
    features = _positions(point.features, point.dimension())
    wanted = _positions(outputs, point.layers.output_channel)
    if not _are_alike(features, wanted) or not point.layers.follows_targets[point.layer]:
        raise BadInput(_say_no_positions(point))
    return True


def list_layers_for_heads(layers: Layers, task: Task) -> list[int]:
    """The layers at whose end a usual head can make outputs.

    Their features have a sample in each place of dimension 0, channels that are known, and
    positions like the outputs'.
    """
    whole = len(layers.output_shape) <= 2 or task.has_fixed_outputs
    wanted = _positions(layers.output_shape, layers.output_channel)
    return [
        layer
        for layer in range(len(layers))
        if layers.growths[layer][:1] == (1,)
        and layers.find_channel(layer) is not None
        and (whole or _has_positions_of(layers, layer, wanted))
    ]


def _has_positions_of(layers: Layers, layer: int, wanted: tuple[int, ...]) -> bool:
    channel = layers.find_channel(layer)
    if channel is None or not layers.follows_targets[layer]:
        return False
    return _are_alike(_positions(layers.shapes[layer], channel), wanted)


def _are_alike(features: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether there is an output at each position. Of maps one may be finer than the other."""
    return len(features) == len(wanted) and (len(wanted) > 1 or features == wanted)


def _say_no_positions(point: AttachPoint) -> str:
    return (
        f"Module {point.module} ends with features of shape {tuple(point.features)}, which have no "
        f"positions in common with the network's outputs {tuple(point.layers.output_shape)}: let "
        "the first module end where they have, with Partition.at, or give the rule an aux of your "
        "own."
    )


def _say_no_samples(layers: Layers) -> str:
    return (
        f"The network's output of shape {tuple(layers.output_shape)} does not count the samples: "
        "no head can make a total over the batch at a module's end. Train with lp.end_to_end(), or "
        "let the task's forward return outputs of each sample."
    )


def makes_whole(point: AttachPoint) -> bool:
    """Whether a head makes all outputs of a sample from an average over its positions.

    So it is where outputs are numbers of a fixed shape, such as a forecast, and features have other
    positions.
    """
    outputs = point.layers.output_shape
    if len(outputs) <= 2 or not point.task.has_fixed_outputs:
        return False
    features = _positions(point.features, point.dimension())
    return features != _positions(outputs, point.layers.output_channel)


def build_matching(build: Callable[[AttachPoint], nn.Module], point: AttachPoint) -> nn.Module:
    """Build a head, and bring its output to the layout of the network's, if it differs.

    Args:
        build: makes the head, of features as the network hands them on.
        point: where it is attached.

    Raises:
        BadInput: the network's output says nothing of single samples, or has positions that the
            features do not have.
    """
    layers = point.layers
    outputs, channel = layers.output_shape, layers.output_channel
    # First of all: where no dimension counts the samples, features and outputs are both strange.
    if len(outputs) < 2 and layers.output_growth != (1,):
        raise BadInput(_say_no_samples(layers))
    aux = build(point)
    if len(outputs) < 2:
        return WithoutChannel(aux)
    if len(outputs) == 2:
        return aux
    if makes_whole(point):
        return Reshape(aux, tuple(outputs[1:]))
    features = _positions(point.features, point.dimension())
    wanted = _positions(outputs, channel)
    if channel == len(outputs) - 1 and features == wanted:
        return aux
    if len(features) != len(wanted):
        raise BadInput(_say_no_positions(point))
    ratios = tuple(b / a for a, b in zip(features, wanted, strict=True))
    return MatchOutput(aux, channel, point.dimension(), ratios)


def _positions(shape: tuple[int, ...], channel: int) -> tuple[int, ...]:
    return tuple(size for dim, size in enumerate(shape) if dim not in (0, channel))
