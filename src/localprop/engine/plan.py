"""What is fixed before the first step, and what every action of a step is compiled from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from localprop.engine.precision import Precision
from localprop.schedule.liveness import Liveness
from localprop.schedule.randomness import Draw, SeededGenerators
from localprop.schedule.schedule import Action, Op
from localprop.schedule.stage import Stage
from localprop.schedule.wiring import Wiring


@dataclass(frozen=True)
class StepPlan:
    """What is fixed before the first step.

    Attributes:
        wiring: segments, flows and objectives.
        liveness: what each action reads and writes, and who takes each value.
        stage: the part of the step that runs here.
        parameters: of each segment here, those that are trained, by the segment that steps them.
        scalar: the value of every segment's root, and the gradient there, neither of which counts.
        precision: autocast of the forwards.
        generators: torch's, which are seeded before every action that may draw.
        first: the number of this replica's first micro-batch among those of all replicas.
        microbatches: of each replica.
        second_order: the segments that a loss at their end differentiates through.
    """

    wiring: Wiring
    liveness: Liveness
    stage: Stage
    parameters: dict[int, dict[int, list[Tensor]]]
    scalar: Tensor
    precision: Precision
    generators: SeededGenerators
    first: int
    microbatches: int
    second_order: frozenset[int]

    @property
    def device_type(self) -> str:
        """The type of device that the step runs on, as torch.autocast names it."""
        return self.precision.device_type

    def modifies_input(self, segment: int) -> bool:
        """Whether the layers of a segment write into their input."""
        layer = self.wiring.segments[segment].layers[0]
        return layer > 0 and self.wiring.layers.handed_on[layer - 1][0].modified_in_place

    def draw_key(self, action: Action) -> Draw:
        """What the random draws of an F or L depend on, besides the seed and the step.

        Micro-batches count through all replicas.
        """
        microbatch = self.first + action.microbatch
        if action.op is Op.L:
            return (*self.wiring.objective_at(action.segment, action.flow).seed_key, microbatch)
        return ("F", action.segment, microbatch)

    def list_draws(self) -> dict[Draw, str]:
        """The keys of all random draws of a step, each with its text."""
        drawing = [action for action in self.liveness.schedule if action.op in (Op.F, Op.L)]
        return {draw: repr(draw) for draw in map(self.draw_key, drawing)}
