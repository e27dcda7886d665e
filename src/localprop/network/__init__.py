"""The layers of a model, and its partition into local modules."""

from localprop.network.layers import Layers, layers_of
from localprop.network.partition import Partition

__all__ = ["Layers", "Partition", "layers_of"]
