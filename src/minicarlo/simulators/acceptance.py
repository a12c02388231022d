"""Which particles are stopped at the front face, so that their showers can be made in another way, and the account of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import Detector

FATES = ("fast", "type", "energy", "angle", "position")
"""What becomes of a particle that enters: the fast path, or why it is tracked instead."""

FAST = FATES.index("fast")

FAST_ENERGY = "fast_energy"
"""Condition of fast event sets: energy of the particles on the fast path, MeV."""

FATE_CONDITIONS = ("fast_particles", "tracked_for_type", "tracked_for_energy", "tracked_for_angle", "tracked_for_position")
"""Conditions of fast event sets: how many particles had which fate, in the order of FATES."""


@dataclass(frozen=True)
class Acceptance:
    """Which particles are stopped at the front face, so that their showers can be made in another way.

    Those of `particles` with a kinetic energy from `low_mev` to `high_mev`, an angle to the normal of at most `theta` rad, and an
    entry that lies, in x and in y, at most `offset` cells from a point that whole cells of the grid separate from its
    centre. Such points exist for cartesian grids; with a cylindrical one, `offset` rings from the axis are the limit.
    """

    particles: tuple[str, ...]
    low_mev: float
    high_mev: float
    theta: float
    offset: float

    def fate(self, detector: Detector, particle: str, energy: float, x: float, y: float, theta: float) -> int:
        """What becomes of a particle, as an index of FATES. A relative 1e-6 is allowed for rounding at the limits."""
        if particle not in self.particles:
            return FATES.index("type")
        if not self.low_mev * (1 - 1e-6) <= energy <= self.high_mev * (1 + 1e-6):
            return FATES.index("energy")
        if theta > self.theta * (1 + 1e-6):
            return FATES.index("angle")
        for place, shift, pitch, cells in zip((x, y), whole_cells(detector, x, y), *_lattice(detector), strict=True):
            if abs(place - shift * pitch) > self.offset * pitch + 1e-6 * abs(place) or 2 * abs(shift) > cells:
                return FATES.index("position")
        return FAST


def whole_cells(detector: Detector, x: float, y: float) -> tuple[int, int]:
    """The number of whole cells in x and in y from the centre of the grid to the place nearest to (x, y) mm; zero in rings."""
    if detector.grid == "cylindrical":
        return 0, 0
    (_, first, second) = detector.cell_size
    return round(x / first), round(y / second)


def _lattice(detector: Detector) -> tuple[tuple[float, float], tuple[int, int]]:
    """Pitch and number of cells in x and in y."""
    (_, first, second), (_, n1, n2) = detector.cell_size, detector.shape
    return ((second, second), (n2, n2)) if detector.grid == "cylindrical" else ((first, second), (n1, n2))


def accounts(energies: NDArray[np.float32], counts: NDArray[np.int64], fates: NDArray[np.int8]) -> dict[str, NDArray[np.float32]]:
    """Conditions (n,) of a fast event set, of particles with `energies` (m,) MeV and `fates` (m,), `counts` (n,) to an event."""
    event = np.repeat(np.arange(len(counts)), counts)
    fast = np.where(fates == FAST, energies, 0).astype(np.float64)
    found = {FAST_ENERGY: np.bincount(event, fast, len(counts))}
    for fate, name in enumerate(FATE_CONDITIONS):
        found[name] = np.bincount(event[fates == fate], minlength=len(counts))
    return {name: values.astype(np.float32) for name, values in found.items()}
