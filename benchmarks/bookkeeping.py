"""The cost of the engine per action, on a network that is so small that nothing else costs.

Sixteen linear layers of 4 units, one module each, end-to-end and greedy, on one thread. The engine
is compared with the plain PyTorch loop, and with loops written by hand. These cut the network into
the same sixteen modules and call the same sixteen optimizers, so the difference to them is the cost
of the engine alone.

    python benchmarks/bookkeeping.py
    python benchmarks/bookkeeping.py --before ../before/src

The second line runs the engine of another source in turns with this one, in one process.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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


def make_greedy_step(x: Tensor, y: Tensor) -> Callable[[], None]:
    """A greedy step that trains each layer at once, behind a linear auxiliary network."""
    model = build_network()
    heads = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS - 1)]
    parameters = [
        [*layer.parameters(), *(heads[i].parameters() if i < LAYERS - 1 else ())]
        for i, layer in enumerate(model)
    ]
    optimizers = [sgd(own) for own in parameters]

    def step() -> None:
        features = x
        for i, layer in enumerate(model):
            output = layer(features)
            features = output.detach().requires_grad_()
            logits = heads[i](features) if i < LAYERS - 1 else features
            torch.autograd.backward(functional.cross_entropy(logits, y))
            torch.autograd.backward(output, features.grad)
            optimizers[i].step()
            for parameter in parameters[i]:
                parameter.grad = None
            features = features.detach()

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


def import_localprop(source: str | None = None) -> ModuleType:
    """localprop as it is installed, or from another source; what was imported before goes on."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "localprop"]:
        del sys.modules[name]
    if source is None:
        return importlib.import_module("localprop")
    sys.path.insert(0, source)
    try:
        return importlib.import_module("localprop")
    finally:
        sys.path.remove(source)


def make_learner(localprop: ModuleType, method: str, x: Tensor, y: Tensor) -> Any:
    """A learner that has stepped once, so that nothing is left to be imported."""
    rules = {
        "end-to-end": localprop.end_to_end(),
        "greedy": localprop.greedy(aux=localprop.Head(convs=0, linears=1)),
    }
    learner = localprop.Learner(
        build_network(), rules[method], modules=LAYERS, optimizer=sgd, sample=(x, y)
    )
    learner.step((x, y))
    return learner


def measure(steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """The microseconds of each step, sorted, in rounds that run each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(1e6 * each for each in own) for name, own in seconds.items()}


def compare(
    method: str, by_hand: Callable[[], None], before: str | None, x: Tensor, y: Tensor
) -> None:
    """Print what a step of a method costs, beside the step by hand and the plain loop."""
    steps: dict[str, Callable[[], object]] = {"plain": make_plain_step(x, y), "by hand": by_hand}
    if before is not None:
        other = make_learner(import_localprop(before), method, x, y)
        steps["before"] = lambda: other.step((x, y))
    learner = make_learner(import_localprop(), method, x, y)
    steps["engine"] = lambda: learner.step((x, y))
    times = measure(steps)
    actions = len(learner.schedule)
    print(
        f"{method}, {actions} actions\n"
        "           microseconds: per step   per action, beyond by hand, and plain"
    )
    # Whatever else runs on the machine only adds to a time: the 10th percentile shows least of it.
    for label, place in ("median", 0.5), ("10th perc.", 0.1):
        taken = {name: own[int(place * ROUNDS)] for name, own in times.items()}
        for name, each in taken.items():
            over_hand, over_plain = (each - taken[base] for base in ("by hand", "plain"))
            print(
                f"{label:<10} {name:<8} {each:15.0f} {over_hand / actions:28.1f} "
                f"{over_plain / actions:10.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of the engine per action.")
    parser.add_argument("--before", metavar="SRC", help="another source, to run in turns with")
    before = parser.parse_args().before
    torch.set_num_threads(1)
    print(f"{ROUNDS} interleaved rounds, torch {torch.__version__}, 1 thread")
    x, y = torch.randn(4, WIDTH), torch.randint(WIDTH, (4,))
    compare("end-to-end", make_step_by_hand(x, y), before, x, y)
    compare("greedy", make_greedy_step(x, y), before, x, y)


if __name__ == "__main__":
    main()
