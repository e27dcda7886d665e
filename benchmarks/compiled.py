r"""Steps whose blocks `torch.compile` has compiled by inductor, for `localprop bench speed`.

    OMP_NUM_THREADS=1 localprop bench speed --model resnet20 --modules 8 --batch-size 32 \
        --rounds 7 --methods 'greedy(aux=Head(convs=0, linears=1))' 'backlink()' \
        --against benchmarks/compiled.py --json > benchmarks/results/compiled.json
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch.optim import SGD

import localprop as lp
from localprop.cost.baselines import PlainLoop
from localprop.tasks.batch import Batch

RULES = {"greedy": lp.greedy(aux=lp.Head(convs=0, linears=1)), "backlink": lp.backlink()}


def make_steps(
    make_network: Callable[[], nn.Module], batch: Any
) -> dict[str, Callable[[], object]]:
    """Steps by name, as `--against` takes them."""
    config: Any = torch._dynamo.config
    config.recompile_limit = 64  # the blocks of all networks here share the code of one forward

    def make_compiled() -> nn.Module:
        model = make_network()
        for block in model.get_submodule("blocks").children():
            block.compile()
        return model

    def make_optimizer(parameters: list[nn.Parameter]) -> SGD:
        return SGD(parameters, lr=0.01, momentum=0.9)

    plain = make_compiled()
    loop = PlainLoop(plain, make_optimizer(list(plain.parameters())), Batch.of(batch))
    steps: dict[str, Callable[[], object]] = {"plain loop, compiled blocks": loop.step}
    for name, rule in RULES.items():
        learner = lp.Learner(
            make_compiled(), rule, modules=8, optimizer=make_optimizer, sample=batch
        )
        steps[f"{name}, compiled blocks"] = partial(learner.step, batch)
    return steps
