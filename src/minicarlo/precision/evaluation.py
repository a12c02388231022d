"""Run a plan: compile it, see what the runtime made of it, compare its showers with the reference's, time it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import CompiledGenerator, usable_cores
from minicarlo.errors import InvalidCondition, TuningError
from minicarlo.events import read_events
from minicarlo.precision.criterion import Comparison, ProfileCriterion, Summary, joined, summarise
from minicarlo.precision.plan import Plan
from minicarlo.precision.quantization import Quantizer, compile_planned
from minicarlo.precision.timing import Speedup, measure_speedup
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate

Array = NDArray[np.float32]

BATCH = 64
PROBE_EVENTS = 512
"""Events that the sensitivity of one layer is measured on."""

# First event of each use of the seed: no event is used twice.
_SEARCH, _HELD_OUT, _MONTE_CARLO = 1 << 20, 1 << 21, 1 << 22


class Evaluation:
    """Everything that is measured about plans for one surrogate; the reference's side is computed once and kept."""

    def __init__(
        self, surrogate: Surrogate, quantizer: Quantizer, criterion: ProfileCriterion, *, events: int, seed: int
    ) -> None:
        self._surrogate, self._quantizer, self._criterion = surrogate, quantizer, criterion
        self._events, self._seed = events, seed
        energy_range = surrogate.manifest.conditions["incident_energy"]
        kind = "log" if energy_range.low < energy_range.high else "fixed"
        self._energies = EnergyDistribution(energy_range.low, energy_range.high, kind)  # type: ignore[arg-type]
        self._reference: CompiledGenerator | None = None
        self._references: dict[tuple[int, int], Summary] = {}

    @property
    def reference(self) -> CompiledGenerator:
        """The fp32 model."""
        if self._reference is None:
            self._reference = self.compile(Plan.uniform(self._quantizer.layers, "fp32"))
            self._reference.assert_precision("fp32")
        return self._reference

    def compile(self, plan: Plan) -> CompiledGenerator:
        """The plan, ready to run on all cores."""
        return compile_planned(self._quantizer.apply(plan), batch=BATCH, streams=usable_cores())

    def layer_seconds(self, plan: Plan) -> dict[str, float]:
        """Time of each layer in one batch of a plan, on one core."""
        profiled = compile_planned(self._quantizer.apply(plan), batch=BATCH, profile=True)
        return profiled.layer_seconds(*self._inputs(_SEARCH, BATCH))

    def search(self, generator: CompiledGenerator) -> Comparison:
        """The criterion on the events of the search."""
        return self._compare(generator, _SEARCH, self._events)

    def probe(self, generator: CompiledGenerator) -> Comparison:
        """The criterion on the first events of the search."""
        return self._compare(generator, _SEARCH, min(PROBE_EVENTS, self._events))

    def held_out(self, generator: CompiledGenerator) -> Comparison:
        """The criterion on events that no search looks at."""
        return self._compare(generator, _HELD_OUT, self._events)

    def floor(self) -> Comparison:
        """The criterion between two independent fp32 samples: what as many events cannot tell apart without common latents."""
        first, second = self._reference_summary(_SEARCH, self._events), self._reference_summary(_HELD_OUT, self._events)
        order = [np.argsort(summary.incident_energy, kind="stable") for summary in (first, second)]  # compare at like energies
        rows = [{name: row[by] for name, row in s.rows.items()} for s, by in zip((first, second), order, strict=True)]
        energy = first.incident_energy[order[0]]
        return self._criterion.compare_summaries(Summary(energy, rows[0]), Summary(energy, rows[1]))

    def speedup(self, generator: CompiledGenerator, seconds: float) -> Speedup:
        """Speed over fp32, all cores, interleaved."""
        count = BATCH * 2 * usable_cores()
        return measure_speedup(self.reference, generator, *self._inputs(_SEARCH, count), seconds=seconds)

    def against_monte_carlo(
        self, generator: CompiledGenerator, path: Path, tolerance: float, confidence: float
    ) -> dict[str, object]:
        """CERN's figure of fp32 and of `generator` against Monte Carlo events of the same energies, and their difference.

        Accepted when the difference may be zero or below, or is surely below the tolerance. Raises InvalidEventSet,
        InvalidCondition, TuningError.
        """
        events = read_events(path, stop=self._events)
        allowed = self._surrogate.manifest.conditions["incident_energy"]
        if events.detector != self._surrogate.manifest.detector:
            raise TuningError(
                f"Event set {path} is of detector {events.detector}, the surrogate is of "
                f"{self._surrogate.manifest.detector}. Give events of the same detector."
            )
        inside = (events.incident_energy >= allowed.low) & (events.incident_energy <= allowed.high)
        if np.count_nonzero(inside) < 100:
            raise InvalidCondition(
                f"Event set {path}: only {np.count_nonzero(inside)} of its events have an incident energy "
                f"between {allowed.low:g} and {allowed.high:g} MeV, the range of the surrogate; at least 100 are needed."
            )
        threshold = self._surrogate.manifest.readout_threshold_mev
        energy, samples = events.incident_energy[inside].astype(np.float32), events.samples[inside]
        truth = summarise(np.where(samples > threshold, samples, 0), energy, threshold)
        latent = normal_latents(self._seed, _MONTE_CARLO, len(energy), self._surrogate.manifest.latent_size)
        cern = ProfileCriterion(threshold_mev=threshold, seed=self._seed)
        fp32, tuned = (cern.figures(truth, _summarised(each, latent, energy, threshold)) for each in (self.reference, generator))
        tail = (1 - confidence) / 2
        low, high = (float(bound) for bound in np.quantile((tuned - fp32)[1:], [tail, 1 - tail]))
        return {
            "events": len(energy),
            "figure": cern.name,
            "fp32": float(fp32[0]),
            "tuned": float(tuned[0]),
            "difference": float(tuned[0] - fp32[0]),
            "low": low,
            "high": high,
            "accepted": low <= 0 or high <= tolerance,
        }

    def _compare(self, generator: CompiledGenerator, start: int, count: int) -> Comparison:
        candidate = _summarised(generator, *self._inputs(start, count), self._surrogate.manifest.readout_threshold_mev)
        return self._criterion.compare_summaries(self._reference_summary(start, count), candidate)

    def _reference_summary(self, start: int, count: int) -> Summary:
        known = [summary for (first, _), summary in self._references.items() if first == start and len(summary) >= count]
        if known:
            return known[0][:count]
        summary = _summarised(self.reference, *self._inputs(start, count), self._surrogate.manifest.readout_threshold_mev)
        self._references[start, count] = summary
        return summary

    def _inputs(self, start: int, count: int) -> tuple[Array, Array]:
        return normal_latents(self._seed, start, count, self._surrogate.manifest.latent_size), self._energies.sample(
            self._seed, start, count
        )


def _summarised(generator: CompiledGenerator, latent: Array, energy: Array, threshold: float) -> Summary:
    """Summary of the showers of latents (N, L) and energies (N,), never more than a few batches in memory."""

    def batches() -> Iterator[tuple[int, Array, Array]]:
        for start in range(0, len(latent), BATCH):
            yield start, latent[start : start + BATCH], energy[start : start + BATCH]

    return joined(
        summarise(samples, energy[start : start + len(samples)], threshold) for start, samples in generator.map(batches())
    )
