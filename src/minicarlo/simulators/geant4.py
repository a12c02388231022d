"""Electromagnetic showers by Geant4, through geant4_pybind (extra `geant4`).

A process can hold one Geant4 run manager and one geometry, so a `Geant4Session` belongs into a process of its own
(see `workers`). Scoring happens in C++, in replicated silicon cells; Python is called twice per event.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicarlo.detectors import Detector
from minicarlo.errors import InvalidConfig, MissingExtra
from minicarlo.simulators.base import Attributes, Batch, FloatArray, SeedArray, Setup

PARTICLES = ("e-", "e+", "gamma")
PHYSICS = {
    "option0": "G4EmStandardPhysics",
    "option1": "G4EmStandardPhysics_option1",
    "option2": "G4EmStandardPhysics_option2",
    "option3": "G4EmStandardPhysics_option3",
    "option4": "G4EmStandardPhysics_option4",
}
"""Electromagnetic physics constructors, by the names Geant4 users know. Cost rises from option1 to option4."""

BLOCK_MM = 400.0
"""Side of the absorber plates. Wider than the read-out window, so that its edge loses energy as a real one does."""


@dataclass(frozen=True)
class DataSet:
    """A Geant4 data set: the variable that points to it, how its directory is called, what it must contain."""

    variable: str
    directories: tuple[str, ...]
    content: str | None


DATA_SETS = (
    DataSet("G4LEDATA", ("G4EMLOW*",), "brem_SB"),
    DataSet("G4ENSDFSTATEDATA", ("G4ENSDFSTATE*",), "ENSDFSTATE.dat"),
    DataSet("G4LEVELGAMMADATA", ("PhotonEvaporation*", "G4LEVELGAMMA*"), None),
)
HOW_TO_GET_DATA = (
    "Point the variable to the data set of a Geant4 installation (`source geant4.sh` does), or set GEANT4_DATA_DIR to "
    "the directory that holds all of them, or download the official ones (about 2 GB, into ~/.geant4_pybind) with: "
    'python -c "import geant4_pybind"'
)


def find_data_sets(environment: Mapping[str, str]) -> dict[str, str]:
    """Locate the data sets that electromagnetic showers need; return the variables to set before the import.

    Looks at each data set's own variable, then into GEANT4_DATA_DIR, then into ~/.geant4_pybind, where
    geant4_pybind puts its downloads. The result always holds GEANT4_DATA_DIR: while that is unset, importing
    geant4_pybind asks on standard input whether to download, or downloads without asking where CI=true.
    Raises MissingExtra with the variable and the remedy.
    """
    roots = [Path(environment["GEANT4_DATA_DIR"])] if environment.get("GEANT4_DATA_DIR") else []
    roots.append(Path(environment.get("HOME", "~")).expanduser() / ".geant4_pybind")
    found = {}
    for data in DATA_SETS:
        where = environment.get(data.variable)
        if where is None:
            newest = sorted(d for root in roots for pattern in data.directories for d in root.glob(pattern))
            if not newest:
                raise MissingExtra(
                    f"Geant4 data set not found: {data.variable} is not set, and there is no {data.directories[0]} in "
                    f"{' or '.join(map(str, roots))}. {HOW_TO_GET_DATA}"
                )
            where = str(newest[-1])
        content = Path(where, data.content) if data.content else Path(where)
        if not content.exists():
            raise MissingExtra(
                f"Geant4 data set not usable: {data.variable}={where}, but {content} does not exist. {HOW_TO_GET_DATA}"
            )
        found[data.variable] = str(Path(where).resolve())
    directory = environment.get("GEANT4_DATA_DIR") or str(Path(found["G4LEDATA"]).parent)
    return {**found, "GEANT4_DATA_DIR": directory}


class Geant4Simulator:
    """The `geant4` simulator."""

    name = "geant4"

    def prepare(self, setup: Setup) -> dict[str, str]:
        """Check the extra, the particle, the physics, the cut and the data sets, without importing Geant4."""
        if setup.particle not in PARTICLES:
            raise InvalidConfig(f"Unknown particle {setup.particle!r}: geant4 simulates {', '.join(PARTICLES)}.")
        if setup.physics not in PHYSICS:
            raise InvalidConfig(f"Unknown physics {setup.physics!r}: geant4 offers {', '.join(PHYSICS)}.")
        if setup.detector.grid != "cartesian":
            raise InvalidConfig(f"Detector {setup.detector.name} has a {setup.detector.grid} grid: geant4 fills cartesian ones.")
        if not 1e-3 <= setup.cut_mm <= 1e3:
            raise InvalidConfig(f"Production cut of {setup.cut_mm} mm: must lie between 0.001 and 1000 mm.")
        if importlib.util.find_spec("geant4_pybind") is None:
            raise MissingExtra(
                "Simulating with Geant4 needs the package geant4-pybind, which is not installed. "
                "Install it with: pip install 'minicarlo[geant4]'"
            )
        return find_data_sets(os.environ)

    def open(self, setup: Setup) -> Geant4Session:
        """Build the geometry and the physics tables; once per process."""
        return Geant4Session(setup)

    def explain(self, log: str) -> str:
        """Return Geant4's last fatal exception."""
        found = re.findall(r"G4Exception : (\S+)\s+issued by : (.+)\n((?:.*\n)+?)\*\*\* Fatal", log)
        if not found:
            return ""
        code, issuer, message = found[-1]
        advice = ""
        if "G4LEDATA" in message or "not found" in message:
            advice = " The data set lacks what this physics needs: use the official one, or a simpler --physics."
        return f"Geant4 stopped with {code} from {issuer.strip()}: {' '.join(message.split()).rstrip('.')}.{advice}"


