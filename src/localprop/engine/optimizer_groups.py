"""Which parameter is trained by which optimizer, in which group, with which options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

# Entries of a parameter group that are no hyperparameters.
PARAMETER_LISTS = ("params", "param_names")


class OptimizerGroup(NamedTuple):
    """A group of parameters that one optimizer steps with the same options.

    Attributes:
        optimizer: the optimizer.
        number: the position in its `param_groups`.
        parameters: by name, in the order of the group; "?" and a number is one that the learner
            does not know.
        options: the group's hyperparameters as they are now, such as "lr" and "weight_decay".

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> batch = torch.zeros(3, 4), torch.zeros(3).long()
        >>> first, last = model[0].parameters(), model[2].parameters()
        >>> optimizer = torch.optim.SGD([{"params": first, "lr": 0.01}, {"params": last}], lr=0.1)
        >>> rule = lp.greedy(lp.Head(convs=0, linears=1))
        >>> learner = lp.Learner(model, rule, modules=2, optimizer=optimizer, sample=batch)
        >>> for group in learner.optimizer_groups():
        ...     print(group.options["lr"], *group.parameters)
        0.01 0.weight 0.bias heads.0.aux.1.weight heads.0.aux.1.bias
        0.1 2.weight 2.bias
    """

    optimizer: Optimizer
    number: int
    parameters: dict[str, nn.Parameter]
    options: dict[str, Any]

    def __str__(self) -> str:
        set_options = {
            key: value
            for key, value in self.options.items()
            if value is not None and value is not False
        }
        options = ", ".join(f"{key}={value}" for key, value in set_options.items())
        names = ", ".join(self.parameters) or "no parameters"
        return f"{type(self.optimizer).__name__} {self.number} ({options}): {names}"


def list_groups(
    optimizers: Iterable[Optimizer], named: Iterable[tuple[str, nn.Parameter]]
) -> Iterator[OptimizerGroup]:
    """The groups of optimizers, in their order.

    Args:
        optimizers: some.
        named: the parameters that have names.
    """
    names = {id(parameter): name for name, parameter in named}
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            parameters = {
                names.get(id(parameter), f"?{i}"): parameter
                for i, parameter in enumerate(group["params"])
            }
            options = {key: group[key] for key in group if key not in PARAMETER_LISTS}
            yield OptimizerGroup(optimizer, number, parameters, options)
