"""Which learner trains which modules in each epoch of a run in phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from localprop.errors import check
from localprop.learner import Learner
from localprop.ranks.launch import get_world_size
from localprop.training.config import Config
from localprop.training.phases import Phase, parse_phases


class PhaseSchedule:
    """The learners of a run's phases, and the epochs in which each of them trains.

    There is one learner for each method. All of them train the same network. A run without phases
    is a schedule of one phase.

    Args:
        first: the learner of the first phase.
        config: the config of the run.
        build_other: builds the learner of another method on the same network.

    Attributes:
        phases: the phases, in order.
        learners: the learner of each method.

    Raises:
        BadInput: the network lacks a module of a phase, no phase trains a module, a method among
            several has context encoders, or several methods are to run on several ranks.

    Example:
        >>> PhaseSchedule(learner, config).at(1)[0] is learner
        True
    """

    def __init__(
        self,
        first: Learner,
        config: Config,
        build_other: Callable[[Config], Learner] | None = None,
    ) -> None:
        self.phases = parse_phases(config.phases) if config.phases else (Phase(config.method),)
        methods = list(dict.fromkeys(phase.method_text for phase in self.phases))
        check(_find_problems(self.phases, methods, len(first.partition.modules)))
        self.learners = {methods[0]: first}
        for method in methods[1:]:
            assert build_other is not None
            self.learners[method] = build_other(replace(config, method=method, phases=None))
        if len(methods) > 1:
            check(_find_encoder_problems(self.learners))

    @property
    def others(self) -> dict[str, Learner]:
        """The learners of all methods but the first phase's."""
        return dict([*self.learners.items()][1:])

    def at(self, epoch: int) -> tuple[Learner, Phase]:
        """The learner and the phase of an epoch, counted from 1."""
        epochs_left = (epoch - 1) % sum(phase.epochs for phase in self.phases)
        for phase in self.phases:
            if epochs_left < phase.epochs:
                break
            epochs_left -= phase.epochs
        return self.learners[phase.method_text], phase

    @contextmanager
    def activate_phase(self, epoch: int, *, begun: bool = False) -> Iterator[Learner]:
        """Yield the learner of an epoch. Inside, its steps change the phase's modules alone.

        Args:
            epoch: the epoch, from 1.
            begun: whether its first steps were done before, by a run whose state the learner has.
        """
        learner, phase = self.at(epoch)
        if not begun and epoch > 1 and self.at(epoch - 1)[0] is not learner:
            # Another method has trained the layers that this one's auxiliary networks copy.
            learner.engine.initialise_copies()
        # Random draws depend on the number of the step, which goes on through all phases.
        learner.steps = max(each.steps for each in self.learners.values())
        learner.network.train()
        learner.heads.train()
        with train_modules(learner, phase.modules):
            yield learner


def _find_problems(phases: Sequence[Phase], methods: list[str], modules: int) -> Iterator[str]:
    for phase in phases:
        unknown = [number for number in phase.modules if number >= modules]
        if unknown:
            yield (
                f"A phase trains module {unknown[0]}, but the network has {modules}, numbered "
                "from 0: choose others."
            )
    untrained = {*range(modules)}.difference(*(phase.modules for phase in phases))
    # A phase that names no module trains all of them.
    if untrained and all(phase.modules for phase in phases):
        plural = "s" if len(untrained) > 1 else ""
        yield (
            f"No phase trains module{plural} {', '.join(map(str, sorted(untrained)))}: name them "
            "in a phase, or let one phase name no modules."
        )
    if len(methods) > 1 and get_world_size() > 1:
        yield (
            f"Phases of {len(methods)} methods need the whole network in one process: start "
            "without torchrun."
        )


def _find_encoder_problems(learners: dict[str, Learner]) -> Iterator[str]:
    """Encoders change the deployed network, so that methods with and without do not share one."""
    for method, learner in learners.items():
        if len(learner.encoders):
            yield (
                f"{method} trains encoders of its own, which the networks of other phases lack: "
                "use one method, or methods without context."
            )


@contextmanager
def train_modules(learner: Learner, modules: Iterable[int]) -> Iterator[None]:
    """Inside, a learner's steps change only these modules and their auxiliary networks.

    All modules are trained if none is named.

    Example:
        >>> with train_modules(learner, (0,)):
        ...     losses = learner.step(next(iter(batches)))  # doctest: +SKIP
    """
    chosen, optimizers = {*modules}, learner.engine.optimizers
    all_optimizers, segments = optimizers.by_action, learner.wiring.segments
    idle_losses = _find_losses_outside(learner, chosen) if chosen else []
    for loss in idle_losses:
        loss.eval()  # a loss that counts steps or remembers values waits for its module
    if chosen:
        optimizers.by_action = {
            action: optimizer
            if segments[action.segment].module in chosen
            else NoOpOptimizer(optimizer)
            for action, optimizer in all_optimizers.items()
        }
    try:
        yield
        learner.flush()
    finally:
        optimizers.by_action = all_optimizers
        for loss in idle_losses:
            loss.train()


def _find_losses_outside(learner: Learner, modules: set[int]) -> list[nn.Module]:
    table = learner.wiring.table
    losses = []
    for number in table.losses:
        if table.module_of_loss[number] not in modules:
            head = learner.heads[str(number)]
            assert isinstance(head, nn.ModuleDict)
            losses.append(head["loss"])
    return losses


class NoOpOptimizer(Optimizer):
    """An optimizer of the same parameters whose step changes nothing.

    The engine still drops the gradients after the step.

    Args:
        optimizer: the optimizer that it stands in for.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Do nothing."""
