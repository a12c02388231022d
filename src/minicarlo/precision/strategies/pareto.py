"""Few trials: predict every plan from what its layers do alone, and try only the plans that no other beats."""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from minicarlo.precision.plan import HALF, Plan
from minicarlo.precision.strategies.base import Search, Strategy, Trial

_UNITS = 4096
"""Steps of the dynamic program's clock in the dearest plan."""
_APART = 0.01
"""Plans closer in cost than this are not both worth a trial: hardly a clock tells them apart."""
_GUESSES = 3
_SPENDS = 2


class Pareto(Strategy):
    """Search the chain of best plans by the true criterion, then spend what the tolerance has left.

    1. All layers in the cheapest format; if that passes, it is the answer.
    2. The harm of each layer alone in each format (`sensitivity`) and its measured time (`cost`) are taken to add up, but for
       what all layers of a half precision have in common: with the first of them, what stands between layers is rounded, too.
       For every budget of time a dynamic program finds the plan of least harm: a chain from the fastest plan to all fp32.
    3. The chain is searched for the fastest plan that really passes: first where the predicted harm, scaled by what the trial
       before it was wrong by, meets the tolerance; after three guesses by bisection.
    4. Layers that the last plan left in a dear format are lowered once more as far as the criterion has room.
    5. A plan without half precision is tried with one fp32 layer in it, the one that saves most: what stands between layers is
       then computed in half precision, too, and how much faster that is no layer's own time says.

    References:
        Additive sensitivity and measured time: HAWQ-V3, Z. Yao et al., https://arxiv.org/abs/2011.10680
        Search of a chain of plans by the true figure: N. P. Pandey et al., https://arxiv.org/abs/2302.05397
        Taking formats back at the end: `mse_v2` of Intel Neural Compressor 2.6
    """

    name = "pareto"

    def search(self) -> Search:
        """See Strategy."""
        first = yield self.cheapest()
        if first.accepted:
            return
        harms = self._excess(first)  # measured now; layers may be quantised better from here on, which says nothing of the first
        better = self.problem.resolve(first.planned).key != first.planned.key
        passed = yield from self._fastest(1.0 if better else max(harms, 1.0))
        if passed is None:
            return
        for spend in range(_SPENDS):
            plan = self._spent(passed, share=0.5 ** (_SPENDS - 1 - spend))
            if self.cost(plan) > self.cost(Plan.of(passed.plan)) * (1 - _APART):
                continue
            trial = yield plan
            passed = trial if trial.accepted else passed
        if (other := self._with_half(passed)) is not None:
            yield other

    def _fastest(self, scale: float) -> Generator[Plan, Trial, Trial | None]:
        """The trial of the fastest plan of the chain that passes, the prediction being wrong by the factor `scale` to begin with.

        The chain is made anew when a format turns out unavailable.
        """
        passed = None
        offered: dict[str, list[str]] = {}
        chain: list[Plan] = []
        low = high = trials = 0
        while offered != self.formats or low < high:
            if offered != self.formats:
                offered = {name: list(forms) for name, forms in self.formats.items()}
                chain = self._best_plans()
                low, high = 0, len(chain)
                continue
            index = self._guess(chain[low:high], scale) + low if trials < _GUESSES else (low + high) // 2
            trial = yield chain[index]
            trials += 1
            scale = self._excess(trial) or scale
            if trial.accepted:
                high, passed = index, trial
            else:
                low = index + 1
        return passed

    def _guess(self, plans: list[Plan], scale: float) -> int:
        """The first of `plans`, by falling harm, that should pass; the last if none should."""
        room = self.problem.tolerance / max(scale, 1e-12)
        return next((index for index, plan in enumerate(plans) if self._predicted(plan) <= room), len(plans) - 1)

    def _excess(self, trial: Trial) -> float:
        """By how many times the criterion's upper bound was more than predicted; zero if that cannot be said."""
        harm = self._predicted(Plan.of(trial.plan))
        return trial.upper / harm if harm > 0 and math.isfinite(trial.upper + harm) else 0.0

    def _predicted(self, plan: Plan) -> float:
        own = sum(self._own(name, form) for name, form in plan.items())
        return own + sum(self._common[form] for form in set(plan.values()) & set(HALF))

    def _own(self, name: str, form: str) -> float:
        """The harm of a layer in a format beside others in the same."""
        return self.harm(name, form) - (self._common[form] if form in HALF else 0.0)

    @cached_property
    def _common(self) -> dict[str, float]:
        """By half precision the harm that every layer in it does, which many do no more than one: the least of all."""
        found = {}
        for form in HALF:
            harms = (self.harm(name, form) for name, forms in self.problem.formats.items() if form in forms)
            found[form] = min((harm for harm in harms if math.isfinite(harm)), default=0.0)
        return found

    def _best_plans(self) -> list[Plan]:
        """The plans of least harm for their time, fastest first; the last is all fp32."""
        exact = {name: [form for form in forms if form not in HALF] for name, forms in self.formats.items()}
        plans = sorted((*self._least(self.formats), *self._least(exact)), key=self.cost)
        chain = [self.reference()]
        harms = [self._predicted(plan) for plan in plans]
        faster = accumulate(harms[:-1], min, initial=math.inf)
        better = [plan for plan, harm, least in zip(plans, harms, faster, strict=True) if harm < least]
        for plan in reversed(better):
            if self.cost(plan) < self.cost(chain[-1]) * (1 - _APART):
                chain.append(plan)
        return chain[::-1]

    def _least(self, formats: dict[str, list[str]]) -> list[Plan]:
        """The plan of least harm for every time, what half precision has in common left out (a multiple-choice knapsack, solved
        for all budgets at once)."""
        cost = {name: np.array([self.problem.cost(name, form) for form in forms]) for name, forms in formats.items()}
        unit = max(sum(each.max() for each in cost.values()), 1e-30) / _UNITS
        least = np.zeros(1)  # harm by time
        chosen: list[NDArray[np.intp]] = []
        steps = {name: np.rint(each / unit).astype(int) for name, each in cost.items()}
        for name, forms in formats.items():
            options = np.full((len(forms), len(least) + steps[name].max()), math.inf)
            for row, (step, form) in enumerate(zip(steps[name], forms, strict=True)):
                options[row, step : step + len(least)] = least + self._own(name, form)
            chosen.append(options.argmin(0))
            least = options.min(0)
        plans = []
        for time in np.flatnonzero(least < np.minimum.accumulate(np.concatenate([[math.inf], least[:-1]]))):
            plan: dict[str, str] = {}
            for name, choice in zip(reversed(formats), reversed(chosen), strict=True):
                plan[name] = formats[name][choice[time]]
                time -= steps[name][choice[time]]
            plans.append(Plan.of(dict(reversed(plan.items()))))
        return plans

    def _spent(self, passed: Trial, *, share: float) -> Plan:
        """The plan that passed with further layers lowered, most time saved for the harm first, until `share` of the room is
        used up."""
        room = share * (self.problem.tolerance - passed.upper)
        plan, cost = Plan.of(passed.plan), self.problem.cost
        steps = []
        for name, form in plan.items():
            for cheaper in self.formats[name][: self.formats[name].index(form)]:
                harm = max(self._own(name, cheaper) - self._own(name, form), 0.0)
                saved = cost(name, form) - cost(name, cheaper)
                if saved > 0 and harm <= room:
                    steps.append((saved / max(harm, 1e-12), harm, name, cheaper))
        changes: dict[str, str] = {}
        there = set(plan.values())
        for _, harm, name, cheaper in sorted(steps, reverse=True):
            first = self._common[cheaper] if cheaper in HALF and cheaper not in there else 0.0
            if name not in changes and harm + first <= room:
                changes[name] = cheaper
                room -= harm + first
                there.add(cheaper)
        return plan.with_formats(changes)

    def _with_half(self, passed: Trial) -> Plan | None:
        """The plan that passed with one of its fp32 layers in half precision; None if it has one, or none is harmless enough."""
        plan, room = Plan.of(passed.plan), self.problem.tolerance - passed.upper
        if plan.inference_precision != "f32":
            return None
        choices = [
            (self.problem.cost(name, half) - self.problem.cost(name, form), name, half)
            for name, form in plan.items()
            for half in HALF
            if form == "fp32" and half in self.formats[name] and self.harm(name, half) <= room
        ]
        if not choices:
            return None
        _, name, half = min(choices)
        return plan.with_formats({name: half})
