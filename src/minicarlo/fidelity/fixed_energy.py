"""What is left of a quantity at fixed incident energy, and the changes of response and resolution that all energies share.

Over a range of energies nearly everything goes with the energy, whose spread hides changes that are small beside it. What is
expected at an energy is taken from the pooled events of both sets, so that it favours neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from minicarlo.fidelity.distances import Float, on_grid

ENERGIES = 30
"""Groups of neighbouring incident energies, fewer if they had less than `FEWEST` events."""
FEWEST = 50

_GRID = 128
_FLOAT32 = 1e-7  # values come in float32: to this part


def expected(values: NDArray[np.floating], energy: NDArray[np.floating]) -> tuple[Float, Float]:
    """What is expected of (N, K) values of pooled events at their incident energy (N,), and the standard deviation from it.

    Expected is what is linear in the energy within a group of neighbouring energies, which has one standard deviation: zero
    where the values do not vary.
    """
    groups = int(np.clip(len(energy) // FEWEST, 1, ENERGIES))
    edges = np.quantile(energy, np.arange(1, groups) / groups)
    place = np.searchsorted(edges, energy, side="right")
    expectation, spread = np.empty((2, *values.shape))
    for number in np.unique(place):
        rows = np.flatnonzero(place == number)
        x, y = energy[rows].astype(np.float64), values[rows].astype(np.float64)
        mean = y.mean(axis=0)
        x -= x.mean()
        line = mean + np.outer(x, x @ (y - mean) / max(x @ x, 1e-300))
        deviation = (y - line).std(axis=0)
        expectation[rows] = line
        spread[rows] = np.where(deviation > _FLOAT32 * np.abs(mean), deviation, 0)
    return expectation, spread


def at_fixed_energy(values: NDArray[np.floating], energy: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, K) values of pooled events in standard deviations from what is `expected`; zero for what does not vary."""
    expectation, spread = expected(values, energy)
    found = values - expectation
    return np.asarray(np.divide(found, spread, out=np.zeros_like(found), where=spread > 0), np.float32)


@dataclass
class SharedResponse:
    """|ratio - 1| of the mean response, all energies together: events weigh as the inverse square of its relative spread."""

    features: Float
    power: float = 0.5

    @classmethod
    def of(cls, response: NDArray[np.floating], energy: NDArray[np.floating]) -> SharedResponse:
        """(N,) response of the pooled events."""
        relative, spread = _relative(response, energy)
        weight = np.divide(1, spread**2, out=np.zeros_like(spread), where=spread > 0)
        weight /= weight.mean() or 1.0
        return cls(np.stack([weight, weight * relative], axis=1))

    def change(self, first: Float, second: Float) -> Float:
        """Ratio - 1 for (B, 2) sums, (B,)."""
        means = [np.divide(sums[:, 1], sums[:, 0], out=np.ones(len(sums)), where=sums[:, 0] > 0) for sums in (first, second)]
        return np.asarray(np.divide(means[1], means[0], out=np.ones_like(means[0]), where=means[0] > 0) - 1)

    def __call__(self, first: Float, second: Float) -> Float:
        return np.abs(self.change(first, second))[:, None]


@dataclass
class SharedResolution:
    """|ratio - 1| of the response's spread over its mean, all energies together.

    Spread is Gini's mean difference E|X - X'| = 2 int F (1 - F) dx. Of a Gaussian it is as good as the standard deviation (98 %
    of the information); of the tails that leakage and early interactions make, whose fourth moment decides how well a standard
    deviation is known, it suffers much less; and unlike a quantile or a trimmed spread it follows every change of place and
    scale exactly. It is taken per bin of energy, of the response at fixed energy in its own standard deviation; bins weigh as
    the inverse of its variance.
    """

    features: sparse.csr_matrix
    widths: Float
    weights: Float
    power: float = 0.5

    @classmethod
    def of(
        cls, response: NDArray[np.floating], energy: NDArray[np.floating], bins: NDArray[np.int64], filled: list[int]
    ) -> SharedResolution:
        """(N,) response of the pooled events and the number of the bin that each lies in, of which those in `filled` count."""
        relative, spread = _relative(response, energy)
        standardised = np.divide(relative - 1, spread, out=np.zeros_like(spread), where=spread > 0)
        number = len(filled)
        rows, numbers, places, widths, weights = [], [], [], [], []
        for k, which in enumerate(filled):
            chosen = np.flatnonzero(bins == which)
            edges, place = on_grid(standardised[chosen], _GRID)
            rows.append(chosen)
            numbers.append(np.full(len(chosen), k))
            places.append(k * _GRID + place)
            widths.append(np.diff(edges))
            weights.append(len(chosen) / max(_relative_variance(standardised[chosen]), 1e-300))
        row, column, place = np.concatenate(rows), np.concatenate(numbers), np.concatenate(places)
        means = sparse.csr_matrix((relative[row], (row, column)), shape=(len(relative), number))
        counts = sparse.csr_matrix((np.ones(len(row)), (row, place)), shape=(len(relative), number * _GRID))
        return cls(sparse.hstack([counts, means], format="csr"), np.stack(widths), np.array(weights) / np.sum(weights))

    def spread(self, sums: Float) -> Float:
        """Gini's mean difference over the mean, per bin: (B, bins)."""
        bins = len(self.weights)
        counts, means = sums[:, :-bins].reshape(len(sums), bins, _GRID), sums[:, -bins:]
        number = np.maximum(counts.sum(axis=2), 1e-300)
        high = np.cumsum(counts, axis=2) / number[..., None]
        low = high - counts / number[..., None]
        mixed = (low + high) / 2 - (low**2 + low * high + high**2) / 3  # mean of F (1 - F), F straight between the edges
        gini = 2 * np.einsum("bkg,kg->bk", mixed, self.widths)
        return np.asarray(gini * number / np.where(means > 0, means, np.inf))

    def change(self, first: Float, second: Float) -> Float:
        """Weighted mean over bins of ratio - 1 for two (B, M) sums, (B,)."""
        one, two = self.spread(first), self.spread(second)
        return np.asarray((np.divide(two, one, out=np.ones_like(one), where=one > 0) - 1) @ self.weights)

    def __call__(self, first: Float, second: Float) -> Float:
        return np.abs(self.change(first, second))[:, None]


def _relative(response: NDArray[np.floating], energy: NDArray[np.floating]) -> tuple[Float, Float]:
    """Response over what is expected, and its standard deviation."""
    (expectation,), (spread,) = (part.T for part in expected(response[:, None], energy))
    level = np.where(expectation > 0, expectation, 1.0)
    return response.astype(np.float64) / level, spread / level


def _relative_variance(values: Float) -> float:
    """n times the variance of log E|X - X'|, from what every value adds to it (its influence function)."""
    ordered = np.sort(values)
    number = len(ordered)
    total = np.cumsum(ordered)
    mean_distance = ((2 * np.arange(1, number + 1) - number) * ordered - 2 * total + total[-1]) / number
    mean = mean_distance.mean()
    return float(4 * np.mean((mean_distance - mean) ** 2) / mean**2) if mean > 0 else 0.0
