"""Four processes that run functions as ranks, one launch for all tests; and a training run to compare on any number of them."""

from __future__ import annotations

import os
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import localprop as lp

SIZE = 4
PATIENCE_S = 60.0  # how long a test waits for a rank


class Crew:
    """A pool of ranks; :meth:`run` calls a function on the first few of them, in a process group of their own."""

    def __init__(self) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.tasks = 0
        self._start()

    def _start(self) -> None:
        context = forkserver()
        pairs = [context.Pipe() for _ in range(SIZE)]
        self.pipes = [ours for ours, _ in pairs]
        self.members = [
            context.Process(target=_serve, args=(rank, self.store.port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for member in self.members:
            member.start()
        for _, theirs in pairs:
            theirs.close()

    def run(self, ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What function(*args) returns on each rank; an exception is returned as itself. A rank that dies or hangs fails the
        test, and the others get new ranks."""
        self.tasks += 1
        try:
            for pipe in self.pipes[:ranks]:
                pipe.send((self.tasks, ranks, function, args))
            for pipe in self.pipes[:ranks]:
                assert pipe.poll(PATIENCE_S), "a rank does not answer"
            return [pipe.recv() for pipe in self.pipes[:ranks]]
        except (EOFError, OSError, AssertionError):
            self.close()
            self._start()
            raise

    def close(self) -> None:
        """End the processes."""
        for member in self.members:
            member.kill()


def forkserver() -> Any:
    """Processes that start in a moment, since torch is imported once for all of them."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "localprop", "torch.distributed.device_mesh", "torchvision", "timm"])
    return context


def join(rank: int, ranks: int, port: int, name: object) -> None:
    """Make this process one of some ranks."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=dist.PrefixStore(str(name), store), rank=rank, world_size=ranks)


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, or the exception that it raises, if need be as one that can be pickled."""
    try:
        return function(*args)
    except (lp.BadInput, lp.StepFailed) as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return RuntimeError(f"{type(error).__name__}: {error}")


def _serve(rank: int, port: int, pipe: Connection) -> None:
    while True:
        task, ranks, function, args = pipe.recv()
        join(rank, ranks, port, task)
        answer = attempt(function, *args)
        dist.destroy_process_group()
        pipe.send(answer)


# --- a run --------------------------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """A stem and eight blocks with what makes bits differ: BatchNorm, dropout, work in place, and code between layers."""

    def __init__(self, chans: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList([self._block(width) for _ in range(8)])
        self.head = nn.Linear(width, 10)

    @staticmethod
    def _block(width: int) -> nn.Module:
        norm, conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        parts = {"bn2": norm, "relu": nn.ReLU(inplace=True), "drop": nn.Dropout(0.2), "conv": conv}
        return nn.Sequential(OrderedDict(parts))  # bn2: what TRGL takes for the end of a residual branch

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


Build = Callable[[], nn.Module]
Stream = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Run:
    """A run that every rank makes, or one process alone.

    Attributes:
        rule: the training rule.
        build: makes the model.
        options: of the Learner.
        ranks: options of Ranks.
        batches: makes the data; by default noise images of 8x8 pixels, the last batch smaller.
        optimizer: of all parameters.
        pause: after which steps the network is looked at: flushed, asked for a prediction and gathered.
    """

    rule: lp.Rule
    build: Build = Blocks
    options: dict[str, Any] = field(default_factory=lambda: {"modules": 6})
    ranks: dict[str, Any] = field(default_factory=dict)
    batches: Callable[[], Stream] | None = None
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    pause: tuple[int, ...] = ()


@dataclass
class Outcome:
    """What a run leaves on one rank: all losses, a prediction, heads and momentum of its own, on rank 0 the network."""

    losses: dict[Any, float]
    prediction: Tensor
    own: dict[str, Tensor]
    network: dict[str, Tensor] | None
    polite: bool  # the caller's random state and all modes are as they were


def noise(sizes: tuple[int, ...] = (12, 12, 12, 7), shape: tuple[int, ...] = (3, 8, 8), **kind: Any) -> Stream:
    """Batches of noise."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, *shape, generator=generator, **kind), torch.randint(10, (n,), generator=generator))
        for n in sizes
    ]


def train(run: Run, *, alone: bool) -> Outcome:
    """Train, with another learning rate at each step."""
    torch.manual_seed(0)
    model = run.build()
    data = noise() if run.batches is None else run.batches()
    learner = lp.Learner(
        model,
        run.rule,
        sample=data[0],
        optimizer=run.optimizer or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        ranks=lp.Ranks(alone=True) if alone else lp.Ranks(**{"timeout_s": 20.0, **run.ranks}),
        **run.options,
    )
    before, modes = torch.get_rng_state(), [module.training for module in learner.network.modules()]
    found: dict[Any, float] = {}
    for i, batch in enumerate(data):
        for group in (group for optimizer in learner.optimizers for group in optimizer.param_groups):
            group["lr"] = 0.1 / (i + 1)
        losses = learner.step(batch)
        found |= {(i, k): float(value) for k, value in zip(losses.modules, losses, strict=True)}
        if i in run.pause:
            _look(learner, data[0][0])
    prediction = learner.predict(data[0][0])
    same_modes = modes == [module.training for module in learner.network.modules()]
    polite = same_modes and torch.equal(before, torch.get_rng_state())
    network = learner.gather()
    state = None if network is None else dict(network.state_dict())
    return Outcome(learner.total(found), prediction, dict(own_of(learner)), state, polite)


def _look(learner: lp.Learner, inputs: Tensor) -> None:
    learner.flush()
    learner.flush()
    learner.predict(inputs[:5])
    learner.gather()


def own_of(learner: lp.Learner) -> Iterator[tuple[str, Tensor]]:
    """The state that a process has of its own: its heads, and all that its optimizers keep."""
    pipeline = learner.pipeline
    for name, value in learner.heads.state_dict().items():
        if pipeline is None or pipeline.owner("heads", name) == pipeline.mesh.stage:
            yield f"heads.{name}", value
    names = {parameter: name for name, parameter in learner.named_parameters()}
    for optimizer in learner.optimizers:
        for parameter, kept in optimizer.state.items():
            for key, value in kept.items():
                yield f"{names[parameter]} {key}", torch.as_tensor(value)


def assert_same(alone: Outcome, together: list[Any]) -> None:
    """To the bit: losses, predictions on all ranks, the network on rank 0, and what ranks have of their own."""
    for rank, outcome in enumerate(together):
        assert isinstance(outcome, Outcome), outcome
        assert outcome.losses == alone.losses, f"losses of rank {rank}"
        assert torch.equal(outcome.prediction, alone.prediction), f"prediction of rank {rank}"
        assert outcome.polite
        assert (outcome.network is None) == (rank > 0)
    assert_same_tensors(together[0].network, alone.network)
    assert sum(len(outcome.own) for outcome in together) == len(alone.own)
    assert_same_tensors({name: value for outcome in together for name, value in outcome.own.items()}, alone.own)


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in other if not torch.equal(one[name], other[name])] == []
