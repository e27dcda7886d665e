"""A rule: how local losses train a network."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.context import ContextSupply
from localprop.rule.credit import Credit, LocalCredit
from localprop.rule.losses import LossBuilder, NoPenalty, Penalty, TaskLoss

__all__ = ["Rule"]

_EXAMPLES = {"credit": "LocalCredit()", "aux": "Head()", "loss": "TaskLoss()"}


@check_arguments
@dataclass(frozen=True)
class Rule:
    """A training rule: five independent builders. `eval(repr(rule)) == rule`.

    Attributes:
        credit: which local loss trains which layers.
        aux: builds the auxiliary network at a module's end.
        loss: builds the local loss there, by default the task's own, of the auxiliary network's
            outputs. The last module's loss is the task's, of the network's outputs.
        context: which earlier features later modules receive.
        penalty: wraps every module's loss, the task's too, to add something to it.
        reference: the paper.

    Raises:
        BadInput: `credit`, `aux` or `loss` is an nn.Module or not callable.

    Example (a combination that nobody has published):
        >>> import localprop as lp
        >>> rule = lp.Rule(
        ...     lp.BackwardLinks(layers=1),
        ...     aux=lp.SampledLayers(depth=2),
        ...     context=lp.ContextSupply(previous=1),
        ... )
    """

    credit: Credit = field(default=LocalCredit())
    aux: AuxBuilder = field(default=Head())
    loss: LossBuilder = field(default=TaskLoss())
    context: ContextSupply = field(default=ContextSupply())
    penalty: Penalty = field(default=NoPenalty())
    reference: str = ""

    def __post_init__(self) -> None:
        problems = []
        for name, example in _EXAMPLES.items():
            builder = getattr(self, name)
            # An nn.Module is callable too, but it is one network where each module needs its own.
            if not callable(builder) or isinstance(builder, nn.Module):
                problems.append(
                    f"Rule({name}={builder!r}): {name} must be a builder such as {example}, "
                    "not an object that is built already."
                )
        check(problems)
