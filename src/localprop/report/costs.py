"""What a training step of each method costs, beside the plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch

from localprop.cost.baselines import PlainLoop, Step, Timing, time_interleaved
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import measure_peak
from localprop.learner import Learner
from localprop.tasks.batch import Batch

PLAIN_LOOP = "plain PyTorch loop"


@dataclass(frozen=True)
class BaselineCosts:
    """What a training step of the plain PyTorch loop costs.

    Attributes:
        method: its label.
        peak_bytes: the measured peak.
        flops: operations per step.
        step_seconds: the median of the rounds.
    """

    method: str
    peak_bytes: int
    flops: int
    step_seconds: float


@dataclass(frozen=True)
class MethodCosts:
    """What a training step of a method costs, and the parameters that the method adds.

    Attributes:
        modules: modules that learn independently; neighbours with the same credit count as one.
        peak_bytes: the measured peak.
        timing: seconds, and their ratio to the plain loop's.
        flops: operations per step.
        head_parameters: of all auxiliary networks.
        context_parameters: of all encoders.
    """

    modules: int
    peak_bytes: int
    timing: Timing
    flops: int
    head_parameters: int
    context_parameters: int


def measure_costs(
    plain: PlainLoop, learners: Mapping[str, Learner], batch: Batch, rounds: int
) -> tuple[BaselineCosts, dict[str, MethodCosts]]:
    """Measure memory, operations and time of a step.

    Args:
        plain: the baseline.
        learners: of each method, by label. Each is trained by a few steps.
        batch: the batch of all steps.
        rounds: interleaved rounds of the timing; 2 or more.
    """
    flops = {label: learner.flops(batch.data) for label, learner in learners.items()}
    # A first step creates the optimizers' state, which belongs to every peak.
    plain.step()
    for learner in learners.values():
        learner.step(batch.data)
    peaks = {label: measure_peak_bytes(learner, batch) for label, learner in learners.items()}
    plain_peak, plain_flops = plain.peak_bytes(), plain.flops()
    plain_seconds, timings = time_steps(plain, learners, batch, rounds)
    baseline = BaselineCosts(PLAIN_LOOP, plain_peak, plain_flops, plain_seconds)
    return baseline, {
        label: MethodCosts(
            modules=learner.wiring.table.effective_modules,
            peak_bytes=peaks[label],
            timing=timings[label],
            flops=flops[label],
            head_parameters=_count_parameters(learner.heads),
            context_parameters=_count_parameters(learner.encoders),
        )
        for label, learner in learners.items()
    }


def time_steps(
    plain: PlainLoop,
    learners: Mapping[str, Learner],
    batch: Batch,
    rounds: int,
    others: Mapping[str, Step] | None = None,
) -> tuple[float, dict[str, Timing]]:
    """Time steps in interleaved rounds. Every step has run before.

    Returns:
        The seconds of the plain loop, and the timing of each method and other step beside it.
    """
    baseline = ""  # no method has an empty label
    steps: dict[str, Step] = {baseline: plain.step, **(others or {})}
    steps |= {label: partial(learner.step, batch) for label, learner in learners.items()}
    timings = time_interleaved(steps, baseline, rounds, batch.inputs.device)
    return timings.pop(baseline).seconds, timings


def measure_peak_bytes(learner: Learner, batch: Batch) -> int:
    """Measure the peak of a step of a learner, which has stepped before."""
    networks = [learner.model, learner.heads, learner.encoders]
    # No list, which would keep what the model itself drops in the step.
    held = chain(
        list_held_tensors(networks, learner.optimizers, batch), [learner.engine.plan.scalar]
    )
    return measure_peak(partial(learner.step, batch.data), held, learner.device).peak_bytes


def _count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
