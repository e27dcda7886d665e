"""Ways to train a network on several ranks: what the rank with the most needs.

A replay knows one process. Each rank's part of a step, with the messages it holds, is read by the
engine on fake tensors, so there are few ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from localprop.cost.fake_engine import RankSlice
from localprop.cost.flops import count_flops
from localprop.cost.memory import predict_memory
from localprop.errors import BadInput, check
from localprop.planning.candidates import Candidates, Way
from localprop.rule.rule import Rule
from localprop.schedule.lowering import find_max_in_flight, lower
from localprop.schedule.placement import Placement, estimate_module_costs, find_placement_problems
from localprop.schedule.stage import Stage


def find_ways_on_ranks(
    candidates: Candidates, methods: Mapping[str, Rule], ranks: int
) -> tuple[list[Way], list[str]]:
    """The plain loop, ways of end-to-end training and of some methods on so many ranks, and why
    others cannot share the network.

    Args:
        candidates: the network.
        methods: by their texts.
        ranks: of one pipeline; their peaks are those of the rank with the most.
    """
    plain = candidates.plain
    ways, refused = [plain], []
    for method, rule in {plain.method: plain.rule, **methods}.items():
        found, problems = list[Way](), list[str]()
        for way in _list_ways(candidates, method, rule, ranks):
            try:
                found.append(predict_on_ranks(candidates, way, ranks))
            except BadInput as error:
                problems += error.problems
        ways += found
        if not found:
            refused.append(f"{method} is left out: {problems[0]}")
    return ways, refused


def _list_ways(candidates: Candidates, method: str, rule: Rule, ranks: int) -> Iterator[Way]:
    """One module for each rank, and two; stored and run again; whole, and a part for each rank."""
    for modules in _choose_counts(len(candidates.network.layers), ranks):
        for parts in sorted({1, ranks} & {*candidates.microbatches, 1}):
            for recompute in (0, 1):
                yield replace(
                    candidates.plain,
                    method=method,
                    rule=rule,
                    modules=modules,
                    microbatches=parts,
                    recompute=recompute,
                    flops=0,
                )


def _choose_counts(layers: int, ranks: int) -> Iterable[int]:
    return [ranks, 2 * ranks] if 2 * ranks <= layers else [ranks]


def predict_on_ranks(candidates: Candidates, way: Way, ranks: int) -> Way:
    """A way with the peak of the rank that needs most, placed as a `Learner` does it.

    Raises:
        BadInput: the ranks cannot share the network, or the method needs what others have.
    """
    network = candidates.network
    wiring = candidates.wire(way.rule, way.modules)
    placement = Placement.balanced(wiring, ranks, estimate_module_costs(wiring))
    check(find_placement_problems(wiring, placement))
    schedules = lower(wiring, placement, way.microbatches)
    in_flight = find_max_in_flight(schedules)
    recompute = way.kwargs["recompute"]
    engine = network.make_engine(wiring, recompute=recompute, microbatches=way.microbatches)
    slices = [
        RankSlice(Stage(segments), schedule, in_flight)
        for segments, schedule in zip(placement.stages, schedules, strict=True)
    ]
    readings = [predict_memory(engine, [], network.batch, own) for own in slices]
    most = max(readings, key=lambda reading: reading.peak_bytes)
    flops = count_flops(engine, [], network.batch)
    return candidates.finish(way, most.peak_bytes, most.resting_bytes, flops, confirmed=True)


def describe_ranks(ranks: int) -> str:
    """What a plan for several ranks assumes."""
    return (
        f"peaks are those of the rank with the most of {ranks}, which share layers and heads "
        "evenly, in one pipeline (1f1b); the first row is one process. Times are operations of all "
        "ranks: `localprop simulate` says how long they wait. Whether code between the layers lets "
        "ranks skip them shows when they start."
    )
