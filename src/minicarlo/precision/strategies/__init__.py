"""Strategies: which plan to try next. A file each, and those that other packages register as `minicarlo.strategies`."""

from __future__ import annotations

from importlib.metadata import entry_points

from minicarlo.errors import TuningError
from minicarlo.precision.strategies.base import Cost, Problem, Search, Sensitivity, Strategy, Trial
from minicarlo.precision.strategies.basic import Basic
from minicarlo.precision.strategies.bayesian import Bayesian
from minicarlo.precision.strategies.exhaustive import Exhaustive
from minicarlo.precision.strategies.mse import Mse
from minicarlo.precision.strategies.mse_v2 import MseV2
from minicarlo.precision.strategies.pareto import Pareto
from minicarlo.precision.strategies.random import Random
from minicarlo.precision.strategies.tpe import Tpe

GROUP = "minicarlo.strategies"

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Pareto, Basic, Mse, MseV2, Tpe, Bayesian, Random, Exhaustive)
}

_ALIASES = {"fallback": "mse_v2"}

__all__ = ["STRATEGIES", "Cost", "Pareto", "Problem", "Search", "Sensitivity", "Strategy", "Trial", "get_strategy"]


def get_strategy(name: str) -> type[Strategy]:
    """The strategy of that name, ours or that of an entry point. Raises TuningError listing those there are."""
    name = _ALIASES.get(name, name)
    if name in STRATEGIES:
        return STRATEGIES[name]
    for entry in entry_points(group=GROUP, name=name):
        strategy: type[Strategy] = entry.load()
        return strategy
    known = dict.fromkeys([*STRATEGIES, *sorted(entry_points(group=GROUP).names)])
    raise TuningError(f"Strategy {name!r:.40} is unknown; choose among {', '.join(known)}.")
