"""What a strategy is: it asks for plans to be tried and is told what came of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from minicarlo.precision.plan import Layer, Plan
from minicarlo.precision.scheme import Scheme

Sensitivity = Callable[[str, str], float]
"""(layer, format) to the criterion's value with that layer alone so; measured when first asked for, infinite if it cannot run."""

Cost = Callable[[str, str], float]
"""(layer, format) to what the layer costs so: seconds, bytes, or multiply-accumulates where nothing is measured."""


@dataclass(frozen=True)
class Trial:
    """A plan and what came of it; `schemes` are those of its int8 layers that are not quantised in the usual way.

    `value`, `low` and `high` are the criterion on the events of the search, of which as many were run as the verdict needed;
    `held_out` the same keys on events the search never saw (only for what passed the search). `events` counts both. `measures`
    are ratios to fp32 by objective, the first of them what the search is after; `speedup` is that of time. `followed` says
    whether the runtime ran what was planned.
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
    events: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    speedup: float | None = None
    speedup_spread: float | None = None
    int8_share: float = 0.0
    seconds: float = 0.0
    schemes: dict[str, str] = field(default_factory=dict)

    @property
    def planned(self) -> Plan:
        """The plan, with its schemes."""
        return Plan.of(self.plan).with_schemes({name: Scheme.parse(text) for name, text in self.schemes.items()})

    @property
    def upper(self) -> float:
        """The upper bound of the criterion, on held-out events if there were any; infinite for a trial that did not run."""
        bounds = ((self.held_out or {}).get("high"), self.high)
        return next((bound for bound in bounds if bound is not None), float("inf"))

    @property
    def gain(self) -> float:
        """How much better than fp32 by the first objective; zero for a trial that did not run."""
        return next(iter(self.measures.values()), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """For the history."""
        return {"kind": "trial", **self.__dict__}


@dataclass(frozen=True)
class Problem:
    """What a strategy knows before it has tried anything.

    `formats` are those each layer may have, cheapest first, fp32 last. `max_trials` is the budget, `seed` that of whatever a
    strategy draws at random. `sensitivity` and `cost` measure when asked. `resolve` gives a plan the schemes that are known to be
    best for its layers; these may become others as sensitivities are measured.
    """

    layers: tuple[Layer, ...]
    formats: Mapping[str, tuple[str, ...]]
    tolerance: float
    sensitivity: Sensitivity
    cost: Cost
    max_trials: int = 100
    seed: int = 0
    resolve: Callable[[Plan], Plan] = lambda plan: plan


Search = Generator[Plan, Trial, None]
"""Yields the plans to try and receives the trial of each."""


class Strategy(ABC):
    """Decides which plan to try next: `search` says in which order, `ask` and `tell` keep the books.

    No plan is asked for twice: a search that yields a plan that was tried receives the trial that is known. A format that the
    runtime did not run for a layer is struck; from then on the layer has the next dearer one instead, and the trial that the
    search receives is of that plan (its `plan` says so).
    """

    name: ClassVar[str]
    independent: ClassVar[bool] = False
    """Whether the plans do not depend on what came of others, so that workers may judge them side by side."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.formats = {layer.name: list(problem.formats[layer.name]) for layer in problem.layers}
        self._known: dict[str, Trial] = {}
        self._search = self.search()
        self._wanted: Plan | None = None

    @abstractmethod
    def search(self) -> Search:
        """The plans to try, in order."""

    def ask(self) -> Plan | None:
        """The next plan, or None when there is nothing left to try."""
        try:
            if self._wanted is None:
                self._wanted = next(self._search)
            while (plan := self.problem.resolve(self._available(self._wanted))).key in self._known:
                self._wanted = self._search.send(self._known[plan.key])
        except StopIteration:
            return None
        return plan

    def ahead(self) -> Iterator[Plan]:
        """The plans to come, as far as that can be known."""
        return map(self.problem.resolve, self.search() if self.independent else iter(()))

    def tell(self, trial: Trial) -> None:
        """What came of the plan that was asked for last."""
        self._known[trial.planned.key] = trial
        if not trial.followed:  # `ran` is empty if it did not compile, which is nobody's fault in particular
            for name, form in trial.plan.items():
                if trial.ran and trial.ran.get(name) != form and form != "fp32" and form in self.formats[name]:
                    self.formats[name].remove(form)

    def cheapest(self) -> Plan:
        """Every layer in its cheapest format."""
        return Plan.of({name: forms[0] for name, forms in self.formats.items()})

    def reference(self) -> Plan:
        """Every layer in fp32."""
        return Plan.uniform(self.problem.layers, "fp32")

    def harm(self, name: str, form: str) -> float:
        """What one layer alone in a format does to the criterion."""
        return 0.0 if form == "fp32" else self.problem.sensitivity(name, form)

    def cost(self, plan: Plan) -> float:
        """What a plan costs if the costs of its layers add up."""
        return sum(self.problem.cost(name, form) for name, form in plan.items())

    def _available(self, plan: Plan) -> Plan:
        def next_dearer(name: str, form: str) -> str:
            offered = self.problem.formats[name]
            dearer = offered[offered.index(form) :] if form in offered else offered
            return next(each for each in dearer if each in self.formats[name])

        return Plan.of({name: next_dearer(name, form) for name, form in plan.items()})
