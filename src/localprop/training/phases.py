"""Phases of training: other methods, or other modules, in turn.

::

    greedy() for 4; end_to_end() for 1                  four local epochs, one global epoch, and again
    greedy() for 50 on 0; greedy() for 60 on 1          one module after the other
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput, check
from localprop.ranks.launch import world
from localprop.training.expression import rule_of

if TYPE_CHECKING:
    from localprop.learner import Learner
    from localprop.training.config import Config

_FORM = re.compile(r"(?P<method>.+) for (?P<epochs>\d+)(?: on (?P<modules>\d+(?:,\d+)*))?", re.DOTALL)


@dataclass(frozen=True)
class Phase:
    """Some epochs of one method.

    Phases follow each other, and begin anew after the last one until the run's epochs are over. Phases of one method, written
    alike, share its heads and the state of its optimizers, those of another method have their own; the network is one. The
    learning rate is that of the epoch in the whole run.

    A module that a phase leaves out stays as it is, and so do its auxiliary network and its loss; only the statistics of its
    BatchNorms go on, and what the auxiliary network borrows. That is our reading of sequential training.

    Attributes:
        method: the training rule as an expression.
        epochs: how many.
        modules: the modules that are trained, from 0; all of them if none is named.

    Raises:
        BadInput: a method that is none, fewer than one epoch.

    Example:
        >>> Phase.parse("greedy() for 50 on 0,1")
        Phase(method='greedy()', epochs=50, modules=(0, 1))

    Source: a global epoch now and then: Bhatti and Moon, Locally Supervised Learning with Periodic Global Guidance, 2022, arXiv
    2208.00821, of which the period, the length and the learning rate of the global phase were not available: here they
    are what the phases say, and the epoch's. One module after the other, in one lap or several: Karkar et al., Module-wise
    Training of Neural Networks via the Minimizing Movement Scheme (TRGL), 2023.
    """

    method: str
    epochs: int = 1
    modules: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rule_of(self.method)
        check([f"{self.method} for {self.epochs} epochs: at least 1 is needed."] if self.epochs < 1 else [])

    def __str__(self) -> str:
        """What :meth:`parse` reads."""
        where = f" on {','.join(map(str, self.modules))}" if self.modules else ""
        return f"{self.method} for {self.epochs}{where}"

    @classmethod
    def parse(cls, text: str) -> Phase:
        """From `METHOD for EPOCHS` or `METHOD for EPOCHS on MODULE,MODULE`.

        Raises:
            BadInput: anything else.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            shown = text.strip()[:80]
            raise BadInput(
                f"The phase {shown!r} cannot be read: write METHOD for EPOCHS, or METHOD for EPOCHS on MODULES."
            )
        modules = tuple(int(number) for number in (match["modules"] or "").split(",") if number)
        return cls(match["method"].strip(), int(match["epochs"]), modules)


