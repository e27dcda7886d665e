"""End-to-end training on several ranks by PyTorch's own pipeline schedules: the baseline of the benchmark of ranks.

`pipeline_step` cuts a CIFAR ResNet by hand into stages of about equal seconds and leaves the rest to
`torch.distributed.pipelining`. Alone, this file checks every schedule against a plain loop in one process:

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
# Two stages a rank. The zero-bubble ones split the backward pass: gradients of the inputs first, of the weights when there
# is time. In-place ReLUs and batch norms are no hindrance, but the two halves take longer than the whole: a convolution
# starts two kernels instead of one, and a batch norm computes all its gradients in either half.
DOUBLE: dict[str, type[PipelineScheduleMulti]] = {
    "Interleaved1F1B": pipelining.ScheduleInterleaved1F1B,
    "InterleavedZeroBubble": pipelining.ScheduleInterleavedZeroBubble,
    "ZBVZeroBubble": pipelining.ScheduleZBVZeroBubble,
}
SCHEDULES = (*SINGLE, *DOUBLE)

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class PipelineStep:
    """One training step of this rank's stages: (inputs, targets) -> the mean loss on the rank of the last stage, else None.

    Attributes:
        stages: those of this rank.
        pipeline: torch's schedule.
        optimizer: of the stages' parameters.
    """

    stages: Sequence[pipelining.PipelineStage]
    pipeline: PipelineScheduleSingle | PipelineScheduleMulti
    optimizer: Optimizer

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        first, last = any(stage.is_first for stage in self.stages), any(stage.is_last for stage in self.stages)
        losses: list[Tensor] = []
        arguments = (inputs,) if first else ()
        # Nobody asks for the logits, and to return them is to keep them.
        self.pipeline.step(*arguments, target=targets if last else None, losses=losses, return_outputs=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).detach().mean() if last else None


def pipeline_step(
    schedule: str,
    model: CifarResNet,
    sample: tuple[Tensor, Tensor],
    microbatches: int,
    optimizer: OptimizerFactory,
    bounds: Sequence[int] | None = None,
) -> PipelineStep:
    """What runs one training step of this rank's stages; every rank calls it, with the whole batch.

    The first call also runs a forward and a backward pass in which the stages tell each other their shapes: warm up.

    Args:
        schedule: one of `SCHEDULES`.
        model: the same on every rank; a rank trains the layers of its own stages in place and leaves the others.
        sample: a batch such as the steps will get; its size a multiple of `microbatches`.
        microbatches: pieces of a batch. Batch norms see one at a time; the loss is the mean over them.
        optimizer: builds the optimizer of this rank's parameters.
        bounds: 0, the layers (stem, blocks, head) at which the other stages begin, and the number of layers; by default
            stages are balanced by seconds that rank 0 measures.

    Example:
        >>> step = pipeline_step("1F1B", resnet20(), (x, y), 4, torch.optim.SGD)  # under torchrun
        >>> step(x, y)
    """
    inputs, targets = sample
    if len(inputs) % microbatches or len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets do not make {microbatches} equal pieces.")
    layers = layers_of(model)
    if bounds is None:
        bounds = balanced(shared_costs(layers, inputs[: len(inputs) // microbatches]), stage_count(schedule))
    if len(bounds) != 1 + stage_count(schedule) or bounds[-1] != len(layers):
        raise ValueError(f"bounds={bounds} do not cut {len(layers)} layers into {stage_count(schedule)} stages.")
    modules = [nn.Sequential(*layers[a:b]) for a, b in pairwise(bounds)]
    stages = [
        pipelining.PipelineStage(modules[i], i, len(modules), inputs.device) for i in own_stages(schedule, len(modules))
    ]
    pipeline: PipelineScheduleSingle | PipelineScheduleMulti
    # scale_grads, on by default, divides the gradients by the number of micro-batches: the mean over them of their means.
    if schedule in SINGLE:
        pipeline = SINGLE[schedule](stages[0], microbatches, functional.cross_entropy)
    else:
        pipeline = DOUBLE[schedule](list(stages), microbatches, functional.cross_entropy)
    own = optimizer(list(chain.from_iterable(stage.submod.parameters() for stage in stages)))
    return PipelineStep(stages, pipeline, own)


def layers_of(model: CifarResNet) -> list[nn.Module]:
    """Stem, blocks and head of a CIFAR ResNet, in order: modules whose chain is the model."""
    stem = nn.Sequential(model.conv, model.bn, model.relu)
    return [stem, *model.blocks, nn.Sequential(model.pool, nn.Flatten(), model.fc)]


def stage_count(schedule: str) -> int:
    """Into how many stages the schedule cuts a network on the ranks that there are."""
    return dist.get_world_size() * (1 if schedule in SINGLE else 2)


def own_stages(schedule: str, count: int) -> list[int]:
    """The indices of this rank's stages: in a V (down the ranks and up again) or in rounds (every `world`-th)."""
    rank = dist.get_rank()
    if schedule == "ZBVZeroBubble":
        return [rank, count - 1 - rank]
    return list(range(rank, count, dist.get_world_size()))


