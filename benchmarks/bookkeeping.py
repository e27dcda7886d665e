"""What the engine itself costs per action: a network so small that nothing else does.

Sixteen linear layers of 4 units, one module each, end-to-end, on one thread. Beside the plain PyTorch loop stands a loop
written by hand that cuts the network into the same sixteen pieces and calls the same sixteen optimizers: what the engine
takes beyond that is its own.

    python benchmarks/bookkeeping.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

LAYERS, WIDTH, ROUNDS = 16, 4, 500


def network() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def plain(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = network()
    optimizer = sgd(list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def by_hand(x: Tensor, y: Tensor) -> Callable[[], None]:
    """Cut after every layer, backward and step piece by piece."""
    model = network()
    optimizers = [sgd(list(layer.parameters())) for layer in model]

    def step() -> None:
        leaves, outputs = [x], []
        for layer in model:
            outputs.append(layer(leaves[-1]))
            leaves.append(outputs[-1].detach().requires_grad_())
        functional.cross_entropy(leaves[-1], y).backward()
        for i in reversed(range(LAYERS)):
            inputs = [*model[i].parameters(), *([leaves[i]] if i else [])]
            torch.autograd.backward(outputs.pop(), leaves.pop().grad, inputs=inputs)
            optimizers[i].step()
            for parameter in model[i].parameters():
                parameter.grad = None

    return step


def main() -> None:
    torch.set_num_threads(1)
    x, y = torch.randn(4, WIDTH), torch.randint(WIDTH, (4,))
    learner = lp.Learner(network(), lp.end_to_end(), modules=LAYERS, optimizer=sgd, sample=(x, y))
    steps = {"plain": plain(x, y), "by hand": by_hand(x, y), "engine": lambda: learner.step((x, y))}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    micro = {name: 1e6 * statistics.median(own) for name, own in seconds.items()}
    actions = len(learner.schedule)
    print(f"medians of {ROUNDS} interleaved rounds, torch {torch.__version__}, 1 thread, {actions} actions")
    print(", ".join(f"{name} {value:.0f} us" for name, value in micro.items()))
    print(f"per action: {(micro['engine'] - micro['by hand']) / actions:.1f} us beyond the loop by hand,", end=" ")
    print(f"{(micro['engine'] - micro['plain']) / actions:.1f} us beyond the plain loop")


if __name__ == "__main__":
    main()
