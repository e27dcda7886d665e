"""How a method trains a network: credit, schedule, what is alive, and a pipeline; nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from localprop.cost.alive import ValueReading
from localprop.cost.flops import count_flops_by_action
from localprop.cost.simulate import Timeline, simulate
from localprop.errors import BadInput
from localprop.experiments.blank_data import load_shape
from localprop.learner import Learner
from localprop.rule.table import CreditTable
from localprop.schedule.lowering import find_max_in_flight, lower
from localprop.schedule.placement import Placement, find_placement_problems
from localprop.schedule.schedule import Action
from localprop.tasks.batch import Batch
from localprop.training.build import prepare
from localprop.training.config import Config

_MAX_RANKS = 4
MICROBATCHES = 4


@dataclass(frozen=True)
class Anatomy:
    """How a method trains a network.

    Attributes:
        table: which loss trains which layers.
        schedule: the actions of a step, as text.
        values: what is alive after each action, in bytes.
        module_of: the module of each segment.
        timeline: the steady loop of a pipeline; None where there is none.
        no_timeline: why there is none.
    """

    table: CreditTable
    schedule: str
    values: ValueReading
    module_of: tuple[int, ...]
    timeline: Timeline | None
    no_timeline: str


def read_anatomy(config: Config) -> Anatomy:
    """Build the learner of a config anew, and read how it trains.

    Args:
        config: of a run. Its network is built on the CPU, with weights that nobody looks at.

    Raises:
        BadInput: the network cannot be built here, for instance because its file is elsewhere.

    Example:
        >>> anatomy = read_anatomy(Config(model="mlp", method="greedy()", epochs=2))
        >>> anatomy.schedule.split()[:4]
        ['0F', '0L', '0H', '0B']
    """
    # Its steps are not atomic, as those that the costs are of, and those on ranks.
    alone = replace(config, atomic=False, on_nonfinite="raise", replicas=1)
    here = replace(alone, device="cpu", init=None, init_order=False)
    dataset, learner = prepare(here, load_shape, weights=False)
    values = learner.values()
    timeline, reason = None, ""
    try:
        samples = min(here.batch_size, len(dataset.train))
        timeline = _simulate(learner, Batch.of(dataset.make_zero_batch(samples)))
    except BadInput as error:
        reason = " ".join(error.problems)
    return Anatomy(
        learner.wiring.table,
        str(learner.schedule),
        values,
        tuple(segment.module for segment in learner.wiring.segments),
        timeline,
        reason,
    )


def _simulate(learner: Learner, batch: Batch) -> Timeline:
    """A pipeline of equal devices, on which an action takes as long as its operations.

    In units of the operations of a whole step; messages take no time.

    Raises:
        BadInput: the method does not run on several ranks, or there is one module.
    """
    wiring = learner.wiring
    flops = count_flops_by_action(learner.engine, [], batch)
    whole = sum(flops.values())
    by_place: dict[tuple[object, ...], float] = {}
    for action, count in flops.items():
        place = _place_of(action)
        by_place[place] = by_place.get(place, 0.0) + count / whole / MICROBATCHES

    def cost(action: Action) -> float:
        return by_place.get(_place_of(action), 0.0)

    costs = [0.0] * len(wiring.table.sizes)
    for action, count in flops.items():
        costs[wiring.segments[action.segment].module] += count
    ranks = min(_MAX_RANKS, len(costs))
    if ranks == 1:
        raise BadInput("With one module there is no pipeline.")
    placement = Placement.balanced(wiring, ranks, costs)
    problems = list(find_placement_problems(wiring, placement))
    if problems:
        raise BadInput(problems)
    schedules = lower(wiring, placement, MICROBATCHES, cost=cost)
    return simulate(schedules, cost, max_in_flight=find_max_in_flight(schedules))


def _place_of(action: Action) -> tuple[object, ...]:
    return action.op, action.segment, action.flow


def list_credit_cells(table: CreditTable) -> Iterator[tuple[int, int, str]]:
    """The loss, the layer and the mark of each entry that is not empty: "trains" or "passes".

    Example:
        >>> from localprop.rule.table import T
        >>> list(list_credit_cells(CreditTable((1, 1), ((T, None), (T, T)))))
        [(0, 0, 'trains'), (1, 0, 'trains'), (1, 1, 'trains')]
    """
    for loss, row in enumerate(table.rows):
        for layer, entry in enumerate(row):
            if entry is not None:
                yield loss, layer, "trains" if entry.train else "passes"
