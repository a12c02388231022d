"""How large a difference is, in terms of physics: of the mean, else of the spread, else of the shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity.distances import Float, with_count
from minicarlo.fidelity.resampling import Resampled, Resamples, resample
from minicarlo.fidelity.scorecard import Difference

SIGNIFICANT = 3.0
"""Standard errors from which mean or spread are said to differ."""


@dataclass
class Moments:
    """Columns shift of the mean, shift over the reference's mean, and spread over the reference's spread minus one.

    `features` (N, 3): sums over an event of 1, x, x^2, where x counts from `origin`.
    """

    features: Float
    origin: float = 0.0
    power: float = 0.5

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Moments:
        """One value (N,) per event."""
        origin = float(values.mean(dtype=np.float64))
        x = values.astype(np.float64)[:, None] - origin
        return cls(with_count(np.concatenate([x, x**2], axis=1)), origin)

    def __call__(self, first: Float, second: Float) -> Float:
        (one, narrow), (two, wide) = (self._mean_and_spread(sums) for sums in (first, second))
        shift, mean = two - one, np.abs(one + self.origin)
        relative = np.divide(shift, mean, out=np.zeros_like(shift), where=mean > 0)
        wider = np.divide(wide, narrow, out=np.ones_like(wide), where=narrow > 0) - 1
        return np.stack([shift, relative, wider], axis=1)

    def _mean_and_spread(self, sums: Float) -> tuple[Float, Float]:
        mean = sums[:, 1] / sums[:, 0]
        return mean, np.sqrt(np.clip(sums[:, 2] / sums[:, 0] - mean**2, 0, None))


def difference(moments: Moments, resamples: Resamples, unit: str, where: str, shape: Difference | None) -> Difference:
    """The more significant one of mean and spread, or `shape`, if given and neither is significant.

    Arguments:
        unit: of the mean, when it is not to be given in per cent. where: beginning of the words, such as "layer 6: ".
        shape: the difference of the distributions.
    """
    found = resample(moments, resamples, permute=False)
    shift, relative, spread = np.abs(found.value) / np.maximum(found.error, 1e-300)
    mean = shift if unit else relative  # over a mean that may be zero, a length is nothing
    if shape is not None and max(mean, spread) < SIGNIFICANT:
        return shape
    if spread > mean and shape is not None:
        value, error = 100 * found.value[2], 100 * found.error[2]
        return _difference(value, error, "%", f"{where}spread {{}} {'larger' if value > 0 else 'smaller'}")
    value, error = (found.value[0], found.error[0]) if unit else (100 * found.value[1], 100 * found.error[1])
    return _difference(value, error, unit or "%", f"{where}mean {{}} {'higher' if value > 0 else 'lower'}")


def shape_difference(distribution: Resampled, fixed_energy: Resampled | None, column: int, where: str) -> Difference:
    """Beyond chance: the largest distance of the cumulative distributions, or if that is lost in its error, what is seen at fixed
    energy (Kolmogorov-Smirnov and Wasserstein distances).
    """
    value, error = beyond_chance(distribution, column)
    if value > error or fixed_energy is None:
        return _difference(100 * value, 100 * error, "%", f"{where}shape, cumulative distributions up to {{}} apart")
    value, error = beyond_chance(fixed_energy, column)
    return _difference(value, error, "", f"{where}shape at fixed energy, {{}} standard deviations apart")


def energy_difference(what: str, ratio: Float, error: Float, edges: Float, bin_number: int) -> Difference:
    """Of a ratio in bins of energy (MeV) with its error, the one in a bin."""
    value, spread = 100 * (ratio[bin_number] - 1), 100 * error[bin_number]
    low, high = edges[bin_number] / 1000, edges[bin_number + 1] / 1000
    words = f"{what} {{}} {'higher' if value > 0 else 'lower'} at {low:.3g} to {high:.3g} GeV"
    return _difference(value, spread, "%", words)


def shared_difference(what: str, value: float, error: float) -> Difference:
    """Of a ratio less one that all energies share."""
    words = f"{what} {{}} {'higher' if value > 0 else 'lower'} at all energies"
    return _difference(100 * value, 100 * error, "%", words)


def deviation_difference(part: Resampled, unit: str, words: str) -> Difference:
    """Of a deviation, beyond chance; `words` has a place for it."""
    value, error = beyond_chance(part)
    scale = 100 if unit == "%" else 1
    return _difference(scale * value, scale * error, unit, words)


def beyond_chance(part: Resampled, column: int = -1) -> tuple[float, float]:
    """A distance without what chance adds to it, and its error."""
    excess = part.quadratic(part.value[column]) - part.quadratic(part.null[:, column]).mean()
    return float(max(excess, 0.0) ** part.power), float(part.error[column])


def plus_minus(value: float, error: float, unit: str = "") -> str:
    """0.0123 and 0.0012 -> "0.0123 ± 0.0012", the error with two digits."""
    behind = f" {unit}" if unit else ""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.3g}{behind}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{behind}"


def _difference(value: float, error: float, unit: str, words: str) -> Difference:
    return Difference(value=value, error=error, unit=unit, words=words.format(plus_minus(abs(value), error, unit)))
