"""End-to-end training on several ranks by PyTorch's own pipeline schedules.

This is the baseline of the benchmark of ranks. `build_pipeline_step` cuts a CIFAR ResNet into
stages of about equal seconds and leaves the rest to `torch.distributed.pipelining`. Run alone, this
file checks every schedule against a plain loop in one process:

    torchrun --nproc-per-node 2 benchmarks/torch_pipelines.py
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import accumulate, chain, pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle
from torch.nn import functional
from torch.optim import Optimizer

from localprop.models import CifarResNet, resnet20

SINGLE: dict[str, type[PipelineScheduleSingle]] = {
    "GPipe": pipelining.ScheduleGPipe,
    "1F1B": pipelining.Schedule1F1B,
}
# These have two stages per rank. The zero-bubble schedules split the backward pass: first the
# gradients of the inputs, then those of the weights when there is time. The two halves take longer
# than the whole. A convolution starts two kernels instead of one, and a batch norm computes all its
# gradients in either half.
DOUBLE: dict[str, type[PipelineScheduleMulti]] = {
    "Interleaved1F1B": pipelining.ScheduleInterleaved1F1B,
    "InterleavedZeroBubble": pipelining.ScheduleInterleavedZeroBubble,
    "ZBVZeroBubble": pipelining.ScheduleZBVZeroBubble,
}
SCHEDULES = (*SINGLE, *DOUBLE)

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class PipelineStep:
    """One training step of this rank's stages.

    It maps (inputs, targets) to the mean loss on the rank of the last stage, and to None elsewhere.

    Attributes:
        stages: the stages of this rank.
        pipeline: torch's schedule.
        optimizer: the optimizer of the stages' parameters.
    """

    stages: Sequence[pipelining.PipelineStage]
    pipeline: PipelineScheduleSingle | PipelineScheduleMulti
    optimizer: Optimizer

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        has_first = any(stage.is_first for stage in self.stages)
        has_last = any(stage.is_last for stage in self.stages)
        losses: list[Tensor] = []
        arguments = (inputs,) if has_first else ()
        # Nobody needs the logits, and the schedule would keep them to return them.
        self.pipeline.step(
            *arguments, target=targets if has_last else None, losses=losses, return_outputs=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).detach().mean() if has_last else None


def build_pipeline_step(
    schedule: str,
    model: CifarResNet,
    sample: tuple[Tensor, Tensor],
    microbatches: int,
    optimizer: OptimizerFactory,
    bounds: Sequence[int] | None = None,
) -> PipelineStep:
    """Build the training step of this rank's stages. Every rank calls it with the whole batch.

    The first call of the step also runs a forward and a backward pass in which the stages exchange
    their shapes, so warm up before you measure.

    Args:
        schedule: one of `SCHEDULES`.
        model: the same on every rank. A rank trains the layers of its own stages in place and
            leaves the others.
        sample: a batch like those of the steps. Its size is a multiple of `microbatches`.
        microbatches: the number of micro-batches. A batch norm sees one at a time, and the loss is
            the mean over them.
        optimizer: builds the optimizer of this rank's parameters.
        bounds: 0, the layers (stem, blocks, head) at which the other stages begin, and the number
            of layers. By default, stages are balanced by seconds that rank 0 measures.

    Raises:
        ValueError: the micro-batches are not of equal size, or the bounds do not fit the schedule.

    Example:
        >>> step = build_pipeline_step("1F1B", resnet20(), (x, y), 4, torch.optim.SGD)
        >>> step(x, y)
    """
    inputs, targets = sample
    if len(inputs) % microbatches or len(inputs) != len(targets):
        raise ValueError(
            f"{len(inputs)} inputs and {len(targets)} targets cannot be split into {microbatches} "
            "equal micro-batches."
        )
    layers = list_layers(model)
    if bounds is None:
        costs = share_layer_seconds(layers, inputs[: len(inputs) // microbatches])
        bounds = find_balanced_bounds(costs, count_stages(schedule))
    if len(bounds) != 1 + count_stages(schedule) or bounds[-1] != len(layers):
        raise ValueError(
            f"bounds={bounds} do not cut {len(layers)} layers into {count_stages(schedule)} stages."
        )
    modules = [nn.Sequential(*layers[a:b]) for a, b in pairwise(bounds)]
    stages = [
        pipelining.PipelineStage(modules[i], i, len(modules), inputs.device)
        for i in list_own_stages(schedule, len(modules))
    ]
    pipeline: PipelineScheduleSingle | PipelineScheduleMulti
    # By default (scale_grads), torch divides the gradients by the number of micro-batches. So the
    # loss is the mean over the micro-batches of their means.
    if schedule in SINGLE:
        pipeline = SINGLE[schedule](stages[0], microbatches, functional.cross_entropy)
    else:
        pipeline = DOUBLE[schedule](list(stages), microbatches, functional.cross_entropy)
    own = optimizer(list(chain.from_iterable(stage.submod.parameters() for stage in stages)))
    return PipelineStep(stages, pipeline, own)


def list_layers(model: CifarResNet) -> list[nn.Module]:
    """Stem, blocks and head of a CIFAR ResNet, in order: modules whose chain is the model."""
    stem = nn.Sequential(model.conv, model.bn, model.relu)
    return [stem, *model.blocks, nn.Sequential(model.pool, nn.Flatten(), model.fc)]


def count_stages(schedule: str) -> int:
    """The number of stages of the schedule on the present ranks."""
    return dist.get_world_size() * (1 if schedule in SINGLE else 2)


def list_own_stages(schedule: str, count: int) -> list[int]:
    """The indices of this rank's stages."""
    rank = dist.get_rank()
    # ZBV lays the stages in a V, down the ranks and up again. The others go round the ranks.
    if schedule == "ZBVZeroBubble":
        return [rank, count - 1 - rank]
    return list(range(rank, count, dist.get_world_size()))


