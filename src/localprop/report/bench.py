"""Benchmarks of the engine: memory against its prediction and the plain loop, and time per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from localprop.cost.baselines import PlainLoop, Step, Timing, checkpoint_blocks
from localprop.data.dataset import Normalization
from localprop.errors import as_run_failure, check
from localprop.learner import Learner
from localprop.methods.parse import parse_rule
from localprop.network.find_layers import layers_of
from localprop.network.partition import Partition
from localprop.report.costs import PLAIN_LOOP, measure_peak_bytes, time_steps
from localprop.report.image_setting import ImageSetting
from localprop.report.method_spec import (
    Methods,
    MethodSpec,
    filter_trainable,
    parse_and_check_methods,
)
from localprop.report.other_steps import load_steps
from localprop.report.value_checks import find_range_problems
from localprop.schedule.sums import WEIGHT_GRADIENTS
from localprop.tasks.batch import Batch
from localprop.training.environment import describe_environment
from localprop.writing.tables import MIB, format_table

CHECKPOINTED = "torch.utils.checkpoint"

Progress = Callable[[str], object]


@dataclass(frozen=True)
class BenchSetting(ImageSetting):
    """What a benchmark runs on: a network, random images and SGD.

    Attributes:
        modules: the number of local modules.
        batch_size: images per batch.
        momentum: of SGD; with momentum, the optimizer's state is as large as the parameters.
        weight_gradients: as `Learner` takes it.
    """

    modules: int = 16
    batch_size: int = 128
    momentum: float = 0.0
    weight_gradients: str = "once"

    def find_problems(self) -> list[str]:
        """Find all problems with the values; one sentence each.

        Example:
            >>> for problem in BenchSetting(modules=0, momentum=2.0).find_problems():
            ...     print(problem)
            modules=0 must be a whole number of 1 or more.
            momentum=2.0 must be a number in [0, 1).
        """
        problems = find_range_problems(modules=(self.modules, 1), batch_size=(self.batch_size, 1))
        if not isinstance(self.momentum, int | float) or not 0 <= self.momentum < 1:
            problems.append(f"momentum={self.momentum!r} must be a number in [0, 1).")
        if self.weight_gradients not in WEIGHT_GRADIENTS:
            problems.append(
                f"weight_gradients={self.weight_gradients!r} must be "
                f"{' or '.join(WEIGHT_GRADIENTS)}."
            )
        return problems + super().find_problems()

    def make_batch(self) -> Batch:
        """Random images and labels."""
        return self.make_images(self.batch_size)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """SGD on some parameters."""
        return SGD(parameters, lr=0.01, momentum=self.momentum)

    def make_learner(self, spec: MethodSpec, batch: Batch) -> Learner:
        """A new network and a learner that trains it with a method.

        Raises:
            BadInput: if the network cannot be trained with the method.
        """
        model = self.make_network()
        return Learner(
            model,
            parse_rule(spec.method),
            partition=Partition.uniform(layers_of(model, batch), self.modules),
            optimizer=self.make_optimizer,
            sample=batch,
            **spec.options,
            weight_gradients=self.weight_gradients,
            on_nonfinite="ignore",  # as the plain loop does
            atomic=False,
            # Losses of pixels need a normalisation. No cost depends on its values.
            normalization=Normalization(),
        )

    def make_plain_loop(self, batch: Batch) -> PlainLoop:
        """A new network and the plain PyTorch loop that trains it."""
        model = self.make_network()
        return PlainLoop(model, self.make_optimizer(list(model.parameters())), batch)

    def make_checkpointed_loop(self, batch: Batch) -> PlainLoop:
        """The plain loop of a network whose blocks run again by `torch.utils.checkpoint`."""
        plain = self.make_plain_loop(batch)
        checkpoint_blocks(plain.model, layers_of(plain.model, batch))
        return plain


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryRow:
    """The peak memory of one method.

    Attributes:
        method: its label.
        peak_bytes: measured.
        saving: 1 - peak_bytes / the plain loop's peak.
        predicted_bytes: by the engine on fake tensors. The prediction knows neither the allocator's
            rounding on a CUDA device nor the workspace of kernels.
        error: predicted_bytes / peak_bytes - 1.
    """

    method: str
    peak_bytes: int
    saving: float
    predicted_bytes: int
    error: float


def measure_memory(
    setting: BenchSetting, specs: Sequence[MethodSpec], progress: Progress = print
) -> tuple[int, list[MemoryRow]]:
    """Measure the peak of the plain loop in bytes, and of each method beside its prediction.

    Raises:
        BadInput: if the network cannot be trained with a method.
    """
    batch = setting.make_batch()
    progress(PLAIN_LOOP)
    plain_bytes = _measure_plain_loop(setting, batch)
    rows = []
    for spec in specs:
        progress(spec.label)
        learner = setting.make_learner(spec, batch)
        predicted = learner.memory(batch.data).peak_bytes
        learner.step(batch.data)  # creates the optimizer state
        measured = measure_peak_bytes(learner, batch)
        saving, error = 1 - measured / plain_bytes, predicted / measured - 1
        rows.append(MemoryRow(spec.label, measured, saving, predicted, error))
    return plain_bytes, rows


def _measure_plain_loop(setting: BenchSetting, batch: Batch) -> int:
    plain = setting.make_plain_loop(batch)
    plain.step()
    return plain.peak_bytes()


def format_memory_table(setting: BenchSetting, plain_bytes: int, rows: Sequence[MemoryRow]) -> str:
    """Format the table of `localprop bench memory`."""
    header = ["method", "peak MiB", "below the plain loop", "predicted MiB", "error"]
    cells = [[PLAIN_LOOP, f"{plain_bytes / MIB:.1f}", "", "", ""]]
    for row in rows:
        saving = round(100 * row.saving, 1) + 0.0  # + 0.0 makes 0.0 of -0.0
        cells.append(
            [
                row.method,
                f"{row.peak_bytes / MIB:.1f}",
                f"{saving:.1f}%",
                f"{row.predicted_bytes / MIB:.1f}",
                f"{100 * row.error:+.2f}%",
            ]
        )
    return "\n".join([format_table(header, cells), "", _describe_setting(setting)])


# --- time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedRow:
    """The time of one method, or of somebody else's step.

    Attributes:
        method: its label.
        timing: seconds per step, and their ratio to the plain loop's.
        operations: those of a step, of the plain loop's: a floor of the ratio, with the kernels of
            the plain loop. None where the step is somebody else's.
        actions: the number of actions in its schedule.
        peak_bytes: measured; None on a GPU, whose allocator counts what all steps hold.
        predicted_bytes: by the engine on fake tensors.
    """

    method: str
    timing: Timing
    operations: float | None = None
    actions: int | None = None
    peak_bytes: int | None = None
    predicted_bytes: int | None = None


def measure_speed(
    setting: BenchSetting,
    specs: Sequence[MethodSpec],
    rounds: int,
    progress: Progress = print,
    against: str | None = None,
) -> tuple[float, list[SpeedRow]]:
    """Measure a step of the plain loop, of torch's checkpointing and of each method, in turns.

    Args:
        setting: network, images and optimizer.
        specs: the methods.
        rounds: interleaved rounds.
        progress: called with what is running.
        against: a file with steps of other implementations; see `load_steps`.

    Returns:
        The seconds of the plain loop, and the rows of all others.

    Raises:
        BadInput: if the network cannot be trained with a method, or the file is not as it should.
    """
    batch = setting.make_batch()
    plain, checkpointed = setting.make_plain_loop(batch), setting.make_checkpointed_loop(batch)
    theirs = {} if against is None else load_steps(against, setting.make_network, batch)
    others: dict[str, Step] = {CHECKPOINTED: checkpointed.step, **theirs}
    learners = {spec.label: setting.make_learner(spec, batch) for spec in specs}
    progress("warming up")
    for _ in range(2):
        plain.step()
        for step in others.values():
            step()
        for learner in learners.values():
            learner.step(batch.data)
    progress(f"{rounds} interleaved rounds of {1 + len(others) + len(learners)} steps")
    plain_seconds, timings = time_steps(plain, learners, batch, rounds, others)
    progress("counting operations and bytes")
    plain_flops = plain.flops()
    # The allocator of a GPU counts what all of them hold; `bench memory` has one at a time.
    is_counted = batch.inputs.device.type != "cuda"
    rows = [
        SpeedRow(
            CHECKPOINTED,
            timings[CHECKPOINTED],
            operations=checkpointed.flops() / plain_flops,
            peak_bytes=checkpointed.peak_bytes() if is_counted else None,
        )
    ]
    rows += [SpeedRow(label, timings[label]) for label in theirs]
    return plain_seconds, rows + [
        SpeedRow(
            label,
            timings[label],
            learner.flops(batch.data) / plain_flops,
            len(learner.schedule),
            measure_peak_bytes(learner, batch) if is_counted else None,
            learner.memory(batch.data).peak_bytes,
        )
        for label, learner in learners.items()
    ]


def format_speed_table(
    setting: BenchSetting, plain_seconds: float, rows: Sequence[SpeedRow], rounds: int
) -> str:
    """Format the table of `localprop bench speed`."""
    header = ["method", "ms", "ratio", "quartiles", "operations", "us/action", "MiB", "predicted"]
    cells = [[PLAIN_LOOP, f"{1000 * plain_seconds:.1f}", "1", "", "1", "", "", ""]]
    for row in rows:
        timing = row.timing
        extra_seconds = timing.seconds - plain_seconds
        cells.append(
            [
                row.method,
                f"{1000 * timing.seconds:.1f}",
                f"{timing.ratio:.3f}",
                f"{timing.low:.3f}-{timing.high:.3f}",
                "" if row.operations is None else f"{row.operations:.2f}",
                "" if row.actions is None else f"{1e6 * extra_seconds / row.actions:.0f}",
                "" if row.peak_bytes is None else f"{row.peak_bytes / MIB:.1f}",
                "" if row.predicted_bytes is None else f"{row.predicted_bytes / MIB:.1f}",
            ]
        )
    legend = (
        f"{_describe_setting(setting)} {rounds} interleaved rounds; ratio: to the plain loop, the "
        "median of the rounds; operations: of the plain loop's; us/action: more than the plain "
        "loop, for each action of the schedule; MiB: the peak of a step, measured and predicted."
    )
    return "\n".join([format_table(header, cells), "", legend])


# --- the command ----------------------------------------------------------------------------------


def run_bench(
    what: str,
    setting: BenchSetting,
    methods: Methods,
    rounds: int,
    progress: Progress = print,
    against: str | None = None,
) -> dict[str, Any]:
    """Run one of the benchmarks.

    Args:
        what: "memory" or "speed".
        setting: network, images and optimizer.
        methods: expressions.
        rounds: interleaved rounds of the timing; 2 or more.
        progress: called with what is running.
        against: a file with steps of other implementations, for "speed"; see `load_steps`.

    Returns:
        The figures, and the table's text as `table`.

    Raises:
        BadInput: all problems with values and methods.
        RunFailed: if a step fails, for example out of memory.
    """
    problems = [*find_range_problems(rounds=(rounds, 2)), *setting.find_problems()]
    specs = parse_and_check_methods(methods, problems)
    if against is not None and what != "speed":
        problems.append("--against times the steps of a file: use it with `localprop bench speed`.")
    check(problems)
    with as_run_failure():
        # All methods are built once before the first is measured, which may take minutes.
        batch = setting.make_batch()
        check(filter_trainable(specs, lambda spec: setting.make_learner(spec, batch))[1])
        if what == "memory":
            figures = _run_memory(setting, specs, progress)
        else:
            figures = _run_speed(setting, specs, rounds, progress, against)
    table = figures.pop("table")
    environment = describe_environment()
    return {**figures, "setting": asdict(setting), "environment": environment, "table": table}


def _run_memory(
    setting: BenchSetting, specs: Sequence[MethodSpec], progress: Progress
) -> dict[str, Any]:
    plain_bytes, rows = measure_memory(setting, specs, progress)
    return {
        "baseline": {"peak_bytes": plain_bytes},
        "rows": [asdict(row) for row in rows],
        "table": format_memory_table(setting, plain_bytes, rows),
    }


def _run_speed(
    setting: BenchSetting,
    specs: Sequence[MethodSpec],
    rounds: int,
    progress: Progress,
    against: str | None,
) -> dict[str, Any]:
    plain_seconds, rows = measure_speed(setting, specs, rounds, progress, against)
    return {
        "baseline": {"step_seconds": plain_seconds},
        "rows": [asdict(row) for row in rows],
        "table": format_speed_table(setting, plain_seconds, rows, rounds),
    }


def _describe_setting(setting: BenchSetting) -> str:
    image = "x".join(map(str, setting.input_shape))
    return (
        f"{setting.model}, {setting.modules} modules, batch {setting.batch_size} of {image}, "
        f"SGD with momentum {setting.momentum:g}."
    )
