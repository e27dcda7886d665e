"""Simulated pipelines of modules with given seconds, against rows by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localprop.cost.simulate import Timeline
from localprop.cost.timing import ActionKind, Seconds
from localprop.network.partition import Partition
from localprop.report.method_spec import MethodSpec
from localprop.report.pipeline_setting import PipelineSetting
from localprop.report.pipelines import PIPELINES, MeasuredMethod, PipelineOrder, simulate_method
from localprop.schedule.schedule import Op

SETTING = PipelineSetting(
    model="mlp:" + ",".join(["16"] * 7),  # 8 layers
    input_shape=(4,),
    batch=16,
    ranks=4,
    link="1e9GB/s",
    latency="0s",
    device="cpu",
)


def make_method(method: str, setting: PipelineSetting) -> MeasuredMethod:
    """Make a method of equal modules that take 3 seconds per micro-batch each."""
    spec = MethodSpec.parse(method)
    layers = setting.find_layers()
    cuts = Partition.uniform(layers, setting.module_count).cuts
    learner = setting.make_learner(spec, layers, cuts)
    by_op = {Op.F: 1.0, Op.B: 2.0}
    by_kind = {ActionKind.of(action): by_op.get(action.op, 0.0) for action in learner.schedule}
    return MeasuredMethod(spec, learner, Seconds(by_kind, setting.microbatch_size))


def test_rows_by_hand() -> None:
    whole = make_method("end_to_end()", SETTING)
    gpipe, plain, zero_bubble = (
        simulate_method(SETTING, whole, order, plain_seconds=48.0)[0] for order in PIPELINES
    )
    assert plain.step_seconds == gpipe.step_seconds == pytest.approx(3 * (4 + 3))
    assert zero_bubble.step_seconds == pytest.approx(3 * 4 + 3)
    assert plain.ratio == plain.speedup == pytest.approx(48 / 21)
    assert plain.idle_share == pytest.approx(3 / 7)
    assert plain.samples_per_second == pytest.approx(16 / 21)
    assert plain.one_batch_seconds == pytest.approx(21)
    assert plain.method == "end_to_end(), 1F1B"
    greedy, timeline = simulate_method(
        SETTING, make_method("greedy()", SETTING), PipelineOrder(), plain_seconds=48.0
    )
    assert greedy.method == "greedy()"
    assert greedy.idle_share == pytest.approx(0, abs=1e-6)
    assert greedy.ratio == pytest.approx(4)
    assert isinstance(timeline, Timeline)


def test_one_batch_at_a_time_by_hand() -> None:
    """The papers' setting: one batch at a time, a module per device, and a backward that takes
    twice as long as a forward. Local learning takes half of the time on 4 devices.
    """
    setting = replace(SETTING, batch=4, microbatches=1)
    whole, _ = simulate_method(setting, make_method("end_to_end()", setting), PipelineOrder(), 12.0)
    local, _ = simulate_method(setting, make_method("greedy()", setting), PipelineOrder(), 12.0)
    assert whole.one_batch_seconds == pytest.approx(4 + 8)
    assert local.one_batch_seconds == pytest.approx(4 + 2)
