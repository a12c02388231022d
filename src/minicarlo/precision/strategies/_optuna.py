"""Strategies whose next plan an Optuna sampler proposes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from minicarlo.errors import MissingExtra
from minicarlo.precision.plan import Plan
from minicarlo.precision.strategies.base import Problem, Search, Strategy

if TYPE_CHECKING:
    import optuna

_REPEATS = 20
_WORST = 1e6
"""Stands for an infinite criterion, which Optuna's models cannot take."""


class OptunaStrategy(Strategy):
    """Minimises a plan's predicted cost under the constraint that the criterion's upper bound is within the tolerance.

    The first plan is the cheapest; if that passes, it is the answer. The search ends when the sampler proposes nothing but plans
    that were tried. Raises MissingExtra where Optuna (or what its sampler needs) is not installed.
    """

    extras = "strategies"

    def __init__(self, problem: Problem) -> None:
        try:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._study = optuna.create_study(sampler=self.sampler(problem.seed))
        except ImportError as error:
            raise MissingExtra(
                f"The strategy {self.name} needs a Python module that is not installed ({error.name}). "
                f"Install it with: pip install 'minicarlo[{self.extras}]'"
            ) from error
        super().__init__(problem)

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler that proposes plans."""

    def search(self) -> Search:
        """See Strategy."""
        tried: set[str] = set()
        self._study.enqueue_trial({name: forms[0] for name, forms in self.problem.formats.items()})
        repeats = 0
        while repeats < _REPEATS:
            proposed = self._study.ask()
            plan = Plan.of({name: proposed.suggest_categorical(name, forms) for name, forms in self.problem.formats.items()})
            repeats = repeats + 1 if plan.key in tried else 0
            tried.add(plan.key)
            trial = yield plan
            if trial.accepted and plan == self.cheapest():
                return
            excess = -1e-9 if trial.accepted else max(min(trial.upper, _WORST) - self.problem.tolerance, 1e-9)
            proposed.set_constraint("excess", excess)
            self._study.tell(proposed, self.cost(Plan.of(trial.plan)))