def shortened(text: str, epochs: int) -> str:
    """The phases of a text with their shares of so many epochs, each at least one; as it is if a lap fits.

    Example:
        >>> shortened("greedy() for 50 on 0; greedy() for 60 on 1", 5)
        'greedy() for 2 on 0; greedy() for 2 on 1'
    """
    phases = phases_of(text)
    total = sum(phase.epochs for phase in phases)
    if epochs >= total:
        return text
    return "; ".join(str(replace(phase, epochs=max(1, phase.epochs * epochs // total))) for phase in phases)


def phases_of(text: str) -> tuple[Phase, ...]:
    """The phases of a text, which a semicolon separates.

    Raises:
        BadInput: the problems of all phases at once.

    Example:
        >>> [phase.epochs for phase in phases_of("greedy() for 4; end_to_end() for 1")]
        [4, 1]
    """
    problems: list[str] = []
    phases = []
    for part in text.split(";"):
        try:
            phases.append(Phase.parse(part))
        except BadInput as error:
            problems += error.problems
    check(problems)
    return tuple(phases)


def lap_problems(phases: Iterable[Phase], epochs: int) -> list[str]:
    """Why so many epochs are too few for a lap: phases that never begin, one sentence.

    Example:
        >>> lap_problems(phases_of("greedy() for 50 on 0; greedy() for 60 on 1"), 20)
        ['The phases take 110 epochs, but epochs=20: phase 2 never begins; use --epochs 110.']
    """
    lengths = [phase.epochs for phase in phases]
    late = [number for number in range(2, len(lengths) + 1) if sum(lengths[: number - 1]) >= epochs]
    if not late:
        return []
    total, which = sum(lengths), ("phase " if len(late) == 1 else "phases ") + ", ".join(map(str, late))
    never = "never begins" if len(late) == 1 else "never begin"
    return [f"The phases take {total} epochs, but epochs={epochs}: {which} {never}; use --epochs {total}."]


class Course:
    """Who learns in which epoch: a learner for each method of a run's phases, all of one network.

    A run without phases is a course of one learner.

    Args:
        first: the learner of the first phase.
        config: the run's.
        another: makes the learner of another method on the same network.

    Raises:
        BadInput: modules that the network has not, or that no phase trains; encoders of contexts, which belong to one method;
            several methods on several ranks.

    Example:
        >>> Course(learner, config).at(1)[0] is learner
        True
    """

    def __init__(self, first: Learner, config: Config, another: Callable[[Config], Learner] | None = None) -> None:
        self.phases = phases_of(config.phases) if config.phases else (Phase(config.method),)
        methods = list(dict.fromkeys(phase.method for phase in self.phases))
        check(_problems(self.phases, methods, len(first.partition.modules)))
        self.learners = {methods[0]: first}
        for method in methods[1:]:
            assert another is not None
            self.learners[method] = another(replace(config, method=method, phases=None))
        supplied = [method for method, learner in self.learners.items() if len(learner.encoders)]
        check(
            f"{method} trains encoders of its own, which other phases' networks lack: use one method, or one without context."
            for method in (supplied if len(methods) > 1 else [])
        )

    @property
    def others(self) -> dict[str, Learner]:
        """The learners of all methods but the first phase's."""
        return dict([*self.learners.items()][1:])

    def at(self, epoch: int) -> tuple[Learner, Phase]:
        """The learner and the phase of an epoch, from 1."""
        place = (epoch - 1) % sum(phase.epochs for phase in self.phases)
        for phase in self.phases:
            if place < phase.epochs:
                break
            place -= phase.epochs
        return self.learners[phase.method], phase

    @contextmanager
    def learning(self, epoch: int) -> Iterator[Learner]:
        """The learner of an epoch, which until the end trains nothing but the phase's modules."""
        learner, phase = self.at(epoch)
        if epoch > 1 and self.at(epoch - 1)[0] is not learner:
            learner.engine.views.copy_first()  # another method has trained what its auxiliary networks copy
        learner.steps = max(each.steps for each in self.learners.values())  # random draws go on where the run is
        learner.network.train()
        learner.heads.train()
        with only(learner, phase.modules):
            yield learner


def _problems(phases: Sequence[Phase], methods: list[str], modules: int) -> Iterator[str]:
    for phase in phases:
        strange = [number for number in phase.modules if number >= modules]
        if strange:
            yield f"A phase trains module {strange[0]}, but the network has {modules}, numbered from 0: choose others."
    left = {*range(modules)}.difference(*(phase.modules for phase in phases))
    if left and all(phase.modules for phase in phases):
        numbers = ", ".join(map(str, sorted(left)))
        yield f"No phase trains module{'s' if len(left) > 1 else ''} {numbers}: name them in one, or let a phase name none."
    if len(methods) > 1 and world() > 1:
        yield f"Phases of {len(methods)} methods need the whole network in one process: start without torchrun."


@contextmanager
def only(learner: Learner, modules: Iterable[int]) -> Iterator[None]:
    """For a while, a learner's steps change these modules and their auxiliary networks alone; all if none is named.

    Example:
        >>> with only(learner, (0,)):
        ...     losses = learner.step(next(iter(batches)))  # doctest: +SKIP
    """
    chosen, optimizers = {*modules}, learner.engine.optimizers
    whole, segments, table = optimizers.made, learner.wiring.segments, learner.wiring.table
    idle = [learner.heads[str(k)]["loss"] for k in table.losses if chosen and table.at[k] not in chosen]  # type: ignore[index]
    for loss in idle:
        loss.eval()  # what it counts or remembers waits for its module
    if chosen:
        optimizers.made = {
            action: own if segments[action.segment].module in chosen else _still(own) for action, own in whole.items()
        }
    try:
        yield
        learner.flush()
    finally:
        optimizers.made = whole
        for loss in idle:
            loss.train()


def _still(optimizer: Any) -> Any:
    """An optimizer of the same parameters whose step changes nothing; the engine drops gradients after it all the same."""
    from torch.optim import Optimizer

    class Still(Optimizer):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            return None

    return Still([p for group in optimizer.param_groups for p in group["params"]], {})
