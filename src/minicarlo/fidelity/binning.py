"""Bins of the histograms: CaloChallenge's rules where it has one, quantiles of the reference elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity.distances import Float

BINS = 100
LAYER_BINS = 39
CELL_BINS = 49
_COUNTS = ("occupancy", "shower_maximum")
_WIDE = ("visible_energy", "front_back_ratio")


def edges_of(name: str, reference: NDArray[np.floating], threshold_mev: float) -> Float:
    """Edges for one observable (one layer of it) from the reference's values, (N,).

    As CaloChallenge's `evaluate_plotting_helper.py`: response 100 bins from 1/2 to 3/2, times the reference's mean where that
    lies outside (the response of a sampling calorimeter that is not calibrated is not one); layer energies 40 and cell
    energies 50 logarithmic edges from threshold to the reference's largest; centres of layers 100 bins from -30 to 30 mm,
    those in r and widths from 0 to 30 mm. Others: 100 bins between the reference's quantiles 0.1 % and 99.9 %, of a whole
    number of units for what is counted, logarithmic for what spans more than a decade.
    """
    values = reference.astype(np.float64)
    if name == "response":
        mean = values.mean()
        return np.linspace(0.5, 1.5, BINS + 1) * (1.0 if 0.5 < mean < 1.5 or not mean else mean)
    if name in ("layer_energy", "cell_energy"):
        low, high = max(threshold_mev, 1e-6), values.max(initial=0.0)
        number = CELL_BINS if name == "cell_energy" else LAYER_BINS
        return np.geomspace(low, high, number + 1) if high > 1.01 * low else np.linspace(low, 2 * low, number + 1)
    if name in ("layer_centre_x", "layer_centre_y"):
        return np.linspace(-30, 30, BINS + 1)
    if name.startswith(("layer_centre", "layer_width")):
        return np.linspace(0, 30, BINS + 1)
    low, high = np.quantile(values, [0.001, 0.999])
    if name in _COUNTS:
        width = max(1, int(np.ceil((high - low + 1) / BINS)))
        return np.arange(np.floor(low), np.ceil(high) + width + 1, width) - 0.5
    if name in _WIDE and low > 0 and high > 10 * low:
        return np.geomspace(low, high, BINS + 1)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def energy_edges(reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> Float:
    """Logarithmic bins of incident energy over both sets' range, at most eight and some 200 events in each; MeV."""
    low = float(min(reference.min(), candidate.min()))
    high = float(max(reference.max(), candidate.max()))
    number = int(np.clip(min(len(reference), len(candidate)) // 200, 1, 8)) if high > 1.2 * low else 1
    edges = np.geomspace(low, max(high, low * 1.001), number + 1)
    edges[0], edges[-1] = low, np.nextafter(np.float32(edges[-1]), np.float32(np.inf))
    return edges
