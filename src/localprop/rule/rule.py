"""A rule: how local losses train a network."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from localprop.errors import check
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.context import ContextSupply
from localprop.rule.credit import Credit, Own
from localprop.rule.losses import CrossEntropy, LossBuilder, NoPenalty, Penalty


@dataclass(frozen=True)
class Rule:
    """A training rule: parts that do not know of each other. `eval(repr(rule)) == rule`.

    Attributes:
        credit: which local loss trains which layers.
        aux: the auxiliary network at a module's end.
        loss: the local loss computed there; the last module's is the task's own.
        context: earlier features supplied to later modules.
        penalty: wraps every module's loss, the task's too, to add something to it.
        reference: the paper.

    Example (a combination that nobody has published):
        >>> import localprop as lp
        >>> rule = lp.Rule(lp.BackwardLinks(layers=1), aux=lp.SampledLayers(depth=2), context=lp.ContextSupply(previous=1))
    """

    credit: Credit = field(default=Own())
    aux: AuxBuilder = field(default=Head())
    loss: LossBuilder = field(default=CrossEntropy())
    context: ContextSupply = field(default=ContextSupply())
    penalty: Penalty = field(default=NoPenalty())
    reference: str = ""

    def __post_init__(self) -> None:
        parts = {"credit": self.credit, "aux": self.aux, "loss": self.loss}
        check(
            f"Rule({name}={part!r}): must be a builder such as {usual}, a function and no module."
            for (name, part), usual in zip(parts.items(), ("Own()", "Head()", "CrossEntropy()"), strict=True)
            if not callable(part) or isinstance(part, nn.Module)
        )
