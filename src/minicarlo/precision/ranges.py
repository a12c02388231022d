"""Ranges of activations: which interval of a layer's inputs the 256 integers cover.

All estimators see the same histogram of values that reach the layer in float32, and every range has zero on its grid, because
zeros (of a ReLU, of a border) are the most frequent values and must stay zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minicarlo.precision.scheme import Scheme

Key = TypeVar("Key")
Array = NDArray[np.float64]
Bounds = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

LEVELS = 256
BINS = 2048
_PERCENTILE = 1e-4
"""Share of the values that may lie beyond each end."""
_SHARES = np.linspace(0.1, 1.0, 37)
"""Ends that the search for the least squared error tries, as shares of the extremes."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins from `low` to `high`; `zeros` are the exact zeros among them, which are in no bin."""

    low: float
    high: float
    counts: Array
    zeros: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.floating], low: float, high: float) -> Histogram:
        """The histogram of values that lie between `low` and `high`."""
        filled = values[values != 0]
        counts, _ = np.histogram(filled, BINS, (low, high) if low < high else (low, low + 1))
        return cls(low, high, counts.astype(np.float64), float(values.size - filled.size))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.low, self.high, self.counts + other.counts, self.zeros + other.zeros)

    @property
    def centres(self) -> Array:
        """Middles of the bins."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[1:] + edges[:-1]) / 2


def histograms(passes: Callable[[], Iterable[Mapping[Key, NDArray[Any]]]]) -> dict[Key, Histogram]:
    """Histograms of arrays by name over all batches; `passes` goes through these, and is called twice."""
    extremes: dict[Key, tuple[float, float]] = {}
    for batch in passes():
        for name, values in batch.items():
            low, high = extremes.get(name, (np.inf, -np.inf))
            extremes[name] = min(low, float(values.min())), max(high, float(values.max()))
    found: dict[Key, Histogram] = {}
    for batch in passes():
        for name, values in batch.items():
            part = Histogram.of(values, *extremes[name])
            found[name] = found[name] + part if name in found else part
    return found


def bounds(histogram: Histogram, scheme: Scheme) -> Bounds:
    """Range of a FakeQuantize of 256 levels: input low and high, output low and high."""
    low, high = _ESTIMATORS[scheme.ranges](histogram)
    return on_grid(low, high, scheme.symmetric)


def on_grid(low: float, high: float, symmetric: bool) -> Bounds:
    """The range from about `low` to `high` in which zero is one of the levels; where all is above zero, from zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = 1.0
    last = LEVELS - 1
    exact = -low / (high - low) * last
    least, most = int(low < 0), last - int(high > 0)
    zeros = {min(max(each, least), most) for each in (math.floor(exact), math.ceil(exact))}
    if low < 0 and symmetric:
        zeros = {LEVELS // 2}

    def step_of(zero: int) -> float:
        sides = ((-low, zero), (high, last - zero))
        return max(side / levels for side, levels in sides if side > 0)

    zero = min(sorted(zeros), key=step_of)
    step = step_of(zero)
    bottom, top = np.asarray(np.float32(-zero * step)), np.asarray(np.float32((last - zero) * step))
    return bottom, top, bottom, top


def min_max(histogram: Histogram) -> tuple[float, float]:
    """The extremes."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> tuple[float, float]:
    """What leaves one value in 10,000 beyond each end, zeros counted."""
    total = histogram.counts.sum() + histogram.zeros
    if total == 0:
        return min_max(histogram)
    centres, running = histogram.centres, np.cumsum(histogram.counts)
    running = running + np.where(centres > 0, histogram.zeros, 0.0)
    low = centres[min(np.searchsorted(running, _PERCENTILE * total), BINS - 1)]
    high = centres[min(np.searchsorted(running, (1 - _PERCENTILE) * total), BINS - 1)]
    return max(float(low), histogram.low), min(float(high), histogram.high)


def least_squares(histogram: Histogram) -> tuple[float, float]:
    """The ends of least mean squared error: of rounding, a twelfth of a step squared, and of clipping."""
    centres, counts = histogram.centres, histogram.counts
    lows = _SHARES * histogram.low if histogram.low < 0 else np.zeros(1)
    highs = _SHARES * histogram.high if histogram.high > 0 else np.zeros(1)
    below = [float(counts @ np.minimum(centres - low, 0) ** 2) for low in lows]
    above = [float(counts @ np.maximum(centres - high, 0) ** 2) for high in highs]
    steps = (highs[None, :] - lows[:, None]) / (LEVELS - 1)
    error = np.array(below)[:, None] + np.array(above)[None, :] + counts.sum() * steps**2 / 12
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    return float(lows[row]), float(highs[column])


def least_divergence(histogram: Histogram) -> tuple[float, float]:
    """The ends whose rounded distribution is nearest to the clipped one by Kullback and Leibler, of the values' sizes.

    References:
        S. Migacz, 8-bit Inference with TensorRT, GTC 2017
    """
    largest = max(-histogram.low, histogram.high)
    signed = histogram.low < 0
    if largest <= 0:
        return min_max(histogram)
    sizes, _ = np.histogram(np.abs(histogram.centres), BINS, (0, largest), weights=histogram.counts)
    levels = LEVELS // 2 if signed else LEVELS
    best, size = np.inf, BINS
    for stop in range(levels, BINS + 1, BINS // 128):
        divergence = _divergence(sizes, stop, levels)
        if divergence < best:
            best, size = divergence, stop
    threshold = largest * size / BINS
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _divergence(sizes: Array, stop: int, levels: int) -> float:
    """Between the distribution clipped at bin `stop` and the same rounded to `levels` levels."""
    clipped = sizes[:stop].copy()
    clipped[-1] += sizes[stop:].sum()
    kept = sizes[:stop]
    level = np.arange(stop) * levels // stop
    filled = kept > 0
    shared = np.bincount(level, kept, levels) / np.maximum(np.bincount(level, filled, levels), 1)
    rounded = np.where(filled, shared[level], 0.0)
    if rounded.sum() == 0 or clipped.sum() == 0:
        return float(np.inf)
    true, made = clipped / clipped.sum(), rounded / rounded.sum()
    there = true > 0
    return float(np.sum(true[there] * np.log(true[there] / np.maximum(made[there], 1e-12))))


_ESTIMATORS = {"min-max": min_max, "percentile": percentile, "mse": least_squares, "kl": least_divergence}
