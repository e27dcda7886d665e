"""The cost of the engine per action, on a network that is so small that nothing else costs.

Sixteen linear layers of 4 units, one module each, end-to-end, on one thread. The engine is compared
with the plain PyTorch loop, and with a loop written by hand. The latter cuts the network into the
same sixteen modules and calls the same sixteen optimizers, so the difference to it is the cost of
the engine alone.

    python benchmarks/bookkeeping.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

LAYERS, WIDTH, ROUNDS = 16, 4, 500


def build_network() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def make_plain_step(x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of the plain PyTorch loop."""
    model = build_network()
    optimizer = sgd(list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def make_step_by_hand(x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step that cuts the graph after every layer, with a backward and an optimizer for each."""
    model = build_network()
    optimizers = [sgd(list(layer.parameters())) for layer in model]

    def step() -> None:
        leaves, outputs = [x], list[Tensor]()
        for layer in model:
            outputs.append(layer(leaves[-1]))
            leaves.append(outputs[-1].detach().requires_grad_())
        torch.autograd.backward(functional.cross_entropy(leaves[-1], y))
        for i in reversed(range(LAYERS)):
            inputs = [*model[i].parameters(), *([leaves[i]] if i else [])]
            torch.autograd.backward(outputs.pop(), leaves.pop().grad, inputs=inputs)
            optimizers[i].step()
            for parameter in model[i].parameters():
                parameter.grad = None

    return step


def measure(steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """The microseconds of each step, sorted, in rounds that run each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(1e6 * each for each in own) for name, own in seconds.items()}


def main() -> None:
    torch.set_num_threads(1)
    x, y = torch.randn(4, WIDTH), torch.randint(WIDTH, (4,))
    learner = lp.Learner(
        build_network(), lp.end_to_end(), modules=LAYERS, optimizer=sgd, sample=(x, y)
    )
    times = measure(
        {
            "plain": make_plain_step(x, y),
            "by hand": make_step_by_hand(x, y),
            "engine": lambda: learner.step((x, y)),
        }
    )
    actions = len(learner.schedule)
    print(
        f"{ROUNDS} interleaved rounds, torch {torch.__version__}, 1 thread, {actions} actions\n"
        "            microseconds per step         per action, beyond\n"
        "            plain   by hand   engine      by hand     plain"
    )
    # Whatever else runs on the machine only adds to a time: the 10th percentile shows least of it.
    for label, place in ("median", 0.5), ("10th perc.", 0.1):
        plain, by_hand, engine = (own[int(place * ROUNDS)] for own in times.values())
        over_hand, over_plain = (engine - by_hand) / actions, (engine - plain) / actions
        print(
            f"{label:<10} {plain:7.0f} {by_hand:9.0f} {engine:8.0f} "
            f"{over_hand:12.1f} {over_plain:9.1f}"
        )


if __name__ == "__main__":
    main()
