"""Electromagnetic showers by Geant4, through geant4_pybind (extra `geant4`).

A process can hold one Geant4 run manager and one geometry, so a `Geant4Session` belongs into a process of its own
(see `workers`). Scoring happens in C++, in replicated cells of the sensitive plates; Python is called twice per event, and once
for each particle that reaches the front face and may have to stop there.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import Detector
from minicarlo.errors import InvalidConfig, MissingExtra
from minicarlo.simulators.acceptance import FAST, FATES, Acceptance
from minicarlo.simulators.base import Attributes, Batch, FloatArray, Particles, Primaries, Setup, Stopped, Track
from minicarlo.simulators.data_sets import DATA_SETS, HOW_TO_GET_DATA, find_data_sets

PARTICLES = ("e-", "e+", "gamma")
_ATOMS = "fluor/binding.dat"  # of G4EMLOW: binding energies of atomic shells


@dataclass(frozen=True)
class Physics:
    """A constructor of electromagnetic physics, and the file of G4EMLOW that it cannot do without."""

    constructor: str
    content: str = ""


PHYSICS = {
    "option0": Physics("G4EmStandardPhysics"),
    "option1": Physics("G4EmStandardPhysics_option1"),
    "option2": Physics("G4EmStandardPhysics_option2"),
    "option3": Physics("G4EmStandardPhysics_option3", _ATOMS),
    "option4": Physics("G4EmStandardPhysics_option4", _ATOMS),
    "gs": Physics("G4EmStandardPhysicsGS", _ATOMS),
    "wvi": Physics("G4EmStandardPhysicsWVI", _ATOMS),
    "livermore": Physics("G4EmLivermorePhysics", _ATOMS),
    "penelope": Physics("G4EmPenelopePhysics", _ATOMS),
}
"""Electromagnetic physics by the names Geant4 users know: options (cost rises from 1 to 4), Goudsmit-Saunderson and Wentzel-VI
multiple scattering, Livermore and Penelope models."""


SMALLEST_TRACK_MEV = 1.0
"""Tracks that begin with less are not kept: there are thousands, each too short to be seen."""


class Geant4Simulator:
    """The `geant4` simulator."""

    name = "geant4"

    def prepare(self, setup: Setup) -> dict[str, str]:
        """Check the extra, the particle, the physics, the cut and the data sets, without importing Geant4."""
        accepted = setup.acceptance.particles if setup.acceptance else ()
        unknown = [name for name in (*setup.particles, *accepted) if name not in PARTICLES]
        if unknown:
            raise InvalidConfig(f"Unknown particle {unknown[0]!r:.80}: geant4 simulates {', '.join(PARTICLES)}.")
        physics = PHYSICS.get(setup.physics)
        if physics is None:
            raise InvalidConfig(f"Unknown physics {setup.physics!r}: geant4 offers {', '.join(PHYSICS)}.")
        if not 1e-3 <= setup.cut_mm <= 1e3:
            raise InvalidConfig(f"Production cut of {setup.cut_mm} mm: must lie between 0.001 and 1000 mm.")
        if importlib.util.find_spec("geant4_pybind") is None:
            raise MissingExtra(
                "Simulating with Geant4 needs the package geant4-pybind, which is not installed. "
                "Install it with: pip install 'minicarlo[geant4]'"
            )
        found = find_data_sets(os.environ)
        if not Path(found["G4LEDATA"], physics.content).exists():
            possible = ", ".join(name for name, other in PHYSICS.items() if not other.content)
            raise MissingExtra(
                f"Physics {setup.physics!r} needs {physics.content}, which the data set G4LEDATA={found['G4LEDATA']} lacks. "
                f"Choose one that does without ({possible}), or use the official data set. {HOW_TO_GET_DATA}"
            )
        return found

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
            advice = " The data set lacks what these materials or this physics need: use the official one, or others."
        return f"Geant4 stopped with {code} from {issuer.strip()}: {' '.join(message.split()).rstrip('.')}.{advice}"


_Particle = tuple[str, float, float, float, float, float]


@dataclass(frozen=True)
class _Entry:
    """A particle at the front face: index of FATES, kinetic energy in MeV, mm from the centre of the grid."""

    fate: int
    energy: float
    x: float
    y: float


class Geant4Session:
    """One run manager with one geometry: the only one that its process can ever hold.

    Every event starts from a random-number engine seeded for it, in a state without memory of earlier events.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._geant4 = importlib.import_module("geant4_pybind")
        self._geometry = LayeredGeometry(setup.detector)
        self._pending: Iterator[tuple[int, list[_Particle]]] = iter(())
        self._rows: Iterator[FloatArray] = iter(())
        self._tracks: list[Track] = []
        self._entered: dict[int, _Entry] = {}  # by number of the particle in the task
        self._first = self._next = 0  # particles of the task before and after this event
        self.python_seconds = 0.0
        """Processor time of Python's part of the event loop so far."""
        self._start()

    def run(self, primaries: Primaries) -> Batch:
        """Simulate the events."""
        samples = np.zeros((len(primaries), *self._setup.detector.shape), np.float32)
        rows = primaries.particles.rows()
        counts, seeds = primaries.counts.tolist(), primaries.seeds.tolist()
        self._pending = ((seed, list(islice(rows, count))) for seed, count in zip(seeds, counts, strict=True))
        self._rows = iter(samples.reshape(len(samples), self._setup.detector.voxels))
        self._tracks, self._entered, self._first, self._next = [], {}, 0, 0
        start = time.process_time()
        self._manager.BeamOn(len(samples))
        seconds = time.process_time() - start
        if next(self._rows, None) is not None:
            raise RuntimeError(f"Geant4 ended the run before its {len(samples)} events were done")
        samples *= np.float32(self._setup.detector.energy_scale)
        if self._setup.acceptance is None:
            return Batch(samples, seconds, self._tracks)
        return Batch(samples, seconds, self._tracks, *self._verdicts(self._setup.acceptance, primaries.particles))

    def _verdicts(self, acceptance: Acceptance, particles: Particles) -> tuple[NDArray[np.int8], Stopped]:
        """The fate of each particle, and those that were stopped."""
        detector = self._setup.detector
        fates = np.empty(len(particles), np.int8)
        for row, (name, energy, x, y, theta, _) in enumerate(particles.rows()):
            entry = self._entered.get(row)
            fates[row] = entry.fate if entry else acceptance.fate(detector, name, energy, x, y, theta)
            if not entry and FATES[fates[row]] not in ("type", "energy"):
                raise RuntimeError(f"Geant4 tracked {name} of {energy} MeV without asking")
        rows = np.flatnonzero(fates == FAST)
        stopped = [(entry.energy, entry.x, entry.y) for entry in map(self._entered.__getitem__, rows.tolist())]
        return fates, Stopped(rows, *np.array(stopped, np.float32).reshape(-1, 3).T)

    def _enter(self, acceptance: Acceptance, step: Any) -> bool:  # noqa: ANN401
        """Whether a particle whose step ends here reaches the front face and must stop; noted in any case."""
        track, point = step.GetTrack(), step.GetPostStepPoint()
        place, direction = point.GetPosition(), point.GetMomentumDirection()
        row = self._first + track.GetTrackID() - 1
        if track.GetParentID() or direction.z <= 0 or abs(place.z - self._geometry.front_mm) > 1e-6 or row in self._entered:
            return False
        theta, energy = math.atan2(math.hypot(direction.x, direction.y), direction.z), point.GetKineticEnergy()
        name = str(track.GetParticleDefinition().GetParticleName())
        fate = acceptance.fate(self._setup.detector, name, energy, place.x, place.y, theta)
        self._entered[row] = _Entry(fate, energy, place.x, place.y)
        return fate == FAST

    def provenance(self) -> Attributes:
        """Return the versions, the physics, the data and the depth of the calorimeter."""
        release = self._geant4.G4Version.strip("$ ").removeprefix("Name: ").removesuffix(" [MT]")
        return {
            "generator": f"Geant4 ({release}) through geant4_pybind {importlib.metadata.version('geant4-pybind')}",
            "physics": f"{PHYSICS[self._setup.physics].constructor} ({self._setup.physics})",
            "radiation_lengths": round(self._geometry.radiation_lengths, 3),
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
                if setup.acceptance is not None:
                    session._watch(self, setup.acceptance)

        class Physics(g4.G4VModularPhysicsList):  # type: ignore[misc, name-defined]
            # Methods of the virtual base G4VUserPhysicsList (SetDefaultCutValue, SetCuts) corrupt memory when called
            # through the bindings: the cut is set by a command below.
            def __init__(self) -> None:
                super().__init__()
                self.SetVerboseLevel(0)
                self.RegisterPhysics(getattr(g4, PHYSICS[setup.physics].constructor)())

        class Gun(g4.G4VUserPrimaryGeneratorAction):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.gun = g4.G4ParticleGun(1)
                table = g4.G4ParticleTable.GetParticleTable()
                self.definitions = {name: table.FindParticle(name) for name in setup.particles}

            def GeneratePrimaries(self, event: Any) -> None:  # noqa: ANN401
                start = time.process_time()
                seed, particles = next(session._pending)
                session._first, session._next = session._next, session._next + len(particles)
                g4.HepRandom.setTheSeed(seed)
                for name, energy, x, y, theta, phi in particles:
                    sine = math.sin(theta)
                    self.gun.SetParticleDefinition(self.definitions[name])
                    self.gun.SetParticleEnergy(energy)
                    self.gun.SetParticlePosition(g4.G4ThreeVector(x, y, geometry.front_mm - 1e-3))
                    direction = g4.G4ThreeVector(sine * math.cos(phi), sine * math.sin(phi), math.cos(theta))
                    self.gun.SetParticleMomentumDirection(direction)
                    self.gun.GeneratePrimaryVertex(event)
                session.python_seconds += time.process_time() - start

        class Readout(g4.G4UserEventAction):  # type: ignore[misc, name-defined]
            def EndOfEventAction(self, event: Any) -> None:  # noqa: ANN401
                start = time.process_time()
                row = next(session._rows)
                for cell, energy in event.GetHCofThisEvent().GetHC(session._hits):
                    row[cell] = energy
                if setup.tracks:
                    session._tracks += _tracks_of(event, geometry.front_mm)
                session.python_seconds += time.process_time() - start

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
        if setup.tracks:
            commands.ApplyCommand("/tracking/storeTrajectory 1")
        self._manager.Initialize()
        self._hits = g4.G4SDManager.GetSDMpointer().GetCollectionID(geometry.collection)
        self._manager.BeamOn(0)  # builds the physics tables, so that the first event costs what the others do

    def _watch(self, construction: Any, acceptance: Acceptance) -> None:  # noqa: ANN401
        """Call `_enter` for the steps in front of the calorimeter that a particle of the accepted types and energies makes.

        A scorer of the world does this, because a scorer can have a filter in C++, and needs no volume of its own: what is not
        stopped takes the same steps with the same random numbers as without it.
        """
        g4, session = self._geant4, self

        class Front(g4.G4VPrimitiveScorer):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__("front")

            def ProcessHits(self, step: Any, _: Any) -> bool:  # noqa: ANN401
                start = time.process_time()
                if session._enter(acceptance, step):
                    step.GetTrack().SetTrackStatus(g4.fStopAndKill)
                session.python_seconds += time.process_time() - start
                return False

        low, high = acceptance.low_mev * (1 - 1e-5), acceptance.high_mev * (1 + 1e-5)
        candidates = g4.G4SDParticleWithEnergyFilter("accepted", low, high)
        for name in acceptance.particles:
            candidates.add(name)
        scorer, world = Front(), g4.G4MultiFunctionalDetector("world")
        scorer.SetFilter(candidates)
        world.RegisterPrimitive(scorer)
        g4.G4SDManager.GetSDMpointer().AddNewDetector(world)
        construction.SetSensitiveDetector("world", world, True)
        self._kept = (candidates, scorer, world)  # Geant4 keeps bare pointers


def _tracks_of(event: Any, front_mm: float) -> list[Track]:  # noqa: ANN401
    container = event.GetTrajectoryContainer()
    tracks = []
    for number in range(container.entries()):
        track = container[number]
        if track.GetInitialKineticEnergy() < SMALLEST_TRACK_MEV:
            continue
        points = [track.GetPoint(index).GetPosition() for index in range(track.GetPointEntries())]
        ways = np.array([(point.x, point.y, point.z - front_mm) for point in points], np.float32)
        tracks.append(Track(str(track.GetParticleName()), track.GetInitialKineticEnergy(), ways))
    return tracks


class LayeredGeometry:
    """Layers of plates behind one another; the middle of each sensitive plate is divided into cells.

    A layer is a box of its last insensitive material, in which the plates of others are placed: few boundaries to cross.
    """

    collection = "calorimeter/energy"

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._kept: list[Any] = []  # Geant4 keeps bare pointers: every object must live as long as the process
        self.front_mm = -detector.layers * detector.cell_size[0] / 2
        self.radiation_lengths = 0.0

    def build(self, g4: Any) -> Any:  # noqa: ANN401
        """Return the physical volume of the world. Raises InvalidConfig for a material that Geant4 does not know."""
        detector = self._detector
        plates, side = detector.materials, detector.plate_mm
        pitch, depth = detector.cell_size[0] / detector.layers_per_cell, detector.layers * detector.cell_size[0]
        count = detector.layers * detector.layers_per_cell
        materials = {plate.name: self._material(g4, plate.name) for plate in plates}
        self.radiation_lengths = count * sum(plate.mm / materials[plate.name].GetRadlen() for plate in plates)
        filling = next((plate.name for plate in reversed(plates) if not plate.sensitive), plates[-1].name)
        world = self._box(g4, "world", self._material(g4, "G4_Galactic"), side + 20, depth + 40)
        layer = self._box(g4, "layer", materials[filling], side, pitch)
        z = -pitch / 2
        for plate in plates:
            if plate.sensitive or plate.name != filling:
                placed = self._box(g4, "sensor" if plate.sensitive else "absorber", materials[plate.name], side, plate.mm)
                if plate.sensitive:
                    self._divide(g4, placed, materials[plate.name], plate.mm)
                self._place(g4, placed, z + plate.mm / 2, layer)
            z += plate.mm
        for index in range(count):
            self._place(g4, layer, self.front_mm + (index + 0.5) * pitch, world, index // detector.layers_per_cell)
        return self._place(g4, world, 0, None)

    def make_sensitive(self, g4: Any, construction: Any) -> None:  # noqa: ANN401
        """Sum the deposited energy per cell, with the flat index of a sample."""
        calorimeter, quantity = self.collection.split("/")
        sensitive = g4.G4MultiFunctionalDetector(calorimeter)
        # In the tree above a cell: cell (y or r) 0, row (x or phi) 1, window 2, sensor 3, layer (z) 4.
        scorer = g4.G4PSEnergyDeposit3D(quantity, *self._detector.shape, 4, 1, 0)
        sensitive.RegisterPrimitive(scorer)
        g4.G4SDManager.GetSDMpointer().AddNewDetector(sensitive)
        construction.SetSensitiveDetector("cell", sensitive, True)
        self._kept += [sensitive, scorer]

    def _divide(self, g4: Any, sensor: Any, material: Any, mm: float) -> None:  # noqa: ANN401
        """Put a window into a sensitive plate: rows of cells, or sectors of rings, which Geant4 walks fastest in that order."""
        (_, n1, n2), (_, first, second) = self._detector.shape, self._detector.cell_size
        if self._detector.grid == "cartesian":
            axes = g4.kXAxis, g4.kYAxis
            solids = [
                g4.G4Box(name, x / 2, y / 2, mm / 2)
                for name, x, y in (
                    ("window", n1 * first, n2 * second),
                    ("row", first, n2 * second),
                    ("cell", first, second),
                )
            ]
        else:
            axes = g4.kPhi, g4.kRho
            solids = [
                g4.G4Tubs(name, 0, radius, mm / 2, start, width)
                for name, radius, start, width in (
                    ("window", n2 * second, 0, math.tau),
                    ("row", n2 * second, -first / 2, first),
                    ("cell", second, -first / 2, first),
                )
            ]
        window, row, cell = (self._volume(g4, solid, material) for solid in solids)
        self._kept.append(g4.G4PVReplica("cell", cell, row, axes[1], n2, second))
        self._kept.append(g4.G4PVReplica("row", row, window, axes[0], n1, first))
        self._place(g4, window, 0, sensor)

    def _material(self, g4: Any, name: str) -> Any:  # noqa: ANN401
        nist = g4.G4NistManager.Instance()
        material = nist.FindOrBuildMaterial(name)
        if material is None:
            known = [str(other) for other in nist.GetNistMaterialNames()]
            folded = {other.lower(): other for other in known}
            near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, cutoff=0.4)]
            raise InvalidConfig(
                f"Detector {self._detector.name}, layers: Geant4 knows no material {name!r}. "
                f"{'Near are ' + ', '.join(near) if near else 'Names are those of its NIST database, such as G4_Pb or G4_Si'}."
            )
        return material

    def _box(self, g4: Any, name: str, material: Any, side: float, z: float) -> Any:  # noqa: ANN401
        return self._volume(g4, g4.G4Box(name, side / 2, side / 2, z / 2), material)

    def _volume(self, g4: Any, solid: Any, material: Any) -> Any:  # noqa: ANN401
        logical = g4.G4LogicalVolume(solid, material, solid.GetName())
        self._kept += [solid, logical]
        return logical

    def _place(self, g4: Any, logical: Any, z: float, mother: Any, copy: int = 0) -> Any:  # noqa: ANN401
        at = g4.G4ThreeVector(0, 0, z)
        placed = g4.G4PVPlacement(None, at, logical, logical.GetName(), mother, False, copy, False)
        self._kept.append(placed)
        return placed
