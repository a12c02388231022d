"""Layered calorimeters and the grids they are read out in: built in, described in Python, TOML or an event set."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod, tau
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from minicarlo.errors import InvalidConfig, UnknownDetector

CLIC_ECAL = "clic-ecal"
PAR04_SIW = "par04-siw"

Grid = Literal["cartesian", "cylindrical"]
Float = NDArray[np.float64]

_AXES: dict[Grid, tuple[str, str, str]] = {"cartesian": ("z", "x", "y"), "cylindrical": ("z", "phi", "r")}
_LARGEST_GRID, _MOST_LAYERS = 1_000_000, 2_000  # 4 MB per event; beyond it something is mistaken


@dataclass(frozen=True)
class Material:
    """One plate of a layer: a material of NIST's by Geant4's name, its thickness, and whether its energy is read out."""

    name: str
    mm: float
    sensitive: bool = False


@dataclass(frozen=True)
class Detector:
    """A layered calorimeter read out in a regular grid of cells, z along the shower.

    `grid` is the transverse one: cartesian with axes (z, x, y), the incident axis in its middle, or cylindrical around the
    normal of the front face at the point of incidence with axes (z, phi, r), as in CaloChallenge; the last axis is the fastest.
    `cell_size` is the pitch: (mm, mm, mm), or (mm, rad, mm). A cell is `layers_per_cell` layers deep, each made of the plates
    `materials` one after another along z, `plate_mm` wide and high. The energy of a cell is what is deposited in its sensitive
    plates times `energy_scale`. A cell whose energy is below `readout_threshold_mev` is not read out.
    """

    name: str
    shape: tuple[int, int, int]
    grid: Grid
    cell_size: tuple[float, float, float]
    materials: tuple[Material, ...]
    readout_threshold_mev: float
    description: str
    layers_per_cell: int = 1
    energy_scale: float = 1.0
    plate_mm: float = 400.0

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
            "geometry": json.dumps(self.to_description()),
        }

    def to_description(self) -> dict[str, Any]:
        """The whole detector in the words of its TOML file; `parse_detector` is the inverse."""
        across = self.cell_size[2:] if self.grid == "cylindrical" else self.cell_size[1:]
        return {
            "name": self.name,
            "description": self.description,
            "grid": self.grid,
            "cells": list(self.shape),
            "cell_mm": list(across),
            "layers_per_cell": self.layers_per_cell,
            "readout_threshold_mev": self.readout_threshold_mev,
            "energy_scale": self.energy_scale,
            "plate_mm": self.plate_mm,
            "layers": [
                {"material": plate.name, "mm": plate.mm, **({"read_out": True} if plate.sensitive else {})}
                for plate in self.materials
            ],
        }


_Count = Annotated[int, Field(ge=1, le=_LARGEST_GRID)]
_Length = Annotated[float, Field(gt=0, le=10_000)]


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class _Plate(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    material: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    mm: float = Field(gt=0, le=10_000)
    read_out: bool = Field(default=False, strict=True)


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,63}$")
    description: str = Field(default="", max_length=1000)
    grid: Grid
    cells: tuple[_Count, _Count, _Count]
    cell_mm: Annotated[list[_Length], Field(min_length=1, max_length=2), BeforeValidator(_listed)]
    layers_per_cell: _Count = 1
    readout_threshold_mev: float = Field(default=0.0, ge=0)
    energy_scale: float = Field(default=1.0, gt=0)
    plate_mm: float = Field(default=400.0, gt=0, le=100_000)
    layers: list[_Plate] = Field(min_length=1, max_length=100)


def parse_detector(description: Mapping[str, Any], where: str = "Detector") -> Detector:
    """The detector of a description: the fields of a TOML file (docs/geant4.md), as `Detector.to_description` writes them.

    Raises InvalidConfig with the field and what would be right; `where` begins the message.
    """
    try:
        found = _Description.model_validate(description)
    except ValidationError as error:
        problems = [f"{_field_of(item['loc'])}: {_problem_of(item)}" for item in error.errors()[:5]]
        raise InvalidConfig(f"{where}: {'; '.join(problems)}.") from None
    problems = list(_contradictions(found))
    if problems:
        raise InvalidConfig(f"{where}: {'; '.join(problems)}.")
    depth = round(found.layers_per_cell * sum(plate.mm for plate in found.layers), 9)
    first = tau / found.cells[1] if found.grid == "cylindrical" else found.cell_mm[0]
    return Detector(
        name=found.name,
        shape=found.cells,
        grid=found.grid,
        cell_size=(depth, first, found.cell_mm[-1]),
        materials=tuple(Material(plate.material, plate.mm, plate.read_out) for plate in found.layers),
        readout_threshold_mev=found.readout_threshold_mev,
        description=found.description,
        layers_per_cell=found.layers_per_cell,
        energy_scale=found.energy_scale,
        plate_mm=found.plate_mm,
    )


def _contradictions(found: _Description) -> Iterator[str]:
    """What is wrong with fields that are right one by one."""
    layers = found.cells[0] * found.layers_per_cell
    window = 2 * found.cells[2] * found.cell_mm[0]
    if found.grid == "cartesian":
        window = max(found.cells[1] * found.cell_mm[0], found.cells[2] * found.cell_mm[-1])
    if not any(plate.read_out for plate in found.layers):
        yield "layers: none of them is read out; add `read_out = true` to a sensitive one"
    if prod(found.cells) > _LARGEST_GRID:
        yield f"cells: {prod(found.cells):,} are too many; {_LARGEST_GRID:,} at most"
    if layers > _MOST_LAYERS:
        yield f"cells: {layers:,} layers are too many; {_MOST_LAYERS:,} at most"
    if found.grid == "cylindrical" and len(found.cell_mm) != 1:
        yield "cell_mm: a cylindrical grid has one, the width of its rings; its sectors follow from `cells`"
    if window > found.plate_mm:
        yield (
            f"plate_mm: the grid is {window:g} mm wide and does not fit into plates of {found.plate_mm:g} mm; make them wider, "
            "or the grid smaller"
        )


def read_detector(path: Path | str) -> Detector:
    """The detector that a TOML file describes. Raises InvalidConfig with file, field and remedy."""
    path = Path(path)
    try:
        description = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"Detector {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidConfig(f"Detector {path} is not TOML: {error}. See docs/geant4.md for an example.") from None
    return parse_detector(description, f"Detector {path}")


def register_detector(detector: Detector, where: str = "Detector") -> Detector:
    """Make `get_detector` know `detector` for as long as this process lives.

    Raises InvalidConfig when it is impossible, or when a detector that differs in more than its description has its name.
    """
    if parse_detector(detector.to_description(), f"{where} {detector.name!r:.80}") != detector:
        raise InvalidConfig(f"{where} {detector.name!r:.80}: cell_size does not follow from its materials and its grid.")
    known = _DETECTORS.setdefault(detector.name, detector)
    if known != replace(detector, description=known.description):
        ours, theirs = known.to_description(), detector.to_description()
        changed = "; ".join(
            f"{name} {ours[name]!r:.200} and {theirs[name]!r:.200}" for name in ours if ours[name] != theirs[name]
        )
        raise InvalidConfig(f"{where}: there are two different detectors {detector.name!r} ({changed}). Rename one of them.")
    return known


def described_detector(geometry: object, where: str) -> Detector | None:
    """The detector of the attribute `geometry` of an event set, registered; None when there is none or one of version 0.1.

    Raises InvalidConfig.
    """
    try:
        description = json.loads(str(geometry)) if geometry is not None else None
    except (ValueError, RecursionError):
        raise InvalidConfig(f"{where}: no valid JSON.") from None
    if not isinstance(description, dict) or "layers" not in description:
        return None
    return register_detector(parse_detector(description, where), where)


def find_detector(what: Detector | Path | str) -> Detector:
    """A detector itself, the one that a TOML file describes, or a known one by its name; registered.

    Raises UnknownDetector and InvalidConfig.
    """
    if isinstance(what, Detector):
        return register_detector(what)
    if isinstance(what, Path) or what.endswith(".toml"):
        return register_detector(read_detector(what), f"Detector {what}")
    return get_detector(what)


def _field_of(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _problem_of(item: Any) -> str:  # noqa: ANN401
    message = str(item["msg"])
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "extra_forbidden":
        return "is unknown; remove or rename it (docs/geant4.md lists the fields)"
    return f"{message[0].lower()}{message[1:]}, not {item['input']!r:.60}"


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
            materials=(Material("G4_W", 2.24), Material("G4_Si", 0.5, sensitive=True), Material("G4_AIR", 2.31)),
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
            materials=(Material("G4_W", 1.4), Material("G4_Si", 0.3, sensitive=True)),
            readout_threshold_mev=0.01515,
            description="90 layers of 1.4 mm W, 0.3 mm Si read out in pairs; 16 sectors of 9 rings of 4.65 mm",
            layers_per_cell=2,
            energy_scale=1 / 0.033,
        ),
    )
}
_BUILT_IN = frozenset(_DETECTORS)


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


def is_built_in(detector: Detector) -> bool:
    """Whether every minicarlo knows `detector` by its name."""
    return detector.name in _BUILT_IN


def infer_detector(voxels: int) -> Detector | None:
    """The only built-in geometry with this many cells, or None."""
    matching = [detector for name, detector in _DETECTORS.items() if name in _BUILT_IN and detector.voxels == voxels]
    return matching[0] if len(matching) == 1 else None
