"""Four processes that run functions as ranks, and a training run that any number of them makes."""

from __future__ import annotations

import os
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, TCPStore

import localprop as lp
from tests.helpers.layers import cut_once

POOL_SIZE = 4
ANSWER_TIMEOUT_S = 60.0  # how long a test waits for a rank


class RankPool:
    """Processes that are started once for all tests and run functions as ranks."""

    def __init__(self) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.tasks = 0
        self._start()

    def _start(self) -> None:
        context = forkserver()
        pairs = [context.Pipe() for _ in range(POOL_SIZE)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, self.store.port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def run(self, ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function on the first `ranks` processes, in a process group of their own.

        A rank that dies or hangs fails the test, and all processes are started anew.

        Returns:
            What each rank returned, or the exception that it raised.
        """
        self.tasks += 1
        try:
            for pipe in self.pipes[:ranks]:
                pipe.send((self.tasks, ranks, function, args))
            for pipe in self.pipes[:ranks]:
                assert pipe.poll(ANSWER_TIMEOUT_S), "a rank does not answer"
            return [pipe.recv() for pipe in self.pipes[:ranks]]
        except (EOFError, OSError, AssertionError):
            self.close()
            self._start()
            raise

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()


def forkserver() -> ForkServerContext:
    """Return a context whose processes start fast, since torch is imported once for all of them."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "localprop", "torch.distributed.device_mesh", "torchvision", "timm"]
    )
    return context


def join_ranks(rank: int, ranks: int, port: int, name: object) -> None:
    """Make this process one of some ranks.

    Args:
        rank: its number.
        ranks: how many there are.
        port: of the store.
        name: of the group; no two groups of one store share it.
    """
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = PrefixStore(str(name), TCPStore("127.0.0.1", port, is_master=False))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)


def return_or_catch(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns, or the exception that it raises, in a form that pickles."""
    try:
        return function(*args)
    except (lp.BadInput, lp.StepFailed) as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return RuntimeError(f"{type(error).__name__}: {error}")


def _serve(rank: int, port: int, pipe: Connection) -> None:
    """Run the functions that arrive in a pipe, each in a process group of its own."""
    while True:
        task, ranks, function, args = pipe.recv()
        join_ranks(rank, ranks, port, task)
        answer = return_or_catch(function, *args)
        dist.destroy_process_group()
        pipe.send(answer)


# --- a training run ------------------------------------------------------------------------------


class Blocks(nn.Module):
    """A stem and eight blocks with BatchNorm, dropout, in-place operations and code in between.

    Each of these shows a wrong order of operations or of random draws in the bits of the result.
    """

    def __init__(self, chans: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.ModuleList([self._make_block(width) for _ in range(8)])
        self.head = nn.Linear(width, 10)

    @staticmethod
    def _make_block(width: int) -> nn.Sequential:
        layers = OrderedDict[str, nn.Module]()
        layers["bn2"] = nn.BatchNorm2d(width)  # TRGL takes bn2 for the end of a residual branch
        layers["relu"] = nn.ReLU(inplace=True)
        layers["drop"] = nn.Dropout(0.2)
        layers["conv"] = nn.Conv2d(width, width, 3, padding=1)
        return nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build_tied(*groups: tuple[int, ...]) -> Blocks:
    """Blocks of which those of a group share the weight of their convolution."""
    model = Blocks()
    for first, *others in groups:
        shared = model.get_parameter(f"blocks.{first}.conv.weight")
        for i in others:
            model.get_submodule(f"blocks.{i}.conv").register_parameter("weight", shared)
    return model


Build = Callable[[], nn.Module]
Batches = list[tuple[Tensor, Tensor]]


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class Run:
    """A training run, made by every rank or by one process alone.

    Attributes:
        rule: the training rule.
        build: makes the model.
        options: of the Learner.
        ranks: options of Ranks.
        batches: makes the data; by default noise images of 8x8 pixels, the last batch smaller.
        optimizer: makes an optimizer for some parameters.
        inspect_after: the steps after which the learner is flushed, asked for a prediction and
            gathered.
    """

    rule: lp.Rule
    build: Build = Blocks
    options: dict[str, Any] = field(default_factory=lambda: {"modules": 6})
    ranks: dict[str, Any] = field(default_factory=dict)
    batches: Callable[[], Batches] | None = None
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = sgd
    inspect_after: tuple[int, ...] = ()


@dataclass
class Outcome:
    """The results of a run on one rank.

    Attributes:
        losses: of all ranks, by step and module.
        prediction: for the first batch.
        owned: the heads and optimizer states that this rank owns.
        network: the state of the gathered network on rank 0, None on others.
        keeps_states: whether the global random state and all training modes are as before.
    """

    losses: dict[Any, float]
    prediction: Tensor
    owned: dict[str, Tensor]
    network: dict[str, Tensor] | None
    keeps_states: bool


def noise(
    sizes: tuple[int, ...] = (12, 12, 12, 7),
    shape: tuple[int, ...] = (3, 8, 8),
    dtype: torch.dtype | None = None,
) -> Batches:
    """Make batches of noise with random labels."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, *shape, generator=generator, dtype=dtype),
            torch.randint(10, (n,), generator=generator),
        )
        for n in sizes
    ]


