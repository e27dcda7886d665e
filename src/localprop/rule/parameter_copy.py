"""Parameter copies: an auxiliary network or a loss may hold copies of the network's own parameters.

It reads them and does not train them, like a target network or an exponential moving average (EMA).
"""

from __future__ import annotations

from dataclasses import dataclass

from localprop.arguments import check_arguments
from localprop.errors import check

__all__ = ["ParameterCopy"]


@check_arguments
@dataclass(frozen=True)
class ParameterCopy:
    """A parameter of an auxiliary network or a loss that follows a parameter of the network.

    The auxiliary network or loss lists all of them in its attribute `parameter_copies`.

    Attributes:
        source: the name of a parameter of the network.
        target: the name of the parameter that follows it. It should not require a gradient.
        decay: m of the moving average, target = m * target + (1 - m) * source. 0 copies.
        every: the number of steps from one update to the next. The first step updates.
        lag: 0 updates after the source's optimizer step. 1 updates before it, so that the target
            has the source's values of the step before.

    Raises:
        BadInput: `decay` is outside [0, 1], `every` is below 1, or `lag` is neither 0 nor 1.
    """

    source: str
    target: str
    decay: float = 0.0
    every: int = 1
    lag: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.decay <= 1:
            problems.append(f"decay={self.decay} must lie in [0, 1].")
        if self.every < 1:
            problems.append(f"every={self.every} must be 1 or more steps.")
        if self.lag not in (0, 1):
            problems.append(f"lag={self.lag} must be 0 or 1 step.")
        check(problems)