def find_balanced_bounds(costs: Sequence[float], groups: int) -> tuple[int, ...]:
    """The bounds of consecutive groups with which the costliest group costs as little as possible.

    Example:
        >>> find_balanced_bounds([1, 1, 1, 3], 2)
        (0, 3, 4)
    """
    total = (0, *accumulate(costs))

    @cache
    def find_best(stop: int, groups: int) -> tuple[float, tuple[int, ...]]:
        if groups == 1:
            return total[stop], (0, stop)
        options = ((i, *find_best(i, groups - 1)) for i in range(groups - 1, stop))
        return min(
            (max(costliest, total[stop] - total[i]), (*bounds, stop))
            for i, costliest, bounds in options
        )

    return find_best(len(costs), groups)[1]


def share_layer_seconds(layers: Iterable[nn.Module], inputs: Tensor) -> list[float]:
    """`measure_layer_seconds` of rank 0 on all ranks, since all have to cut at the same layers."""
    shared = [measure_layer_seconds(layers, inputs) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0]


def measure_layer_seconds(
    layers: Iterable[nn.Module], inputs: Tensor, rounds: int = 5
) -> list[float]:
    """The median seconds of a forward and a backward pass of each layer alone."""
    medians: list[float] = []
    for layer in layers:
        # The copy takes the gradients and the running means, so the layers stay as they are.
        trial = copy.deepcopy(layer)
        seconds = []
        for _ in range(rounds):
            # The first layer reads images, and nobody needs their gradient.
            x = inputs.detach().requires_grad_(bool(medians))
            start = time.perf_counter()
            y = trial(x)
            torch.autograd.backward(y, torch.ones_like(y))
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
        inputs = y
    return medians


def make_plain_step(
    model: nn.Module, microbatches: int, optimizer: OptimizerFactory
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same step in one process: a plain loop that sums the gradients of the micro-batches."""
    own_optimizer = optimizer(list(model.parameters()))

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        losses = []
        for x, y in zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True):
            losses.append(functional.cross_entropy(model(x), y) / microbatches)
            torch.autograd.backward(losses[-1])
        own_optimizer.step()
        own_optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).detach().sum()

    return step


def find_worst_difference(
    schedule: str, dtype: torch.dtype, steps: int = 3, microbatches: int = 4
) -> float:
    """The largest difference from the plain loop, after a few steps, of any value that is trained.

    The values are parameters, buffers and losses.
    """
    torch.manual_seed(0)
    batches = [
        (torch.randn(16, 3, 32, 32, dtype=dtype), torch.randint(10, (16,))) for _ in range(steps)
    ]
    model = resnet20().to(dtype)
    reference = copy.deepcopy(model)

    def sgd(parameters: list[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    piped = build_pipeline_step(schedule, model, batches[0], microbatches, sgd)
    plain = make_plain_step(reference, microbatches, sgd)
    # One rank trains each tensor and knows each loss. On the others the difference is larger, so
    # the minimum over the ranks is that of the rank that trains.
    differences = []
    for batch in batches:
        loss, expected = piped(*batch), plain(*batch)
        differences.append(torch.tensor(torch.inf) if loss is None else (loss - expected).abs())
    states = zip(model.state_dict().values(), reference.state_dict().values(), strict=True)
    differences += [(own - expected).abs().max() for own, expected in states]
    nearest = torch.stack([difference.double() for difference in differences])
    dist.all_reduce(nearest, dist.ReduceOp.MIN)
    return nearest.max().item()


def check_schedules() -> None:
    """Check every schedule against the plain loop, in both precisions."""
    for schedule in SCHEDULES:
        for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            worst = find_worst_difference(schedule, dtype)
            if dist.get_rank() == 0:
                print(f"{schedule:22} {dtype!s:14} worst difference {worst:.1e}", flush=True)
            assert worst < bound, (
                f"{schedule} does not train as the plain loop does: {worst} in {dtype}"
            )


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    check_schedules()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
