"""Distances between two sets of events, each a function of sums over events.

Every distance here depends on a set only through sums of per-event features (a histogram, moments, a profile). Bootstrap
replicas, permutations and halves are then other weights in the same sums: one matrix product per distance, nothing is
measured twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

Float = NDArray[np.float64]

GRID = 512
"""Intervals of the grid on which the Wasserstein distance is integrated (128 per layer)."""
LAYER_GRID = 128

_MOMENTS = 3  # sums of the powers 0 to 2


class Distance(Protocol):
    """`features`: (N, M) over the pooled events, reference first; called with two (B, M) sums it gives (B, C) distances.

    Where there is a column per layer (sector, bin), their mean is the last.

    `power`: how the distance between two samples of one population falls with their sizes, (1/n + 1/m) ** power.
    """

    @property
    def features(self) -> Any: ...  # noqa: ANN401

    @property
    def power(self) -> float: ...

    def __call__(self, first: Float, second: Float) -> Float: ...


def separation_power(first: ArrayLike, second: ArrayLike) -> Float:
    """1/2 sum (h1 - h2)^2 / (h1 + h2) over the last axis of two histograms, each normalised to one: 0 identical, 1 disjoint.

    CaloChallenge, `evaluate_plotting_helper.py`; eq. 15 of arXiv:2009.03796 (triangular discrimination).
    """
    h1, h2 = _normalise(np.asarray(first, np.float64)), _normalise(np.asarray(second, np.float64))
    return np.asarray(0.5 * np.sum((h1 - h2) ** 2 / np.maximum(h1 + h2, 1e-300), axis=-1))


def bin_index(values: ArrayLike, edges: ArrayLike) -> NDArray[np.int64]:
    """0 below the first edge, k in the k-th bin [low, high), the last number at or above the last edge.

    The last edge itself belongs to the last bin, as in `numpy.histogram`.
    """
    values, edges = np.asarray(values), np.asarray(edges, np.float64)
    index = np.searchsorted(edges, values, side="right")
    index[values == edges[-1]] = len(edges) - 1
    return index


def grid_edges(values: NDArray[np.floating], intervals: int) -> Float:
    """Edges at quantiles of the values: most where most of them are."""
    return _quantile_edges(np.sort(values.astype(np.float64)), intervals)


def on_grid(values: NDArray[np.floating], intervals: int) -> tuple[Float, NDArray[np.int32]]:
    """`grid_edges` of (N,) values, and the interval [edge, next edge) that each of them lies in."""
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    edges = _quantile_edges(ordered, intervals)
    starts = np.searchsorted(ordered, edges[:-1], side="left")
    place = np.empty(len(values), np.int32)
    place[order] = np.cumsum(np.bincount(starts, minlength=len(values))) - 1
    return edges, place


def _quantile_edges(ordered: Float, intervals: int) -> Float:
    edges = ordered[np.linspace(0, len(ordered) - 1, intervals + 1).round().astype(np.int64)]
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return edges


@dataclass
class SeparationPower:
    """Separation power of (N, L) values in bins `edges[l]`; below and above the edges count as two more bins."""

    features: sparse.csr_matrix
    bins: int
    power: float = 1.0

    @classmethod
    def of(cls, values: NDArray[np.floating], edges: Sequence[Float]) -> SeparationPower:
        """One distance per column of `values`, whose histograms have the edges of the same place in `edges`."""
        bins = max(map(len, edges)) + 1
        index = np.stack([bin_index(column, edge) for column, edge in zip(_columns(values).T, edges, strict=True)], axis=1)
        return cls(one_hot(index, bins), bins)

    def __call__(self, first: Float, second: Float) -> Float:
        shape = (len(first), -1, self.bins)
        return _with_mean(separation_power(first.reshape(shape), second.reshape(shape)))


@dataclass
class Wasserstein:
    """Wasserstein-1 distance of (N, L) values, in units of the reference's standard deviation, integrated on a grid."""

    features: sparse.csr_matrix | NDArray[np.floating]
    widths: Float
    power: float = 0.5

    @classmethod
    def of(cls, values: NDArray[np.floating], scales: ArrayLike, intervals: int = GRID) -> Wasserstein:
        """One distance per column of `values`, divided by `scales` (those that are zero count as one)."""
        index, widths = [], []
        for column, scale in zip(_columns(values).T, np.atleast_1d(scales), strict=True):
            edges, place = on_grid(column, intervals)
            index.append(place)
            widths.append(np.diff(edges) / (scale or 1.0))
        return cls(one_hot(np.stack(index, axis=1), intervals), np.stack(widths))

    def gap(self, first: Float, second: Float) -> Float:
        """Difference of the cumulative distributions at the upper edges of the grid, (B, L, intervals)."""
        shape = (len(first), *self.widths.shape)
        return np.asarray(np.cumsum(_normalise(first.reshape(shape)) - _normalise(second.reshape(shape)), axis=-1))

    def columns(self, first: Float, second: Float) -> Float:
        """The distances without their mean."""
        gap = np.abs(self.gap(first, second))
        gap[..., 1:] = (gap[..., 1:] + gap[..., :-1]) / 2
        gap[..., 0] /= 2
        return np.asarray(np.einsum("blk,lk->bl", gap, self.widths))

    def __call__(self, first: Float, second: Float) -> Float:
        return _with_mean(self.columns(first, second))


