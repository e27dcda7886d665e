"""Methods on a pipeline of many devices, simulated from seconds measured on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from localprop.cost.fake_engine import RankSlice
from localprop.cost.memory import predict_memory
from localprop.cost.simulate import Timeline, simulate
from localprop.cost.timing import Seconds, Stopwatch, message_bytes
from localprop.errors import check
from localprop.learner import Learner
from localprop.network.balance import find_balanced_cuts
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.report.method_spec import MethodSpec
from localprop.report.pipeline_setting import END_TO_END, PipelineSetting
from localprop.schedule.lowering import find_max_in_flight, lower
from localprop.schedule.placement import Placement, find_placement_problems
from localprop.schedule.schedule import Schedule
from localprop.schedule.stage import Stage

# On more ranks, memory is predicted for three of them only: a prediction takes seconds per rank.
_MAX_PREDICTED_RANKS = 8
# Enough batches for a steady loop.
_SIMULATED_STEPS = 16


# --- measure --------------------------------------------------------------------------------------


class MeasuredMethod(NamedTuple):
    """A method, its learner with its own cuts, and the seconds of its actions."""

    spec: MethodSpec
    learner: Learner
    seconds: Seconds


def measure_methods(
    setting: PipelineSetting,
    layers: Layers,
    specs: Sequence[MethodSpec],
    progress: Callable[[str], object] = print,
) -> list[MeasuredMethod]:
    """Cut the network into modules for each method, and time the methods in turns.

    Args:
        setting: network, micro-batches, modules and rounds.
        layers: of the network.
        specs: the methods.
        progress: called with what is running.

    Raises:
        BadInput: if the network cannot be trained with a method.
    """
    # With a module for each layer there is nothing to balance.
    if setting.cuts == "seconds" and setting.module_count < len(layers):
        learners = _cut_by_seconds(setting, layers, specs, progress)
    else:
        cuts = Partition.uniform(layers, setting.module_count).cuts
        learners = [setting.make_learner(spec, layers, cuts) for spec in specs]
    batch = setting.make_microbatch()
    stopwatches = [Stopwatch(learner.engine, batch) for learner in learners]
    for number in range(setting.rounds):
        progress(f"measuring the methods, round {number + 1} of {setting.rounds}")
        for stopwatch in stopwatches:
            stopwatch.time_round()
    return [
        MeasuredMethod(spec, learner, stopwatch.seconds())
        for spec, learner, stopwatch in zip(specs, learners, stopwatches, strict=True)
    ]


def _cut_by_seconds(
    setting: PipelineSetting,
    layers: Layers,
    specs: Sequence[MethodSpec],
    progress: Callable[[str], object],
) -> list[Learner]:
    """Cut into modules of equal time.

    Seconds per layer come from end-to-end training with a segment for each layer.
    """
    progress("measuring each layer")
    layerwise = setting.make_learner(END_TO_END, layers, range(1, len(layers)))
    seconds = _measure_seconds(setting, layerwise, setting.rounds)
    layer_seconds = seconds.per_segment(layerwise.wiring, setting.microbatches)
    learners = []
    for spec in specs:
        progress(f"cutting for {spec.label}")
        learners.append(_make_balanced_learner(setting, layers, spec, layer_seconds))
    return learners


def _make_balanced_learner(
    setting: PipelineSetting, layers: Layers, spec: MethodSpec, layer_seconds: Sequence[float]
) -> Learner:
    """Cut by the seconds of the layers, then again with what the method adds to each module.

    Heads, encoders and links add seconds that are known only once there are modules.
    """
    count = setting.module_count
    learner = setting.make_learner(spec, layers, find_balanced_cuts(layer_seconds, count))
    seconds = _measure_seconds(setting, learner, rounds=1)
    module_seconds = seconds.per_module(learner.wiring, setting.microbatches)
    added_seconds = []
    for measured, module in zip(module_seconds, learner.partition.modules, strict=True):
        without_method = sum(layer_seconds[layer] for layer in module)
        added_seconds.append(max(0.0, measured - without_method))
    cuts = find_balanced_cuts(layer_seconds, count, added_seconds)
    return learner if cuts == learner.partition.cuts else setting.make_learner(spec, layers, cuts)


def _measure_seconds(setting: PipelineSetting, learner: Learner, rounds: int) -> Seconds:
    """Time a learner that is made for this, so that no copy of it need train."""
    stopwatch = Stopwatch(learner.engine, setting.make_microbatch())
    for _ in range(rounds):
        stopwatch.time_round()
    return stopwatch.seconds()


# --- simulate -------------------------------------------------------------------------------------


class PipelineOrder(NamedTuple):
    """The order of a method's micro-batches.

    Attributes:
        label: its name in the table; empty for the default order.
        order: as in `localprop.schedule.lowering.lower`.
        weight_share: the fraction of a backward that computes gradients with respect to weights
            and may be postponed, as in zero-bubble pipelines.
    """

    label: str = ""
    order: str = "1f1b"
    weight_share: float = 0.0


PIPELINES = (
    PipelineOrder("GPipe", "gpipe"),
    PipelineOrder("1F1B"),
    PipelineOrder("zero-bubble", weight_share=0.5),
)


@dataclass(frozen=True)
class PipelineRow:
    """The simulated figures of one method.

    Attributes:
        method: its label.
        step_seconds: between the ends of two successive batches.
        samples_per_second: of all replicas.
        ratio: samples per second relative to end-to-end training in one process.
        speedup: samples per second relative to the same method in one process.
        idle_share: the fraction of the steady loop in which the devices wait.
        idle_shares: the same for each rank.
        one_batch_seconds: of a batch that starts after the previous one has finished on all ranks.
        wire_bytes: that all devices send in a step.
        memory_bytes: the peak of each rank, by its number, as the engine predicts it. With many
            ranks, those of the first, the middle and the last. None for zero-bubble pipelines,
            which the engine does not run.
        modules: the number of layers of each module.
    """

    method: str
    step_seconds: float
    samples_per_second: float
    ratio: float
    speedup: float
    idle_share: float
    idle_shares: tuple[float, ...]
    one_batch_seconds: float
    wire_bytes: float
    memory_bytes: dict[int, int] | None
    modules: list[int]


def simulate_method(
    setting: PipelineSetting, measured: MeasuredMethod, order: PipelineOrder, plain_seconds: float
) -> tuple[PipelineRow, Timeline]:
    """Simulate a method on the ranks.

    Args:
        setting: ranks, replicas, micro-batches and links.
        measured: the method.
        order: of its micro-batches.
        plain_seconds: of a step of end-to-end training in one process.

    Returns:
        The method's row, and what its ranks do.

    Raises:
        BadInput: if a loss needs what another rank has.
    """
    learner, seconds = measured.learner, measured.seconds
    module_seconds = seconds.per_module(learner.wiring, setting.microbatches)
    placement = Placement.balanced(learner.wiring, setting.ranks, module_seconds)
    rank_schedules = _lower_method(setting, measured, placement, order)
    max_in_flight = find_max_in_flight(rank_schedules)
    timeline, one_batch = (
        _simulate_steps(setting, measured, rank_schedules, order, max_in_flight, steps)
        for steps in (_SIMULATED_STEPS, 1)
    )
    step_seconds, replicas = timeline.seconds_per_step, setting.replicas
    memory_bytes = None
    if not order.weight_share:
        memory_bytes = predict_peaks(setting, learner, placement, rank_schedules, max_in_flight)
    row = PipelineRow(
        method=", ".join(filter(None, (measured.spec.label, order.label))),
        step_seconds=step_seconds,
        samples_per_second=setting.batch * replicas / step_seconds,
        ratio=replicas * plain_seconds / step_seconds,
        speedup=replicas * sum(module_seconds) / step_seconds,
        idle_share=timeline.idle_share,
        idle_shares=timeline.idle_shares,
        one_batch_seconds=one_batch.span_s,
        wire_bytes=timeline.wire_bytes * replicas,
        memory_bytes=memory_bytes,
        modules=[len(module) for module in learner.partition.modules],
    )
    return row, timeline


def _lower_method(
    setting: PipelineSetting, measured: MeasuredMethod, placement: Placement, order: PipelineOrder
) -> tuple[Schedule, ...]:
    wiring = measured.learner.wiring
    problems = find_placement_problems(wiring, placement)
    check(f"{measured.spec.label}: {problem}" for problem in problems)
    return lower(
        wiring,
        placement,
        setting.microbatches,
        replicas=setting.replicas,
        order=order.order,
        cost=measured.seconds,
    )


def _simulate_steps(
    setting: PipelineSetting,
    measured: MeasuredMethod,
    rank_schedules: tuple[Schedule, ...],
    order: PipelineOrder,
    max_in_flight: int,
    steps: int,
) -> Timeline:
    return simulate(
        rank_schedules,
        measured.seconds,
        message_bytes(measured.learner.wiring, measured.seconds.samples),
        setting.link_model,
        steps=steps,
        replicas=setting.replicas,
        max_in_flight=max_in_flight,
        weight_share=order.weight_share,
    )


def predict_peaks(
    setting: PipelineSetting,
    learner: Learner,
    placement: Placement,
    rank_schedules: tuple[Schedule, ...],
    max_in_flight: int,
) -> dict[int, int]:
    """Predict the peak bytes of ranks, including their messages, without running them.

    Args:
        setting: the batch of one pipeline.
        learner: of one process.
        placement: of its segments on the ranks.
        rank_schedules: of all ranks.
        max_in_flight: messages of one kind between two ranks that may be sent but not received.

    Returns:
        The peak by rank: of all ranks, or of the first, the middle and the last of many.
    """
    count = len(rank_schedules)
    ranks = range(count) if count <= _MAX_PREDICTED_RANKS else (0, count // 2, count - 1)
    # Only shapes and dtypes of the whole batch count.
    batch = setting.make_microbatch().map(
        lambda tensor: tensor.new_empty(setting.batch, *tensor.shape[1:])
    )
    batch = replace(batch, samples=setting.batch)
    peaks = {}
    for rank in ranks:
        stage = Stage(placement.stages[rank])
        rank_slice = RankSlice(stage, rank_schedules[rank], max_in_flight)
        peaks[rank] = predict_memory(learner.engine, [], batch, rank_slice).peak_bytes
    return peaks
