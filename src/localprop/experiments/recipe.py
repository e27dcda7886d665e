"""The record of one published experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from textwrap import fill
from types import MappingProxyType
from typing import Any

from localprop.training.config import MAY_DIFFER, Config
from localprop.training.phases import shorten_phases

__all__ = ["Recipe"]

# An override of the field on the left drops the recipe's values of the fields on the right: the
# two exclude each other, or the recipe's value makes sense only with the value that is overridden.
_FIELDS_DROPPED_BY = {
    "modules": ("cuts",),
    "cuts": ("modules",),
    "method": ("phases",),
    "phases": ("method",),
    "lr": ("warmup_from",),
    "lr_schedule": ("milestones", "warmup_epochs", "warmup_from"),
}


@dataclass(frozen=True)
class Recipe:
    """A published experiment: its run, the figure that the paper reports, and what is unknown.

    Attributes:
        name: network, data, method and row, such as "resnet32_cifar10_backlink_k16"; k is the
            number of modules.
        config: the run.
        paper: the reference.
        published: the figure that the paper reports, with its conditions; empty if unknown.
        notes: known differences between this run and the paper's code or data.
        readings: what the paper and its code leave open or is not known to us, and our reading of
            it. A recipe with readings does not claim the figure.

    Example:
        >>> Recipe("digits_e2e", Config(), "nobody").non_defaults()
        {}
    """

    name: str
    config: Config
    paper: str
    published: str = ""
    notes: str = ""
    readings: str = ""

    @property
    def claimed(self) -> str:
        """The published figure and whether a run should reproduce it; empty if there is none.

        Example:
            >>> Recipe("wide", Config(), "nobody", "test error 5 %", readings="Our head.").claimed
            'not claimed, in part our reading: test error 5 %'
        """
        if self.published and self.readings:
            return f"not claimed, in part our reading: {self.published}"
        return self.published

    def non_defaults(self) -> dict[str, Any]:
        """The fields of the config that differ from the defaults.

        Example:
            >>> Recipe("wide", Config(lr=0.8, epochs=160), "nobody").non_defaults()
            {'epochs': 160, 'lr': 0.8}
        """
        values = {field.name: getattr(self.config, field.name) for field in fields(Config)}
        return {name: value for name, value in values.items() if value != getattr(Config, name)}

    def with_overrides(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that differ from the defaults, after applying overrides.

        An override of `modules` drops the recipe's `cuts` and vice versa. An override of `method`
        drops its `phases` and vice versa. An override of `lr_schedule` drops its milestones and
        warm-up. A smaller number of epochs changes what no longer fits: see `scaled_to_epochs`.

        Example:
            >>> Recipe("halves", Config(lr=0.8, cuts=(3,)), "nobody").with_overrides({"modules": 4})
            {'lr': 0.8, 'modules': 4}
        """
        dropped = {other for name in overrides for other in _FIELDS_DROPPED_BY.get(name, ())}
        kept = {name: value for name, value in self.non_defaults().items() if name not in dropped}
        return {**kept, **self.scaled_to_epochs(overrides), **overrides}

    def scaled_to_epochs(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """New values for warm-up, milestones and phases that do not fit the overridden epochs.

        The warm-up becomes the default for that many epochs. Phases keep their shares of the
        epochs. Milestones keep their shares too, rounded to whole epochs, and milestones that
        coincide become one. The learning rate of a single epoch is constant.

        Example:
            >>> steps = Config(epochs=400, lr_schedule="multistep", milestones=(200, 300, 350, 375))
            >>> Recipe("steps", steps, "nobody").scaled_to_epochs({"epochs": 8})
            {'milestones': (4, 6, 7)}
            >>> warm = Config(epochs=160, warmup_epochs=10)
            >>> Recipe("warm", warm, "nobody").scaled_to_epochs({"epochs": 8})
            {'warmup_epochs': None}
        """
        epochs = overrides.get("epochs")
        if type(epochs) is not int or epochs < 1:  # a bool is no number of epochs
            return {}
        return {
            **self._scale_phases(epochs, overrides),
            **self._scale_lr_schedule(epochs, overrides),
        }

    def _scale_phases(self, epochs: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
        phases = self.config.phases
        if not phases or "phases" in overrides or "method" in overrides:
            return {}
        shortened = shorten_phases(phases, epochs)
        return {} if shortened == phases else {"phases": shortened}

    def _scale_lr_schedule(self, epochs: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
        if "lr_schedule" in overrides:
            return {}
        config = self.config
        scaled: dict[str, Any] = {}
        if "warmup_epochs" not in overrides and (config.warmup_epochs or 0) >= epochs:
            scaled["warmup_epochs"] = None
        milestones = config.milestones
        if "milestones" not in overrides and milestones and milestones[-1] >= epochs:
            rounded = {round(epochs * milestone / config.epochs) for milestone in milestones}
            scaled["milestones"] = tuple(sorted(rounded & {*range(1, epochs)}))
            if not scaled["milestones"]:
                scaled["lr_schedule"] = "constant"
        return scaled

    def find_replaced_fields(self, overrides: Mapping[str, Any]) -> list[str]:
        """The fields in which a run with overrides differs from the recipe.

        Fields that say where a run takes place, such as `device`, do not count.

        Example:
            >>> recipe = Recipe("wide", Config(lr=0.8), "nobody")
            >>> recipe.find_replaced_fields({"epochs": 2, "device": "cpu", "lr": 0.8})
            ['epochs']
        """
        run = Config(**self.with_overrides(overrides))
        names = [field.name for field in fields(Config) if field.name not in MAY_DIFFER]
        return [name for name in names if getattr(run, name) != getattr(self.config, name)]

    def provenance(self, overrides: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The recipe as text: its run, the paper, the published figure, notes and readings.

        Args:
            overrides: fields that the run replaces.

        Example:
            >>> print(Recipe("wide", Config(lr=0.8), "Nobody 2020").provenance())
            recipe     wide
            run        lr=0.8
            paper      Nobody 2020
            published  no figure to compare this run with
        """
        values = self.with_overrides(overrides)
        run = " ".join(f"{name}={value!r}" for name, value in values.items())
        published = self.claimed or "no figure to compare this run with"
        rows = {"recipe": self.name, "run": run, "paper": self.paper, "published": published}
        rows |= {"notes": self.notes, "readings": self.readings}
        return "\n".join(_format_row(label, text) for label, text in rows.items() if text)


def _format_row(label: str, text: str) -> str:
    indent = " " * 11
    label = f"{label:9}  "
    return fill(text, 100, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False)


def join_notes(*notes: str) -> str:
    """Join notes into one text and leave out empty ones.

    Example:
        >>> join_notes("One.", "", "Two.")
        'One. Two.'
    """
    return " ".join(note for note in notes if note)
