"""What theory says of electromagnetic showers, held against simulated ones.

Definitions and formulas are those of the Review of Particle Physics, "Passage of particles through matter" (PDG), section
"Electromagnetic cascades": t_max = ln(E/Ec) - 0.5 for electrons, a profile of the shape of a gamma distribution, and 90 % of the
energy within one Moliere radius R_M = X0 * 21.2 MeV / Ec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from minicarlo.detectors import Detector, get_detector
from minicarlo.events import EventSet

Array = NDArray[np.float64]

REPLICAS = 50


@dataclass(frozen=True)
class Substance:
    """Radiation length in mm, critical energy of electrons in MeV, loss of minimum ionising particles in MeV/mm (PDG tables)."""

    x0: float
    critical: float
    mip: float


SUBSTANCES = {
    "G4_W": Substance(3.504, 7.97, 2.207),
    "G4_Si": Substance(93.70, 40.19, 0.3876),
    "G4_AIR": Substance(303_900, 87.92, 0.000219),
}


@dataclass(frozen=True)
class Mean:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Expected:
    """What a detector's materials say: radiation lengths of a cell, Ec in MeV, R_M in mm, sampling fraction of a mip."""

    lengths: float
    critical: float
    moliere: float
    mip_fraction: float


def expected(detector: Detector) -> Expected:
    """Properties of the mixture; its critical energy is the loss per radiation length (Rossi)."""
    plates = [(plate, SUBSTANCES[plate.name]) for plate in detector.materials]
    lengths = sum(plate.mm / substance.x0 for plate, substance in plates)
    critical = sum(plate.mm * substance.critical / substance.x0 for plate, substance in plates) / lengths
    x0 = sum(plate.mm for plate, _ in plates) / lengths
    losses = [plate.mm * substance.mip for plate, substance in plates]
    read_out = sum(loss for (plate, _), loss in zip(plates, losses, strict=True) if plate.sensitive)
    return Expected(detector.layers_per_cell * lengths, critical, x0 * 21.2 / critical, read_out / sum(losses))


def sensor_depths(detector: Detector) -> Array:
    """Mean depth of what each cell sees in radiation lengths from the front face, shape (nz,).

    Where several plates of a layer are read out, each counts by what minimum ionising particles leave in it.
    """
    depth, middles, losses = 0.0, [], []
    for plate in detector.materials:
        lengths = plate.mm / SUBSTANCES[plate.name].x0
        if plate.sensitive:
            middles.append(depth + lengths / 2)
            losses.append(plate.mm * SUBSTANCES[plate.name].mip)
        depth += lengths
    within = np.average(middles, weights=losses) + depth * np.arange(detector.layers_per_cell).mean()
    return np.asarray(within + depth * detector.layers_per_cell * np.arange(detector.layers), np.float64)


def shower_maximum(events: EventSet) -> Mean:
    """Depth of the maximum of the mean profile in radiation lengths, from a fit of t^(a-1) exp(-bt)."""
    detector = get_detector(events.detector)
    depths = sensor_depths(detector)
    profiles = events.samples.sum(axis=(2, 3), dtype=np.float64) / events.incident_energy[:, None]

    def maximum(rows: NDArray[np.intp]) -> float:
        mean, error = profiles[rows].mean(axis=0), profiles[rows].std(axis=0, ddof=1) / np.sqrt(len(rows))
        used = mean > 0.02 * mean.max()
        shape: Any = lambda t, peak, a, b: peak * (b * t) ** (a - 1) * np.exp(-b * t)  # noqa: E731
        start = (mean.max() * 2, 4.0, 0.5)
        bounds = (0, 1.01, 0.05), (np.inf, 30, 3)
        (_, a, b), _ = curve_fit(shape, depths[used], mean[used], start, error[used], bounds=bounds)
        return float((a - 1) / b)

    return _bootstrap(maximum, len(events))


