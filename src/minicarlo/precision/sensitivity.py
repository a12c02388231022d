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
    was tried, the usual one first, and `scheme` is the one of the least: few events tell schemes apart by it, and not by the
    criterion, which is measured of the usual scheme and of the one that is taken.
    """

    value: float
    movement: float
    families: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    scheme: Scheme | None = None
    tried: Mapping[str, float] = field(default_factory=dict)

    @property
    def others(self) -> int:
        """How many networks were run to see how far they move events, and for nothing else."""
        return max(len(self.tried) - 1, 0)

    @property
    def measured(self) -> int:
        """How many networks the criterion was measured of."""
        return 1 if self.scheme is None or str(self.scheme) == next(iter(self.tried)) else 2


class Known(Protocol):
    """Where probes are kept."""

    sensitivities: dict[tuple[str, str], Probe]

    def add_sensitivity(self, layer: str, form: str, probe: Probe) -> None:
        """Keep one."""


class LayerSensitivity:
    """The criterion's value with one layer alone in a lower format, all others fp32: measured once, then known.

    An int8 layer that alone does more than `share` is tried in its other schemes as well.

    Arguments:
        probe: measures plans, in their order: by the criterion if that is wanted, else only how far they move events.
        known: what an interrupted run has measured, and where new measurements go.
        schemes: those of an int8 layer, the usual one first.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        probe: Callable[[Sequence[Plan], bool], Iterator[Probe]],
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
        return sum(probe.measured + probe.others for probe in self._known.sensitivities.values())

    def events(self, probe: int, moved: int) -> int:
        """How many events were run, at `probe` for the criterion and `moved` to see how far they move."""
        return sum(each.measured * probe + each.others * moved for each in self._known.sensitivities.values())

    def measure(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Measure what is not known of (layer, format)."""
        unknown = [pair for pair in pairs if pair not in self._known.sensitivities]
        usual = {pair: self._schemes(pair[0])[0] for pair in unknown}
        probes = self._probe([self._alone(*pair, usual[pair]) for pair in unknown], True)
        harmful: dict[tuple[str, str], Probe] = {}
        for pair, probe in zip(unknown, probes, strict=True):
            if pair[1] != "int8":
                self._known.add_sensitivity(*pair, probe)
                continue
            probe = replace(probe, scheme=usual[pair], tried={str(usual[pair]): probe.movement})
            if self._share < probe.value < math.inf and len(self._schemes(pair[0])) > 1:
                harmful[pair] = probe
            else:
                self._known.add_sensitivity(*pair, probe)
        self._choose_schemes(harmful)

    def _choose_schemes(self, harmful: Mapping[tuple[str, str], Probe]) -> None:
        """Try the other schemes of int8 layers that have been probed in the usual one, and keep the best of each layer."""
        others = [(pair, scheme) for pair in harmful for scheme in self._schemes(pair[0])[1:]]
        tried = {pair: {self._schemes(pair[0])[0]: probe} for pair, probe in harmful.items()}
        better: dict[tuple[str, str], Scheme] = {}
        probes = self._probe([self._alone(*pair, scheme) for pair, scheme in others], False)
        for (pair, scheme), probe in zip(others, probes, strict=True):
            found = tried[pair]
            found[scheme] = probe
            if len(found) == len(self._schemes(pair[0])):
                best = min(found, key=lambda each: found[each].movement)
                if found[best].movement < (1 - _BETTER) * harmful[pair].movement:
                    better[pair] = best
                else:
                    self._keep(pair, harmful[pair], found, 0.0)
        probes = self._probe([self._alone(*pair, scheme) for pair, scheme in better.items()], True)
        for (pair, scheme), probe in zip(better.items(), probes, strict=True):
            self._keep(pair, replace(probe, scheme=scheme), tried[pair], probe.seconds)

    def _keep(self, pair: tuple[str, str], probe: Probe, tried: Mapping[Scheme, Probe], more: float) -> None:
        """Keep a probe, with what was tried to come to it and the seconds of all that, and `more`."""
        seconds = more + sum(each.seconds for each in tried.values())
        movements = {str(scheme): each.movement for scheme, each in tried.items()}
        self._known.add_sensitivity(*pair, replace(probe, tried=movements, seconds=seconds))

    def _alone(self, layer: str, form: str, scheme: Scheme) -> Plan:
        return self._reference.with_formats({layer: form}).with_schemes({layer: scheme})