def balanced(costs: Sequence[float], groups: int) -> tuple[int, ...]:
    """Bounds of consecutive groups, the dearest of which is as cheap as can be.

    Example:
        >>> balanced([1, 1, 1, 3], 2)
        (0, 3, 4)
    """
    total = (0, *accumulate(costs))

    @cache
    def best(stop: int, groups: int) -> tuple[float, tuple[int, ...]]:
        if groups == 1:
            return total[stop], (0, stop)
        options = ((i, *best(i, groups - 1)) for i in range(groups - 1, stop))
        return min((max(dearest, total[stop] - total[i]), (*bounds, stop)) for i, dearest, bounds in options)

    return best(len(costs), groups)[1]


def shared_costs(layers: Iterable[nn.Module], inputs: Tensor) -> list[float]:
    """`layer_seconds` as rank 0 measures them, since all ranks have to cut at the same places."""
    shared = [layer_seconds(layers, inputs) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0]


def layer_seconds(layers: Iterable[nn.Module], inputs: Tensor, rounds: int = 5) -> list[float]:
    """Median seconds of a forward and a backward pass of each layer alone; the layers stay as they are."""
    medians: list[float] = []
    for layer in layers:
        trial = copy.deepcopy(layer)  # which keeps the gradients and the running means to itself
        seconds = []
        for _ in range(rounds):
            x = inputs.detach().requires_grad_(bool(medians))  # nobody needs the gradient of an image
            start = time.perf_counter()
            y = trial(x)
            y.backward(torch.ones_like(y))
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
        inputs = y
    return medians


def plain_step(model: nn.Module, microbatches: int, optimizer: OptimizerFactory) -> Callable[[Tensor, Tensor], Tensor]:
    """The same step in one process: a plain loop that accumulates the gradients of the micro-batches."""
    own_optimizer = optimizer(list(model.parameters()))

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        losses = []
        for x, y in zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True):
            losses.append(functional.cross_entropy(model(x), y) / microbatches)
            losses[-1].backward()
        own_optimizer.step()
        own_optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).detach().sum()

    return step


def worst_difference(schedule: str, dtype: torch.dtype, steps: int = 3, microbatches: int = 4) -> float:
    """Largest difference, after a few steps, of a parameter, a buffer or a loss from those of the plain loop."""
    torch.manual_seed(0)
    batches = [(torch.randn(16, 3, 32, 32, dtype=dtype), torch.randint(10, (16,))) for _ in range(steps)]
    model = resnet20().to(dtype)
    reference = copy.deepcopy(model)

    def sgd(parameters: list[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    piped = pipeline_step(schedule, model, batches[0], microbatches, sgd)
    plain = plain_step(reference, microbatches, sgd)
    # Each tensor is trained, and each loss known, on one rank, which is thus the one with the smaller difference.
    differences = []
    for batch in batches:
        loss, expected = piped(*batch), plain(*batch)
        differences.append(torch.tensor(torch.inf) if loss is None else (loss - expected).abs())
    states = zip(model.state_dict().values(), reference.state_dict().values(), strict=True)
    differences += [(own - expected).abs().max() for own, expected in states]
    nearest = torch.stack([difference.double() for difference in differences])
    dist.all_reduce(nearest, dist.ReduceOp.MIN)
    return nearest.max().item()


def check() -> None:
    """Every schedule against the plain loop, in both precisions."""
    for schedule in SCHEDULES:
        for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            worst = worst_difference(schedule, dtype)
            if dist.get_rank() == 0:
                print(f"{schedule:22} {dtype!s:14} worst difference {worst:.1e}", flush=True)
            assert worst < bound, f"{schedule} does not train as the plain loop does: {worst} in {dtype}"


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    check()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
