"""Plans at random."""

from __future__ import annotations

import math

import numpy as np

from minicarlo.precision.plan import Plan
from minicarlo.precision.strategies.base import Search, Strategy


class Random(Strategy):
    """Every layer's format drawn at random, no plan twice, until all have been tried: what any other strategy has to beat."""

    name = "random"
    independent = True

    def search(self) -> Search:
        """See Strategy."""
        generator = np.random.default_rng(self.problem.seed)
        sizes = [len(forms) for forms in self.problem.formats.values()]
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < math.prod(sizes):
            choice = tuple(int(each) for each in generator.integers(sizes))
            if choice not in drawn:
                drawn.add(choice)
                forms = zip(self.problem.formats.items(), choice, strict=True)
                yield Plan.of({name: offered[index] for (name, offered), index in forms})
