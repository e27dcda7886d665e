"""Look at one forward pass of a model: which modules run, what they return, and the graph.

The pass runs on fake tensors (fake_tensors.py), with the model's own parameters as leaves of the
graph, and leaves no trace (untouched.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import CheckpointFunction

from localprop.errors import BadInput, check
from localprop.network.calls import Call, CallRecorder
from localprop.network.channels import ChannelFinder
from localprop.network.draws import constant_draws, read_states
from localprop.network.fake_tensors import FakeMode, quiet_fakes
from localprop.network.untouched import untouched
from localprop.tasks.batch import Batch
from localprop.tasks.task import Forward


@dataclass
class ForwardTrace:
    """All calls of one forward pass, in the order of their returns, and the model's output.

    Attributes:
        batch: what the model ran on.
        way: how the forward ran: "fake", "imagined" or "real".
        has_drawn: whether the forward read random numbers, or may have.
        channels: by the id of a tensor that a call returned, the dimension of its channels.
        output_channel: the dimension of the output's.
        calls: those that returned.
        output: the output that the task is about.
    """

    batch: Batch
    way: str
    has_drawn: bool = False
    channels: dict[int, int | None] = field(default_factory=dict)
    output_channel: int | None = None
    calls: list[Call] = field(default_factory=list)
    output: Tensor = field(default_factory=lambda: torch.empty(0))


# Numbers of samples to probe with: sizes that hardly anything else in a network has.
_RARE_COUNTS = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def trace_forward(model: nn.Module, forward: Forward, batch: Batch) -> ForwardTrace:
    """Run a model on a batch and record every call of every submodule.

    Three ways are tried, each where the one before fails:

    - "fake": on fake tensors; what follows from whole numbers alone is computed;
    - "imagined": the same, with imagined values where the model reads those of a fake tensor;
    - "real": a forward of two samples.

    On fakes the number of samples is one that no other size of the batch or of a parameter has, so
    that the dimension of the samples can be told.

    Args:
        model: the model.
        forward: runs it on the batch's data, as a task does.
        batch: the sample; on the fake ways only the values of its whole numbers count.

    Raises:
        BadInput: the forward fails.
    """
    check(_find_model_problems(model))
    rare = find_rare_counts(model, batch)[0]
    # A model may have its number of samples built in.
    tries = [(way, count) for way in ("fake", "imagined") for count in (rare, batch.samples)]
    failures: dict[str, Exception] = {}
    for way, count in (*tries, ("real", min(2, batch.samples))):
        try:
            return trace_again(model, forward, batch, way, count)
        except BadInput:  # another way would not help: say, the model returns several tensors
            raise
        except Exception as error:
            failures[way] = error
    raise BadInput(_describe_failure(model, batch, failures)) from failures["real"]


def _find_model_problems(model: nn.Module) -> Iterator[str]:
    """What no look at a model can get over."""
    if any(is_lazy(parameter) for parameter in model.parameters()):
        yield (
            f"{type(model).__name__} has lazy modules whose parameters have no shape yet: run it "
            "once on a batch, as in model(inputs), before you make a learner or an optimizer."
        )
    scripted = [name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        where = f"its module {scripted[0]!r}" if scripted[0] else "it"
        yield (
            f"{type(model).__name__} cannot be cut, since {where} is a ScriptModule, which takes "
            "no hooks: use the Python module that torch.jit.script was given."
        )


def find_rare_counts(model: nn.Module, batch: Batch) -> tuple[int, ...]:
    """Numbers of samples that divide no size of a parameter, and no other size of the batch."""
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    for tensor, dim in zip(batch.tensors, batch.dims, strict=True):
        sizes.update(size for d, size in enumerate(tensor.shape) if d != dim)
    rare = [count for count in _RARE_COUNTS if all(size % count for size in sizes)]
    return tuple(rare) or _RARE_COUNTS


def trace_again(
    model: nn.Module,
    forward: Forward,
    batch: Batch,
    way: str,
    count: int,
    draw: float | None = None,
    functions: bool = False,
) -> ForwardTrace:
    """Run a model on a batch of `count` samples in a given way, and record every call.

    With `draw`, random fractions between 0 and 1 have that value. With `functions`, calls of
    functions are recorded, too.
    """
    with untouched(model), _training_mode(model), quiet_fakes(), constant_draws(draw):
        before = read_states()
        trace = _trace(model, forward, batch, way, count, draw, functions)
        trace.has_drawn |= way == "real" or read_states() != before
        return trace


def _trace(
    model: nn.Module,
    forward: Forward,
    batch: Batch,
    way: str,
    count: int,
    draw: float | None,
    functions: bool,
) -> ForwardTrace:
    device = next(model.parameters()).device
    mode: AbstractContextManager[object]
    if way == "real":
        mode, entered = nullcontext(), batch.select(count).clone().to(device)
    else:
        mode = fakes = FakeMode(model.parameters(), imagine=way == "imagined", draw=draw)
        entered = batch.resize(count).map(lambda tensor: fakes.enter(tensor, device))
    trace = ForwardTrace(entered, way)
    # A compiled module would run on its own graph, which calls no submodules.
    finder = ChannelFinder(model.parameters())
    recorder = CallRecorder(model, finder.follow)
    with (
        torch.compiler.set_stance("force_eager"),
        _refused_reentrant_checkpoints(),
        mode,
        finder,
        recorder.recording(functions=functions),
        torch.enable_grad(),
    ):
        trace.output = forward(model, entered.data)
    trace.calls = recorder.calls
    trace.has_drawn = isinstance(mode, FakeMode) and mode.has_drawn
    returned = [output.tensor for call in trace.calls for output in call.outputs]
    trace.channels = {id(tensor): finder.find(tensor) for tensor in returned}
    trace.output_channel = finder.find_made(trace.output)
    return trace


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Run as in training, where a stochastic depth for instance does more than pass its input on.

    All parameters of floating point require a gradient: autograd records only what needs one, and a
    path through what frozen parameters make would be unseen. `untouched` puts both back.
    """
    model.train()
    for parameter in model.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    yield


@contextmanager
def _refused_reentrant_checkpoints() -> Iterator[None]:
    """Refuse the older kind of checkpoint. Its graph hides what it holds."""

    def refuse(*args: object) -> None:
        raise BadInput(
            "The model checkpoints its own layers with use_reentrant=True, and torch can run no "
            "part of such a backward: use use_reentrant=False, as in "
            'gradient_checkpointing_enable({"use_reentrant": False}), or turn the checkpoints off '
            "and give recompute=True."
        )

    with mock.patch.object(CheckpointFunction, "apply", refuse):
        yield


def _describe_failure(model: nn.Module, batch: Batch, failures: dict[str, Exception]) -> str:
    """Say why a model could not run, in the words of its real forward."""
    error = failures["real"]
    lines = str(error).strip().splitlines()
    shapes = ", ".join(f"{tuple(t.shape)} and dtype {t.dtype}" for t in batch.tensors[:1])
    failure = (
        f"{type(model).__name__} could not run on a sample of shape {shapes} "
        f"({type(error).__name__}: {lines[0] if lines else 'no message'})"
    )
    if next(model.parameters()).is_meta:
        first = str(failures["fake"]).strip().splitlines()
        return (
            f"{failure}: on the `meta` device a model has no values, but the forward reads some "
            f"({first[0] if first else type(failures['fake']).__name__}). Build it on the CPU."
        )
    return (
        f"{failure}: pass a sample batch of the shape that the model is trained on, with two "
        "samples or more."
    )
