"""The nearest Monte Carlo shower of a generated one, and whether generated showers lie suspiciously close to Monte Carlo showers.

Only showers of similar incident energy are compared. Their distance is the root mean square, over the features, of the
difference in standard deviations of the reference at one incident energy: 0 for a copy, about sqrt(2) for two unrelated
showers. The features are those of CaloChallenge's classifiers: response, and per layer the share of the energy, centre and
width in x and y, and share of silent cells. The median distance of reference showers to their own nearest neighbours is the
scale to judge a distance by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from minicarlo.errors import InvalidEventSet
from minicarlo.events import EventSet, iterate_events
from minicarlo.fidelity.observables import Measured, measure, strata_of

Array = NDArray[np.float32]
Float = NDArray[np.float64]
Rows = NDArray[np.int64]

ENERGY_WINDOW = 0.1
"""Largest difference of incident energies, relative to the smaller one."""
LARGEST = 100_000
"""Showers of a reference that are searched."""
CLOSENESS_ALPHA = 0.001
"""Chance of calling independent showers too close."""
CLOSEST = 0.01
"""Share of the distances that are compared."""

_FEATURES = ("response", "layer_fraction", "layer_centre_x", "layer_centre_y", "layer_width_x", "layer_width_y", "layer_sparsity")
_PIECE, _QUERIES, _POOL = 2000, 512, 8192


@dataclass(frozen=True)
class ShowerFeatures:
    """Incident energies (N,) in MeV and features (N, K) of showers; the first feature is the response."""

    energy: Array
    values: Array

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, rows: Rows) -> ShowerFeatures:
        return ShowerFeatures(self.energy[rows], self.values[rows])


def shower_features(events: EventSet | Path | str, *, most: int = LARGEST) -> ShowerFeatures:
    """The features of the first `most` showers; a file is read in pieces. Raises InvalidEventSet."""
    parts: list[ShowerFeatures] = []
    left = most
    for piece in _pieces(events):
        parts.append(features_of(measure(piece[:left])))
        left -= len(parts[-1])
        if not left:
            break
    if not parts:
        raise InvalidEventSet("The event set holds no events: there is nothing to compare.")
    return ShowerFeatures(np.concatenate([part.energy for part in parts]), np.concatenate([part.values for part in parts]))


def features_of(measured: Measured) -> ShowerFeatures:
    """The features of showers that are measured already."""
    columns = [measured.values[name].reshape(len(measured), -1) for name in _FEATURES]
    return ShowerFeatures(measured.energy, np.concatenate(columns, axis=1))


def _pieces(events: EventSet | Path | str) -> Iterator[EventSet]:
    if not isinstance(events, EventSet):
        return iterate_events(events, _PIECE)
    return (events[start : start + _PIECE] for start in range(0, len(events), _PIECE))


class Neighbourhood:
    """Reference showers in which nearest neighbours are searched."""

    def __init__(self, reference: ShowerFeatures) -> None:
        self._order = np.argsort(reference.energy, kind="stable")
        self._showers = reference[self._order]
        self._energy, values = self._showers.energy, self._showers.values.astype(np.float64)
        _, starts, sizes = np.unique(strata_of(self._energy), return_index=True, return_counts=True)
        within = values - np.repeat(np.add.reduceat(values, starts) / sizes[:, None], sizes, axis=0)
        deviation = np.sqrt((within**2).mean(axis=0))
        self._used = deviation > 1e-6
        self._mean, self._deviation = values.mean(axis=0)[self._used], deviation[self._used]
        self._scaled = self._scale(values)

    def nearest(self, showers: ShowerFeatures) -> tuple[Rows, Float]:
        """Row of the nearest reference shower and its distance, (N,) each; -1 and NaN where none has a similar energy.

        Showers without any cell above threshold are like one another by necessity and have no neighbours either.
        """
        return self._search(showers, self._scale(showers.values), np.full(len(showers), -1))

    def among_themselves(self, most: int) -> Float:
        """Distance of (at most so many, evenly spaced in energy) reference showers to the nearest other one; NaN for none."""
        places = np.unique(np.linspace(0, len(self._energy) - 1, most).astype(np.int64))
        return self._search(self._showers[places], self._scaled[places], places)[1]

    def pairs(self) -> Float:
        """Distance of every reference shower to the nearest other one, NaN for none; only once for two nearest to each other."""
        nearest, distance = self._search(self._showers, self._scaled, np.arange(len(self._energy)))
        partner = np.empty(len(nearest), np.int64)
        partner[self._order] = nearest
        again = (nearest >= 0) & (partner[nearest] == self._order) & (nearest < self._order)
        return np.asarray(distance[~again])

    def _scale(self, values: NDArray[np.floating]) -> Array:
        scaled = (values[:, self._used] - self._mean) / self._deviation / np.sqrt(max(1, self._used.sum()))
        return np.asarray(scaled, np.float32)

    def _search(self, showers: ShowerFeatures, scaled: Array, itself: Rows) -> tuple[Rows, Float]:
        """`scaled`: the showers' features; `itself`: the place (in order of energy) that each must not find."""
        energy = showers.energy
        found = np.full(len(energy), -1)
        least = np.full(len(energy), np.inf, np.float32)
        first = np.searchsorted(self._energy, energy / (1 + ENERGY_WINDOW), side="left")
        last = np.searchsorted(self._energy, energy * (1 + ENERGY_WINDOW), side="right")
        by_energy = np.argsort(energy, kind="stable")
        for block in (by_energy[start : start + _QUERIES] for start in range(0, len(energy), _QUERIES)):
            for low in range(first[block].min(), last[block].max(), _POOL):
                place = np.arange(low, min(low + _POOL, last[block].max()))
                pool = self._scaled[place]
                # |a - b|² less |a|², which does not move the minimum
                square = (pool**2).sum(axis=1) - 2 * scaled[block] @ pool.T
                outside = (place < first[block, None]) | (place >= last[block, None]) | (place == itself[block, None])
                square[outside] = np.inf
                best = square.argmin(axis=1)
                smallest = square[np.arange(len(block)), best]
                better = smallest < least[block]
                found[block[better]], least[block[better]] = place[best[better]], smallest[better]
        known = (found >= 0) & (showers.values[:, 0] > 0)
        distance = np.full(len(energy), np.nan)
        gap = scaled[known].astype(np.float64) - self._scaled[found[known]]
        distance[known] = np.sqrt((gap**2).sum(axis=1))
        return np.where(known, self._order[found], -1), distance


