"""The largest batch that fits into so many bytes."""

from __future__ import annotations

from collections.abc import Callable

from localprop.cost.replay import replay
from localprop.network.recomputed import choose_recomputed
from localprop.planning.candidates import Candidates, Way

_LARGEST = 2**30  # samples; whoever gets so far is bounded by something else


def find_largest_batch(
    candidates: Candidates, way: Way, fits: Callable[[int, int], bool]
) -> int | None:
    """The largest batch that a way can train on; 0 if none fits, None where that is not known.

    Args:
        candidates: what the layers cost, at two sizes of the batch.
        way: its number of micro-batches stays.
        fits: whether a peak of so many bytes will do for so many samples.
    """

    def will_do(samples: int) -> bool:
        peak = predict_peak(candidates, way, samples)
        return peak is not None and fits(peak, samples)

    if predict_peak(candidates, way, candidates.network.batch.samples) is None:
        return None
    least = way.microbatches
    if not will_do(least):
        return 0
    low, high = least, 2 * max(least, candidates.network.batch.samples)
    while will_do(high):
        low, high = high, 2 * high
        if low >= _LARGEST:
            return low
    while high - low > 1:  # the peak grows with the samples
        middle = (low + high) // 2
        low, high = (middle, high) if will_do(middle) else (low, middle)
    return low


def predict_peak(candidates: Candidates, way: Way, samples: int) -> int | None:
    """The peak of a way with another number of samples; None if a replay does not say all of it.

    The peak is no straight line, since another moment may hold it. Figures of single layers are, so
    these are scaled, and the step is replayed with them.
    """
    network, whole = candidates.network, candidates.network.batch.samples
    liveness = candidates.order(way)
    recomputed = choose_recomputed(network.layers, way.kwargs["recompute"])
    if way.offload or not candidates.can_replay(way, recomputed):
        return None
    pairs = zip(network.batch.tensors, network.batch.dims, strict=True)
    batch = sum(tensor.nbytes for tensor, dim in pairs if dim is not None)
    resting = candidates.measure(way.rule, whole).resting + (samples - whole) * batch // whole
    costs = candidates.scale(way.rule, -(-samples // way.microbatches))
    return replay(costs, resting, liveness, recomputed).peak_bytes
