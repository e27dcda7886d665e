"""What a wiring needs that the model, or how its steps run, forbids."""

from __future__ import annotations

from collections.abc import Iterator

from localprop.network.layers import LayerEnd
from localprop.schedule.wiring import Wiring

FACTORY = "optimizer=lambda params: torch.optim.SGD(params, lr=0.1)"


def find_wiring_problems(
    wiring: Wiring,
    *,
    recompute: bool,
    one_optimizer: bool,
    offload: bool = False,
    on_ranks: bool = False,
) -> Iterator[str]:
    """What a rule's losses need that the model or the other arguments forbid."""
    if offload and recompute:
        yield (
            "offload=True keeps on the host what recompute= would compute again: leave one of them "
            "out."
        )
    segments = range(len(wiring.segments))
    if not any(wiring.flows[s] or wiring.has_second_order_loss(s) for s in segments):
        yield "Every parameter of the model is frozen: there is nothing to train."
    within = [s for s in segments[1:] if wiring.encoders_at(s) and wiring.enters_in_checkpoint(s)]
    if within:
        yield (
            f"Contexts are added at {wiring.end_name(within[0] - 1)!r}, within a checkpoint of the "
            "model's own, whose recomputation would know nothing of them: turn the checkpoints off."
        )
    for segment in wiring.odd_ends[:1]:
        yield from _find_cut_problems(wiring, segment)
    repeated = [name for name in wiring.layers.names if "#" in name]
    if on_ranks and repeated:
        yield (
            f"A layer ends at {repeated[0]!r}, one of several calls of a module, which other ranks "
            "cannot skip: train in one process, ranks=Ranks(alone=True)."
        )
    for objective in wiring.objectives:
        if objective.second_order and recompute:
            yield (
                f"recompute=True, but loss {objective.loss} differentiates through its module, "
                "whose graph must stay: use recompute=False, or more modules."
            )
        after_step = [
            each.copy.source
            for each in objective.copies
            if each.copy.lag == 0 and each.source_segment is not None
        ]
        if after_step and one_optimizer:
            yield (
                f"Loss {objective.loss} copies {after_step[0]!r} right after its step, but an "
                f"optimizer of all parameters steps at the end: give a factory, {FACTORY}, or "
                "copy with lag=1."
            )


def _find_cut_problems(wiring: Wiring, segment: int) -> Iterator[str]:
    """What needs cuts that the features alone cross, at modules that are called once."""
    name, layers = wiring.end_name(segment), wiring.layers
    what = "hands on more than one tensor"
    if not LayerEnd.parse(name).is_plain:
        what = "is no plain return" if "+" in name else "is one of several calls"
    plain = [
        layers.names[end]
        for end in range(len(layers) - 1)
        if not layers.goes_around(end) and LayerEnd.parse(layers.names[end]).is_plain
    ]
    remedy = f"cut elsewhere: {', '.join(map(repr, plain))}" if plain else "it can be cut nowhere"
    reasons = {
        "contexts cannot be added there": len(wiring.encoders) > 0,
        "a loss that differentiates through its module cannot": any(
            objective.second_order for objective in wiring.objectives
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            yield f"The cut at {name!r} {what}, and {reason}: {remedy}."
