r"""Steps that can be taken back and look for NaN, for `localprop bench speed`.

    OMP_NUM_THREADS=1 localprop bench speed --batch-size 128 --rounds 15 \
        --methods 'greedy(aux=Head(convs=0, linears=1))' --against benchmarks/safe_steps.py

What `bench speed` times itself does neither, as the plain loop does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD

import localprop as lp


def make_steps(
    make_network: Callable[[], nn.Module], batch: Any
) -> dict[str, Callable[[], object]]:
    """Steps by name, as `--against` takes them."""

    def make_step(on_nonfinite: str, *, atomic: bool) -> Callable[[], object]:
        learner = lp.Learner(
            make_network(),
            lp.greedy(aux=lp.Head(convs=0, linears=1)),
            modules=16,
            optimizer=lambda parameters: SGD(parameters, lr=0.01, momentum=0.9),
            sample=batch,
            on_nonfinite=on_nonfinite,
            atomic=atomic,
        )
        return partial(learner.step, batch)

    return {
        "greedy, neither": make_step("ignore", atomic=False),
        "greedy, on_nonfinite=raise": make_step("raise", atomic=False),
        "greedy, atomic": make_step("ignore", atomic=True),
        "greedy, both": make_step("raise", atomic=True),
    }
