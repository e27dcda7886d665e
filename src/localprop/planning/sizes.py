"""Numbers of bytes, as people write them."""

from __future__ import annotations

import re

from localprop.errors import BadInput

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read_size(size: int | str) -> int:
    """Read a number of bytes.

    Raises:
        BadInput: it is none.

    Example:
        >>> read_size("8GB"), read_size("1.5 MiB"), read_size(1000)
        (8000000000, 1572864, 1000)
    """
    if isinstance(size, str):
        # More digits than any memory has bytes would not be finite.
        number = r"(\d{1,20}(?:\.\d{1,20})?)"
        match = re.fullmatch(rf"\s*{number}\s*([KMGT]?)(i?)B?\s*", size, re.IGNORECASE)
        if match is not None and not (match[3] and not match[2]):
            units = _BINARY if match[3] else _UNITS
            size = round(float(match[1]) * units[match[2].upper()])
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise BadInput(f"budget={size!r} is no size: write bytes, or a text such as '8GB'.")
    return size


def format_size(nbytes: int) -> str:
    """Format a number of bytes, in units of 10^3.

    Example:
        >>> format_size(7_600_000_000), format_size(12_340_000), format_size(900)
        ('7.60 GB', '12.3 MB', '0.9 kB')
    """
    if nbytes >= 10**9:
        return f"{nbytes / 1e9:.2f} GB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 10**6 else f"{nbytes / 1e3:.1f} kB"