@dataclass
class KolmogorovSmirnov:
    """Largest difference of the cumulative distributions, at the edges of the grid of a Wasserstein distance.

    Between two edges the distributions may be further apart, by less than either's share of events there: twice a part in
    `GRID` of the pooled events, 0.4 % (1.6 % per layer), when the sets are of one size. Values that repeat lie on edges, so
    that counts are exact.
    """

    wasserstein: Wasserstein
    power: float = 0.5

    @property
    def features(self) -> sparse.csr_matrix | NDArray[np.floating]:
        return self.wasserstein.features

    def columns(self, first: Float, second: Float) -> Float:
        """The distances without their mean."""
        return np.asarray(np.abs(self.wasserstein.gap(first, second)).max(axis=-1))

    def __call__(self, first: Float, second: Float) -> Float:
        return _with_mean(self.columns(first, second))


@dataclass
class ProfileDeviation:
    """Sum of |difference| over the sum of the reference, of two mean profiles: the share of energy that is in a wrong place."""

    features: NDArray[np.floating]
    power: float = 0.5

    @classmethod
    def of(cls, profiles: NDArray[np.floating]) -> ProfileDeviation:
        """`profiles`: (N, K), energy per part of the detector over incident energy."""
        return cls(with_count(profiles))

    def __call__(self, first: Float, second: Float) -> Float:
        one, two = first[:, 1:] / first[:, :1], second[:, 1:] / second[:, :1]
        return np.asarray(np.abs(two - one).sum(axis=1) / np.maximum(np.abs(one).sum(axis=1), 1e-300))[:, None]


@dataclass
class EnergyDependence:
    """|ratio - 1| of the mean (`order` 1) or of deviation over mean (`order` 2) of a value, per bin of incident energy.

    Of several bins also their mean. A change that all energies share is found with far fewer events by `SharedResponse` and
    `SharedResolution` (`fixed_energy.py`): chance has no sign in common.
    """

    features: sparse.csr_matrix
    bins: int
    order: int
    power: float = 0.5

    @classmethod
    def of(cls, values: NDArray[np.floating], bins: NDArray[np.int64], number: int, order: int) -> EnergyDependence:
        """`bins`: the bin of each event, 0 .. number - 1; events with another number count nowhere."""
        value = values.astype(np.float64)
        powers = np.stack([value**k for k in range(_MOMENTS)], axis=1)
        inside = (bins >= 0) & (bins < number)
        rows = np.repeat(np.flatnonzero(inside), _MOMENTS)
        columns = (bins[inside, None] * _MOMENTS + np.arange(_MOMENTS)).ravel()
        features = sparse.csr_matrix((powers[inside].ravel(), (rows, columns)), shape=(len(value), number * _MOMENTS))
        return cls(features, number, order)

    def counts(self, sums: Float) -> Float:
        """Sum of the weights of events per bin: (B, bins)."""
        return np.asarray(self._sums(sums)[0])

    def figure(self, sums: Float) -> Float:
        """Mean, or deviation over mean, per bin: (B, bins); NaN where a bin is empty."""
        count, total, squares = self._sums(sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / count
            if self.order == 1:
                return np.asarray(mean)
            variance = np.clip(squares / count - mean**2, 0, None) * count / (count - 1)
            return np.asarray(np.sqrt(variance) / mean)

    def ratio(self, first: Float, second: Float) -> Float:
        """Second over first, per bin."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.figure(second) / self.figure(first))

    def __call__(self, first: Float, second: Float) -> Float:
        return _with_mean(np.abs(np.nan_to_num(self.ratio(first, second) - 1, nan=0.0, posinf=0.0)))

    def _sums(self, sums: Float) -> Float:
        return np.moveaxis(sums.reshape(len(sums), self.bins, _MOMENTS), -1, 0)


def one_hot(index: NDArray[np.integer], bins: int) -> sparse.csr_matrix:
    """(N, L) bin numbers as an (N, L * bins) matrix of zeros and ones."""
    rows, columns = index.shape
    flat = (index + bins * np.arange(columns)).astype(np.int32).ravel()
    starts = np.arange(rows + 1) * columns
    return sparse.csr_matrix((np.ones(flat.size, np.float32), flat, starts), shape=(rows, columns * bins))


def with_count(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """A column of ones before the features."""
    return np.concatenate([np.ones((len(features), 1)), features.astype(np.float64)], axis=1)


def _columns(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return values.reshape(len(values), -1)


def _normalise(histogram: Float) -> Float:
    return np.asarray(histogram / np.maximum(histogram.sum(axis=-1, keepdims=True), 1e-300))


def _with_mean(columns: Float) -> Float:
    if columns.shape[1] == 1:
        return columns
    return np.concatenate([columns, columns.mean(axis=1, keepdims=True)], axis=1)
