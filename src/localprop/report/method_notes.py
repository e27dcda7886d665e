"""Notes on the methods of a comparison: arguments without effect, and methods that are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localprop.learner import Learner
from localprop.report.method_spec import MethodSpec
from localprop.schedule.fingerprint import take_fingerprint


def find_method_notes(methods: Iterable[tuple[MethodSpec, Learner]]) -> Iterator[str]:
    """Find what a comparison of methods on one network does not show by itself.

    Args:
        methods: each method with its learner. All learners have the same network, data and seed.

    Returns:
        The notes of each learner after the label of its method, and a sentence for each method that
        wires the network as an earlier one does, with the same options.

    Example:
        >>> from localprop.training.build import build, load_data
        >>> from localprop.training.config import Config
        >>> specs = [MethodSpec.parse(text) for text in ("greedy()", "backlink(layers=0)")]
        >>> configs = [Config(model="mlp", method=spec.method) for spec in specs]
        >>> learners = [build(config, load_data(config)) for config in configs]
        >>> list(find_method_notes(zip(specs, learners)))
        ['backlink(layers=0) is the same experiment as greedy() on this network.']
    """
    earlier: list[tuple[MethodSpec, object]] = []
    for spec, learner in methods:
        yield from (f"{spec.label}: {note}" for note in learner.notes)
        wiring = learner.wiring
        built = take_fingerprint((wiring.table, wiring.sources, wiring.heads, wiring.encoders))
        for other, built_before in earlier:
            if built == built_before and spec.options == other.options:
                yield f"{spec.label} is the same experiment as {other.label} on this network."
                break
        earlier.append((spec, built))
