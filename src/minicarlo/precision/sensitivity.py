"""What one layer alone does to the criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        probe: measures plans, in their order.
        known: what an interrupted run has measured, and where new measurements go.
        schemes: those of an int8 layer, the usual one first.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        probe: Callable[[Sequence[Plan]], Iterator[Probe]],
        known: Known,
        schemes: Callable[[str], list[Scheme]],
        share: float,
    ) -> None:
        self._reference = Plan.uniform(layers, "fp32")
        self._probe, self._known, self._schemes, self._share = probe, known, schemes, share
        self.together: tuple[tuple[str, str], ...] = ()
        """(layer, format) of all that are measured at once when the first is asked for: what workers can do side by side."""

    def __call__(self, layer: str, form: str) -> float:
        """Value for one layer in one format; infinite when the runtime does not compute it so."""
        if (layer, form) not in self._known.sensitivities:
            self.measure(dict.fromkeys(((layer, form), *self.together)))
        return self._known.sensitivities[layer, form].value

    def __len__(self) -> int:
        return sum(probe.count for probe in self._known.sensitivities.values())

    def measure(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Measure what is not known of (layer, format)."""
        unknown = [pair for pair in pairs if pair not in self._known.sensitivities]
        usual = {pair: self._schemes(pair[0])[0] for pair in unknown}
        first = zip(unknown, self._probe([self._alone(*pair, usual[pair]) for pair in unknown]), strict=True)
        found: dict[tuple[str, str], dict[Scheme, Probe]] = {}
        for pair, probe in first:
            if pair[1] != "int8":
                self._known.add_sensitivity(*pair, probe)
            elif probe.value <= self._share or math.isinf(probe.value):
                self._known.add_sensitivity(*pair, _best({usual[pair]: probe}))
            else:
                found[pair] = {usual[pair]: probe}
        others = [(pair, scheme) for pair in found for scheme in self._schemes(pair[0])[1:]]
        for pair in [pair for pair in found if len(self._schemes(pair[0])) == 1]:
            self._known.add_sensitivity(*pair, _best(found[pair]))
        probes = self._probe([self._alone(*pair, scheme) for pair, scheme in others])
        for (pair, scheme), probe in zip(others, probes, strict=True):
            found[pair][scheme] = probe
            if len(found[pair]) == len(self._schemes(pair[0])):
                self._known.add_sensitivity(*pair, _best(found[pair]))

    def _alone(self, layer: str, form: str, scheme: Scheme) -> Plan:
        return self._reference.with_formats({layer: form}).with_schemes({layer: scheme})


def _best(found: Mapping[Scheme, Probe]) -> Probe:
    """The probe of the scheme that moves events least, the usual one unless another is clearly better."""
    usual, *others = found
    scheme = min(others, key=lambda each: found[each].movement, default=usual)
    if not found[scheme].movement < (1 - _BETTER) * found[usual].movement:
        scheme = usual
    tried = {str(each): probe.movement for each, probe in found.items()}
    seconds = sum(probe.seconds for probe in found.values())
    return replace(found[scheme], seconds=seconds, scheme=scheme, tried=tried)
