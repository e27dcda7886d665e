"""Placement: which rank runs which local modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from localprop.errors import BadInput
from localprop.network.balance import balanced_cuts
from localprop.step.wiring import Wiring


@dataclass(frozen=True)
class Placement:
    """Local modules on the stages of a pipeline, contiguously; stages are cut where modules are cut.

    Attributes:
        stages: for each stage, its segments.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
        >>> rule = lp.Rule(credit=lp.BackwardLinks(layers=1))
        >>> wiring = lp.wire(rule, lp.Partition.uniform(layers, modules=2), task=lp.CrossEntropy())
        >>> Placement.at(wiring, cuts=(1,)).stages  # module 0 has a body and a tail
        (range(0, 2), range(2, 3))
    """

    stages: tuple[range, ...]

    @classmethod
    def at(cls, wiring: Wiring, cuts: Sequence[int]) -> Placement:
        """Stages that begin at module 0 and at each of the modules `cuts`.

        Raises:
            BadInput: modules out of order or out of range.
        """
        count = len(wiring.table.sizes)
        bounds = (0, *cuts, count)
        if any(a >= b for a, b in pairwise(bounds)):
            raise BadInput(f"Stages begin at the modules {tuple(cuts)}, which must increase and lie in 1..{count - 1}.")
        starts = [wiring.segments_of(module)[0] for module in bounds[:-1]]
        return cls(tuple(range(a, b) for a, b in pairwise([*starts, len(wiring.segments)])))

    @classmethod
    def balanced(cls, wiring: Wiring, stages: int, costs: Sequence[float]) -> Placement:
        """Stages whose costliest one costs as little as possible.

        Args:
            wiring: modules and segments.
            stages: how many.
            costs: of each module, in any unit, as of :func:`module_costs` or measured in seconds.

        Raises:
            BadInput: more stages than modules, or another number of costs than of modules.
        """
        count = len(wiring.table.sizes)
        if stages > count:
            raise BadInput(
                f"{stages} ranks, but {count} module(s): each rank needs a module of its own. Use modules={stages} or "
                f"more, or {count} ranks."
            )
        if len(costs) != count:
            raise BadInput(f"{len(costs)} costs for {count} modules: give one for each.")
        return cls.at(wiring, balanced_cuts(costs, stages))

    def stage_of(self, segment: int) -> int:
        """The stage that runs a segment."""
        return next(i for i, stage in enumerate(self.stages) if segment in stage)


def layer_costs(wiring: Wiring) -> list[float]:
    """What the modules cost if all layers, and all heads, cost the same."""
    heads = [wiring.table.at[objective.loss] for objective in wiring.objectives if objective.trained]
    return [size + heads.count(module) for module, size in enumerate(wiring.table.sizes)]


def sight_problems(wiring: Wiring, placement: Placement) -> Iterator[str]:
    """What losses need that another rank has. (Inputs and inner outputs of their own modules are always at hand.)"""
    for objective in wiring.objectives:
        loss, here = f"Loss {objective.loss}", placement.stage_of(objective.segment)
        if objective.attached and len(placement.stages) > 1:
            yield (
                f"{loss} is of second order: it needs the error of the module before in the forward, which is not sent between "
                "ranks. Train in one process."
            )
        held = wiring.used(placement.stages[here])
        far = [loan.borrow.source for loan in objective.loans if loan.borrow.source not in held]
        if far:
            yield (
                f"{loss} borrows {far[0]!r}, which another rank has; parameters are not sent between ranks. Train in one "
                "process, or cut where borrower and owner share a rank."
            )
