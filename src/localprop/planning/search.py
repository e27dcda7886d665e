"""Search: predict what ways to train a network cost, and choose one for a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from localprop import checks
from localprop.argument_checks import PRECISIONS
from localprop.arguments import check_arguments
from localprop.cost.cuda_margin import CudaMargin, find_margin, round_to_blocks
from localprop.cost.layer_costs import Network
from localprop.engine.user_optimizers import OptimizerFactory
from localprop.errors import BadInput, check
from localprop.methods.parse import parse_rule
from localprop.network.find_layers import layers_of
from localprop.planning.candidates import Candidates, Way, find_ways, has_batch_norm, keep_front
from localprop.planning.made_for import MadeFor
from localprop.planning.on_ranks import describe_ranks, find_ways_on_ranks
from localprop.planning.plan import MICROBATCHES, Plan
from localprop.planning.sizes import format_size, read_size
from localprop.rule.rule import Rule
from localprop.tasks.batch import Batch, unwrap
from localprop.tasks.task import Task

__all__ = ["plan"]

METHODS = ("greedy", "backlink", "interlocking")


@check_arguments
def plan(
    model: nn.Module,
    sample: Any,
    *,
    budget: int | str | None = None,
    optimizer: OptimizerFactory | None = None,
    methods: Sequence[str | Rule] = METHODS,
    task: Task | None = None,
    batch_dims: Any = ...,
    microbatches: Sequence[int] = MICROBATCHES,
    split_batch_norm: bool = False,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    ranks: int = 1,
    measure: bool = False,
) -> Plan:
    """Predict what a training step takes in bytes, in many ways, and choose the fastest that fits.

    Each layer is measured once on fake tensors. Nothing of the model's size is allocated, so a
    model may also live on the device "meta".

    Args:
        model: the network.
        sample: a batch as the loader gives it. Only shapes and dtypes are used.
        budget: bytes, or a text such as "8GB" (10^9 bytes each) or "7.5GiB" (2^30).
        optimizer: makes an optimizer of a list of parameters. By default SGD with momentum.
        methods: rules, or texts such as "backlink(layers=2)", beside end-to-end training with
            recomputed layers, which is always there.
        task: what the network is trained for; by default the usual task of model and sample.
        batch_dims: where a batch holds its samples, if not in dimension 0 (`Batch.of`).
        microbatches: numbers of parts that a batch may be split into.
        split_batch_norm: whether it may be split though the model has BatchNorm, which then sees
            less of the batch: the result is another.
        precision: as for `Learner`.
        device: what the plan is for, such as "cuda", which need not be here; by default where the
            model is. On an accelerator one more way keeps activations in the host's memory.
        ranks: processes that share the network as stages of a pipeline, each with that budget.
        measure: whether to run steps of the ways in the table, beside the plain loop. They take as
            many samples as the plain loop has room for in the budget.

    Raises:
        BadInput: the budget is no size, torch does not know the device, the model does not run on
            the sample, or steps that are to be measured have no data.

    Example:
        >>> import torch, localprop as lp
        >>> batch = torch.zeros(64, 3, 32, 32), torch.zeros(64).long()
        >>> found = lp.plan(lp.models.resnet8(), batch, budget="40MB")
        >>> found.best.peak_bytes < 40e6 < found.plain.peak_bytes
        True
        >>> learner = lp.Learner(
        ...     lp.models.resnet8(),
        ...     **found.best.kwargs,
        ...     optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        ...     sample=batch,
        ... )
    """
    limit = None if budget is None else read_size(budget)
    check(_find_problems(precision, ranks, measure=measure))
    notes: list[str] = []
    target = read_device(device, model)
    if optimizer is None:
        optimizer = _make_sgd
        notes.append("the optimizer is taken to be SGD with momentum; pass optimizer= for another.")
    sample = checks.add_targets(unwrap(sample))
    task = checks.resolve_task(task, model, sample, batch_dims)
    layers = layers_of(model, sample, task=task, batch_dims=batch_dims)
    own = Batch.of(sample, task.targets(sample), batch_dims)
    autocast = PRECISIONS[precision]
    network = Network(model, layers, task, own, optimizer, autocast, on_host=target.type == "cpu")
    counts, splits = list_microbatches(network, microbatches, split_batch_norm=split_batch_norm)
    named = {each if isinstance(each, str) else repr(each): parse_rule(each) for each in methods}
    made_for = MadeFor.of(model, own, optimizer, precision)._replace(ranks=ranks)
    notes += [_describe_assumptions(made_for, model), *splits]
    if target.type == "cuda":
        notes.append(_describe_margin(find_margin(target)))
    if ranks > 1:
        return _search_on_ranks(network, named, limit, counts, notes, made_for)
    found = search(network, named, limit, counts, notes=notes, made_for=made_for)
    if target.type == "cuda":
        found = replace(found, notes=(*found.notes, _describe_blocks(found)))
    return found.measure() if measure else found


def list_microbatches(
    network: Network,
    microbatches: Sequence[int] = MICROBATCHES,
    *,
    split_batch_norm: bool = False,
) -> tuple[list[int], list[str]]:
    """The parts that a batch may be split into, and a note where it may not."""
    if split_batch_norm or not has_batch_norm(network.model):
        samples = network.batch.samples
        return sorted(m for m in {1, *microbatches} if 1 <= m <= samples), []
    return [1], [
        "the model has BatchNorm, which micro-batches would change: they are left out "
        "(split_batch_norm=True takes them in)."
    ]


def search(
    network: Network,
    methods: Mapping[str, Rule],
    budget: int | None,
    microbatches: Sequence[int],
    *,
    only: Rule | None = None,
    notes: Sequence[str] = (),
    made_for: MadeFor | None = None,
    atomic: bool | None = None,
) -> Plan:
    """Cost all ways of some methods, and take the fastest that fits.

    Args:
        network: what is trained, and how.
        methods: by their texts, beside end-to-end training.
        budget: in bytes.
        microbatches: the numbers of parts that a batch may be split into.
        only: the rule whose ways may be taken; by default all.
        notes: what was assumed.
        made_for: what the plan is made for.
        atomic: whether the way that is taken is atomic; None where it has room for that.
    """
    candidates = Candidates(network, microbatches)
    others = {name: rule for name, rule in methods.items() if rule != candidates.plain.rule}
    ways, refused = find_ways(candidates, others)
    spare = _count_output_bytes(network)
    front = tuple(keep_front(w for w in ways if only in (None, w.rule) and not w.offload))
    found = Plan(
        tuple(ways),
        front,
        budget,
        spare,
        (*notes, *refused, *_describe_offload(ways)),
        made_for=made_for,
        candidates=candidates,
    )
    return found if budget is None else _confirm(found, candidates, budget, atomic)


def _confirm(found: Plan, candidates: Candidates, limit: int, atomic: bool | None) -> Plan:
    """The plan with a way that an engine has read. One that does not fit after all is left out."""
    while (best := found.fit(limit)) is not None:
        wanted = replace(best, atomic=bool(atomic))
        confirmed = best if best.confirmed and not atomic else candidates.confirm(wanted)
        fits = found.fits(confirmed)
        if fits and atomic is None:
            safe = candidates.confirm(replace(best, atomic=True))
            confirmed = safe if found.fits(safe) else confirmed
            note = _describe_atomic(confirmed, safe)
            found = replace(found, notes=(*found.notes, note))
        instead = [confirmed] if fits else []
        place = found.front.index(best)
        front = (*found.front[:place], *instead, *found.front[place + 1 :])
        found = replace(found, front=front, best=confirmed if fits else None)
        if fits:
            break
    return found


def read_device(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """What a plan is for; it need not be here.

    Raises:
        BadInput: torch does not know it.

    Example:
        >>> read_device("cuda", nn.Linear(1, 1)), read_device(None, nn.Linear(1, 1, device="meta"))
        (device(type='cuda'), device(type='cpu'))
    """
    found = next(model.parameters()).device if device is None else device
    try:
        found = torch.device(found)
    except RuntimeError as error:
        raise BadInput(f"device={device!r} is unknown to torch: try 'cuda' or 'cpu'.") from error
    return torch.device("cpu") if found.type == "meta" else found


def _search_on_ranks(
    network: Network,
    methods: Mapping[str, Rule],
    budget: int | None,
    microbatches: Sequence[int],
    notes: Sequence[str],
    made_for: MadeFor,
) -> Plan:
    """Cost ways on several ranks, and take the fastest whose largest rank fits."""
    candidates, ranks = Candidates(network, microbatches), made_for.ranks
    count = len(network.layers)
    if ranks > count:
        raise BadInput(f"ranks={ranks}, but the model has {count} layers: use {count} or fewer.")
    others = {name: rule for name, rule in methods.items() if rule != candidates.plain.rule}
    ways, refused = find_ways_on_ranks(candidates, others, ranks)
    front = tuple(keep_front(ways[1:]))
    if not front:
        raise BadInput(note.partition(" is left out: ")[2] for note in refused)
    spare = _count_output_bytes(network)
    told = (*notes, describe_ranks(ranks), *refused)
    found = Plan(tuple(ways), front, budget, spare, told, made_for=made_for)
    return replace(found, best=None if budget is None else found.fit(budget))


def _count_output_bytes(network: Network) -> int:
    return network.layers.output_shape.numel() * network.layers.output_dtype.itemsize


def _find_problems(precision: str, ranks: object, *, measure: bool) -> Iterator[str]:
    if precision not in PRECISIONS:
        yield f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}."
    if type(ranks) is not int or ranks < 1:
        yield f"ranks={ranks!r} must be a whole number, 1 or more."
    elif ranks > 1 and measure:
        yield f"measure=True times one process, but ranks={ranks}: leave one of them out."


def _describe_assumptions(made_for: MadeFor, model: nn.Module) -> str:
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return (
        f"peaks are for batches of {made_for.batch_size} x {made_for.input_shape} in "
        f"{made_for.precision}, by learner.step, which drops gradients as it steps: "
        f"learner.backward keeps those of all modules, {format_size(trained)} and the heads'."
    )


def _describe_margin(margin: CudaMargin) -> str:
    source = "measured here" if margin.measured else "as is usual; a plan on the device measures it"
    return (
        f"a CUDA device needs more than these peaks: {format_size(margin.workspace_bytes)} for "
        f"cuBLAS and {format_size(margin.context_bytes)} for its context ({source}), and what "
        "cuDNN's kernels take while they run. Leave room."
    )


def _describe_blocks(found: Plan) -> str:
    """What the allocator adds to the peak of a way."""
    way = found.best or found.plain
    assert found.candidates is not None
    read = found.candidates.confirm(way, count=round_to_blocks)
    return (
        f"CUDA's allocator hands out blocks of 512 bytes: of {way}, {format_size(read.peak_bytes)} "
        f"instead of {format_size(way.peak_bytes)}."
    )


def _describe_atomic(way: Way, safe: Way) -> str:
    if way.atomic:
        return f"{way}: its steps are atomic: one that fails changes nothing."
    return (
        f"{way}: atomic=False, so a step that fails may be half done; with atomic=True the peak "
        f"is {format_size(safe.peak_bytes)}."
    )


def _describe_offload(ways: Sequence[Way]) -> Iterator[str]:
    for way in ways:
        if way.offload:
            yield (
                f"{way}: up to {format_size(way.host_bytes or 0)} wait in the host's memory. "
                "Operations do not say how long their copies take, so it is taken by nobody but "
                "you: Learner(..., offload=True)."
            )


def _make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
