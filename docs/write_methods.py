"""Write docs/methods.md and a card for each method, from docstrings, recipes and results.

    python docs/write_methods.py           # from benchmarks/results as it is
    python docs/write_methods.py --costs   # predict the costs anew first; takes a minute or more

Costs are predictions and counts, not timings: they are the same on every machine with one version
of PyTorch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from draw_credit import draw_credit
from method_cards import COSTS, Cost, format_card, read_costs

import localprop as lp
from localprop.cost.timing import message_bytes
from localprop.methods.names import find_methods
from localprop.schedule.lowering import lower
from localprop.schedule.placement import Placement, estimate_module_costs, find_placement_problems
from localprop.schedule.schedule import SENDS, Op

HERE = Path(__file__).parent
MODEL, MODULES, BATCH = "resnet32", 16, 128
INTRO = f"""# Methods

Each method has a card: its paper, its equations and credit table, what it costs, what was measured
here, and what is our reading. [Which method?](which-method.md) helps to choose, and
[what is left out](left_out.md) says which methods are not here.

`python docs/write_methods.py` writes this page and the cards from the docstrings, the recipes and
benchmarks/results: edit those.

## What each method costs

The table shows what each method costs on {MODEL} with {MODULES} modules, images of 3x32x32, a batch
of {BATCH} and SGD with momentum (benchmarks/results/{COSTS.name}):

- peak memory: the predicted peak of a step, as a share of end-to-end training's;
- operations: the counted operations of a step, relative to end-to-end training's;
- head parameters: those of auxiliary networks, which are not deployed;
- context parameters: those of context encoders, which are deployed;
- sent: what two ranks send per image over a cut in the middle, forward (down) and backward (up), in
  KiB of fp32.

`localprop compare` measures time and accuracy, and benchmarks/README.md holds results."""


class Network(NamedTuple):
    """A small network of a kind, and a batch of it."""

    model: str
    classes: int
    shape: tuple[int, ...]
    inputs: torch.Tensor
    targets: torch.Tensor
    modules: int


LABELS = torch.zeros(4, dtype=torch.int64)
TOKENS = torch.zeros(4, 16, dtype=torch.int64)
VIT = "timm:vit_tiny_patch16_224,depth=4"
NETWORKS = {
    "convolutions": Network("resnet8", 10, (3, 32, 32), torch.zeros(4, 3, 32, 32), LABELS, 4),
    "MLP": Network("mlp", 10, (3, 8, 8), torch.zeros(4, 3, 8, 8), LABELS, 3),
    "vision transformer": Network(VIT, 10, (3, 32, 32), torch.zeros(4, 3, 32, 32), LABELS, 3),
    "language model": Network(
        "transformer:width=16,heads=2,blocks=4", 50, (16,), TOKENS, TOKENS, 3
    ),
}
COLUMNS = (
    "method",
    "modules",
    "peak memory",
    "operations",
    "head parameters",
    "context parameters",
    "sent, down / up, KiB",
)


def make_sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def make_learner(make: Callable[[], lp.Rule]) -> lp.Learner:
    """A learner of the network that costs are given for."""
    torch.manual_seed(0)
    batch = (torch.rand(BATCH, 3, 32, 32), torch.zeros(BATCH, dtype=torch.int64))
    model = lp.models.create_model(MODEL, 10, (3, 32, 32))
    return lp.Learner(
        model,
        make(),
        modules=MODULES,
        optimizer=make_sgd,
        sample=batch,
        normalization=lp.Normalization(),
        atomic=False,  # as the plain loop
    )


def find_traffic(learner: lp.Learner) -> tuple[float, float] | None:
    """The KiB that two ranks send per image, down and up; None in one process only."""
    wiring = learner.wiring
    placement = Placement.balanced(wiring, 2, estimate_module_costs(wiring))
    if list(find_placement_problems(wiring, placement)):
        return None
    size = message_bytes(wiring, 1)
    down = up = 0.0
    for rank_schedule in lower(wiring, placement):
        for action in rank_schedule:
            if action.op is Op.SEND_B:
                up += size(action)
            elif action.op in SENDS:
                down += size(action)
    return down / 1024, up / 1024


def predict_costs() -> dict[str, Cost]:
    """The costs of all methods."""
    end_to_end = make_learner(lp.end_to_end)
    peak, flops = end_to_end.memory().peak_bytes, end_to_end.flops()
    costs = {}
    for name, make in find_methods().items():
        learner = make_learner(make)
        trained = (p.numel() for p in learner.heads.parameters() if p.requires_grad)
        costs[name] = Cost(
            modules=learner.wiring.table.effective_modules,
            peak_share=learner.memory().peak_bytes / peak,
            operations=learner.flops() / flops,
            head_parameters=sum(trained),
            context_parameters=sum(p.numel() for p in learner.encoders.parameters()),
            sent_kib=find_traffic(learner),
        )
    return costs


def write_costs() -> None:
    setting = {"model": MODEL, "modules": MODULES, "batch": BATCH, "torch": torch.__version__}
    rows = {name: cost._asdict() for name, cost in predict_costs().items()}
    COSTS.write_text(json.dumps({"setting": setting, "costs": rows}, indent=1) + "\n")


def format_cost_rows() -> Iterator[str]:
    """The table of costs, a line at a time."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for name, cost in read_costs().items():
        yield f"| [`{name}`](methods/{name}.md) | {' | '.join(cost.format_cells())} |"


