"""What "no loss" means for a surrogate: how far its showers moved from the reference's on the same latents and energies.

Both sets come from the same latents, so that their difference is precision alone. Each event is reduced to a row of sums (its
response, profiles, moments, occupancy, cell spectrum); every figure is a function of the mean rows of both sets, so that a
bootstrap over events is one matrix product per energy bin. Resampling draws the same events from both sets (a paired
bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, ch. 8).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines.network import Arrays
from minicarlo.errors import TuningError
from minicarlo.events import ENERGY
from minicarlo.fidelity.cern import profile_moments

Array = NDArray[np.float64]

_SPECTRUM = (
    -12,
    12,
)  # cell energies from 2^-12 MeV (0.24 keV) to 2^12 MeV, two bins an octave; what lies beyond counts in the end bins
_ENERGY_BINS = 4


@dataclass(frozen=True)
class Summary:
    """What a criterion keeps of events: `rows[name]` and `inputs[name]`, what they were made from, have shape (N, ...)."""

    inputs: Arrays
    rows: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, part: slice | NDArray[np.intp]) -> Summary:
        return Summary(*({name: array[part] for name, array in each.items()} for each in (self.inputs, self.rows)))


@dataclass(frozen=True)
class Comparison:
    """A criterion's value with its bootstrap interval, and the figure of each family that went into it."""

    value: float
    low: float
    high: float
    families: dict[str, float]


def summarise(samples: NDArray[np.float32], incident_energy: NDArray[np.floating], threshold_mev: float = 0.0) -> Summary:
    """Rows of events (N, z, x, y) in MeV with incident energies (N,) or (N, 1) in MeV; a cell above `threshold_mev` is hit."""
    samples = np.asarray(samples, np.float32)
    energy = np.asarray(incident_energy, np.float64).reshape(-1)
    count, depth, width, height = samples.shape
    scale = 1 / energy[:, None]
    layers = samples.sum((2, 3), dtype=np.float64)
    image = samples.sum(1, dtype=np.float64)
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    ring = np.rint(np.hypot(x[:, None], y[None, :])).astype(int)
    rings = np.stack([image[:, ring == radius].sum(1) for radius in range(ring.max() + 1)], 1)
    profiles = {"z": layers, "x": image.sum(2), "y": image.sum(1)}
    total = layers.sum(1, keepdims=True)
    safe = np.maximum(total, 1e-12)
    centre = [profiles[axis] @ position / safe[:, 0] for axis, position in (("x", x), ("y", y))]
    spread = (image * (x[:, None] ** 2 + y[None, :] ** 2)).sum((1, 2)) / safe[:, 0] - centre[0] ** 2 - centre[1] ** 2
    response = total * scale
    rows = {
        "response": np.concatenate([response, response**2], 1),
        "z": profiles["z"] * scale,
        "x": profiles["x"] * scale,
        "y": profiles["y"] * scale,
        "rings": rings * scale,
        "moments": np.concatenate([profile_moments(profile) for profile in profiles.values()], 1),
        "width": np.sqrt(np.maximum(spread, 0))[:, None],
        "occupancy": np.count_nonzero(samples > threshold_mev, axis=(1, 2, 3))[:, None].astype(np.float64),
        "spectrum": _spectrum(samples.reshape(count, -1)),
    }
    return Summary({ENERGY: energy}, rows)


def joined(parts: Iterable[Summary]) -> Summary:
    """Summaries of consecutive events as one."""
    pieces = list(parts)

    def together(arrays: list[Arrays]) -> Arrays:
        return {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}

    return Summary(together([piece.inputs for piece in pieces]), together([piece.rows for piece in pieces]))


def movement(reference: Summary, candidate: Summary) -> float:
    """Root mean square change of what a criterion keeps of an event, in units of its spread over events.

    It is no verdict, but tells two candidates apart with few events, where means and their bounds are all noise. Infinite where
    something is not finite.
    """
    parts = []
    for name, rows in reference.rows.items():
        true, made = (np.asarray(each, np.float64).reshape(len(rows), -1) for each in (rows, candidate.rows[name]))
        spread = true.var(0)
        if not np.all(np.isfinite(made)):
            return float("inf")
        if np.any(spread > 0):
            parts.append((((made - true) ** 2).mean(0)[spread > 0] / spread[spread > 0]).mean())
    return float(np.sqrt(np.mean(parts))) if parts else 0.0


class Criterion(Protocol):
    """A figure of merit for precision; lower is better, zero is no change."""

    @property
    def name(self) -> str:
        """What it is asked for by."""

    @property
    def description(self) -> str:
        """What it is, in a few words."""

    @property
    def confidence(self) -> float:
        """Of its intervals."""

    def reduce(self, outputs: Arrays, inputs: Arrays) -> Summary:
        """All that is kept of a few events: outputs (N, ...) and the inputs they come from."""

    def compare_summaries(self, reference: Summary, candidate: Summary) -> Comparison:
        """The criterion for what was kept of the same events."""

    def floor(self, first: Summary, second: Summary) -> float | None:
        """The criterion for two samples of the reference on different events; None where that has no meaning."""


