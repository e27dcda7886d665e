"""Notes: arguments of a rule that a network caps or ignores.

Nothing here knows a part. An argument has no effect if another value of it makes the same: the same
credit table, contexts, heads and losses, down to their initial weights. A part may add why.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from localprop.arguments import check_arguments
from localprop.data.dataset import Normalization
from localprop.errors import BadInput
from localprop.network.partition import Partition
from localprop.rule.limits import find_limits
from localprop.rule.rule import Rule
from localprop.schedule.fingerprint import take_fingerprint
from localprop.schedule.heads import build_encoders, build_head, find_points

__all__ = ["find_notes"]

_Change = Callable[[Any], Rule]  # makes the rule with something else in a certain place


@check_arguments
def find_notes(rule: Rule, partition: Partition) -> tuple[str, ...]:
    """Find the arguments of a rule that are capped, or have no effect, on a network.

    A value is compared with its default, a whole number also with smaller ones, and a tuple with
    shorter ones. An argument that has its default is not reported, since nobody asked for it.

    Args:
        rule: the training rule.
        partition: the network and its cuts.

    Returns:
        A sentence for each such argument.

    Example:
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> lp.find_notes(lp.interlocking(wise=99), lp.Partition.uniform(layers, 4))
        ('InterlockingCredit(wise=99) is the same as wise=4 on this network.',)
    """
    notes = dict[str, None]()  # a set that keeps the order
    for field in fields(rule):
        change = partial(_change_field, lambda changed: changed, rule, field.name)
        search = _Search(rule, partition, field.name)
        if field.name == "credit":
            # Which class gives the credit is no argument: on one module all of them do the same.
            notes |= dict.fromkeys(search.find_inside(rule.credit, change))
        elif field.name != "reference":
            notes |= dict.fromkeys(search.find_notes_of(rule, field, change))
    return tuple(notes)


class _Search:
    """Tries other values for the arguments of a part in one role of a rule, and inside that part.

    Args:
        rule: the rule.
        partition: the network and its cuts.
        role: the field of the rule that holds the part.
    """

    def __init__(self, rule: Rule, partition: Partition, role: str) -> None:
        self.rule, self.partition, self.role = rule, partition, role

    def find_inside(self, part: Any, change: _Change) -> Iterator[str]:
        """Find the notes on the arguments of a part, or of all parts in a tuple."""
        if isinstance(part, tuple):
            for i, member in enumerate(part):
                yield from self.find_inside(member, partial(_change_member, change, part, i))
        elif is_dataclass(part):
            reasons = find_limits(part, self.partition)
            for field in fields(part):
                change_field = partial(_change_field, change, part, field.name)
                reason = reasons.get(field.name, "")
                yield from self.find_notes_of(part, field, change_field, reason)

    def find_notes_of(
        self, owner: Any, field: Field[Any], change: _Change, reason: str = ""
    ) -> Iterator[str]:
        """Find the note on an argument, or the notes inside the part that is its value.

        Args:
            owner: the part that has the argument.
            field: the argument.
            change: makes the rule with another value of it.
            reason: why the network caps it, if the part says so.
        """
        value, default = getattr(owner, field.name), _find_default(field)
        if value == default:
            return
        effect = None
        if not is_dataclass(value) or type(value) is not type(default):
            effect = self._describe_effect(field.name, value, default, change)
        if effect or reason:
            because = f": {reason}" if reason else ""
            given = f"{type(owner).__name__}({field.name}={value!r})"
            yield f"{given} {effect or 'is capped'} on this network{because}."
        else:
            yield from self.find_inside(value, change)

    def _describe_effect(self, name: str, value: Any, default: Any, change: _Change) -> str | None:
        """Describe what a value does if it is the same as another one; None if it is not."""
        if type(value) is int:
            return self._describe_effect_of_number(name, value, default, change)
        others = [value[:count] for count in range(len(value))] if type(value) is tuple else []
        for other in (*others, default):
            if other is not MISSING and self._is_same(change, other):
                return f"is the same as {name}={other!r}"
        return None

    def _describe_effect_of_number(
        self, name: str, value: int, default: object, change: _Change
    ) -> str | None:
        is_same = partial(self._is_same, change)
        # A number like 0 may stand for one that depends on the network. Equal to this one, a value
        # still has an effect: its neighbours differ.
        is_idle = default is not MISSING and is_same(value + 1) and is_same(default)
        is_capped = value > 0 and is_same(value - 1)
        least = bisect_left(range(value - 1), True, key=is_same) if is_capped else value
        if is_idle and (least == 0 or not _is_accepted(change, least - 1)):
            return "has no effect"
        if is_capped or is_idle:
            return f"is the same as {name}={least if is_capped else default!r}"
        return None

    def _is_same(self, change: _Change, value: object) -> bool:
        """Whether the rule with another value wires the network as it does now."""
        try:
            pairs = zip_longest(self._describe(self.rule), self._describe(change(value)))
            return all(ours == theirs for ours, theirs in pairs)
        except Exception:  # the part refuses the value, and a part of the user's may raise anything
            return False

    def _describe(self, rule: Rule) -> Iterator[object]:
        """All that the part decides, piece by piece, since the first difference is enough."""
        modules = range(len(self.partition.modules))
        if self.role == "credit":
            yield rule.credit(self.partition)
        elif self.role == "context":
            sources = tuple(map(rule.context.sources, modules))
            yield sources
            yield take_fingerprint(build_encoders(rule, self.partition, sources, seed=0))
        else:
            table = rule.credit(self.partition)
            # Task and normalization are the learner's, the same for both rules: any will do.
            for k, point in find_points(self.partition, table, Normalization()).items():
                head = build_head(rule, table, k, point, seed=0)
                if self.role == "aux" and not getattr(head["loss"], "uses_aux", True):
                    # Nobody reads it: all that counts is whether it takes memory.
                    yield any(True for _ in head["aux"].parameters())
                else:
                    yield take_fingerprint(head)


# --- other values -----------------------------------------------------------------------------


def _find_default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _change_field(change: _Change, part: Any, name: str, value: object) -> Rule:
    return change(replace(part, **{name: value}))


def _change_member(change: _Change, parts: tuple[Any, ...], i: int, member: object) -> Rule:
    return change((*parts[:i], member, *parts[i + 1 :]))


def _is_accepted(change: _Change, value: object) -> bool:
    try:
        change(value)
    except BadInput:
        return False
    return True
