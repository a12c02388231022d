"""What a plan is to be better at than fp32: speed, size, memory, energy, or the estimate that needs no clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import TuningError
from minicarlo.precision.energy import EnergyMeter
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.footprint import check_linux, peak_bytes
from minicarlo.precision.history import History
from minicarlo.precision.plan import RELATIVE_COST, Plan, estimated_speedup
from minicarlo.precision.quantization import Quantizer
from minicarlo.precision.strategies import Trial
from minicarlo.precision.timing import Speedup

OBJECTIVES = {
    "throughput": "events per second on all cores, measured",
    "latency": "time of a single event, measured",
    "size": "bytes of the network on disk",
    "memory": "peak memory of a process that loads and runs it, measured",
    "energy": "joules per event that the processor reports, measured",
    "macs": "multiply-accumulates weighted by format, an estimate for machines too busy to time anything",
}

TIMED = frozenset({"throughput", "latency", "energy"})

LEAST_ENERGY_SECONDS = 3.0
"""A measurement of energy takes: the counters are coarse."""

_ALIASES = {"time": "throughput"}


def parse_objectives(names: str | Sequence[str]) -> tuple[str, ...]:
    """Objectives in the order given, from "latency,size" or a sequence. Raises TuningError for one that is unknown."""
    listed = names.split(",") if isinstance(names, str) else names
    found = tuple(dict.fromkeys(_ALIASES.get(name.strip(), name.strip()) for name in listed if name.strip()))
    if unknown := [name for name in found if name not in OBJECTIVES]:
        raise TuningError(f"Objective {unknown[0]!r:.40} is unknown; choose among {', '.join(OBJECTIVES)}.")
    if not found:
        raise TuningError(f"No objective is given; choose among {', '.join(OBJECTIVES)}.")
    return found


def check_measurable(names: Sequence[str]) -> None:
    """Raise TuningError for an objective that this machine cannot measure."""
    if "energy" in names:
        EnergyMeter()
    if "memory" in names:
        check_linux()


class Objectives:
    """Measures plans by one or several objectives, each as a ratio to fp32: 2 is twice as fast or half as large."""

    def __init__(
        self, names: Sequence[str], quantizer: Quantizer, evaluation: Evaluation, seconds: float, history: History
    ) -> None:
        self.names, self._quantizer, self._evaluation, self._seconds = tuple(names), quantizer, evaluation, seconds
        self._history = history
        self._costs: dict[tuple[str, str], dict[str, float]] = {}

    @property
    def timed(self) -> bool:
        """Whether anything is measured with a clock."""
        return not TIMED.isdisjoint(self.names)

    def measure(self, plan: Plan, network: OpenVinoNetwork) -> dict[str, Speedup]:
        """Ratios of a plan, compiled as `network`, to fp32, by objective."""
        return {name: self._measured(name, plan, network) for name in self.names}

    def speedup(self, plan: Plan, measured: dict[str, Speedup]) -> Speedup:
        """The speed over fp32 among what was measured: throughput, else latency, else an estimate."""
        estimate = Speedup(estimated_speedup(plan, self._quantizer.layers), 0.0)
        return measured.get("throughput") or measured.get("latency") or estimate

    def cost(self, layer: str, form: str) -> float:
        """Cost of a layer in a format, each objective's as a share of what it is for all of fp32, added up."""
        return sum(self._cost(name, form).get(layer, 0.0) / max(self._total(name), 1e-30) for name in self.names)

    @property
    def clock(self) -> str:
        """The objective that times of layers are measured for: latency where only it is asked for, else throughput."""
        return next((name for name in self.names if name in ("throughput", "latency")), "throughput")

    def layer_seconds(self, name: str, form: str) -> dict[str, float]:
        """Seconds of each layer in a format, as they count for a timed objective; measured once."""
        if (name, form) not in self._history.times:
            plan = Plan.uniform(self._quantizer.layers, form)
            self._history.add_times(name, form, self._evaluation.layer_seconds(plan, single=name == "latency"))
        return self._history.times[name, form]

    def _measured(self, name: str, plan: Plan, network: OpenVinoNetwork) -> Speedup:
        if name == "throughput":
            return self._evaluation.speedup(network, self._seconds)
        if name == "latency":
            return self._evaluation.latency(plan, self._seconds)
        if name == "size":
            return Speedup(self._fp32_bytes / self._size(plan), 0.0)
        if name == "energy":
            return self._evaluation.energy(network, max(self._seconds, LEAST_ENERGY_SECONDS))
        if name == "memory":
            return Speedup(self._fp32_peak / peak_bytes(self._quantizer.apply(plan), self._evaluation.shapes), 0.0)
        return Speedup(estimated_speedup(plan, self._quantizer.layers), 0.0)

    def _cost(self, name: str, form: str) -> dict[str, float]:
        if (name, form) not in self._costs:
            if name in TIMED:  # energy is taken to go with the time
                self._costs[name, form] = self.layer_seconds("throughput" if name == "energy" else name, form)
            else:
                self._costs[name, form] = self._operations(form) if name == "macs" else self._bytes(form)
        return self._costs[name, form]

    def _total(self, name: str) -> float:
        return sum(self._cost(name, "fp32").values())

    def _operations(self, form: str) -> dict[str, float]:
        return {layer.name: layer.macs * RELATIVE_COST[form] for layer in self._quantizer.layers}

    def _bytes(self, form: str) -> dict[str, float]:
        """Of each layer its weights' in fp32, and what the network has more or less with this layer so."""
        layers = self._quantizer.layers
        reference = Plan.uniform(layers, "fp32")
        sizes = {layer.name: self._size(reference.with_formats({layer.name: form})) - self._fp32_bytes for layer in layers}
        return {layer.name: max(4 * layer.weights + sizes[layer.name], 0) for layer in layers}

    def _size(self, plan: Plan) -> int:
        planned = self._quantizer.apply(plan)
        return len(planned.xml) + len(planned.weights)

    @cached_property
    def _fp32_peak(self) -> int:
        return peak_bytes(self._quantizer.apply(Plan.uniform(self._quantizer.layers, "fp32")), self._evaluation.shapes)

    @cached_property
    def _fp32_bytes(self) -> int:
        return self._size(Plan.uniform(self._quantizer.layers, "fp32"))


def front(measures: Sequence[dict[str, float]]) -> list[bool]:
    """Of each plan whether it is on the Pareto front: no other is at least as good in all objectives and better in one."""

    def beaten(own: dict[str, float]) -> bool:
        return any(all(other[name] >= own[name] for name in own) and other != own for other in measures)

    return [not beaten(own) for own in measures]


def listed(trials: Sequence[Trial]) -> tuple[dict[str, Any], ...]:
    """What the result says of accepted trials: number, plan in words, criterion's upper bound, measures, whether on the front."""
    return tuple(
        {"trial": trial.trial, "description": trial.description, "high": trial.upper, "measures": trial.measures, "front": on}
        for trial, on in zip(trials, front([trial.measures for trial in trials]), strict=True)
    )
