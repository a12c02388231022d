"""How quantities of a shower go together: Pearson coefficients of all pairs, and how far they are from another set's.

Coefficients at fixed incident energy (`fixed_energy.py`): over a range of energies layers of different showers of one energy
would hardly show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity.distances import Float

_EVENTS = 1024  # whose products are made at once: they stay in the processor's cache
_CONSTANT = 1e-6  # of the second moment: rounding leaves less of a variance


def pair_words(first: str, second: str, reference: float, candidate: float) -> str:
    """As in "layer 3 and layer 4: 0.81 instead of 0.95": enough digits to tell the coefficients from each other."""
    names = (name.replace("layer_fraction_", "layer ").replace("_", " ") for name in (first, second))
    gap = max(abs(candidate - reference), 1e-6)
    digits = max(2, 1 - math.floor(math.log10(gap)))
    return f"{' and '.join(names)}: {candidate:.{digits}f} instead of {reference:.{digits}f}"


@dataclass
class Products:
    """The products of all pairs (each also with itself) of 1 and K quantities per event, made only while they are summed.

    `values` (1 + K, N), the first row ones.
    """

    values: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """Events and products: (N, (K + 1) (K + 2) / 2)."""
        rows, events = self.values.shape
        return events, rows * (rows + 1) // 2

    def __getitem__(self, events: slice) -> Products:
        return Products(self.values[:, events])

    def sums(self, weights: NDArray[np.float32]) -> Float:
        """Sums over the events for every column of weights (N, B), (B, products): upper triangles, row by row.

        Float32 within `_EVENTS` events, float64 beyond.
        """
        number, products = self.shape
        found = np.zeros((products, weights.shape[1]))
        for start in range(0, number, _EVENTS):
            part = slice(start, start + _EVENTS)
            x = self.values[:, part]
            made = np.concatenate([one * x[k:] for k, one in enumerate(x)])
            found += made @ weights[part]
        return np.ascontiguousarray(found.T)


@dataclass
class CorrelationDistance:
    """|difference| of the Pearson coefficients of every pair of K quantities, K (K - 1) / 2 columns, and their mean."""

    features: Products
    power: float = 0.5

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> CorrelationDistance:
        """`values`: (N, K). In standard deviations from the mean, float32 is as good as float64."""
        scaled = np.ones((values.shape[1] + 1, len(values)), np.float32)
        for row, column in zip(scaled[1:], values.T, strict=True):
            column = column.astype(np.float64)
            row[:] = (column - column.mean()) / (column.std() or 1.0)
        return cls(Products(scaled))

    def pair(self, column: int) -> tuple[int, int]:
        """The two quantities of a column."""
        rows, columns = self._pairs
        return int(rows[column]), int(columns[column])

    def matrix(self, sums: Float) -> Float:
        """Pearson matrix of every row of sums, (B, K, K); coefficients of a quantity that does not vary are zero."""
        size = len(self.features.values)
        rows, columns = np.triu_indices(size)
        second = np.empty((len(sums), size, size))
        second[:, rows, columns] = second[:, columns, rows] = sums / sums[:, :1]
        mean = second[:, 0, 1:]
        covariance = second[:, 1:, 1:] - mean[:, :, None] * mean[:, None, :]
        square, variance = np.einsum("bii->bi", second)[:, 1:], np.einsum("bii->bi", covariance)
        varies = variance > _CONSTANT * square
        scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        return np.asarray(np.clip(covariance * scale[:, :, None] * scale[:, None, :], -1, 1))

    def __call__(self, first: Float, second: Float) -> Float:
        rows, columns = self._pairs
        gap = np.abs(self.matrix(first) - self.matrix(second))[:, rows, columns]
        return np.concatenate([gap, gap.mean(axis=1, keepdims=True)], axis=1)

    @property
    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = np.triu_indices(len(self.features.values) - 1, 1)
        return rows, columns
