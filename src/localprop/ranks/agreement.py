"""What must be equal on all ranks, compared before the first step."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, zip_longest
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.network.fast import find_memory_format
from localprop.ranks.heartbeat import Heartbeat
from localprop.ranks.layout import make_handshake, view_bytes
from localprop.ranks.transport import waiting_for
from localprop.rule.rule import Rule
from localprop.schedule.schedule import Action, Op, Schedule
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch
from localprop.tasks.task import describe

_T = TypeVar("_T")
_LONGEST_LINE = 100


class Fact(NamedTuple):
    """Something that must be equal on all ranks.

    Attributes:
        name: what it is.
        text: its value; of several lines, the first that differs is shown.
        advice: what makes it equal.
    """

    name: str
    text: str
    advice: str = ""


def gather_from_all(value: _T, heartbeat: Heartbeat | None = None) -> list[_T]:
    """What each rank gives, by rank. All ranks must call this together."""
    gathered: list[_T | None] = [None] * dist.get_world_size()
    with waiting_for(None, heartbeat):
        dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def find_disagreements(facts_of_ranks: list[list[Fact]]) -> Iterator[str]:
    """Compare the facts of each rank with those of rank 0.

    Example:
        >>> print(*find_disagreements([[Fact("the seed", "0")], [Fact("the seed", "7")]]))
        Rank(s) 1 differ from rank 0 in the seed (7 against 0): run the same program on all ranks.
    """
    for first, *others in zip(*facts_of_ranks, strict=True):
        odd = {rank: each for rank, each in enumerate(others, start=1) if each.text != first.text}
        if odd:
            advice = "; ".join(filter(None, ["run the same program on all ranks", first.advice]))
            yield (
                f"Rank(s) {', '.join(map(str, odd))} differ from rank 0 in {first.name} "
                f"({_show(odd, first.text)}): {advice}."
            )


def _show(odd: Mapping[int, Fact], first: str) -> str:
    """The values that differ, each by the first line in which it does."""
    shown = {rank: _find_first_difference(fact.text, first) for rank, fact in odd.items()}
    if len({*shown.values()}) == 1:
        return " against ".join(next(iter(shown.values())))
    return ", ".join(f"rank {rank}: {' against '.join(lines)}" for rank, lines in shown.items())


def _find_first_difference(text: str, other: str) -> tuple[str, str]:
    pairs = zip_longest(text.splitlines(), other.splitlines(), fillvalue="nothing")
    one, two = next((one, two) for one, two in pairs if one != two)
    # Where the beginnings are equal, the difference stands further back.
    equal = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
    cut = max(0, equal - _LONGEST_LINE // 2)
    return _shorten(one, cut), _shorten(two, cut)


def _shorten(line: str, begin: int) -> str:
    end = begin + _LONGEST_LINE
    return ("..." if begin else "") + line[begin:end] + ("..." if end < len(line) else "")


# --- facts ----------------------------------------------------------------------------------------


def list_facts_of_training(
    model: nn.Module,
    rule: Rule,
    sample: Batch,
    optimizers: Mapping[Action, Optimizer],
    autocast: torch.dtype | None,
    seed: int,
) -> Iterator[Fact]:
    """What decides how a network trains, besides its plan and its weights.

    Args:
        model: the network.
        rule: the training rule.
        sample: a batch like the others.
        optimizers: of all segments and losses, also those of other ranks.
        autocast: the dtype of forwards and losses, or None.
        seed: of every random draw of a step.
    """
    yield Fact("the version of Python", ".".join(platform.python_version_tuple()[:2]))
    yield Fact("the version of PyTorch", torch.__version__)
    yield Fact("the version of localprop", _read_own_version())
    yield Fact("the method", _drop_addresses(repr(rule)))
    yield Fact("the optimizer", "\n".join(_describe_optimizers(optimizers)))
    yield Fact("the precision", f"{autocast or 'fp32'}")
    yield Fact(
        "the memory format of the model",
        str(find_memory_format(model)),
        "give fast= to all or to none",
    )
    yield Fact("the seed", str(seed))
    checksum = make_handshake(0, sample, training=True).tolist()[-1]
    yield Fact(
        "the sample",
        f"{describe(sample.data)}, checksum {checksum:08x}",
        "give all of them the same batch as sample=, such as the first of loaders that shuffle "
        "with the same seed",
    )


def list_facts_of_plan(
    wiring: Wiring,
    rank_schedules: tuple[Schedule, ...] | list[Schedule],
    microbatches: int,
    trained_modules: Mapping[str, nn.Module],
) -> Iterator[Fact]:
    """What is trained where.

    Args:
        wiring: of the whole network.
        rank_schedules: the actions of each stage.
        microbatches: of each replica.
        trained_modules: "model", "heads" and "encoders".
    """
    yield Fact("the task", _drop_addresses(repr(wiring.task)))
    yield Fact(
        "the plan (model, method, modules, micro-batches, weight_gradients)",
        "\n".join(
            [
                f"{microbatches} micro-batches",
                f"{len(wiring.table.sizes)} modules",
                f"modules of {list(wiring.table.sizes)} layers",
                f"weights once: {sorted(wiring.weights_once)}",
                *map(repr, (*wiring.segments, *wiring.flows, *wiring.objectives)),
                repr(wiring.layers.shapes),
            ]
        ),
    )
    yield Fact(
        "Ranks(...): cuts, seconds or order",
        _hash(repr(rank_schedules).encode()),
        "measure seconds on one rank and send them to all",
    )
    yield Fact(
        "the initial weights",
        _hash(*chain(*map(_iterate_state, trained_modules.values()))),
        "call torch.manual_seed with the same seed before the model is made",
    )


def _describe_optimizers(optimizers: Mapping[Action, Optimizer]) -> Iterator[str]:
    """A line for each optimizer, and for each of its hyperparameters."""
    for step, optimizer in optimizers.items():
        place = f"segment {step.segment}" if step.op is Op.S else f"loss at segment {step.segment}"
        kind = type(optimizer).__qualname__
        yield f"{kind} for {place}"
        for group in optimizer.param_groups:
            for name, value in group.items():
                if name not in ("params", "param_names"):
                    yield f"{kind}({name}={_describe_value(value)}) for {place}"


def _describe_value(value: object) -> str:
    return _drop_addresses(repr(value.tolist() if isinstance(value, Tensor) else value))


def _drop_addresses(text: str) -> str:
    """A text without addresses in memory, which differ from process to process.

    Example:
        >>> _drop_addresses("<function f at 0x7f00aa>")
        '<function f>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _read_own_version() -> str:
    try:
        return version("localprop")
    except PackageNotFoundError:  # run from its source
        return "unknown"


def _hash(*values: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(value)
    return digest.hexdigest()


def _iterate_state(module: nn.Module) -> Iterator[bytes | memoryview]:
    for name, tensor in module.state_dict().items():
        yield name.encode()
        if isinstance(tensor, Tensor):
            yield view_bytes(tensor.cpu())
