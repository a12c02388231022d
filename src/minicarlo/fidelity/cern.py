"""The accuracy figure of CERN's 3DGAN studies: mean relative error of the moments of the energy profiles.

Definition (svalleco/3Dgan, `Functions_v1_5_8.py`: `get_moments`, `metric`, `validate`; Khattak et al., Rehm et al.
arXiv:2103.10142). For every bin of incident energy and every axis a in x, y, z (on a cylindrical grid phi, r, z), a shower's
energies are summed over the two other axes. With i the number of the cell, counted from zero, and E the shower's energy,

    m1 = sum i p_i / E,    m2 = sum (i - m1)^2 p_i / E,

and the figure is |<m>_MC - <m>_candidate| / <m>_MC, averaged over the axes, over m1 and m2, and over the bins (one of which
is "all"). Beside it stands the same for the mean profiles: mean over the cells of |<p_i>_MC - <p_i>_candidate| / <p_i>_MC,
over axes, over bins.

What we do not take over from that code: it adds the moment term twice (so that what it prints is twice the figure:
`as_coded`); its bins of 50 to 500 GeV +- 5 GeV are ours to choose; it draws the generator's noise around 0.1. It drops cells
below 1e-6 of its unit, we those below the readout threshold. Cells of a mean profile that the Monte Carlo leaves empty, and
bins with fewer than `FEWEST` events on either side, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from minicarlo.fidelity.distances import Float
from minicarlo.fidelity.observables import Measured

FEWEST = 20
MOMENTS = 2

Bin = tuple[float, float] | None
"""Incident energies low <= E < high in MeV; None is all."""


def profile_moments(profiles: NDArray[np.floating]) -> Float:
    """m1 and m2 of (N, cells) profiles, (N, 2) in cells; zero for a profile without energy."""
    energy = profiles.astype(np.float64)
    total = np.maximum(energy.sum(axis=1), 1e-300)
    index = np.arange(energy.shape[1])
    first = energy @ index / total
    second = (energy * (index - first[:, None]) ** 2).sum(axis=1) / total
    return np.stack([first, second], axis=1)


@dataclass
class CernFigure:
    """The figure as a distance: columns moments, profiles, and the moments of every bin."""

    features: sparse.csr_matrix
    bins: list[Bin]
    cells: tuple[int, int, int]
    power: float = 0.5

    @classmethod
    def of(cls, reference: Measured, candidate: Measured, bins: Sequence[Bin]) -> CernFigure:
        """Bins with too few events on either side are dropped."""
        profiles = [
            np.concatenate([one, two]).astype(np.float64)
            for one, two in zip(_profiles(reference), _profiles(candidate), strict=True)
        ]
        energy = np.concatenate([reference.energy, candidate.energy])
        lit = profiles[2].sum(axis=1) > 0
        ours = np.arange(len(energy)) < len(reference)
        table = sparse.csr_matrix(
            np.concatenate([np.ones((len(energy), 1)), *(profile_moments(one) for one in profiles), *profiles], axis=1)
        )
        kept, parts = [], []
        for limits in bins:
            inside = lit if limits is None else lit & (energy >= limits[0]) & (energy < limits[1])
            if min(np.count_nonzero(inside & ours), np.count_nonzero(inside & ~ours)) >= FEWEST:
                kept.append(limits)
                parts.append(sparse.diags(inside.astype(np.float64)) @ table)
        cells = (profiles[0].shape[1], profiles[1].shape[1], profiles[2].shape[1])
        features = sparse.hstack(parts, format="csr") if parts else sparse.csr_matrix((len(energy), 0))
        return cls(features, kept, cells)

    def __call__(self, first: Float, second: Float) -> Float:
        one, two = self._means(first), self._means(second)
        count = 3 * MOMENTS
        moments = relative_error(one[..., :count], two[..., :count]).mean(axis=2)
        ends = np.cumsum(self.cells) + count
        profiles = np.stack(
            [
                relative_error(one[..., low:high], two[..., low:high]).sum(axis=2)
                / np.maximum((one[..., low:high] > 0).sum(axis=2), 1)
                for low, high in zip([count, *ends[:-1]], ends, strict=True)
            ],
            axis=2,
        ).mean(axis=2)
        return np.concatenate([moments.mean(axis=1)[:, None], profiles.mean(axis=1)[:, None], moments], axis=1)

    def _means(self, sums: Float) -> Float:
        table = sums.reshape(len(sums), len(self.bins), -1)
        return np.asarray(table[..., 1:] / np.maximum(table[..., :1], 1e-300))


def relative_error(reference: Float, candidate: Float) -> Float:
    """|reference - candidate| / |reference|, zero where the reference is zero."""
    return np.divide(np.abs(reference - candidate), np.abs(reference), out=np.zeros(reference.shape), where=reference != 0)


def _profiles(measured: Measured) -> tuple[NDArray[np.float32], ...]:
    first, second = measured.detector.axes[1:]
    return measured.along[first], measured.along[second], measured.values["layer_energy"]