@cache
def cut_network(kind: str) -> lp.Partition:
    """The modules of a kind's network, which all methods share."""
    network = NETWORKS[kind]
    torch.manual_seed(0)
    model = lp.models.create_model(network.model, network.classes, network.shape)
    return lp.Partition.uniform(lp.layers_of(model, network.inputs), network.modules)


def try_network(
    make: Callable[[], lp.Rule], kind: str, *, recompute: bool = False
) -> lp.Learner | str:
    """A learner of a kind's network, or why the method refuses it."""
    network, partition = NETWORKS[kind], cut_network(kind)
    try:
        return lp.Learner(
            partition.layers.model,
            make(),
            partition=partition,
            optimizer=make_sgd,
            sample=(network.inputs, network.targets),
            recompute=recompute,
            normalization=lp.Normalization(),
        )
    except lp.BadInput as error:
        return error.problems[0]


def find_refusals(make: Callable[[], lp.Rule]) -> dict[str, str | None]:
    """Why a method refuses each kind of network, recompute and ranks; None if it takes it."""
    tried = {kind: try_network(make, kind) for kind in NETWORKS}
    kind, learner = next((k, each) for k, each in tried.items() if isinstance(each, lp.Learner))
    tried["recompute"] = try_network(make, kind, recompute=True)
    refusals = {kind: each if isinstance(each, str) else None for kind, each in tried.items()}
    wiring = learner.wiring
    placement = Placement.balanced(wiring, 2, estimate_module_costs(wiring))
    return refusals | {"ranks": next(iter(find_placement_problems(wiring, placement)), None)}


def build_fit() -> str:
    """Which method takes which network, and the reasons of those that do not."""
    tried = "; ".join(f"{kind}, `{net.model}` in {net.modules}" for kind, net in NETWORKS.items())
    lines = [
        "## What refuses what",
        "",
        "Tried with the default arguments and uniform cuts; others may do where these are refused. "
        f"The networks, and their modules: {tried}.",
        "",
        f"| method | {' | '.join(NETWORKS)} | recompute | several ranks |",
        f"|{'---|' * (len(NETWORKS) + 3)}",
    ]
    reasons = ["", "Why not:", ""]
    for name, make in find_methods().items():
        refusals = find_refusals(make)
        cells = ["yes" if refusal is None else "no" for refusal in refusals.values()]
        lines.append(f"| [`{name}`](methods/{name}.md) | {' | '.join(cells)} |")
        reasons += [f"- `{name}`, {kind}: {why}" for kind, why in refusals.items() if why]
    return "\n".join([*lines, *reasons])


def build_pages() -> dict[Path, str]:
    """The text of every file that this program writes, by its path."""
    costs = "\n".join(format_cost_rows())
    pages = {HERE / "methods.md": "\n\n".join([INTRO, costs, build_fit()]) + "\n"}
    for name, make in find_methods().items():
        drawing = draw_credit(name, make)
        pages[HERE / "methods" / f"{name}.md"] = format_card(name, make, drawing.words)
        pages[HERE / "methods" / "images" / f"{name}.svg"] = drawing.svg
    return pages


if __name__ == "__main__":
    if "--costs" in sys.argv[1:]:
        write_costs()
    for path, text in build_pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
