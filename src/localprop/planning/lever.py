"""What would make a step fit where no way does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from localprop.planning.by_kind import split_peak
from localprop.planning.candidates import Candidates, Way, has_batch_norm
from localprop.planning.largest_batch import predict_peak
from localprop.planning.sizes import format_size

_ADVICE = {
    "weights": "take a smaller network",
    "optimizer": "take an optimizer with less state",
    "batch": "take a smaller batch",
    "gradients": "take more modules, each stepped at once, or a smaller network",
    "activations": "take smaller samples, or a smaller network",
}


def find_lever(
    candidates: Candidates,
    smallest: Way,
    offloaded: Sequence[Way],
    fits: Callable[[Way], bool],
    microbatches: Sequence[int],
    largest: Mapping[Way, int],
) -> str:
    """Say what would make a step fit: micro-batches, fewer samples, or less of what weighs most.

    Args:
        candidates: the ways.
        smallest: the one that needs least.
        offloaded: ways that keep activations on the host.
        fits: whether a way fits the budget.
        microbatches: the numbers of parts that a batch could be split into.
        largest: the largest batch of each way.
    """
    for way in filter(fits, offloaded):
        return f"It would fit by {way}, in {format_size(way.peak_bytes)}; copies take time."
    whole = candidates.network.batch.samples
    for parts in microbatches:
        if parts <= whole and parts not in candidates.microbatches:
            split = replace(smallest, microbatches=parts)
            peak = predict_peak(candidates, split, whole)
            if peak is not None and fits(replace(split, peak_bytes=peak)):
                changes = has_batch_norm(candidates.network.model)
                price = ", which change what BatchNorm sees" if changes else ""
                return f"It would fit in {parts} micro-batches{price}."
    most_samples = max(largest, key=lambda way: largest[way], default=None)
    if most_samples is not None and largest[most_samples]:
        samples = largest[most_samples]
        return f"Of the {whole} samples of the batch, {samples} would fit, by {most_samples}."
    kinds = split_peak(candidates, smallest)
    sizes = {name: nbytes or 0 for name, nbytes in kinds._asdict().items()}
    most = max(sizes, key=lambda name: sizes[name])
    size = format_size(sizes[most])
    return f"Most of that, {size}, is for its {most}: {_ADVICE[most]}."
