"""Every plan there is."""

from __future__ import annotations

import itertools
import math

from minicarlo.errors import TuningError
from minicarlo.precision.plan import Plan
from minicarlo.precision.strategies.base import Problem, Search, Strategy


class Exhaustive(Strategy):
    """Every assignment of formats to layers, the fastest by prediction first. Raises TuningError when the budget is too small."""

    name = "exhaustive"
    independent = True

    def __init__(self, problem: Problem) -> None:
        size = math.prod(len(problem.formats[layer.name]) for layer in problem.layers)
        if size > problem.max_trials:
            raise TuningError(
                f"There are {size:,} plans for {len(problem.layers)} layers, and at most {problem.max_trials:,} trials: the "
                "strategy exhaustive cannot try them all. Choose another strategy, fewer formats, or more trials."
            )
        super().__init__(problem)

    def search(self) -> Search:
        """See Strategy."""
        choices = itertools.product(*(self.problem.formats[layer.name] for layer in self.problem.layers))
        plans = [Plan.of(dict(zip(self.formats, forms, strict=True))) for forms in choices]
        for plan in sorted(plans, key=self.cost):  # noqa: UP028  `yield from` would send the trials to the list
            yield plan
