"""A plan: ways to train a network, what each costs, and the one for a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from localprop.errors import BadInput
from localprop.methods.names import format_method
from localprop.planning.accuracies import Accuracy, describe_figures, find_accuracies
from localprop.planning.by_kind import BytesByKind, split_peak
from localprop.planning.candidates import Candidates, Way
from localprop.planning.chart import draw_front
from localprop.planning.largest_batch import find_largest_batch
from localprop.planning.lever import find_lever
from localprop.planning.made_for import MadeFor
from localprop.planning.measure import measure_times
from localprop.planning.sizes import format_size, read_size
from localprop.planning.table import LEGEND, choose_rows, format_rows, make_header
from localprop.writing.charts import FORMATS, check_path, write_chart
from localprop.writing.files import to_json, write_text
from localprop.writing.tables import format_html_table, format_table

__all__ = ["Plan"]

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
        notes = "".join(f"<p>Note: {escape(note)}</p>" for note in self._list_notes())
        table = format_html_table(self._make_header(), self._format_rows())
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
            "notes": self._list_notes(),
        }

    def _choose_rows(self) -> list[Way]:
        return choose_rows(self.ways, self.best, self.fits)

    def _format_rows(self) -> list[tuple[str, ...]]:
        rows = self._choose_rows()
        known = self.measured, self._accuracies
        return format_rows(rows, self.best, self.fits, self._split, *known)

    def _make_header(self) -> tuple[str, ...]:
        return make_header(self.measured, self._accuracies)

    def _list_notes(self) -> list[str]:
        return [*self.notes, *describe_figures(self._accuracies.values())]

    @cached_property
    def _accuracies(self) -> dict[Way, Accuracy]:
        return find_accuracies(self.made_for, (*self._choose_rows(), *self.front))

    def _split(self, way: Way) -> BytesByKind | None:
        return None if self.candidates is None else split_peak(self.candidates, way)

    def fits(self, way: Way) -> bool:
        """Whether a way fits the budget of the plan."""
        return self._fits(way, self.budget)

    def _fits(self, way: Way, budget: int | None) -> bool:
        return budget is not None and way.peak_bytes <= budget * (1 - _MARGIN) - self.spare

    def _way_as_json(self, way: Way) -> dict[str, Any]:
        kinds, largest = self._split(way), self._largest_batches.get(way)
        known = self._accuracies.get(way)
        return {
            "method": way.method,
            "rule": format_method(way.rule),
            "learner": {name: value for name, value in way.kwargs.items() if name != "rule"},
            "peak_bytes": way.peak_bytes,
            "resting_bytes": way.resting_bytes,
            "host_bytes": way.host_bytes,
            "peak_by_kind": None if kinds is None else kinds._asdict(),
            "largest_batch": largest,
            "flops": way.flops,
            "time": round(way.time, 4),
            "measured_time": self.measured.get(way),
            "accuracy": None if known is None else known._asdict(),
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
            offloaded = [way for way in self.ways if way.offload]
            lever = find_lever(self.candidates, low, offloaded, self.fits, MICROBATCHES, largest)
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
        notes = (f"Note: {note}" for note in self._list_notes())
        table = format_table(self._make_header(), self._format_rows())
        return "\n".join([table, "", LEGEND, "", self.describe(), *notes])
