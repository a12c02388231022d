"""Strategies that search for a precision plan."""

from __future__ import annotations

from minicarlo.errors import TuningError
from minicarlo.precision.strategies.base import Cost, Sensitivity, Strategy, Trial
from minicarlo.precision.strategies.fallback import Fallback
from minicarlo.precision.strategies.pareto import Pareto

STRATEGIES: dict[str, type[Strategy]] = {"fallback": Fallback, "pareto": Pareto}

__all__ = ["STRATEGIES", "Cost", "Fallback", "Pareto", "Sensitivity", "Strategy", "Trial", "get_strategy"]


def get_strategy(name: str) -> type[Strategy]:
    """The strategy of that name. Raises TuningError listing those there are."""
    if name not in STRATEGIES:
        raise TuningError(f"Strategy {name!r:.40} is unknown; choose among {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]