@dataclass(frozen=True)
class ProfileCriterion:
    """CERN's figure for its calorimeter GANs, with an uncertainty: relative error of the moments plus that of the profiles.

    Mean relative change of the first and second moments of the energy along x, y and z, plus mean relative change of the
    mean profiles along the three axes, averaged over bins of incident energy (definition and references:
    `minicarlo.fidelity.cern`). Unlike there, profile cells are weighted by their energy: empty edges do not rule the figure.
    """

    threshold_mev: float = 0.0
    confidence: float = 0.95
    replicas: int = 300
    seed: int = 0
    name: str = "profile"
    description: str = "relative change of profile moments and mean profiles (CERN's figure)"

    def compare(
        self,
        reference_samples: NDArray[np.float32],
        candidate_samples: NDArray[np.float32],
        incident_energy: NDArray[np.floating],
    ) -> Comparison:
        """The criterion for samples (N, z, x, y) of the same latents and energies."""
        samples = (reference_samples, candidate_samples)
        reference, candidate = (summarise(each, incident_energy, self.threshold_mev) for each in samples)
        return self.compare_summaries(reference, candidate)

    def reduce(self, outputs: Arrays, inputs: Arrays) -> Summary:
        """See Criterion."""
        return summarise(outputs["showers"], inputs[ENERGY], self.threshold_mev)

    def compare_summaries(self, reference: Summary, candidate: Summary) -> Comparison:
        """See Criterion."""
        families = _families(reference, candidate, self.replicas, self.seed)
        return compared(self.figure(families), families, self.confidence)

    def floor(self, first: Summary, second: Summary) -> float:
        """See Criterion. Both are sorted, so that like energies meet."""
        rows = [summary[np.argsort(summary.inputs[ENERGY], kind="stable")].rows for summary in (first, second)]
        inputs = {ENERGY: np.sort(first.inputs[ENERGY])}
        return self.compare_summaries(*(Summary(inputs, each) for each in rows)).value

    def figures(self, reference: Summary, candidate: Summary) -> Array:
        """(replicas + 1,): the value, then that of each bootstrap replica; replica i draws the same events in every call."""
        return self.figure(_families(reference, candidate, self.replicas, self.seed))

    def figure(self, families: Mapping[str, Array]) -> Array:
        """(replicas + 1,) figures from those of the families."""
        return families["moments"] + (families["z"] + families["x"] + families["y"]) / 3


@dataclass(frozen=True)
class FidelityCriterion(ProfileCriterion):
    """The largest relative change among the families of observables, so that nothing may suffer for the sake of another.

    Families: energy response and resolution, longitudinal and lateral profile, profile moments, width, occupancy, cell-energy
    spectrum. Response, resolution, width and occupancy are those of the worst bin of incident energy.
    """

    name: str = "fidelity"
    description: str = "largest relative change among response, resolution, profiles, moments, width, occupancy, cell spectrum"

    def figure(self, families: Mapping[str, Array]) -> Array:
        """(replicas + 1,) figures from those of the families."""
        names = ("response", "resolution", "z", "rings", "moments", "width", "occupancy", "spectrum")
        largest: Array = np.max([families[name] for name in names], axis=0)
        return largest


@dataclass(frozen=True)
class WeightedCriterion(ProfileCriterion):
    """Several families of observables, their relative changes added up with weights that sum to one."""

    weights: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str, **settings: Any) -> WeightedCriterion:  # noqa: ANN401
        """From "response=2,resolution=1" or "width". Raises TuningError."""
        weights: dict[str, float] = {}
        for part in text.split(","):
            family, _, weight = part.partition("=")
            try:
                weights[family.strip()] = float(weight or 1)
            except ValueError:
                weights[family.strip()] = math.nan
        known = set(weights) <= set(FAMILIES)
        if not known or not all(0 < weight < math.inf for weight in weights.values()):
            raise TuningError(
                f"Criterion {text!r:.60} is unknown; choose among {', '.join(CRITERIA)}, or one or several of "
                f"{', '.join(FAMILIES)} with positive weights, such as response=2,resolution=1."
            )
        total = sum(weights.values())
        shares = tuple((family, weight / total) for family, weight in weights.items())
        listed = " + ".join(f"{share:.3g} {family}" if len(shares) > 1 else family for family, share in shares)
        return cls(name=text, description=f"relative change of {listed}", weights=shares, **settings)

    def figure(self, families: Mapping[str, Array]) -> Array:
        """(replicas + 1,) figures from those of the families."""
        return np.sum([weight * families[family] for family, weight in self.weights], axis=0)  # type: ignore[no-any-return]


FAMILIES = ("response", "resolution", "z", "x", "y", "rings", "moments", "width", "occupancy", "spectrum")
"""Families of observables: energy response and its width, profiles, their moments, lateral width, hits, cell energies."""

CRITERIA: dict[str, type[ProfileCriterion]] = {"fidelity": FidelityCriterion, "profile": ProfileCriterion}


