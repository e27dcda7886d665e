"""What a recipe is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from textwrap import fill
from typing import Any

from localprop.training.config import Config

# Of two fields that exclude each other, or make sense together only, the one that is given drops the recipe's other.
_DROPS = {
    "modules": ("cuts",),
    "cuts": ("modules",),
    "method": ("phases",),
    "phases": ("method",),
    "lr_schedule": ("milestones", "warmup_epochs"),
}


@dataclass(frozen=True)
class Recipe:
    """A published experiment by name: all that a run needs, what the paper reports for it, and what is not known about it.

    Attributes:
        name: network, data, method and row, such as "resnet32_cifar10_backlink_k16"; k is the number of modules.
        config: the run.
        paper: the reference.
        published: what the paper reports, with its conditions; empty where nothing is known or can be claimed.
        notes: what is our reading, and where the paper's code or data differ from this run.

    Example:
        >>> Recipe("digits_e2e", Config(), "nobody").changed()
        {}
    """

    name: str
    config: Config
    paper: str
    published: str = ""
    notes: str = ""

    def changed(self) -> dict[str, Any]:
        """The fields of the config that are not the defaults.

        Example:
            >>> Recipe("wide", Config(lr=0.8, epochs=160), "nobody").changed()
            {'epochs': 160, 'lr': 0.8}
        """
        values = {field.name: getattr(self.config, field.name) for field in fields(Config)}
        return {name: value for name, value in values.items() if value != getattr(Config, name)}

    def varied(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are not the defaults, with others in their place where they are given.

        A number of modules replaces cuts and the other way round, a method phases and the other way round, and another schedule
        of the learning rate the recipe's milestones and warm-up.

        Example:
            >>> Recipe("halves", Config(lr=0.8, cuts=(3,)), "nobody").varied({"modules": 4})
            {'lr': 0.8, 'modules': 4}
        """
        dropped = {other for name in given for other in _DROPS.get(name, ())}
        return {**{name: value for name, value in self.changed().items() if name not in dropped}, **given}

    def story(self) -> str:
        """The recipe in words: its run, the paper, what it reports, what is unknown.

        Example:
            >>> print(Recipe("wide", Config(lr=0.8), "Nobody 2020").story())
            recipe     wide
            run        lr=0.8
            paper      Nobody 2020
            published  nothing that this run could be held against
        """
        run = " ".join(f"{name}={value!r}" for name, value in self.changed().items())
        published = self.published or "nothing that this run could be held against"
        rows = {"recipe": self.name, "run": run, "paper": self.paper, "published": published, "notes": self.notes}
        return "\n".join(_row(label, text) for label, text in rows.items() if text)


def _row(label: str, text: str) -> str:
    return fill(text, 120, initial_indent=f"{label:9}  ", subsequent_indent=" " * 11, break_on_hyphens=False)


def noted(*notes: str) -> str:
    """Notes as one text; empty ones are left out.

    Example:
        >>> noted("One.", "", "Two.")
        'One. Two.'
    """
    return " ".join(note for note in notes if note)
