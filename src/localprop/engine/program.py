"""A schedule compiled for an engine: an instruction for every action, grouped by forwards.

::

    schedule    0F 0L 0H 0B 0S 1F 1L 1B 1S
    before      (nothing)
    after 0F    0L 0H 0B 0S                     run by the hook at the end of segment 0
    after 1F    1L 1B 1S

Instructions know all that they must do; nothing about a method is asked while a step runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from localprop.engine.backward import RunBackward
from localprop.engine.communicator import Communicator, ReceiveValue, SendValue, StartReduce
from localprop.engine.copies import CopyParameters
from localprop.engine.finite import CheckedFirst, FiniteCheck
from localprop.engine.forward import EnterSegment, KeepInnerOutput, LeaveSegment
from localprop.engine.loss import RunLoss
from localprop.engine.optimizers import Optimizers, RunStep
from localprop.engine.plan import StepPlan
from localprop.engine.precision import Precision
from localprop.engine.store import StepContext
from localprop.engine.undo import Undo
from localprop.schedule.liveness import Liveness
from localprop.schedule.randomness import SeededGenerators
from localprop.schedule.schedule import (
    BACKWARDS,
    RECEIVES,
    REDUCES,
    SENDS,
    STEPS,
    Action,
    Op,
    Schedule,
)
from localprop.schedule.stage import Stage
from localprop.schedule.wiring import Wiring

Instruction = Callable[[StepContext], None]
Instructions = list[tuple[Action, Instruction]]
Position = tuple[int, int]  # a micro-batch and a segment


def make_plan(
    model: nn.Module,
    wiring: Wiring,
    schedule: Schedule,
    stage: Stage,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
) -> StepPlan:
    """Work out what is fixed before the first step; the arguments are those of the engine."""
    named = dict(model.named_parameters())
    microbatches = 1 + max(action.microbatch for action in schedule)
    # From the schedule and not from the wiring: a schedule of forwards alone has no losses, and its
    # segments need no graph.
    second_order = frozenset(_find_second_order_segments(wiring, schedule))
    parameters: dict[int, dict[int, list[Tensor]]] = {}
    for segment in stage.segments:
        # `autograd.backward(inputs=...)` refuses tensors that require no gradient.
        parameters[segment] = {
            step: [p for p in wiring.parameters_trained_by(named, segment, step) if p.requires_grad]
            for step in wiring.steps_of(segment)
        }
    return StepPlan(
        wiring=wiring,
        liveness=Liveness(wiring, schedule, stage.replicas),
        stage=stage,
        parameters=parameters,
        scalar=torch.zeros((), device=device),
        precision=Precision(device, autocast, second_order=bool(second_order)),
        generators=SeededGenerators(device),
        # Replicas count their micro-batches on from each other, so that they draw what one process
        # with as many micro-batches draws.
        first=stage.replica * microbatches,
        microbatches=microbatches,
        second_order=second_order,
    )


def _find_second_order_segments(wiring: Wiring, schedule: Schedule) -> Iterator[int]:
    for action in schedule:
        if action.op is Op.L and wiring.objective_at(action.segment, action.flow).second_order:
            yield action.segment


class Program:
    """The instructions of a schedule.

    Args:
        plan: of the step.
        model: the primary network.
        optimizers: of segments and objectives.
        communicator: carries tensors to and from the other ranks, if there are any.
        checks_numbers: whether to look for NaN and infinity before parameters change.

    Attributes:
        enter: by micro-batch and segment, what happens where F begins.
        leave: what happens where it ends.
        before: the instructions before the first forward.
        after: those between a forward and the next one.
        deferred: those that belong to the batch before.
        copies: those that copy parameters.
        taps: the modules whose inner outputs losses look at.
        undo: takes back what a step has changed, where steps are atomic.
        undoing: makes a context in which a failure does so, or changes nothing.
    """

    def __init__(
        self,
        plan: StepPlan,
        model: nn.Module,
        optimizers: Optimizers,
        communicator: Communicator | None,
        checks_numbers: bool = False,
    ) -> None:
        self._plan, self._model = plan, model
        self._optimizers, self._communicator = optimizers, communicator
        wiring, schedule = plan.wiring, plan.liveness.schedule
        self._check = FiniteCheck(model, wiring, schedule, plan.stage) if checks_numbers else None
        self._first_step = next((action for action in schedule if action.op in STEPS), None)
        trained = model, wiring.heads, wiring.encoders
        self.undo = Undo(trained, optimizers.scaler) if wiring.atomic else None
        self.undoing = nullcontext if self.undo is None else self.undo.on_failure
        self.enter: dict[Position, EnterSegment] = {}
        self.leave: dict[Position, LeaveSegment] = {}
        self.before: Instructions = []
        self.after: dict[Position, Instructions] = {}
        self.copies: list[CopyParameters] = []
        # The network calls its layers itself, and we get control only at their ends. So all actions
        # between two forwards run in the hook of the first one.
        following = self.before
        for action in schedule:
            if action.op is Op.F:
                place = (action.microbatch, action.segment)
                self.enter[place] = EnterSegment(plan, action)
                self.leave[place] = LeaveSegment(plan, action)
                following = self.after[place] = []
            else:
                following.append((action, self._checked(action, self._compile(action))))
        # They also stand in their places in the loop. This list ends a batch that no other follows.
        self.deferred = [(action, run) for action, run in self.list_all() if action.deferred]
        self.taps = list(self._find_taps())

    def list_all(self) -> Instructions:
        """All instructions but forwards, in the order of the schedule."""
        return [*self.before, *(each for group in self.after.values() for each in group)]

    def _checked(self, action: Action, run: Instruction) -> Instruction:
        """Where steps come last, all is looked at before the first; else, each looks at its own."""
        if self._check is not None and self._plan.wiring.atomic and action == self._first_step:
            return CheckedFirst(self._check, None, run)
        if self._check is None or self._plan.wiring.atomic or action.op not in (Op.H, Op.S):
            return run
        return CheckedFirst(self._check, Action(action.op, action.segment, action.flow), run)

    def _compile(self, action: Action) -> Instruction:
        plan, communicator = self._plan, self._communicator
        if action.op is Op.L:
            return RunLoss(plan, action)
        if action.op in BACKWARDS:
            return RunBackward(plan, action)
        if action.op in (Op.S, Op.H):
            finish = None if communicator is None else communicator.finish_reduce
            return RunStep(plan, action, self._optimizers, finish, self.undo)
        if action.op is Op.P:
            objective = plan.wiring.objective_at(action.segment, action.flow)
            self.copies.append(CopyParameters(plan.wiring, self._model, objective, self.undo))
            return self.copies[-1]
        assert communicator is not None
        return self._compile_message(action, communicator)

    def _compile_message(self, action: Action, communicator: Communicator) -> Instruction:
        if action.op in SENDS:
            return SendValue(self._plan, action, communicator)
        if action.op in RECEIVES:
            return ReceiveValue(self._plan, action, communicator)
        assert action.op in REDUCES
        return StartReduce(self._plan, action, self._optimizers, communicator)

    def _find_taps(self) -> Iterator[tuple[nn.Module, KeepInnerOutput]]:
        here = self._plan.stage.segments
        objectives = [o for o in self._plan.wiring.objectives if o.segment in here]
        segment_of = {tap.name: tap.segment for o in objectives for tap in o.taps}
        for name, segment in segment_of.items():
            tap = KeepInnerOutput(self._plan, name, segment)
            yield self._model.get_submodule(name), tap
