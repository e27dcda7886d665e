"""Look at a model before anybody trains it: where it can be cut, and what would be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from localprop.arguments import check_arguments
from localprop.checks import resolve_task
from localprop.errors import collect_problems
from localprop.network.find_layers import layers_of
from localprop.network.layers import Layers
from localprop.network.partition import Partition, explain_missing_layers
from localprop.rule.losses import BuiltTask
from localprop.rule.positions import list_layers_for_heads
from localprop.rule.rule import Rule
from localprop.schedule.check_heads import check_heads
from localprop.schedule.wire import wire
from localprop.tasks.batch import Batch
from localprop.tasks.task import Task, describe

__all__ = ["ModelCheck", "check"]

_WAYS = {
    "fake": "on fake tensors",
    "imagined": "on fake tensors, with imagined values where the forward reads some",
    "real": "by a real forward of two samples, since fake tensors do not do",
}
_SHOWN = 12  # layers


@dataclass(frozen=True)
class ModelCheck:
    """What a look at a model has found. It prints as a report.

    Attributes:
        model: the class of the model.
        batch: the sample, in words.
        task: what the model would be trained for; None if that is not known.
        layers: where it can be cut; None if it does not run.
        tied: the parameters that several layers use, with the numbers of those layers.
        problems: what would be refused, each with what helps.
    """

    model: str
    batch: str
    task: Task | None
    layers: Layers | None
    tied: dict[str, tuple[int, ...]]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the model can be trained in two modules or more, with the usual heads."""
        return self.layers is not None and len(self.layers) > 1 and not self.problems

    def __str__(self) -> str:
        return "\n".join(self._list_lines())

    def as_json(self) -> dict[str, Any]:
        """The figures, for JSON."""
        layers = self.layers
        return {
            "model": self.model,
            "batch": self.batch,
            "task": None if self.task is None else repr(self.task),
            "seen": None if layers is None else layers.way,
            "layers": [] if layers is None else [*layers.names],
            "shapes": [] if layers is None else [[*shape] for shape in layers.shapes],
            "not_cuttable": {} if layers is None else dict(layers.not_cuttable),
            "unreached": [] if layers is None else [*layers.unreached],
            "tied": {name: [*users] for name, users in self.tied.items()},
            "problems": [*self.problems],
            "ok": self.ok,
        }

    def _list_lines(self) -> Iterator[str]:
        yield f"model      {self.model}"
        yield f"batch      {self.batch}"
        if self.task is not None:
            yield f"task       {self.task!r}"
        if self.layers is not None:
            yield from _describe_layers(self.layers)
        for name, users in self.tied.items():
            yield (
                f"tied       {name}: layers {', '.join(map(str, users))}; every loss that reaches "
                "one of them trains it, and it is stepped once, after the last"
            )
        for problem in self.problems:
            yield f"problem    {problem}"
        if self.ok:
            yield f"fine       modules=2 to {len(self.layers or ())} work with the usual heads"


@check_arguments
def check(
    model: nn.Module,
    sample: Any,
    *,
    task: Task | Callable[..., Any] | None = None,
    batch_dims: Any = ...,
) -> ModelCheck:
    """Look at a model: its layers, ties and task, what would be refused, and what helps.

    Nothing is trained, and the model stays as it is.

    Args:
        model: any module.
        sample: a batch as the loader gives it.
        task: as for `Learner`; by default the usual one.
        batch_dims: as for `Learner`.

    Example:
        >>> batch = (torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))
        >>> print(lp.check(lp.models.resnet8(), batch))
        model      CifarResNet, 78,042 parameters
        batch      (a float32 tensor (8, 3, 32, 32), an int64 tensor (8,))
        task       Classification(label_smoothing=0.0, class_weights=None, ignore_index=-100, dim=None)
        seen       on fake tensors
        layers     4
                     0 relu     16x32x32
                     1 blocks.0 16x32x32
                     2 blocks.1 32x16x16
                     3 blocks.2 64x8x8
        fine       modules=2 to 4 work with the usual heads
    """  # noqa: E501 - as it prints
    problems: list[str] = []
    found: Task | None = None
    with collect_problems(problems):
        found = resolve_task(task, model, sample, batch_dims)
    layers: Layers | None = None
    with collect_problems(problems):
        layers = layers_of(model, sample, task=found, batch_dims=batch_dims)
    if layers is not None:
        problems += _find_layer_problems(layers)
        if found is not None and not isinstance(found, BuiltTask):
            with collect_problems(problems):
                _try_heads(layers, found, Batch.of(sample, found.targets(sample), batch_dims))
    count = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    return ModelCheck(
        model=f"{type(model).__name__}, {count:,} parameters",
        batch=describe(sample),
        task=found,
        layers=layers,
        tied={} if layers is None else _find_tied(layers),
        problems=tuple(dict.fromkeys(problems)),
    )


def _try_heads(layers: Layers, task: Task, batch: Batch) -> None:
    """Build the usual head at the end of each layer, and run it on fake tensors."""
    ends = {*list_layers_for_heads(layers, task), len(layers) - 1}
    wiring = wire(Rule(), Partition.uniform(layers, len(ends), ends=ends), task=task)
    wiring.to(batch.inputs.device)
    check_heads(wiring, batch)


def _find_layer_problems(layers: Layers) -> Iterator[str]:
    if len(layers) == 1:
        hint = explain_missing_layers(layers) or " No module has a clean cut at its end."
        yield f"The model has one layer and cannot be cut, so that only modules=1 trains it.{hint}"


def _find_tied(layers: Layers) -> dict[str, tuple[int, ...]]:
    users: dict[str, list[int]] = {}
    for layer, names in enumerate(layers.parameters):
        for name in names:
            users.setdefault(name, []).append(layer)
    # Nobody trains a frozen parameter, so that layers may share it.
    shared = {name: tuple(at) for name, at in users.items() if len(at) > 1}
    return {name: at for name, at in shared.items() if name not in layers.frozen}


def _describe_layers(layers: Layers) -> Iterator[str]:
    yield f"seen       {_WAYS[layers.way]}"
    yield f"layers     {len(layers)}"
    lines = str(layers).splitlines()
    shown = lines if len(lines) <= _SHOWN else [*lines[: _SHOWN - 2], "...", lines[-1]]
    yield from (f"           {line}" for line in shown)
    hint = explain_missing_layers(layers)
    if hint and len(layers) > 1:
        yield f"not cut   {hint}"
    unknown = [name for i, name in enumerate(layers.names) if layers.find_channel(i) is None]
    if unknown:
        yield (
            f"channels   cannot be told at {', '.join(unknown[:4])}: give the rule an aux of your "
            "own there"
        )
    if layers.unreached:
        more = ", ..." if len(layers.unreached) > 4 else ""
        yield (
            f"unreached  {', '.join(layers.unreached[:4])}{more}: no gradient on this batch; if "
            "another batch reaches them, they are trained like their neighbours"
        )
