"""The phases of a run: several methods, or several modules, in turn.

    greedy() for 4; end_to_end() for 1                  four local epochs, a global one, repeated
    greedy() for 50 on 0; greedy() for 60 on 1          one module after the other

Nothing here imports torch at module level, because the config of a run reads this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from localprop.errors import BadInput, check, collect_problems

if TYPE_CHECKING:
    from localprop.rule.rule import Rule

_FORM = re.compile(
    r"(?P<method>.+) for (?P<epochs>\d{1,9})(?: on (?P<modules>\d{1,9}(?:,\d{1,9})*))?", re.DOTALL
)


@dataclass(frozen=True)
class Phase:
    """Some epochs of one method.

    The phases of a run follow each other. After the last phase the cycle begins again, until the
    epochs of the run are over. All phases share the network. Phases with the same expression share
    one learner, with its heads and the state of its optimizers. The learning rate is that of the
    epoch in the whole run.

    Modules that a phase leaves out stay as they are, with their auxiliary networks and losses. Only
    the statistics of their BatchNorms move, and the parameters that auxiliary networks copy. That
    is our reading of sequential training.

    Attributes:
        method: the training rule, as an expression or as a Rule.
        epochs: the number of epochs.
        modules: the modules to train, from 0; all of them if none is named.

    Raises:
        BadInput: the method is no valid expression, or there is less than one epoch.

    Example:
        >>> Phase.parse("greedy() for 50 on 0,1")
        Phase(method='greedy()', epochs=50, modules=(0, 1))

    Source: global epochs at intervals: Bhatti and Moon, Locally Supervised Learning with Periodic
    Global Guidance, 2022, arXiv 2208.00821. We could not find the period, the length and the
    learning rate of their global phase; here the phases state the first two, and the learning rate
    is that of the epoch. One module after the other, in one cycle or several: Karkar et al.,
    Module-wise Training of Neural Networks via the Minimizing Movement Scheme (TRGL), 2023.
    """

    method: str | Rule
    epochs: int = 1
    modules: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            _check_method(self.method)
        if self.epochs < 1:
            raise BadInput(f"{self.method} for {self.epochs} epochs: at least 1 is needed.")

    def __str__(self) -> str:
        """Format the phase as `parse` reads it."""
        modules = f" on {','.join(map(str, self.modules))}" if self.modules else ""
        return f"{self.method_text} for {self.epochs}{modules}"

    @property
    def method_text(self) -> str:
        """The method as an expression."""
        from localprop.methods.names import format_method

        return format_method(self.method)

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Parse `METHOD for EPOCHS` or `METHOD for EPOCHS on MODULE,MODULE`.

        Raises:
            BadInput: the text has another form.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise BadInput(
                f"The phase {text.strip()[:80]!r} cannot be read: write METHOD for EPOCHS, or "
                "METHOD for EPOCHS on MODULES."
            )
        modules = tuple(int(number) for number in (match["modules"] or "").split(",") if number)
        return cls(match["method"].strip(), int(match["epochs"]), modules)


@lru_cache(maxsize=1000)  # a run may have thousands of phases, of a few methods
def _check_method(method: str) -> None:
    from localprop.methods.parse import parse_rule  # imports torch, which --help does without

    parse_rule(method)


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Parse phases that are separated by semicolons.

    Raises:
        BadInput: the problems of all phases at once.

    Example:
        >>> [phase.epochs for phase in parse_phases("greedy() for 4; end_to_end() for 1")]
        [4, 1]
    """
    problems: list[str] = []
    phases = []
    for phase in text.split(";"):
        with collect_problems(problems):
            phases.append(Phase.parse(phase))
    check(problems)
    return tuple(phases)


def shorten_phases(text: str, epochs: int) -> str:
    """Shorten phases in proportion so that one cycle fits into the epochs, where it can.

    Each phase keeps at least one epoch. A cycle that fits stays as it is.

    Example:
        >>> shorten_phases("greedy() for 50 on 0; greedy() for 60 on 1", 5)
        'greedy() for 2 on 0; greedy() for 2 on 1'
    """
    phases = parse_phases(text)
    total = sum(phase.epochs for phase in phases)
    if epochs >= total:
        return text
    shortened = [replace(phase, epochs=max(1, phase.epochs * epochs // total)) for phase in phases]
    return "; ".join(map(str, shortened))


def find_cycle_problems(phases: Iterable[Phase], epochs: int) -> list[str]:
    """Find the phases that never begin because the epochs end before them, as one sentence.

    Example:
        >>> find_cycle_problems(parse_phases("greedy() for 50 on 0; greedy() for 60 on 1"), 20)
        ['The phases take 110 epochs, but epochs=20: phase 2 never begins; use --epochs 110.']
    """
    total = 0
    unreached = []
    for number, phase in enumerate(phases, start=1):
        if number > 1 and total >= epochs:
            unreached.append(str(number))
        total += phase.epochs
    if not unreached:
        return []
    plural, verb = ("", "begins") if len(unreached) == 1 else ("s", "begin")
    return [
        f"The phases take {total} epochs, but epochs={epochs}: phase{plural} "
        f"{', '.join(unreached)} never {verb}; use --epochs {total}."
    ]
