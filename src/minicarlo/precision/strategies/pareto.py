"""Few trials: predict every plan from what its layers do alone, and try only the plans that no other beats."""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from minicarlo.precision.plan import Layer, Plan
from minicarlo.precision.strategies.base import Cost, Sensitivity, Trial

_BUDGETS = 48
_SPENDS = 2


class Pareto:
    """Bisect the chain of best plans by the true criterion, then spend what the tolerance has left.

    1. All layers in the cheapest format; if that passes, it is the answer.
    2. The harm of each layer alone in each format (`sensitivity`) and its measured time (`cost`) are taken to add up. For every
       budget of time an integer program finds the plan of least harm: a chain from the fastest plan to all fp32.
    3. The chain is bisected for the fastest plan that really passes: about log2(length) trials.
    4. Layers that the last plan left in a dear format are lowered once more as far as the criterion has room.

    References:
        Additive sensitivity and integer program: HAWQ-V3, Z. Yao et al., https://arxiv.org/abs/2011.10680
        Taking formats back at the end: `mse_v2` of Intel Neural Compressor 2.x
    """

    def __init__(
        self, layers: tuple[Layer, ...], formats: tuple[str, ...], tolerance: float, sensitivity: Sensitivity, cost: Cost
    ) -> None:
        self._layers = [layer.name for layer in layers]
        self._formats = {name: list(formats) for name in self._layers}
        self._tolerance, self._sensitivity, self._cost = tolerance, sensitivity, cost
        self._first = Plan.uniform(layers, formats[0])
        self._chain: list[Plan] | None = None
        self._low = self._high = 0  # the fastest plan that passes lies in chain[low:high], or is chain[high]
        self._spends = _SPENDS
        self._passed: tuple[Plan, float] | None = None
        self._asked: Plan | None = None
        self._tried: set[str] = set()

    def ask(self) -> Plan | None:
        """See Strategy."""
        self._asked = self._next()
        if self._asked is not None:
            self._tried.add(self._asked.key)
        return self._asked

    def tell(self, trial: Trial) -> None:
        """See Strategy."""
        assert self._asked is not None
        if not trial.followed:
            self._strike(trial)
        elif self._chain is None:
            if trial.accepted:
                self._chain, self._spends = [], 0
            else:
                self._build()
        elif self._low < self._high:
            middle = (self._low + self._high) // 2
            if trial.accepted:
                self._high, self._passed = middle, (self._asked, trial.upper)
            else:
                self._low = middle + 1
        elif trial.accepted:
            self._passed = (self._asked, trial.upper)

    def _next(self) -> Plan | None:
        if self._chain is None:
            return self._first
        while self._low < self._high:
            plan = self._chain[(self._low + self._high) // 2]
            if plan.key not in self._tried:
                return plan
            self._low = (self._low + self._high) // 2 + 1  # the first plan, tried and failed
        while self._passed is not None and self._spends > 0:
            self._spends -= 1
            plan = self._spent(*self._passed, share=0.5 ** (_SPENDS - 1 - self._spends))
            if plan.key not in self._tried:
                return plan
        return None

    def _build(self) -> None:
        self._chain = [plan for plan in self._best_plans() if plan.key != self._first.key]
        self._low, self._high = 0, len(self._chain)

    def _best_plans(self) -> list[Plan]:
        """The plans of least harm under a grid of time budgets, fastest first; the last is all fp32."""
        choices = [(name, form) for name in self._layers for form in self._formats[name]]
        harm = np.array([self._harm(name, form) for name, form in choices])
        time = np.array([self._cost(name, form) for name, form in choices])
        possible = np.isfinite(harm)
        one_each = sparse.csr_matrix([[name == layer for name, _ in choices] for layer in self._layers], dtype=float)
        fastest = sum(time[possible & (one_each[row].toarray()[0] > 0)].min() for row in range(len(self._layers)))
        dearest = sum(self._cost(name, "fp32") for name in self._layers)
        unit = max(dearest, fastest, 1e-30)
        plans: dict[str, Plan] = {}
        for budget in np.linspace(fastest, max(dearest, fastest), _BUDGETS):
            found = milp(
                np.where(possible, harm, 0) + 1e-9 * time / unit,  # of equal harm the faster
                integrality=np.ones(len(choices)),
                bounds=Bounds(0, possible.astype(float)),
                constraints=[
                    LinearConstraint(one_each, 1, 1),
                    LinearConstraint(time[None, :] / unit, -math.inf, budget / unit * (1 + 1e-9)),
                ],
            )
            if found.x is not None:
                plan = Plan.of({name: form for (name, form), chosen in zip(choices, found.x, strict=True) if chosen > 0.5})
                plans.setdefault(plan.key, plan)
        reference = Plan.of(dict.fromkeys(self._layers, "fp32"))
        plans.pop(reference.key, None)
        return [*sorted(plans.values(), key=self._time), reference]

    def _spent(self, plan: Plan, upper: float, *, share: float) -> Plan:
        """`plan` with further layers lowered, most time saved for the harm first, until `share` of the room is used up."""
        room = share * (self._tolerance - upper)
        steps = []
        for name, form in plan.items():
            for cheaper in self._formats[name][: self._formats[name].index(form)]:
                harm = max(self._harm(name, cheaper) - self._harm(name, form), 0.0)
                saved = self._cost(name, form) - self._cost(name, cheaper)
                if saved > 0 and harm <= room:
                    steps.append((saved / max(harm, 1e-12), harm, name, cheaper))
        changes: dict[str, str] = {}
        for _, harm, name, cheaper in sorted(steps, reverse=True):
            if name not in changes and harm <= room:
                changes[name] = cheaper
                room -= harm
        return plan.with_formats(changes)

    def _harm(self, name: str, form: str) -> float:
        return 0.0 if form == "fp32" else self._sensitivity(name, form)

    def _time(self, plan: Plan) -> float:
        return sum(self._cost(name, form) for name, form in plan.items())

    def _strike(self, trial: Trial) -> None:
        """Leave out the formats that the runtime did not run."""
        for name, form in trial.plan.items():
            if trial.ran.get(name) != form and form != "fp32" and form in self._formats[name]:
                self._formats[name].remove(form)
        if self._chain is None:
            self._first = Plan.of({name: forms[0] for name, forms in self._formats.items()})
            if self._first.key in self._tried:
                self._build()
        else:
            self._build()