def response(events: EventSet) -> Mean:
    """Mean visible over incident energy."""
    values = _visible(events) / events.incident_energy
    return Mean(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def resolution(events: EventSet) -> Mean:
    """Standard deviation over mean of the visible energy."""
    values = _visible(events)
    value = float(values.std(ddof=1) / values.mean())
    return Mean(value, value / np.sqrt(2 * (len(values) - 1)))


def radius_90(events: EventSet) -> Mean:
    """Radius in mm around the axis that holds 90 % of the mean visible energy inside the window."""
    detector = get_detector(events.detector)
    planes = events.samples.sum(axis=1, dtype=np.float64).reshape(len(events), -1)
    radii, cells = _points(detector)
    share = 1 / np.bincount(cells)
    distances, which = np.unique(radii.round(6), return_inverse=True)

    def radius(rows: NDArray[np.intp]) -> float:
        inside = np.cumsum(np.bincount(which, (planes[rows].mean(axis=0) * share)[cells]))
        return float(np.interp(0.9 * inside[-1], inside, distances))

    return _bootstrap(radius, len(events))


def sampling_fraction(events: EventSet) -> Mean:
    """Share of the incident energy that is deposited in sensitive plates, before any calibration."""
    found, scale = response(events), get_detector(events.detector).energy_scale
    return Mean(found.value / scale, found.error / scale)


def mean(values: Sequence[Mean]) -> Mean:
    """Mean weighted with the inverse squares of the errors."""
    weights = [1 / value.error**2 for value in values]
    return Mean(float(np.average([value.value for value in values], weights=weights)), float(sum(weights) ** -0.5))


def fit_line(x: Sequence[float], values: Sequence[Mean]) -> tuple[Mean, Mean]:
    """Slope, and value at x = 0, of the straight line of least squares."""
    y, errors = np.array([value.value for value in values]), np.array([value.error for value in values])
    design = np.stack([np.asarray(x, np.float64), np.ones(len(y))], axis=1) / errors[:, None]
    covariance = np.linalg.inv(design.T @ design)
    slope, offset = covariance @ design.T @ (y / errors)
    return Mean(float(slope), float(np.sqrt(covariance[0, 0]))), Mean(float(offset), float(np.sqrt(covariance[1, 1])))


def fit_resolution(gev: Sequence[float], values: Sequence[Mean]) -> tuple[Mean, Mean]:
    """a and c of a / sqrt(E / GeV), added in quadrature to c: a straight line of the squares in 1 / E."""
    predicted = np.array([value.value for value in values])
    for _ in range(5):  # an error in proportion to the value itself would favour points that fluctuate down
        relative = [value.error / value.value for value in values]
        squares = [Mean(v.value**2, 2 * p**2 * r) for v, p, r in zip(values, predicted, relative, strict=True)]
        first, second = fit_line([1 / energy for energy in gev], squares)
        predicted = np.sqrt(first.value / np.array(gev) + max(second.value, 0.0))
    return _root(first), _root(second)


def _root(square: Mean) -> Mean:
    value = float(np.sqrt(max(square.value, 0.0)))
    return Mean(value, min(square.error / (2 * value), float(np.sqrt(square.error))) if value else float(np.sqrt(square.error)))


def _visible(events: EventSet) -> Array:
    return np.asarray(events.samples.sum(axis=(1, 2, 3), dtype=np.float64))


def _bootstrap(statistic: Callable[[NDArray[np.intp]], float], count: int) -> Mean:
    random = np.random.default_rng(0)
    replicas = [statistic(random.integers(0, count, count)) for _ in range(REPLICAS)]
    return Mean(statistic(np.arange(count)), float(np.std(replicas, ddof=1)))


def _points(detector: Detector) -> tuple[Array, NDArray[np.intp]]:
    """Radii in mm of points that fill the cells of a layer evenly, and the cell of each."""
    (_, n1, n2), (_, first, second) = detector.shape, detector.cell_size
    fine = (np.arange(20) + 0.5) / 20
    cells = np.arange(n1 * n2)
    if detector.grid == "cylindrical":
        inner = (cells % n2)[:, None]
        radii = second * np.sqrt(inner**2 + fine * (2 * inner + 1))
    else:
        x = (cells // n2 - n1 / 2)[:, None, None] + fine[:, None]
        y = (cells % n2 - n2 / 2)[:, None, None] + fine
        radii = np.hypot(x * first, y * second).reshape(len(cells), -1)
    return radii.ravel(), np.repeat(cells, radii.shape[1])