def train(run: Run, *, alone: bool) -> Outcome:
    """Train, with another learning rate at each step."""
    torch.manual_seed(0)
    model = run.build()
    batches = noise() if run.batches is None else run.batches()
    options = dict(run.options)
    if "modules" in options:
        options["partition"] = cut_once(model, batches[0], options.pop("modules"))
    learner = lp.Learner(
        model,
        run.rule,
        sample=batches[0],
        optimizer=run.optimizer,
        ranks=lp.Ranks(alone=True) if alone else lp.Ranks(**{"timeout_s": 20.0, **run.ranks}),
        **options,
    )
    random_state = torch.get_rng_state()
    modes = [module.training for module in learner.network.modules()]
    losses_of_run: dict[Any, float] = {}
    for i, batch in enumerate(batches):
        _set_learning_rate(learner, 0.1 / (i + 1))
        losses = learner.step(batch)
        for module, loss in zip(losses.modules, losses, strict=True):
            losses_of_run[i, module] = float(loss)
        if i in run.inspect_after:
            _inspect(learner, batches[0][0])
    prediction = learner.predict(batches[0][0])
    same_modes = modes == [module.training for module in learner.network.modules()]
    keeps_states = same_modes and torch.equal(random_state, torch.get_rng_state())
    network = learner.gather()
    return Outcome(
        learner.total(losses_of_run),
        prediction,
        dict(iterate_owned(learner)),
        None if network is None else dict(network.state_dict()),
        keeps_states,
    )


def _set_learning_rate(learner: lp.Learner, lr: float) -> None:
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def _inspect(learner: lp.Learner, inputs: Tensor) -> None:
    """Call everything that may be called between two steps."""
    learner.flush()
    learner.flush()
    learner.predict(inputs[:5])
    learner.gather()


def iterate_owned(learner: lp.Learner) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that only this process has: its heads and its optimizer states."""
    pipeline = learner.pipeline
    for name, value in learner.heads.state_dict().items():
        if pipeline is None or pipeline.owner("heads", name) == pipeline.mesh.stage:
            yield f"heads.{name}", value
    names: dict[Tensor, str] = {parameter: name for name, parameter in learner.named_parameters()}
    for optimizer in learner.optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                yield f"{names[parameter]} {key}", torch.as_tensor(value)


# --- comparisons ---------------------------------------------------------------------------------


def assert_same(alone: Outcome, together: list[Any]) -> None:
    """Assert that ranks and one process have the same bits everywhere.

    Compares losses and predictions on all ranks, the network on rank 0, and what each rank owns.
    """
    for rank, outcome in enumerate(together):
        assert isinstance(outcome, Outcome), outcome
        assert outcome.losses == alone.losses, f"losses of rank {rank}"
        assert torch.equal(outcome.prediction, alone.prediction), f"prediction of rank {rank}"
        assert outcome.keeps_states
        assert (outcome.network is None) == (rank > 0)
    assert alone.network is not None
    assert_same_tensors(together[0].network, alone.network)
    assert sum(len(outcome.owned) for outcome in together) == len(alone.owned)
    owned = {name: value for outcome in together for name, value in outcome.owned.items()}
    assert_same_tensors(owned, alone.owned)


def assert_same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in other if not torch.equal(one[name], other[name])] == []


def compare_on_ranks(pool: RankPool, run: Run, *counts: int) -> None:
    """Assert that a run has the same bits in one process and on each number of ranks."""
    alone = train(run, alone=True)
    for count in counts:
        assert_same(alone, pool.run(count, train_on_ranks, run))


def train_on_ranks(run: Run) -> Outcome:
    return train(run, alone=False)


COMBINED = lp.Rule(
    lp.BackwardLinks(2, 0.5), lp.SampledLayers(2), context=lp.ContextSupply(input=True, previous=2)
)
