"""What a strategy is: it asks for plans to be tried and is told what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from minicarlo.precision.plan import Layer, Plan

Sensitivity = Callable[[str, str], float]
"""(layer, format) to the criterion's value with that layer alone so; measured when first asked for, infinite if it cannot run."""

Cost = Callable[[str, str], float]
"""(layer, format) to what the layer costs so: seconds, or multiply-accumulates where nothing is timed."""


@dataclass(frozen=True)
class Trial:
    """A plan and what came of it.

    `value`, `low` and `high` are the criterion on the events of the search, `held_out` the same keys on events the search
    never saw (only for what passed the search). `speedup` is relative to fp32. `followed` says whether the runtime ran what
    was planned.
    """

    trial: int
    plan: dict[str, str]
    description: str
    ran: dict[str, str]
    followed: bool
    accepted: bool
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    families: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] | None = None
    speedup: float | None = None
    speedup_spread: float | None = None
    int8_share: float = 0.0
    seconds: float = 0.0

    @property
    def upper(self) -> float:
        """The larger of the upper bounds of the criterion; infinite for a trial that did not run."""
        bounds = [bound for bound in (self.high, (self.held_out or {}).get("high")) if bound is not None]
        return max(bounds, default=float("inf"))

    def to_dict(self) -> dict[str, Any]:
        """For the history."""
        return {"kind": "trial", **self.__dict__}


class Strategy(Protocol):
    """Decides which plan to try next. One per file in this folder; register it in `minicarlo.precision.strategies`."""

    def __init__(
        self, layers: tuple[Layer, ...], formats: tuple[str, ...], tolerance: float, sensitivity: Sensitivity, cost: Cost
    ) -> None: ...

    def ask(self) -> Plan | None:
        """The next plan, or None when there is nothing left to try."""

    def tell(self, trial: Trial) -> None:
        """What came of the plan that was asked for last."""
