"""Plans made by hand, whose figures nobody had to search for."""

from __future__ import annotations

from typing import Any

import localprop as lp
from localprop.planning.candidates import Way
from localprop.planning.plan import MadeFor


def make_way(method: str, peak_mb: float, time: float, **changes: Any) -> Way:
    """A way with a peak in units of 10^6 bytes."""
    rule = lp.greedy() if method == "greedy" else lp.end_to_end()
    values = {"modules": 1, "recompute": 0, "microbatches": 1} | changes
    return Way(
        method,
        rule,
        peak_bytes=round(peak_mb * 1e6),
        resting_bytes=10**6,
        flops=round(1000 * time),
        time=time,
        **values,
    )


def make_hand_plan(budget: int | None = 5 * 10**6, **made_for: Any) -> lp.Plan:
    """The plain loop, the same with recompute, and a method with two modules, which is taken."""
    plain = make_way("end_to_end", 10, 1.0)
    again = make_way("end_to_end", 4, 1.3, recompute=1)
    local = make_way("greedy", 4.5, 1.1, modules=2, confirmed=True)
    setting = MadeFor("mlp", 32, (1, 8, 8), "sgd", "fp32", 10)
    return lp.Plan(
        ways=(plain, again, local),
        front=(again, local, plain),
        budget=budget,
        spare=0,
        notes=("a < b",),
        best=None if budget is None else local,
        made_for=setting._replace(**made_for),
    )
