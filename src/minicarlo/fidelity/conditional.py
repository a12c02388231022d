"""Observables in bins of what the generator is conditioned on: incident energy and angles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from minicarlo.fidelity.differences import plus_minus
from minicarlo.fidelity.distances import Float, KolmogorovSmirnov, Wasserstein, on_grid
from minicarlo.fidelity.observables import Measured
from minicarlo.fidelity.resampling import Resampled
from minicarlo.fidelity.scorecard import Interpolated, Interpolation

FEWEST = 50
"""Events needed on either side in a bin."""
GRID = 64

_ANGLES = 6  # bins of an angle at most
_ONE_ANGLE = 1e-3  # rad; within it angles count as one

Range = tuple[float, float]
"""Incident energies low <= E < high in MeV."""


@dataclass
class Bins:
    """Bins of a condition: `index` (N,) numbers the bin of every pooled event, -1 outside all; `events` of the smaller set."""

    edges: Float
    index: NDArray[np.int64]
    events: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    @classmethod
    def of(
        cls, reference: NDArray[np.floating], candidate: NDArray[np.floating], edges: Float, ranges: Sequence[Range] = ()
    ) -> Bins:
        """Bins between `edges` of the values of both sets; those within one of `ranges` are held out."""
        number = len(edges) - 1
        places = [np.searchsorted(edges, values.astype(np.float64), side="right") - 1 for values in (reference, candidate)]
        counts = [np.bincount(place[(place >= 0) & (place < number)], minlength=number) for place in places]
        index = np.concatenate(places)
        middles = (edges[:-1] + edges[1:]) / 2
        held_out = np.array([any(low <= middle < high for low, high in ranges) for middle in middles])
        return cls(edges, np.where(index < number, index, -1), np.minimum(*counts), held_out)

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def filled(self) -> list[int]:
        """Numbers of the bins with enough events on either side."""
        return np.flatnonzero(self.events >= FEWEST).tolist()


@dataclass
class InBins:
    """A distance in every filled bin, that of Wasserstein in units of the reference's standard deviation there.

    Columns per bin: those of the values, and when there are several their mean.
    """

    distance: Wasserstein | KolmogorovSmirnov
    bins: int
    power: float = 0.5

    @classmethod
    def of(cls, values: NDArray[np.floating], events: int, bins: Bins) -> dict[str, InBins]:
        """Both distances of (N, L) values, of which the first `events` are the reference's."""
        columns = values.shape[1]
        place = np.zeros(values.shape, np.int32)
        widths = []
        for number, chosen in enumerate(np.flatnonzero(bins.index == k) for k in bins.filled):
            spread = values[chosen[chosen < events]].std(axis=0, dtype=np.float64)
            for column in range(columns):
                edges, found = on_grid(values[chosen, column], GRID)
                place[chosen, column] = found + GRID * (number * columns + column)
                widths.append(np.diff(edges) / (spread[column] or 1.0))
        used = np.isin(bins.index, bins.filled)
        starts = np.concatenate([[0], np.cumsum(used)]) * columns
        shape = (len(values), len(widths) * GRID)
        features = sparse.csr_matrix((np.ones(starts[-1], np.float32), place[used].ravel(), starts), shape=shape)
        wasserstein = Wasserstein(features, np.stack(widths))
        number = len(bins.filled)
        return {
            "wasserstein": cls(wasserstein, number),
            "kolmogorov_smirnov": cls(KolmogorovSmirnov(wasserstein), number),
        }

    @property
    def features(self) -> sparse.csr_matrix | NDArray[np.floating]:
        return self.distance.features

    def __call__(self, first: Float, second: Float) -> Float:
        found = self.distance.columns(first, second).reshape(len(first), self.bins, -1)
        if found.shape[2] > 1:
            found = np.concatenate([found, found.mean(axis=2, keepdims=True)], axis=2)
        return found.reshape(len(first), -1)


def angle_bins(reference: Measured, candidate: Measured) -> dict[str, Bins]:
    """Bins of equal width of every angle of incidence that is not the same in all events, some 200 events in each."""
    found = {}
    for name in reference.angles.keys() & candidate.angles.keys():
        ours, theirs = reference.angles[name], candidate.angles[name]
        low, high = (float(pick([pick(ours), pick(theirs)])) for pick in (np.min, np.max))
        number = int(np.clip(min(len(ours), len(theirs)) // 200, 1, _ANGLES))
        if high - low > _ONE_ANGLE and number > 1:
            found[name] = Bins.of(ours, theirs, np.append(np.linspace(low, high, number + 1)[:-1], np.nextafter(high, np.inf)))
    return found


def with_ranges(edges: Float, ranges: Sequence[Range]) -> Float:
    """Edges with a bin for every range, and bins about as wide as they were (on a logarithmic scale) between."""
    width = np.log(edges[-1] / edges[0]) / (len(edges) - 1)
    cuts = np.unique([edges[0], edges[-1], *(limit for pair in ranges for limit in pair if edges[0] < limit < edges[-1])])
    found = [cuts[:1]]
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        held_out = any(start <= low and high <= stop for start, stop in ranges)
        number = 1 if held_out else max(1, round(np.log(high / low) / width))
        found.append(np.geomspace(low, high, number + 1)[1:-1])
        found.append(np.array([high]))
    return np.concatenate(found)


def interpolation(parts: Mapping[str, Resampled], bins: Bins) -> list[Interpolation]:
    """For every held-out bin the distances of all observables there and in the bins beside it, all beyond chance."""
    found = []
    filled = bins.filled
    for place, number in enumerate(filled):
        beside = [k for k, other in enumerate(filled) if abs(other - number) == 1 and not bins.held_out[other]]
        if not bins.held_out[number] or not beside:
            continue
        rows = {name: _inside_and_beside(part, len(filled), place, beside) for name, part in parts.items()}
        worst = max(rows, key=lambda name: _pull(rows[name]))
        low, high = bins.edges[number], bins.edges[number + 1]
        inside, outside = (np.mean([row[:, k] for row in rows.values()], axis=0) for k in range(2))
        mean = _interpolated(np.stack([inside, outside], axis=1))
        found.append(
            Interpolation(
                low=low,
                high=high,
                events=int(bins.events[number]),
                mean=mean,
                observables={name: _interpolated(row) for name, row in rows.items()},
                worst=worst,
                words=f"{low / 1000:.3g} to {high / 1000:.3g} GeV, held out: mean distance "
                f"{plus_minus(inside[0], inside[1:].std(ddof=1))} against "
                f"{plus_minus(outside[0], outside[1:].std(ddof=1))} beside it; worst {worst}",
            )
        )
    return found


def _inside_and_beside(part: Resampled, bins: int, place: int, beside: list[int]) -> Float:
    """Distances beyond chance in a bin and in those beside it, (1 + B, 2): of the sets, then of the bootstrap replicas."""
    null = part.quadratic(part.null).mean(axis=0)
    every = np.concatenate([part.quadratic(part.value[None]) - null, part.quadratic(part.replicas) - 2 * null])
    signed = (np.sign(every) * np.abs(every) ** part.power).reshape(len(every), bins, -1)[:, :, -1]
    return np.stack([signed[:, place], signed[:, beside].mean(axis=1)], axis=1)


def _pull(row: Float) -> float:
    gap = row[:, 0] - row[:, 1]
    return float(gap[0] / max(gap[1:].std(ddof=1), 1e-300))


def _interpolated(row: Float) -> Interpolated:
    error = row[1:].std(axis=0, ddof=1)
    return Interpolated(held_out=row[0, 0], held_out_error=error[0], beside=row[0, 1], beside_error=error[1])
