"""The seconds of ways, beside those of the plain loop: what operations alone do not say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from localprop.checks import choose_partition
from localprop.cost.timing import copy_engine, read_clock
from localprop.engine.offload import make_host
from localprop.errors import BadInput
from localprop.planning.candidates import Candidates, Way


def measure_times(
    candidates: Candidates, ways: Iterable[Way], samples: int, rounds: int = 3
) -> dict[Way, float]:
    """Run steps of some ways, each in turn with a step of the plain loop.

    Args:
        candidates: the network. Copies of it train.
        ways: those that are run.
        samples: of a batch; ways with more micro-batches are left out, and on the host those that
            offload to it.
        rounds: of a step each.

    Returns:
        The median of the ratios for each way.

    Raises:
        BadInput: the network or the batch has no data.
    """
    network = candidates.network
    tensors = (*network.model.parameters(), *network.batch.tensors)
    if any(tensor.is_meta for tensor in tensors):
        raise BadInput("measure=True times steps: give a model and a batch with data, not on meta.")
    run_plain = _prepare(candidates, candidates.plain, samples)
    ratios = {candidates.plain: 1.0}
    on_host = next(network.model.parameters()).device.type == "cpu"
    for way in ways:
        if way.offload and on_host:  # its copies go nowhere, and say nothing
            continue
        if way not in ratios and way.microbatches <= samples:
            run = _prepare(candidates, way, samples)
            pairs = [(run_plain(), run()) for _ in range(rounds)]
            ratios[way] = median(own / plain for plain, own in pairs)
    return ratios


def _prepare(candidates: Candidates, way: Way, samples: int) -> Callable[[], float]:
    """A function that runs a step of a way, and returns its seconds."""
    network = candidates.network
    partition = choose_partition(network.layers, way.rule, network.task, way.modules)
    device = next(network.model.parameters()).device
    wiring = network.wire(way.rule, partition, str(device))
    recompute = way.kwargs["recompute"]
    made = network.make_engine(
        wiring,
        recompute=recompute,
        microbatches=way.microbatches,
        host=make_host(device) if way.offload else None,
    )
    engine, batch = copy_engine(made), network.batch.select(samples).to(device)

    def run() -> float:
        begin = read_clock(device)
        engine.step(batch)
        return read_clock(device) - begin

    run()  # makes optimizer state, and lets torch choose kernels
    return run
