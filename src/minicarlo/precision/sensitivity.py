"""What one layer alone does to the criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from minicarlo.precision.plan import Layer, Plan
from minicarlo.precision.scheme import Scheme

_BETTER = 0.1
"""By how much another scheme must be better than the usual one to be taken."""


@dataclass(frozen=True)
class Probe:
    """The criterion with one layer alone in a lower format: its value, each family's, and the seconds that took.

    `movement` is how far events move (`minicarlo.precision.criterion.movement`). For int8, `tried` has that of every scheme that
    was tried, and `scheme` is the one of the least: a few hundred events tell schemes apart by it and not by the criterion.
    """

    value: float
    movement: float
    families: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    scheme: Scheme | None = None
    tried: Mapping[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many networks were run for it."""
        return max(len(self.tried), 1)


class Known(Protocol):
    """Where probes are kept."""

    sensitivities: dict[tuple[str, str], Probe]

    def add_sensitivity(self, layer: str, form: str, probe: Probe) -> None:
        """Keep one."""


class LayerSensitivity:
    """The criterion's value with one layer alone in a lower format, all others fp32: measured once, then known.

    An int8 layer that alone does more than `share` is tried in its other schemes as well.

    Arguments:
        probe: measures a plan.
        known: what an interrupted run has measured, and where new measurements go.
        schemes: those of an int8 layer, the usual one first.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        probe: Callable[[Plan], Probe],
        known: Known,
        schemes: Callable[[str], list[Scheme]],
        share: float,
    ) -> None:
        self._reference = Plan.uniform(layers, "fp32")
        self._probe, self._known, self._schemes, self._share = probe, known, schemes, share

    def __call__(self, layer: str, form: str) -> float:
        """Value for one layer in one format; infinite when the runtime does not compute it so."""
        if (layer, form) not in self._known.sensitivities:
            plan = self._reference.with_formats({layer: form})
            self._known.add_sensitivity(layer, form, self._best(plan, layer) if form == "int8" else self._probe(plan))
        return self._known.sensitivities[layer, form].value

    def __len__(self) -> int:
        return sum(probe.count for probe in self._known.sensitivities.values())

    def _best(self, plan: Plan, layer: str) -> Probe:
        found: dict[Scheme, Probe] = {}
        for scheme in self._schemes(layer):
            found[scheme] = self._probe(plan.with_schemes({layer: scheme}))
            if found[scheme].value <= self._share or math.isinf(found[scheme].value):
                break
        usual, *others = found
        scheme = min(others, key=lambda each: found[each].movement, default=usual)
        if not found[scheme].movement < (1 - _BETTER) * found[usual].movement:
            scheme = usual
        tried = {str(each): probe.movement for each, probe in found.items()}
        seconds = sum(probe.seconds for probe in found.values())
        return replace(found[scheme], seconds=seconds, scheme=scheme, tried=tried)
