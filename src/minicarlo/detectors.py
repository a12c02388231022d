"""Named voxel geometries."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from minicarlo.errors import UnknownDetector

CLIC_ECAL = "clic-ecal"


@dataclass(frozen=True)
class Detector:
    """A sampling calorimeter read out in a regular grid of cells, axes (z, x, y), z along the shower.

    `cell_size_mm` is the pitch of the grid; a layer is absorber, sensor and gap one after another along z. A cell whose
    energy is below `readout_threshold_mev` is not read out.
    """

    name: str
    shape: tuple[int, int, int]
    cell_size_mm: tuple[float, float, float]
    absorber: str
    absorber_mm: float
    sensor: str
    sensor_mm: float
    gap: str
    gap_mm: float
    readout_threshold_mev: float
    description: str

    @property
    def voxels(self) -> int:
        """Number of cells of one event."""
        return prod(self.shape)

    @property
    def layers(self) -> int:
        """Number of layers along z."""
        return self.shape[0]


_DETECTORS = {
    detector.name: detector
    for detector in (
        # A minimum ionising particle leaves most probably about 0.14 MeV in 0.5 mm of silicon (280 eV per micrometre)
        # and 0.19 MeV on average (388 eV per micrometre, PDG): 0.05 MeV is about a third of its peak. It lies far above
        # the noise of such a sensor and cuts the many cells that only a soft photon touched.
        Detector(
            name=CLIC_ECAL,
            shape=(25, 25, 25),
            cell_size_mm=(5.05, 5.1, 5.1),
            absorber="G4_W",
            absorber_mm=2.24,
            sensor="G4_Si",
            sensor_mm=0.5,
            gap="G4_AIR",
            gap_mm=2.31,
            readout_threshold_mev=0.05,
            description="25 layers of 2.24 mm W, 0.5 mm Si, 2.31 mm air (16.1 X0); 25 x 25 cells of 5.1 mm",
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
