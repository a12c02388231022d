"""Named voxel geometries."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, tau
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import UnknownDetector

CLIC_ECAL = "clic-ecal"
PAR04_SIW = "par04-siw"

Grid = Literal["cartesian", "cylindrical"]
Float = NDArray[np.float64]

_AXES: dict[Grid, tuple[str, str, str]] = {"cartesian": ("z", "x", "y"), "cylindrical": ("z", "phi", "r")}


@dataclass(frozen=True)
class Detector:
    """A sampling calorimeter read out in a regular grid of cells, z along the shower.

    `grid` is the transverse one: cartesian with axes (z, x, y), the incident axis in its middle, or cylindrical around the
    incident axis with axes (z, phi, r), as in CaloChallenge; the last axis is the fastest. `cell_size` is the pitch:
    (mm, mm, mm), or (mm, rad, mm). A cell is `layers_per_cell` layers deep, each absorber, sensor and gap one after another
    along z. A cell whose energy is below `readout_threshold_mev` is not read out.
    """

    name: str
    shape: tuple[int, int, int]
    grid: Grid
    cell_size: tuple[float, float, float]
    absorber: str
    absorber_mm: float
    sensor: str
    sensor_mm: float
    gap: str
    gap_mm: float
    readout_threshold_mev: float
    description: str
    layers_per_cell: int = 1

    @property
    def voxels(self) -> int:
        """Number of cells of one event."""
        return prod(self.shape)

    @property
    def layers(self) -> int:
        """Number of cells along z."""
        return self.shape[0]

    @property
    def axes(self) -> tuple[str, str, str]:
        """Names of the axes of a sample."""
        return _AXES[self.grid]

    def transverse(self) -> tuple[Float, Float]:
        """x and y of the middles of the n1 * n2 cells of a layer, mm from the incident axis, in the order of a sample.

        The middle of a cylindrical cell is at r = (k + 1/2) dr and phi = (j + 1/2) dphi, as in CaloChallenge's `XMLHandler.py`.
        """
        (_, first, second), (_, n1, n2) = self.cell_size, self.shape
        if self.grid == "cylindrical":
            phi, r = np.meshgrid((np.arange(n1) + 0.5) * first, (np.arange(n2) + 0.5) * second, indexing="ij")
            return (r * np.cos(phi)).ravel(), (r * np.sin(phi)).ravel()
        x, y = np.meshgrid((np.arange(n1) - (n1 - 1) / 2) * first, (np.arange(n2) - (n2 - 1) / 2) * second, indexing="ij")
        return x.ravel(), y.ravel()

    def radii_mm(self) -> Float:
        """Distance of the middles of the n1 * n2 cells of a layer from the incident axis, mm."""
        if self.grid == "cylindrical":
            return np.tile((np.arange(self.shape[2]) + 0.5) * self.cell_size[2], self.shape[1])
        return np.hypot(*self.transverse())

    def areas_mm2(self) -> Float:
        """Areas of the n1 * n2 cells of a layer, mm2."""
        (_, first, second), (_, n1, n2) = self.cell_size, self.shape
        if self.grid == "cylindrical":
            return np.tile((np.arange(n2) + 0.5) * second**2 * first, n1)
        return np.full(n1 * n2, first * second)

    def attributes(self) -> dict[str, Any]:
        """What an event set says of its geometry: name, shape and order of the cells, pitch, unit of energy."""
        (_, n1, n2), (one, two, three) = self.shape, self.axes
        return {
            "detector": self.name,
            "shape": f"{','.join(map(str, self.shape))} = {one},{two},{three} ; flat index = (i{one}*{n1}+i{two})*{n2}+i{three}",
            "cell_size_mm" if self.grid == "cartesian" else "cell_size_mm_rad_mm": list(self.cell_size),
            "energy_unit": "MeV",
        }


_DETECTORS = {
    detector.name: detector
    for detector in (
        # A minimum ionising particle leaves most probably about 0.14 MeV in 0.5 mm of silicon (280 eV per micrometre)
        # and 0.19 MeV on average (388 eV per micrometre, PDG): 0.05 MeV is about a third of its peak. It lies far above
        # the noise of such a sensor and cuts the many cells that only a soft photon touched.
        Detector(
            name=CLIC_ECAL,
            shape=(25, 25, 25),
            grid="cartesian",
            cell_size=(5.05, 5.1, 5.1),
            absorber="G4_W",
            absorber_mm=2.24,
            sensor="G4_Si",
            sensor_mm=0.5,
            gap="G4_AIR",
            gap_mm=2.31,
            readout_threshold_mev=0.05,
            description="25 layers of 2.24 mm W, 0.5 mm Si, 2.31 mm air (16.1 X0); 25 x 25 cells of 5.1 mm",
        ),
        # Geant4's example Par04 as in CaloChallenge's data set 2 (`binning_dataset_2.xml`). Its energies are those in silicon
        # divided by a sampling fraction of 0.033, so the threshold of 15.15 keV is 0.5 keV in silicon (`evaluate.py`).
        Detector(
            name=PAR04_SIW,
            shape=(45, 16, 9),
            grid="cylindrical",
            cell_size=(3.4, tau / 16, 4.65),
            absorber="G4_W",
            absorber_mm=1.4,
            sensor="G4_Si",
            sensor_mm=0.3,
            gap="G4_AIR",
            gap_mm=0.0,
            readout_threshold_mev=0.01515,
            description="90 layers of 1.4 mm W, 0.3 mm Si read out in pairs; 16 sectors of 9 rings of 4.65 mm",
            layers_per_cell=2,
        ),
    )
}


def detector_names() -> tuple[str, ...]:
    """Names that `get_detector` knows."""
    return tuple(sorted(_DETECTORS))


def get_detector(name: str) -> Detector:
    """The geometry called `name`.

    Raises UnknownDetector, which lists the known names.
    """
    try:
        return _DETECTORS[name]
    except (KeyError, TypeError):
        known = ", ".join(detector_names())
        raise UnknownDetector(f"Unknown detector {name!r:.80}. Known detectors: {known}.") from None


def infer_detector(voxels: int) -> Detector | None:
    """The only known geometry with this many cells, or None."""
    matching = [detector for detector in _DETECTORS.values() if detector.voxels == voxels]
    return matching[0] if len(matching) == 1 else None