def get_criterion(name: str, *, threshold_mev: float, confidence: float, seed: int) -> ProfileCriterion:
    """The criterion of that name, or of families with weights ("response=2,resolution=1"). Raises TuningError."""
    if not 0.5 <= confidence < 1:
        raise TuningError(f"The confidence must be at least 0.5 and below 1, not {confidence:g}; 0.95 is usual.")
    if name not in CRITERIA:
        return WeightedCriterion.parse(name, threshold_mev=threshold_mev, confidence=confidence, seed=seed)
    return CRITERIA[name](threshold_mev=threshold_mev, confidence=confidence, seed=seed)


def bootstrap_weights(count: int, replicas: int, seed: int) -> Array:
    """(replicas + 1, count) weights of events that sum to one: equal first, then as often as each replica draws them."""
    weights = np.ones((replicas + 1, count))
    weights[1:] = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=replicas)
    return weights / count


def _families(reference: Summary, candidate: Summary, replicas: int, seed: int) -> dict[str, Array]:
    """Figure of each family, shape (replicas + 1,): first of the events as they are, then of each bootstrap replica."""
    count = len(reference)
    if len(candidate) != count or not np.array_equal(reference.inputs[ENERGY], candidate.inputs[ENERGY]):
        raise ValueError("the two summaries are not of the same events")
    weights = bootstrap_weights(count, replicas, seed)
    names = list(reference.rows)
    splits = np.cumsum([reference.rows[name].shape[1] for name in names])[:-1]
    stacked = [np.concatenate([summary.rows[name] for name in names], 1) for summary in (reference, candidate)]
    bins: list[dict[str, Array]] = []
    for events in _energy_bins(reference.inputs[ENERGY]):
        share = weights[:, events]
        share = share / np.maximum(share.sum(1, keepdims=True), 1 / count)
        pair = [dict(zip(names, np.split(share @ rows[events], splits, axis=1), strict=True)) for rows in stacked]
        bins.append(_relative_changes(*pair))
    worst = {"response", "resolution", "width", "occupancy"}
    return {
        name: np.stack([b[name] for b in bins]).max(0) if name in worst else np.stack([b[name] for b in bins]).mean(0)
        for name in bins[0]
    }


def _relative_changes(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> dict[str, Array]:
    """Figures of one energy bin from mean rows (replicas + 1, k)."""
    changes = {
        name: _shape_change(reference[name], candidate[name])
        for name in ("z", "x", "y", "rings", "spectrum", "width", "occupancy")
    }
    r, c = reference["response"], candidate["response"]
    changes["response"] = _shape_change(r[:, :1], c[:, :1])
    changes["resolution"] = _shape_change(_resolution(r)[:, None], _resolution(c)[:, None])
    moments = np.abs(candidate["moments"] - reference["moments"]) / np.maximum(np.abs(reference["moments"]), 1e-12)
    changes["moments"] = moments.mean(1)
    return changes


def _shape_change(reference: Array, candidate: Array) -> Array:
    """Sum of the absolute changes over the sum of the reference; one if the reference is empty and the candidate is not."""
    total = np.abs(reference).sum(1)
    change = np.abs(candidate - reference).sum(1)
    relative: Array = np.divide(change, total, out=(change > 0).astype(np.float64), where=total > 0)
    return relative


def _resolution(response: Array) -> Array:
    """Standard deviation over mean from the means of the response and of its square."""
    mean = np.maximum(response[:, 0], 1e-12)
    relative: Array = np.sqrt(np.maximum(response[:, 1] - response[:, 0] ** 2, 0)) / mean
    return relative


def compared(figure: Array, families: Mapping[str, Array], confidence: float) -> Comparison:
    """The comparison that figures (replicas + 1,) make, the first of the events as they are; infinite if one is not finite."""
    if not np.all(np.isfinite(figure)):
        return Comparison(float("inf"), float("inf"), float("inf"), {name: float("inf") for name in families})
    tail = (1 - confidence) / 2
    low, high = np.quantile(figure[1:], [tail, 1 - tail])
    value = float(figure[0])
    return Comparison(
        value, min(float(low), value), max(float(high), value), {name: float(values[0]) for name, values in families.items()}
    )


def _energy_bins(energy: Array) -> list[NDArray[np.intp]]:
    """Event numbers of up to four bins of equal population; fewer where there are few events or a single energy."""
    count = min(_ENERGY_BINS, max(1, len(energy) // 50)) if np.ptp(energy) > 0 else 1
    return [part for part in np.array_split(np.argsort(energy, kind="stable"), count) if len(part)]


def _spectrum(cells: NDArray[np.float32]) -> Array:
    """(N, bins) numbers of cells per half octave of energy; exponent and first mantissa bit of a float32 are its bin."""
    first, last = ((127 + exponent) << 1 for exponent in _SPECTRUM)
    event, cell = np.nonzero(cells)
    code = (cells[event, cell].view(np.uint32) >> 22).astype(np.int64)
    column = np.clip(code, first, last - 1) - first
    bins = last - first
    return np.bincount(event * bins + column, minlength=len(cells) * bins).reshape(len(cells), bins).astype(np.float64)
