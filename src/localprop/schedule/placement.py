"""Placement: which rank runs which local modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from localprop.errors import BadInput
from localprop.network.balance import find_balanced_cuts
from localprop.schedule.wiring import Objective, Wiring


@dataclass(frozen=True)
class Placement:
    """Consecutive local modules on each stage of a pipeline.

    A module is never split between two stages, and a stage begins where a module of the network
    returns, at its only call, and nothing goes around.

    Attributes:
        stages: the segments of each stage.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
        >>> rule = lp.Rule(credit=lp.BackwardLinks(layers=1))
        >>> wiring = lp.wire(rule, lp.Partition.uniform(layers, modules=2))
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
        # The outer bounds make this one test of order and of range.
        if any(a >= b for a, b in pairwise(bounds)):
            raise BadInput(
                f"Stages begin at the modules {tuple(cuts)}, which must increase and lie in "
                f"1..{count - 1}."
            )
        # Cuts are modules, although segments are what runs. Losses look at inner outputs and inputs
        # of their module, which are never sent.
        starts = [wiring.segments_of(module)[0] for module in bounds[:-1]]
        return cls(tuple(range(a, b) for a, b in pairwise([*starts, len(wiring.segments)])))

    @classmethod
    def balanced(cls, wiring: Wiring, stages: int, costs: Sequence[float]) -> Placement:
        """The placement whose most expensive stage costs as little as possible.

        Args:
            wiring: modules and segments.
            stages: the number of stages.
            costs: the cost of each module in any unit, for example from `estimate_module_costs` or
                measured in seconds.

        Raises:
            BadInput: more stages than modules, or not one cost per module.
        """
        count, starts = len(wiring.table.sizes), [0, *_list_starts(wiring)]
        if stages > count:
            raise BadInput(
                f"{stages} ranks, but {count} module(s): each rank needs a module of its own. Use "
                f"modules={stages} or more, or {count} ranks."
            )
        if stages > len(starts):
            raise BadInput(
                f"{stages} ranks, but {_explain_starts(wiring)}, so at most {len(starts)} rank(s) "
                "can share this network."
            )
        if len(costs) != count:
            raise BadInput(f"{len(costs)} costs for {count} modules: give one for each.")
        sums = [sum(costs[a:b]) for a, b in pairwise([*starts, count])]
        return cls.at(wiring, [starts[place] for place in find_balanced_cuts(sums, stages)])

    @cached_property
    def _stage_of(self) -> dict[int, int]:
        return {segment: i for i, stage in enumerate(self.stages) for segment in stage}

    def stage_of(self, segment: int) -> int:
        """The stage that runs a segment."""
        return self._stage_of[segment]


def _list_starts(wiring: Wiring) -> list[int]:
    """The modules after the first at which a rank can begin."""
    count = len(wiring.table.sizes)
    return [m for m in range(1, count) if wiring.can_be_sent(wiring.segments_of(m)[0] - 1)]


def _explain_starts(wiring: Wiring) -> str:
    starts = _list_starts(wiring)
    where = f"only at module(s) {_join(map(str, starts))}" if starts else "at no other module"
    return (
        "ranks exchange the tensors that a module returns, which is called once, and nothing may "
        f"go around it: a rank can begin {where}"
    )


def estimate_module_costs(wiring: Wiring) -> list[float]:
    """The costs of the modules if every layer and every trained head costs 1."""
    heads = [
        wiring.table.module_of_loss[objective.loss]
        for objective in wiring.objectives
        # A head without parameters, as that of the task, costs next to nothing.
        if objective.trained
    ]
    return [size + heads.count(module) for module, size in enumerate(wiring.table.sizes)]


def find_placement_problems(wiring: Wiring, placement: Placement) -> Iterator[str]:
    """One problem for each loss that needs something from another rank, and for each parameter that
    several ranks train.

    Module inputs and inner outputs are always available, because a module is on one rank.
    """
    for stage in placement.stages[1:]:
        if not wiring.can_be_sent(stage[0] - 1):
            end = wiring.end_name(stage[0] - 1)
            yield f"A rank begins after {end!r}, but {_explain_starts(wiring)}."
            break
    for name, (_, layers) in wiring.tied.items():
        yield from _find_tie_problems(wiring, placement, name, layers)
    for objective in wiring.objectives:
        if objective.second_order and len(placement.stages) > 1:
            yield (
                f"Loss {objective.loss} is of second order: it needs the gradient that the loss of "
                "the module before leaves for it, which is not sent between ranks. Train in one "
                "process."
            )
        remote = _find_remote_sources(wiring, placement, objective)
        if remote:
            yield (
                f"Loss {objective.loss} copies {remote[0]!r}, which is on another rank. Parameters "
                "are not sent between ranks: train in one process, or place the loss and the "
                "parameter on one rank."
            )


def _find_tie_problems(
    wiring: Wiring, placement: Placement, name: str, layers: list[int]
) -> Iterator[str]:
    """A problem if the layers that a tied parameter belongs to are on several ranks."""
    using = [s for s, each in enumerate(wiring.segments) if {*layers} & {*each.layers}]
    ranks = [placement.stage_of(s) for s in using]
    if len(set(ranks)) == 1:
        return
    first, last = (wiring.segments[s].module for s in (using[0], using[-1]))
    # Enough other modules remain for the other ranks to begin at.
    fits = len(placement.stages) <= len(wiring.table.sizes) - (last - first)
    cuts = f"let no rank begin at the modules {first + 1} to {last}, ranks=Ranks(cuts=...); "
    yield (
        f"Parameter {name!r} is tied: {_join(wiring.layers.names[i] for i in layers)} use it, on "
        f"the ranks {_join(dict.fromkeys(map(str, ranks)))}, which would train copies of it apart. "
        f"Untie it (give each layer a parameter of its own); {cuts if fits else ''}or train in one "
        "process, ranks=Ranks(alone=True)."
    )


def _join(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _find_remote_sources(wiring: Wiring, placement: Placement, objective: Objective) -> list[str]:
    """The parameters that an objective copies and that its rank does not have."""
    stage = placement.stages[placement.stage_of(objective.segment)]
    # Frozen ones count, too: a copy reads the values, and other ranks have released theirs.
    here = wiring.parameters_used_by(stage)
    sources = [copy.copy.source for copy in objective.copies]
    return [source for source in sources if source not in here]
