"""A surrogate as what is tuned: latents and energies over its trained range, and Monte Carlo events as a second judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import read_model
from minicarlo.engines.network import Arrays, OpenVinoNetwork
from minicarlo.errors import InvalidCondition, TuningError
from minicarlo.events import read_events
from minicarlo.graph.recipe import Rewrite
from minicarlo.precision.criterion import ProfileCriterion, summarise
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.quantization import PlannedModel, Quantizer
from minicarlo.precision.subject import Use
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate

Array = NDArray[np.float32]

BATCH = 64

_FIRST: dict[Use, int] = {"search": 1 << 20, "held_out": 1 << 21, "monte_carlo": 1 << 22}


@dataclass(frozen=True)
class Calibration:
    """Latents (N, L) and energies (N,) in MeV that activation ranges are measured on."""

    latent: Array
    incident_energy: Array

    @classmethod
    def over_range(cls, surrogate: Surrogate, count: int, seed: int) -> Calibration:
        """`count` events on a logarithmic grid over the whole trained range, every batch spread over all of it."""
        energy_range = surrogate.manifest.conditions["incident_energy"]
        grid = np.geomspace(energy_range.low, energy_range.high, count)
        order = np.random.default_rng([seed, 1]).permutation(count)
        energy = np.clip(grid[order], energy_range.low, energy_range.high).astype(np.float32)
        return cls(normal_latents(seed, 0, count, surrogate.manifest.latent_size), energy)

    def batches(self) -> list[dict[str, Array]]:
        """Pieces as the model's inputs."""
        return [
            {"latent": self.latent[start : start + BATCH], "incident_energy": self.incident_energy[start : start + BATCH, None]}
            for start in range(0, len(self.latent), BATCH)
        ]


def surrogate_quantizer(surrogate: Surrogate, calibration_events: int = 256, seed: int = 1) -> Quantizer:
    """The quantizer of a surrogate's float32 graph. Raises TuningError when there is nothing to quantise."""
    calibration = Calibration.over_range(surrogate, calibration_events, seed)
    return Quantizer(read_model(surrogate)[0], calibration.batches(), f"Surrogate {surrogate.path}")


class SurrogateSubject:
    """A surrogate, judged by a physics criterion. See Subject."""

    def __init__(
        self, surrogate: Surrogate, criterion: ProfileCriterion, *, calibration_events: int = 256, seed: int = 1
    ) -> None:
        self.surrogate, self.criterion, self._seed = surrogate, criterion, seed
        self.name, self.digest = f"Surrogate {surrogate.path}", surrogate.hash
        self.model, _ = read_model(surrogate)
        recipe = (surrogate.manifest.graph or {}).get("recipe")
        self.rewrites = None if recipe is None else [Rewrite(**rewrite) for rewrite in recipe]
        self.shapes = {"latent": (BATCH, surrogate.manifest.latent_size), "incident_energy": (BATCH, 1)}
        self.most_events = 1 << 20
        self._calibration = Calibration.over_range(surrogate, calibration_events, seed)
        energy_range = surrogate.manifest.conditions["incident_energy"]
        kind = "log" if energy_range.low < energy_range.high else "fixed"
        self._energies = EnergyDistribution(energy_range.low, energy_range.high, kind)  # type: ignore[arg-type]

    def calibration(self) -> list[Arrays]:
        """See Subject."""
        return list(self._calibration.batches())

    def events(self, use: Use, start: int, stop: int) -> Arrays:
        """See Subject. Energies are drawn from the whole trained range."""
        first, count = _FIRST[use] + start, stop - start
        latent = normal_latents(self._seed, first, count, self.surrogate.manifest.latent_size)
        return {"latent": latent, "incident_energy": self._energies.sample(self._seed, first, count)[:, None]}

    def write(
        self,
        output: Path,
        planned: PlannedModel,
        facts: dict[str, Any],
        history: bytes,
        plan_yaml: bytes,
        speed: dict[str, Any] | None,
    ) -> None:
        """See Subject."""
        self.surrogate.with_tuned(output, planned.xml, planned.weights, facts, history, plan_yaml=plan_yaml, speed=speed)

    def against_monte_carlo(
        self, evaluation: Evaluation, network: OpenVinoNetwork, path: Path, tolerance: float
    ) -> dict[str, object]:
        """CERN's figure of fp32 and of `network` against Monte Carlo events of the same energies, and their difference.

        Accepted when the difference may be zero or below, or is surely below the tolerance. Raises InvalidEventSet,
        InvalidCondition, TuningError.
        """
        manifest = self.surrogate.manifest
        events = read_events(path, stop=evaluation.events)
        allowed = manifest.conditions["incident_energy"]
        if events.detector != manifest.detector:
            raise TuningError(
                f"Event set {path} is of detector {events.detector}, the surrogate is of "
                f"{manifest.detector}. Give events of the same detector."
            )
        inside = (events.incident_energy >= allowed.low) & (events.incident_energy <= allowed.high)
        if np.count_nonzero(inside) < 100:
            raise InvalidCondition(
                f"Event set {path}: only {np.count_nonzero(inside)} of its events have an incident energy "
                f"between {allowed.low:g} and {allowed.high:g} MeV, the range of the surrogate; at least 100 are needed."
            )
        threshold = manifest.readout_threshold_mev
        energy, samples = events.incident_energy[inside].astype(np.float32), events.samples[inside]
        truth = summarise(np.where(samples > threshold, samples, 0), energy, threshold)
        latent = normal_latents(self._seed, _FIRST["monte_carlo"], len(energy), manifest.latent_size)
        inputs = {"latent": latent, "incident_energy": energy[:, None]}
        cern = ProfileCriterion(threshold_mev=threshold, seed=self._seed)

        def figures(each: OpenVinoNetwork) -> NDArray[np.float64]:
            return cern.figures(truth, evaluation.summarised(each, inputs))

        fp32, tuned = figures(evaluation.reference), figures(network)
        tail = (1 - self.criterion.confidence) / 2
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
