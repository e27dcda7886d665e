"""Training and evaluation mode of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put the network into evaluation mode; on exit, give each module its previous mode back.

    Example:
        >>> from torch import nn
        >>> network = nn.Dropout()
        >>> with evaluation_mode(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    # Not network.train() on exit: a user may keep single modules, such as frozen batch norms, in
    # evaluation mode during training.
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
