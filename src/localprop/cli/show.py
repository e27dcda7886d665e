"""`localprop show`: layers, credit, schedule and costs of a run, without training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from localprop import experiments
from localprop.cli.flags import Subparsers, add_command, add_config, collect_fields
from localprop.cli.output import format_notes, print_figures
from localprop.cli.recipe_argument import add_recipe
from localprop.training.config import Config


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "show", "print layers, credit table, schedule and costs, without training"
    )
    add_recipe(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.cli.progress import show_waiting

    with show_waiting("looking at the run"):
        figures = describe_run(args.recipe, collect_fields(args))
    print_figures(args, figures)
    return 0


def describe_run(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a run, and the recipe that it is of, if one is named.

    Only the shape of the data matters. Blank data stands in for a named data set, and for the data
    of a recipe. Files and folders are read, since nothing else knows their shape.

    Args:
        name: the name of a recipe, or None.
        given: fields of `Config`.

    Raises:
        BadInput: the recipe is unknown, flags have no effect, or the values, the data or the model
            have problems.

    Example:
        >>> describe_run(None, {"model": "mlp"})["modules"]
        [[0], [1], [2]]
    """
    from localprop.cli.progress import print_line
    from localprop.experiments.blank_data import load_shape, make_blank_dataset
    from localprop.training.build import prepare
    from localprop.training.idle_flags import check_flags

    config = Config(**experiments.fields_of(name, given, print_line))
    check_flags(given, config)
    notes: list[str] = []
    load_dataset = make_blank_dataset if name else load_shape
    _, learner = prepare(config, load_dataset, on_note=notes.append)
    notes += learner.notes
    memory = learner.memory()
    provenance = [experiments.find(name).provenance(given)] if name else []
    texts = [*provenance, learner.explain(), format_notes(notes)]
    return {
        **experiments.recipe_info(name, given),
        "config": config.as_json(),
        "rule": repr(learner.rule),
        "layers": learner.partition.layers.names,
        "modules": [list(module) for module in learner.partition.modules],
        "credit": str(learner.wiring.table).splitlines(),
        "schedule": str(learner.schedule),
        "peak_bytes": memory.peak_bytes,
        "resting_bytes": memory.resting_bytes,
        "module_bytes": [memory.module_bytes[m] for m in sorted(memory.module_bytes)],
        "notes": notes,
        "table": "\n\n".join(filter(None, texts)),
    }
