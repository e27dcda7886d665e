"""Plans: predict what ways to train a network cost, and choose one for a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

from localprop import checks
from localprop.cost.layer_costs import Network
from localprop.engine.user_optimizers import OptimizerFactory
from localprop.errors import BadInput
from localprop.methods.names import format_method
from localprop.methods.parse import parse_rule
from localprop.network.find_layers import layers_of
from localprop.planning.by_kind import BytesByKind, split_peak
from localprop.planning.candidates import Candidates, Way, find_ways, has_batch_norm, keep_front
from localprop.planning.chart import draw_front
from localprop.planning.largest_batch import find_largest_batch
from localprop.planning.lever import find_lever
from localprop.planning.made_for import MadeFor
from localprop.planning.measure import measure_times
from localprop.planning.sizes import format_size, read_size
from localprop.planning.table import LEGEND, choose_rows, format_rows, make_header
from localprop.rule.rule import Rule
from localprop.tasks.batch import Batch, unwrap
from localprop.tasks.task import Task
from localprop.writing.charts import FORMATS, check_path, write_chart
from localprop.writing.files import to_json, write_text
from localprop.writing.tables import format_html_table, format_table

__all__ = ["Plan", "plan"]

METHODS = ("greedy", "backlink", "interlocking")
MICROBATCHES = (1, 2, 4, 8, 16)
FORMAT = "localprop plan 1"
# How the name of a file ends that a plan is saved in.
FILES = (".json", *FORMATS)
# Of a budget this is kept back, and one output of the network: the host's loop may hold that.
_MARGIN = 0.001


@dataclass(frozen=True)
class Plan:
    """Ways to train a network, and the one for a budget.

    Attributes:
        ways: all that were looked at. Their peaks are replays of what each layer costs, but for
            those that are confirmed.
        front: those to which no other is equal or better in bytes and in time.
        budget: in bytes, or None.
        spare: kept back of each budget, in bytes, besides 0.1 %.
        notes: what was assumed, and which methods were left out.
        best: the way for the budget, confirmed; None if nothing fits, or without a budget.
        made_for: the model, the batch, the optimizer and the precision.
        measured: the time of ways of the table, as a multiple of the plain loop's, where asked for.
        candidates: what was measured, for other sizes of the batch.
    """

    ways: tuple[Way, ...] = field(repr=False)
    front: tuple[Way, ...] = field(repr=False)
    budget: int | None
    spare: int
    notes: tuple[str, ...] = ()
    best: Way | None = None
    made_for: MadeFor | None = field(default=None, repr=False)
    measured: Mapping[Way, float] = field(default_factory=dict, repr=False, compare=False)
    candidates: Candidates | None = field(default=None, repr=False, compare=False)

    @property
    def plain(self) -> Way:
        """The plain loop."""
        return self.ways[0]

    def fit(self, budget: int | str) -> Way | None:
        """The fastest way within a budget; None if nothing fits.

        All budgets are looked up in one front: a smaller one never gets a larger peak, and a larger
        one never a slower way.

        Args:
            budget: bytes, or a text such as "8GB" (10^9 bytes each) or "7.5GiB" (2^30).
        """
        limit = read_size(budget)
        return next((way for way in reversed(self.front) if self._fits(way, limit)), None)

    def largest_batch(self, budget: int | str) -> dict[Way, int]:
        """The largest batch that fits, for each way of the table; 0 if no sample does.

        The figures of each layer are scaled from two sizes of the batch, and each step is replayed
        with them. Ways that a replay does not say all of are left out.

        Args:
            budget: bytes, or a text such as "8GB".

        Example:
            >>> batch = torch.zeros(8, 1, 8, 8), torch.zeros(8).long()
            >>> found = lp.plan(lp.models.mlp(64), batch, methods=["greedy"])
            >>> sizes = found.largest_batch("40MB")
            >>> sizes[found.plain] > 1000
            True
        """
        limit = read_size(budget)
        if self.candidates is None:
            return {}
        whole = self.candidates.network.batch.samples

        def fits(peak: int, samples: int) -> bool:
            return peak <= limit * (1 - _MARGIN) - self.spare * samples / whole

        sizes = {w: find_largest_batch(self.candidates, w, fits) for w in self._choose_rows()}
        return {way: size for way, size in sizes.items() if size is not None}

    def measure(self) -> Plan:
        """The plan with measured times, of steps that the plain loop has room for in the budget.

        Raises:
            BadInput: the model or the batch has no data, or one sample is too large.
        """
        assert self.candidates is not None
        samples = self.candidates.network.batch.samples
        if self.budget is not None:
            samples = min(samples, self._largest_batches.get(self.plain, samples))
        if not samples:
            raise BadInput("The plain loop has no room for one sample, so no time is measured.")
        rows = self._choose_rows()
        measured = measure_times(self.candidates, rows, samples)
        note = f"measured: seconds of steps of {samples} samples, in turns with the plain loop."
        return replace(self, measured=measured, notes=(*self.notes, note))

    @cached_property
    def _largest_batches(self) -> dict[Way, int]:
        return {} if self.budget is None else self.largest_batch(self.budget)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all.

        Args:
            path: ends in .json, which `localprop train --plan` reads; in .png or .svg, a chart of
                bytes against time; or in .html, one page with chart and table.

        Raises:
            BadInput: another ending, no such folder, or a chart without matplotlib.
            RunFailed: the file cannot be written.

        Example:
            >>> batch = torch.zeros(8, 1, 8, 8), torch.zeros(8).long()
            >>> found = lp.plan(lp.models.mlp(64), batch, budget="30MB", methods=["greedy"])
            >>> found.save("plan.json")
            >>> found.save("plan.svg")
        """
        path = check_path(path, FILES)
        if path.suffix == ".json":
            write_text(path, to_json(self.as_json()))
            return
        figure = draw_front(self.ways, self.front, self.budget, self.best)
        notes = "".join(f"<p>Note: {escape(note)}</p>" for note in self.notes)
        table = format_html_table(make_header(self.measured), self._format_rows())
        title = "Ways to train" if self.made_for is None else f"Ways to train {self.made_for.model}"
        write_chart(figure, path, title=title, text=self.describe(), below=table + notes)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values: what the file .json holds."""
        return {
            "format": FORMAT,
            "made_for": None if self.made_for is None else self.made_for._asdict(),
            "budget_bytes": self.budget,
            "best": None if self.best is None else self._way_as_json(self.best),
            "front": [self._way_as_json(way) for way in self.front],
            "rows": [self._way_as_json(way) for way in self._choose_rows()],
            "summary": self.describe(),
            "notes": list(self.notes),
        }

    def _choose_rows(self) -> list[Way]:
        return choose_rows(self.ways, self.best, self.fits)

    def _format_rows(self) -> list[tuple[str, ...]]:
        rows = self._choose_rows()
        return format_rows(rows, self.best, self.fits, self._split, self.measured)

    def _split(self, way: Way) -> BytesByKind | None:
        return None if self.candidates is None else split_peak(self.candidates, way)

    def fits(self, way: Way) -> bool:
        """Whether a way fits the budget of the plan."""
        return self._fits(way, self.budget)

    def _fits(self, way: Way, budget: int | None) -> bool:
        return budget is not None and way.peak_bytes <= budget * (1 - _MARGIN) - self.spare

    def _way_as_json(self, way: Way) -> dict[str, Any]:
        kinds, largest = self._split(way), self._largest_batches.get(way)
        return {
            "method": way.method,
            "rule": format_method(way.rule),
            "learner": {name: value for name, value in way.kwargs.items() if name != "rule"},
            "peak_bytes": way.peak_bytes,
            "resting_bytes": way.resting_bytes,
            "peak_by_kind": None if kinds is None else kinds._asdict(),
            "largest_batch": largest,
            "flops": way.flops,
            "time": round(way.time, 4),
            "measured_time": self.measured.get(way),
            "confirmed": way.confirmed,
            "splits_batch_norm": way.splits_batch_norm,
        }

    def describe(self) -> str:
        """What fits and what it costs, and the largest batch that fits."""
        plain = f"end-to-end takes {format_size(self.plain.peak_bytes)}"
        if self.budget is None:
            low = self.front[0]
            return f"Of these ways {plain}; least is {format_size(low.peak_bytes)} ({low})."
        budget = format_size(self.budget)
        if self.best is None:
            low = self.front[0]
            lowest = format_size(round((low.peak_bytes + self.spare) / (1 - _MARGIN)))
            nothing = (
                f"Nothing fits {budget}: {plain}, and the smallest budget is {lowest}, by {low}."
            )
            if self.candidates is None:
                return nothing
            largest = self._largest_batches
            lever = find_lever(self.candidates, low, self.fits, MICROBATCHES, largest)
            return f"{nothing} {lever}"
        peak = format_size(self.best.peak_bytes)
        taken = (
            f"Take {self.best}: peak {peak} of {budget} predicted ({plain}), "
            f"{self.best.time:.2f} x its operations."
        )
        return " ".join([taken, *self._describe_largest_batch(budget)])

    def _describe_largest_batch(self, budget: str) -> Iterator[str]:
        sizes = self._largest_batches
        if not sizes:
            return
        way = max(sizes, key=lambda way: sizes[way])
        plain = f" (end-to-end: {sizes[self.plain]})" if self.plain in sizes else ""
        yield f"The largest batch within {budget} has {sizes[way]} samples, by {way}{plain}."

    def __str__(self) -> str:
        notes = (f"Note: {note}" for note in self.notes)
        table = format_table(make_header(self.measured), self._format_rows())
        return "\n".join([table, "", LEGEND, "", self.describe(), *notes])


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
        measure: whether to run steps of the ways in the table, beside the plain loop. They take as
            many samples as the plain loop has room for in the budget.

    Raises:
        BadInput: the budget is no size, the model does not run on the sample, or steps that are to
            be measured have no data.

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
    if precision not in checks.PRECISIONS:
        raise BadInput(f"precision={precision!r}: choose one of {', '.join(checks.PRECISIONS)}.")
    notes: list[str] = []
    if optimizer is None:
        optimizer = _make_sgd
        notes.append("the optimizer is taken to be SGD with momentum; pass optimizer= for another.")
    sample = checks.add_targets(unwrap(sample))
    task = checks.resolve_task(task, model, sample, batch_dims)
    layers = layers_of(model, sample, task=task, batch_dims=batch_dims)
    own = Batch.of(sample, task.targets(sample), batch_dims)
    network = Network(model, layers, task, own, optimizer, checks.PRECISIONS[precision])
    counts, splits = list_microbatches(network, microbatches, split_batch_norm=split_batch_norm)
    named = {each if isinstance(each, str) else repr(each): parse_rule(each) for each in methods}
    made_for = MadeFor.of(model, own, optimizer, precision)
    found = search(network, named, limit, counts, notes=(*notes, *splits), made_for=made_for)
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
    """
    candidates = Candidates(network, microbatches)
    others = {name: rule for name, rule in methods.items() if rule != candidates.plain.rule}
    ways, refused = find_ways(candidates, others)
    layers = network.layers
    spare = layers.output_shape.numel() * layers.output_dtype.itemsize
    front = tuple(keep_front(way for way in ways if only in (None, way.rule)))
    found = Plan(
        tuple(ways),
        front,
        budget,
        spare,
        (*notes, *refused),
        made_for=made_for,
        candidates=candidates,
    )
    return found if budget is None else _confirm(found, candidates, budget)


def _confirm(found: Plan, candidates: Candidates, limit: int) -> Plan:
    """The plan with a way that an engine has read. One that does not fit after all is left out."""
    while (best := found.fit(limit)) is not None:
        confirmed = best if best.confirmed else candidates.confirm(best)
        fits = found._fits(confirmed, limit)
        instead = [confirmed] if fits else []
        place = found.front.index(best)
        front = (*found.front[:place], *instead, *found.front[place + 1 :])
        found = replace(found, front=front, best=confirmed if fits else None)
        if fits:
            break
    return found


def _make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
