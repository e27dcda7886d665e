"""Parameters that travel: an auxiliary network may hold copies of the network's own, which it reads and does not train."""

from __future__ import annotations

from dataclasses import dataclass

from localprop.errors import check


@dataclass(frozen=True)
class Borrow:
    """One parameter that a part of an objective borrows; the part lists all of its own in an attribute `borrows`.

    Attributes:
        source: the name of a parameter of the network.
        target: the name of the part's parameter that becomes like it; it should not require a gradient.
        decay: 0 copies, m averages: target = m * target + (1 - m) * source.
        every: in which steps: the first, and every so many after it.
        lag: 0 after the source's step, 1 before it, so that its values are those of the step before.

    Raises:
        BadInput: a decay outside [0, 1], another lag, fewer than one step.
    """

    source: str
    target: str
    decay: float = 0.0
    every: int = 1
    lag: int = 0

    def __post_init__(self) -> None:
        problems = [] if 0 <= self.decay <= 1 else [f"decay={self.decay} must lie in [0, 1]."]
        problems += [] if self.every >= 1 else [f"every={self.every} must be 1 or more steps."]
        check([*problems, *([] if self.lag in (0, 1) else [f"lag={self.lag} must be 0 or 1 step."])])
