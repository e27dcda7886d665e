"""Print results on stdout, as text or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from localprop.cli.fit import fit
from localprop.writing.terminal import print_text


def print_figures(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the entry "table" of some figures, or with --json all other entries."""
    table = figures.pop("table")
    if args.json:
        print_json(figures)
    else:
        print_text(fit(table, sys.stdout))


def format_notes(notes: Iterable[str]) -> str:
    """Format notes as lines.

    Example:
        >>> format_notes(["InterlockingCredit(wise=9) is the same as wise=4 on this network."])
        'Note: InterlockingCredit(wise=9) is the same as wise=4 on this network.'
    """
    return "\n".join(f"Note: {note}" for note in notes)


def print_json(value: object) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))
