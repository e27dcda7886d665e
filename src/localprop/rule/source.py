"""Sources: where a module's context comes from."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """The source of one context: the input of a module.

    Attributes:
        module: the module whose input is the source. The input of module 0 is the network's.
        raw: whether the source is the image itself (the paper's E), which gets a deeper encoder.
    """

    module: int
    raw: bool
