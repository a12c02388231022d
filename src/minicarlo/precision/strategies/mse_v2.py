"""Begin with every layer in the cheapest format, give back precision where it hurts most, take back what was harmless."""

from __future__ import annotations

from minicarlo.precision.plan import Plan
from minicarlo.precision.strategies.base import Search, Strategy

_MOST_CLIMBS = 4


class MseV2(Strategy):
    """All layers in the cheapest format; if that fails, layers fall back in the order of their sensitivity until a plan passes.

    A layer falls to the next dearer format that at least halves what it alone does to the criterion. Layers that fail alone
    fall together at once; after that one, one, two, four, ... more fall per trial. When a plan passes, layers that fell but
    would pass alone are put back one by one, least sensitive first, and stay where the plan still passes.

    References:
        `mse_v2` of Intel Neural Compressor 2.6, docs/source/tuning_strategies.md
    """

    name = "mse_v2"

    def search(self) -> Search:
        """See Strategy."""
        trial = yield self.cheapest()
        step = 0
        while not trial.accepted:
            plan = Plan.of(trial.plan)
            scores = {name: self.harm(name, form) for name, form in plan.items() if self._dearer(name, form)}
            if not scores:
                return
            order = sorted(scores, key=scores.__getitem__, reverse=True)
            hopeless = sum(score > self.problem.tolerance for score in scores.values()) if step == 0 else 0
            count = max(hopeless, 1, 2 ** (step - 2) if step > 1 else 1)
            step += 1
            trial = yield plan.with_formats({name: self._target(name, plan[name]) for name in order[:count]})
        passed = Plan.of(trial.plan)
        alone = {name: self.harm(name, self.formats[name][0]) for name, form in passed.items() if form != self.formats[name][0]}
        harmless = [name for name in alone if alone[name] <= self.problem.tolerance]
        for name in sorted(harmless, key=alone.__getitem__)[:_MOST_CLIMBS]:
            trial = yield passed.with_formats({name: self.formats[name][0]})
            if trial.accepted:
                passed = Plan.of(trial.plan)

    def _dearer(self, name: str, form: str) -> list[str]:
        return self.formats[name][self.formats[name].index(form) + 1 :] if form in self.formats[name] else []

    def _target(self, name: str, form: str) -> str:
        candidates = self._dearer(name, form)
        enough = (each for each in candidates[:-1] if self.harm(name, each) <= self.harm(name, form) / 2)
        return next(enough, candidates[-1])
