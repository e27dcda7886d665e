"""What a learner has besides its model, as a module for the checkpoints of hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from localprop.learner import Learner
from localprop.rule.context import ContextSupply
from localprop.rule.rule import Rule


class LearnerState(nn.Module):
    """The heads and encoders of a learner, and the number of its steps.

    All of it is in the `state_dict`, and loading sets all of it. Random draws of the next step
    depend on the number of steps.

    Args:
        learner: it keeps its heads and encoders.

    Example:
        >>> sorted({name.split(".")[0] for name in LearnerState(learner).state_dict()})
        ['_extra_state', 'heads']
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.heads, self.encoders = learner.heads, learner.encoders
        self._learner = learner

    def get_extra_state(self) -> dict[str, Any]:
        """The number of steps."""
        return {"steps": self._learner.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a number of steps."""
        self._learner.steps = state["steps"]


def find_context_problems(rule: Rule) -> Iterator[str]:
    """Find out whether the model is all that is deployed, as hosts take it to be."""
    if rule.context != ContextSupply():
        yield (
            "The rule has contexts, whose encoders the plain model lacks when it is evaluated and "
            "saved: use another rule, or a Learner in a loop of your own, and learner.network."
        )
