"""What a recipe is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from textwrap import fill
from typing import Any

from localprop.training.config import Config
from localprop.training.phases import shortened
from localprop.training.values import MAY_DIFFER

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
        published: what the paper reports for its row, with its conditions; empty where nothing is known.
        notes: where the paper's code or data are known to differ from this run.
        readings: what the paper and its code leave open or is not known to us, and our reading of it. A recipe that has any
            does not claim the figure.

    Example:
        >>> Recipe("digits_e2e", Config(), "nobody").changed()
        {}
    """

    name: str
    config: Config
    paper: str
    published: str = ""
    notes: str = ""
    readings: str = ""

    @property
    def claim(self) -> str:
        """What is published, and whether a run of this recipe can be held against it; empty if nothing is published.

        Example:
            >>> Recipe("wide", Config(), "nobody", "test error 5 %", readings="Its heads are our reading.").claim
            'not claimed, in part our reading: test error 5 %'
        """
        return (
            f"not claimed, in part our reading: {self.published}"
            if self.published and self.readings
            else self.published
        )

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
        of the learning rate the recipe's milestones and warm-up. Epochs that leave no room for these change them as
        :meth:`fitted` says.

        Example:
            >>> Recipe("halves", Config(lr=0.8, cuts=(3,)), "nobody").varied({"modules": 4})
            {'lr': 0.8, 'modules': 4}
        """
        dropped = {other for name in given for other in _DROPS.get(name, ())}
        kept = {name: value for name, value in self.changed().items() if name not in dropped}
        return {**kept, **self.fitted(given), **given}

    def fitted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What replaces the recipe's warm-up, milestones and phases where the epochs that are given leave no room for them.

        The warm-up is then the usual one of so many epochs, and phases keep their shares of them. Milestones keep their shares
        of the run, rounded to whole epochs, those that meet being one; in a single epoch the learning rate is constant.

        Example:
            >>> steps = Config(epochs=400, lr_schedule="multistep", milestones=(200, 300, 350, 375))
            >>> Recipe("steps", steps, "nobody").fitted({"epochs": 8})
            {'milestones': (4, 6, 7)}
            >>> Recipe("warm", Config(epochs=160, warmup_epochs=10), "nobody").fitted({"epochs": 8})
            {'warmup_epochs': None}
        """
        epochs, config = given.get("epochs"), self.config
        if type(epochs) is not int or epochs < 1:
            return {}
        found: dict[str, Any] = {}
        if (
            config.phases
            and not {"phases", "method"} & {*given}
            and (fit := shortened(config.phases, epochs)) != config.phases
        ):
            found["phases"] = fit
        if "lr_schedule" in given:
            return found
        if "warmup_epochs" not in given and (config.warmup_epochs or 0) >= epochs:
            found["warmup_epochs"] = None
        if "milestones" not in given and config.milestones and config.milestones[-1] >= epochs:
            scaled = {round(epochs * milestone / config.epochs) for milestone in config.milestones}
            found["milestones"] = tuple(sorted(scaled & {*range(1, epochs)}))
            if not found["milestones"]:
                found["lr_schedule"] = "constant"
        return found

    def replaced(self, given: Mapping[str, Any]) -> list[str]:
        """The fields in which a run with others given is not the recipe's; where it runs is none of them.

        Example:
            >>> Recipe("wide", Config(lr=0.8), "nobody").replaced({"epochs": 2, "device": "cpu", "lr": 0.8})
            ['epochs']
        """
        run = Config(**self.varied(given))
        differ = [
            field.name for field in fields(Config) if getattr(run, field.name) != getattr(self.config, field.name)
        ]
        return [name for name in differ if name not in MAY_DIFFER]

    def story(self) -> str:
        """The recipe in words: its run, the paper, what it reports, what is unknown, what differs.

        Example:
            >>> print(Recipe("wide", Config(lr=0.8), "Nobody 2020").story())
            recipe     wide
            run        lr=0.8
            paper      Nobody 2020
            published  nothing that this run could be held against
        """
        run = " ".join(f"{name}={value!r}" for name, value in self.changed().items())
        published = self.claim or "nothing that this run could be held against"
        rows = {"recipe": self.name, "run": run, "paper": self.paper, "published": published}
        rows |= {"notes": self.notes, "readings": self.readings}
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
