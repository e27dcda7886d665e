"""Write docs/methods.md from the docstrings of localprop.methods and from what each method costs on one network.

    python docs/write_methods.py

Costs are predictions and counts, not timings: they are the same on every machine with one version of PyTorch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import localprop as lp
from localprop.ranks.lowering import lower
from localprop.ranks.placement import Placement, layer_costs, sight_problems
from localprop.step.schedule import SENDS, Op
from localprop.step.timing import message_bytes
from localprop.training.expression import methods

HERE = Path(__file__).parent
PAGE = HERE / "methods.md"
TAIL = HERE / "left_out.md"
MODEL, MODULES, BATCH = "resnet32", 16, 128
INTRO = f"""# Methods

Made by `python docs/write_methods.py` from the docstrings; edit those. In the equations h_k is the output of module k = 1..K,
f_k its layers, a_k its auxiliary network, sg a stop-gradient, y the target and L_k = loss(a_k(h_k), y); L_K is the task's loss
of the network's own classifier. In the credit tables a row is a loss, a column a layer, T trained, p the error passes, . none.

What each costs on {MODEL}, {MODULES} modules, 3x32x32, batch {BATCH}, SGD with momentum: predicted peak memory and counted
operations of a step, as shares of end-to-end training's; parameters of auxiliary networks, which are not deployed, and of
context encoders, which are; and what one image sends over a cut in the middle between two ranks, forward and back, in KiB of
fp32. `localprop compare` measures time and accuracy, and benchmarks/README.md holds results."""


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def learner_of(make: Callable[[], lp.Rule]) -> lp.Learner:
    """A learner of the network that costs are given for."""
    torch.manual_seed(0)
    batch = (torch.rand(BATCH, 3, 32, 32), torch.zeros(BATCH, dtype=torch.int64))
    model = lp.models.create_model(MODEL, 10, (3, 32, 32))
    return lp.Learner(model, make(), modules=MODULES, optimizer=sgd, sample=batch, normalised=lp.Normalised())


def traffic(learner: lp.Learner) -> str:
    """What one image sends down and up between two ranks, in KiB."""
    wiring = learner.wiring
    placement = Placement.balanced(wiring, 2, layer_costs(wiring))
    if list(sight_problems(wiring, placement)):
        return "one process only"
    size = message_bytes(wiring, 1)
    sent = [action for programme in lower(wiring, placement) for action in programme if action.op in SENDS]
    down = sum(size(action) for action in sent if action.op is not Op.SEND_B)
    up = sum(size(action) for action in sent if action.op is Op.SEND_B)
    return f"{down / 1024:.0f} / {up / 1024:.0f}"


def costs() -> Iterator[str]:
    """The table of costs, a line at a time."""
    yield "| method | modules | peak memory | operations | head parameters | context parameters | sent, down / up, KiB |"
    yield "|---|---|---|---|---|---|---|"
    whole = learner_of(lp.end_to_end)
    peak, flops = whole.memory().peak_bytes, whole.flops()
    for name, make in methods().items():
        learner = learner_of(make)
        cells = [
            f"[`{name}`](#{name})",
            learner.wiring.table.effective_modules,
            f"{learner.memory().peak_bytes / peak:.0%}",
            f"{learner.flops() / flops:.2f}",
            f"{sum(p.numel() for p in learner.heads.parameters() if p.requires_grad):,}",
            f"{sum(p.numel() for p in learner.encoders.parameters()):,}",
            traffic(learner),
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def section(name: str, make: Callable[[], lp.Rule]) -> str:
    """One method: its docstring as Markdown, and the parts that it is made of."""
    signature = inspect.signature(make)
    shown = ", ".join(str(parameter).split(":")[0] + _default(parameter) for parameter in signature.parameters.values())
    return f"## {name}\n\n`{name}({shown})`\n\n{markdown(inspect.getdoc(make) or '')}\n\nParts: `{make()!r}`"


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else f"={parameter.default!r}"


def markdown(doc: str) -> str:
    """A docstring of ours as Markdown: literal blocks stay indented, arguments become a list, examples code."""
    lines, mode = [], ""
    for line in doc.splitlines():
        heading = re.fullmatch(r"(Args|Example|Raises):", line)
        if heading:
            mode = heading[1]
            lines += [f"{line}", ""]
        elif mode in ("Args", "Raises") and re.match(r" {4}\w+: ", line):
            word, _, rest = line.strip().partition(": ")
            lines.append(f"- `{word}`: {rest}")
        elif mode in ("Args", "Raises") and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            mode = mode if line.startswith(" ") else ""
            lines.append(re.sub("::$", ":", line))
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", "\n".join(lines))


def text_part() -> str:
    """All sections; a function of the source alone."""
    return "\n\n".join(section(name, make) for name, make in methods().items())


def page() -> str:
    return "\n\n".join([INTRO, "\n".join(costs()), text_part(), TAIL.read_text().rstrip()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
