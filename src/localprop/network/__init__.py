"""What is cut: the layers of a model, and a partition of them into local modules."""

from localprop.network.layers import Layers, Piece, layers_of
from localprop.network.partition import Partition

__all__ = ["Layers", "Partition", "Piece", "layers_of"]