class Geant4Session:
    """One run manager with one geometry: the only one that its process can ever hold.

    Every event starts from a random-number engine seeded for it, in a state without memory of earlier events.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._geant4 = importlib.import_module("geant4_pybind")
        self._geometry = LayeredGeometry(setup.detector)
        self._pending: Iterator[tuple[float, int]] = iter(())
        self._rows: Iterator[FloatArray] = iter(())
        self._start()

    def run(self, incident_energies: FloatArray, seeds: SeedArray) -> Batch:
        """Simulate one event per incident energy (MeV, kinetic) and seed."""
        samples = np.zeros((len(incident_energies), *self._setup.detector.shape), np.float32)
        self._pending = zip(incident_energies.tolist(), seeds.tolist(), strict=True)
        self._rows = iter(samples.reshape(len(samples), self._setup.detector.voxels))
        start = time.process_time()
        self._manager.BeamOn(len(samples))
        seconds = time.process_time() - start
        if next(self._rows, None) is not None:
            raise RuntimeError(f"Geant4 ended the run before its {len(samples)} events were done")
        return Batch(samples, seconds)

    def provenance(self) -> Attributes:
        """Return the versions, the physics and the geometry."""
        release = self._geant4.G4Version.strip("$ ").removeprefix("Name: ").removesuffix(" [MT]")
        detector = self._setup.detector
        return {
            "generator": f"Geant4 ({release}) through geant4_pybind {importlib.metadata.version('geant4-pybind')}",
            "physics": f"{PHYSICS[self._setup.physics]} ({self._setup.physics})",
            "geometry": json.dumps({**asdict(detector), "block_mm": BLOCK_MM}),
            "layer_order": "absorber, sensor, gap",
            "entry": "centre of the central cell, front face, normal incidence, no magnetic field",
            "threshold": "none",
            "data_sets": ", ".join(Path(os.environ[data.variable]).name for data in DATA_SETS),
        }

    def _start(self) -> None:
        g4, session, setup, geometry = self._geant4, self, self._setup, self._geometry

        class Construction(g4.G4VUserDetectorConstruction):  # type: ignore[misc, name-defined]
            def Construct(self) -> Any:  # noqa: ANN401
                return geometry.build(g4)

            def ConstructSDandField(self) -> None:
                geometry.make_sensitive(g4, self)

        class Physics(g4.G4VModularPhysicsList):  # type: ignore[misc, name-defined]
            # Methods of the virtual base G4VUserPhysicsList (SetDefaultCutValue, SetCuts) corrupt memory when called
            # through the bindings: the cut is set by a command below.
            def __init__(self) -> None:
                super().__init__()
                self.SetVerboseLevel(0)
                self.RegisterPhysics(getattr(g4, PHYSICS[setup.physics])())

        class Gun(g4.G4VUserPrimaryGeneratorAction):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.gun = g4.G4ParticleGun(1)
                self.gun.SetParticleDefinition(g4.G4ParticleTable.GetParticleTable().FindParticle(setup.particle))
                self.gun.SetParticleMomentumDirection(g4.G4ThreeVector(0, 0, 1))
                self.gun.SetParticlePosition(g4.G4ThreeVector(0, 0, geometry.front_mm - 1e-3))

            def GeneratePrimaries(self, event: Any) -> None:  # noqa: ANN401
                energy, seed = next(session._pending)
                g4.HepRandom.setTheSeed(seed)
                self.gun.SetParticleEnergy(energy)
                self.gun.GeneratePrimaryVertex(event)

        class Readout(g4.G4UserEventAction):  # type: ignore[misc, name-defined]
            def EndOfEventAction(self, event: Any) -> None:  # noqa: ANN401
                row = next(session._rows)
                for cell, energy in event.GetHCofThisEvent().GetHC(session._hits):
                    row[cell] = energy

        class Actions(g4.G4VUserActionInitialization):  # type: ignore[misc, name-defined]
            def Build(self) -> None:
                session._actions = (Gun(), Readout())
                for action in session._actions:
                    self.SetUserAction(action)

        self._actions: tuple[Any, ...] = ()
        self._manager = g4.G4RunManagerFactory.CreateRunManager(g4.G4RunManagerType.Serial)
        self._initialisations = (Construction(), Physics(), Actions())  # Geant4 keeps bare pointers to all of these
        for initialisation in self._initialisations:
            self._manager.SetUserInitialization(initialisation)
        commands = g4.G4UImanager.GetUIpointer()
        for topic in ("control", "run", "process", "process/em"):
            commands.ApplyCommand(f"/{topic}/verbose 0")
        commands.ApplyCommand(f"/run/setCut {setup.cut_mm} mm")
        self._manager.Initialize()
        self._hits = g4.G4SDManager.GetSDMpointer().GetCollectionID(geometry.collection)
        self._manager.BeamOn(0)  # builds the physics tables, so that the first event costs what the others do


class LayeredGeometry:
    """Plates of absorber, sensor and gap behind one another; the middle of each sensor is divided into cells."""

    collection = "calorimeter/energy"

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._kept: list[Any] = []  # Geant4 keeps bare pointers: every object must live as long as the process
        self.front_mm = -detector.layers * detector.cell_size[0] / 2

    def build(self, g4: Any) -> Any:  # noqa: ANN401
        """Return the physical volume of the world."""
        detector = self._detector
        _, nx, ny = detector.shape
        pitch, dx, dy = detector.cell_size
        absorber_mm, sensor_mm, depth = detector.absorber_mm, detector.sensor_mm, detector.layers * pitch

        def volume(name: str, material: str, x: float, y: float, z: float) -> Any:  # noqa: ANN401
            box = g4.G4Box(name, x / 2, y / 2, z / 2)
            logical = g4.G4LogicalVolume(box, g4.G4NistManager.Instance().FindOrBuildMaterial(material), name)
            self._kept += [box, logical]
            return logical

        def place(logical: Any, z: float, mother: Any, copy: int = 0) -> Any:  # noqa: ANN401
            at = g4.G4ThreeVector(0, 0, z)
            placed = g4.G4PVPlacement(None, at, logical, logical.GetName(), mother, False, copy, False)
            self._kept.append(placed)
            return placed

        def divide(part: Any, mother: Any, axis: Any, count: int, width: float) -> None:  # noqa: ANN401
            self._kept.append(g4.G4PVReplica(part.GetName(), part, mother, axis, count, width))

        world = volume("world", "G4_Galactic", BLOCK_MM + 20, BLOCK_MM + 20, depth + 40)
        layer = volume("layer", detector.gap, BLOCK_MM, BLOCK_MM, pitch)
        absorber = volume("absorber", detector.absorber, BLOCK_MM, BLOCK_MM, absorber_mm)
        sensor = volume("sensor", detector.sensor, BLOCK_MM, BLOCK_MM, sensor_mm)
        window = volume("window", detector.sensor, nx * dx, ny * dy, sensor_mm)
        strip = volume("strip", detector.sensor, dx, ny * dy, sensor_mm)
        cell = volume("cell", detector.sensor, dx, dy, sensor_mm)
        divide(cell, strip, g4.kYAxis, ny, dy)
        divide(strip, window, g4.kXAxis, nx, dx)
        place(window, 0, sensor)
        place(absorber, (absorber_mm - pitch) / 2, layer)
        place(sensor, absorber_mm + (sensor_mm - pitch) / 2, layer)
        for index in range(detector.layers):
            place(layer, self.front_mm + (index + 0.5) * pitch, world, index)
        return place(world, 0, None)

    def make_sensitive(self, g4: Any, construction: Any) -> None:  # noqa: ANN401
        """Sum the deposited energy per cell, with the flat index of a (z, x, y) array."""
        calorimeter, quantity = self.collection.split("/")
        sensitive = g4.G4MultiFunctionalDetector(calorimeter)
        # In the tree above a cell: cell (y) 0, strip (x) 1, window 2, sensor 3, layer (z) 4.
        scorer = g4.G4PSEnergyDeposit3D(quantity, *self._detector.shape, 4, 1, 0)
        sensitive.RegisterPrimitive(scorer)
        g4.G4SDManager.GetSDMpointer().AddNewDetector(sensitive)
        construction.SetSensitiveDetector("cell", sensitive)
        self._kept += [sensitive, scorer]