@dataclass(frozen=True)
class Closeness:
    """Whether generated showers lie closer to the reference than reference showers do to one another.

    `median` distance of the `events` generated showers, `scale`: of reference showers among themselves. Of the closest 1 % of
    all these distances `found` are generated showers', where `expected` would be by chance; `p_value`: of so many or more.
    `copies`: generated showers that lie less than half as far from the reference as any reference shower from another.
    """

    events: int
    median: float
    scale: float
    found: int
    expected: float
    p_value: float
    copies: int

    @property
    def too_close(self) -> bool:
        """More close pairs than chance allows: copies, or showers that fluctuate too little."""
        return self.p_value < CLOSENESS_ALPHA


def closeness(generated: Float, reference: Float) -> Closeness:
    """Compare distances to nearest neighbours: of generated showers to the reference, and within the reference.

    The data-copying test of Meehan, Chaudhuri and Dasgupta (arXiv:2004.05675), on the tail where copies are, with the exact
    (hypergeometric) distribution of the number there. NaN are left out; without any distances, nothing is too close.
    """
    generated, reference = (distances[np.isfinite(distances)] for distances in (generated, reference))
    n, m = len(generated), len(reference)
    if not n or not m:
        return Closeness(n, math.nan, math.nan, 0, 0.0, 1.0, 0)
    closest = max(1, round(CLOSEST * (n + m)))
    found = int((np.argsort(np.concatenate([reference, generated]), kind="stable")[:closest] >= m).sum())
    return Closeness(
        events=n,
        median=float(np.median(generated)),
        scale=float(np.median(reference)),
        found=found,
        expected=closest * n / (n + m),
        p_value=float(hypergeom.sf(found - 1, n + m, n, closest)),
        copies=int((generated < reference.min() / 2).sum()),
    )
