"""Begin with every layer in the cheapest format and give back precision where it hurts most."""

from __future__ import annotations

from minicarlo.precision.plan import Layer, Plan
from minicarlo.precision.strategies.base import Cost, Sensitivity, Trial

_MOST_CLIMBS = 4


class Fallback:
    """All layers in the cheapest format; if that fails, layers fall back in the order of their sensitivity until a plan passes.

    A layer falls to the next dearer format that at least halves what it alone does to the criterion. Layers that fail alone
    fall together at once; after that one, one, two, four, ... more fall per trial. When a plan passes, layers that fell but
    would pass alone are put back one by one, least sensitive first, and stay where the plan still passes (the order of
    trials follows `mse_v2` of Intel Neural Compressor 2.x).
    """

    def __init__(
        self, layers: tuple[Layer, ...], formats: tuple[str, ...], tolerance: float, sensitivity: Sensitivity, cost: Cost
    ) -> None:
        self._layers = [layer.name for layer in layers]
        self._formats = {name: list(formats) for name in self._layers}
        self._tolerance, self._sensitivity = tolerance, sensitivity
        self._plan = Plan.uniform(layers, formats[0])
        self._passed: Plan | None = None
        self._step = 0
        self._climbs: list[str] | None = None
        self._asked: Plan | None = None
        self._tried: set[str] = set()
        self._done = False

    def ask(self) -> Plan | None:
        """See Strategy."""
        if self._done:
            return None
        self._asked = self._next()
        if self._asked is not None:
            self._tried.add(self._asked.key)
        return self._asked

    def tell(self, trial: Trial) -> None:
        """See Strategy."""
        assert self._asked is not None
        if not trial.followed:
            self._unavailable(trial)
        elif self._climbs is not None:
            if trial.accepted:
                self._passed = self._asked
        elif trial.accepted:
            self._passed = self._plan
            fallen = [name for name in self._layers if self._plan[name] != self._formats[name][0]]
            alone = {name: self._sensitivity(name, self._formats[name][0]) for name in fallen}
            self._climbs = sorted((name for name in fallen if alone[name] <= self._tolerance), key=alone.__getitem__)[
                :_MOST_CLIMBS
            ]
        elif not self._fall():
            self._done = True

    def _next(self) -> Plan | None:
        if self._climbs is None:
            return self._plan
        assert self._passed is not None
        while self._climbs:
            name = self._climbs.pop(0)
            plan = self._passed.with_formats({name: self._formats[name][0]})
            if plan.key not in self._tried:
                return plan
        return None

    def _unavailable(self, trial: Trial) -> None:
        """Strike the formats that the runtime did not run and try the same without them."""
        struck = False
        for name, form in trial.plan.items():
            if trial.ran.get(name) != form and len(self._formats[name]) > 1 and form in self._formats[name]:
                self._formats[name].remove(form)
                struck = True
                if self._climbs is None:
                    self._plan = self._plan.with_formats({name: self._formats[name][0]})
        self._done = self._done or not struck

    def _fall(self) -> bool:
        """Change the plan towards more precision; False when there is no more to give."""
        scores = {name: self._score(name, self._plan[name]) for name in self._layers if self._dearer(name)}
        if not scores:
            return False
        order = sorted(scores, key=scores.__getitem__, reverse=True)
        hopeless = [name for name in order if scores[name] > self._tolerance]
        count = max(len(hopeless) if self._step == 0 else 0, 1, 2 ** (self._step - 2) if self._step > 1 else 1)
        self._step += 1
        self._plan = self._plan.with_formats({name: self._target(name, scores[name]) for name in order[:count]})
        return True

    def _dearer(self, name: str) -> list[str]:
        formats = self._formats[name]
        return formats[formats.index(self._plan[name]) + 1 :] if self._plan[name] in formats else []

    def _target(self, name: str, score: float) -> str:
        candidates = self._dearer(name)
        for form in candidates[:-1]:
            if self._score(name, form) <= score / 2:
                return form
        return candidates[-1]

    def _score(self, name: str, form: str) -> float:
        return 0.0 if form == "fp32" else self._sensitivity(name, form)
