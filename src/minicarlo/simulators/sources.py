"""What enters the detector event by event: a beam of single particles, or a list of particles."""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import Detector
from minicarlo.errors import InvalidCondition
from minicarlo.events import ENERGY, PHI, THETA, read_conditions
from minicarlo.sampling import AngleDistribution, EnergyDistribution
from minicarlo.simulators.base import Attributes, FloatArray, Particles
from minicarlo.simulators.incidence import STEEPEST

X, Y, PARTICLES = "incident_x", "incident_y", "particles"
"""Conditions of event sets made from a list: the entry in mm from the centre of the grid; particles in an event, if several."""

_NUMBERS = ("energy", "x", "y", "theta", "phi")
_LARGEST_CSV = 2**30


class Source(Protocol):
    """Particles of the events of a run. Event i is the same whatever else is asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of particles that occur."""
        ...

    def particles(self, seed: int, start: int, count: int) -> tuple[Particles, NDArray[np.int64]]:
        """The particles of events start .. start + count - 1, and how many each of these events has."""
        ...

    def row(self, start: int) -> int:
        """The number of particles in the events before event `start`."""
        ...

    def conditions(self, particles: Particles, counts: NDArray[np.int64]) -> dict[str, FloatArray]:
        """What an event set records about each event."""
        ...

    def request(self) -> dict[str, Any]:
        """The fields that two calls must share to contribute to the same folder."""
        ...

    def attributes(self) -> Attributes:
        """What an event set records about all of them."""
        ...


@dataclass(frozen=True)
class Beam:
    """One particle in each event, which enters at the centre of the grid."""

    particle: str
    energy: EnergyDistribution
    theta: AngleDistribution
    phi: AngleDistribution

    @property
    def names(self) -> tuple[str, ...]:
        """See Source."""
        return (self.particle,)

    @property
    def inclined(self) -> bool:
        """Whether any particle enters at another than a right angle."""
        return self.theta.high_deg > 0

    def particles(self, seed: int, start: int, count: int) -> tuple[Particles, NDArray[np.int64]]:
        """See Source."""
        centre = np.zeros(count, np.float32)
        energies = self.energy.sample(seed, start, count)
        theta, phi = self.theta.sample("theta", seed, start, count), self.phi.sample("phi", seed, start, count)
        return Particles(np.full(count, self.particle), energies, centre, centre, theta, phi), np.ones(count, np.int64)

    def row(self, start: int) -> int:
        """See Source."""
        return start

    def conditions(self, particles: Particles, counts: NDArray[np.int64]) -> dict[str, FloatArray]:
        """See Source."""
        angles = {THETA: particles.theta, PHI: particles.phi} if self.inclined else {}
        return {ENERGY: particles.energies, **angles}

    def request(self) -> dict[str, Any]:
        """See Source."""
        angles = {"theta": str(self.theta), "phi": str(self.phi)} if self.inclined else {}
        return {"particle": self.particle, "energy": str(self.energy), **angles}

    def attributes(self) -> Attributes:
        """See Source."""
        angles = {"theta_distribution": str(self.theta), "phi_distribution": str(self.phi)} if self.inclined else {}
        return {
            "particle": self.particle,
            "energy_distribution": f"{self.energy} (kinetic)",
            "entry": "centre of the grid, front face, no magnetic field",
            **angles,
        }


class ParticleList:
    """The particles of given events: `particles` (m,), of which event i has `counts[i]`, one at least."""

    def __init__(self, particles: Particles, counts: NDArray[np.int64]) -> None:
        self._particles, self._counts = particles, counts
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._several = bool((counts > 1).any())
        self._varied = {name for name, values in self._places(particles).items() if values.any()}

    def __len__(self) -> int:
        """The number of events."""
        return len(self._counts)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See Source."""
        return tuple(sorted(set(self._particles.names.tolist())))

    def first(self, events: int) -> ParticleList:
        """The list of the first `events` events."""
        return ParticleList(self._particles[: self._starts[events]], self._counts[:events])

    def check(self, detector: Detector, where: str) -> None:
        """Raise InvalidCondition for a particle that does not enter the front face of `detector`."""
        every, half, steepest = self._particles, detector.plate_mm / 2, math.radians(STEEPEST)
        for right, good in (
            ("an energy above zero and below 1e15 MeV", (every.energies > 0) & (every.energies < 1e15)),
            (f"theta from 0 to {steepest:.4g} rad ({STEEPEST:g} degrees)", (every.theta >= 0) & (every.theta <= steepest)),
            ("a finite phi", np.isfinite(every.phi)),
            (f"x and y within {half:g} mm of the centre, on the plates", np.maximum(abs(every.x), abs(every.y)) < half),
        ):
            if not good.all():
                row = int(np.argmin(good))
                _, energy, x, y, theta, phi = (column[row] for column in every.columns())
                raise InvalidCondition(
                    f"{where}, particle {row} (event {np.searchsorted(self._starts, row, 'right') - 1}): energy {energy:g}, "
                    f"x {x:g}, y {y:g}, theta {theta:g}, phi {phi:g}, but {right} is right."
                )

    def particles(self, seed: int, start: int, count: int) -> tuple[Particles, NDArray[np.int64]]:
        """See Source."""
        return self._particles[self._starts[start] : self._starts[start + count]], self._counts[start : start + count]

    def row(self, start: int) -> int:
        """See Source."""
        return int(self._starts[start])

    def conditions(self, particles: Particles, counts: NDArray[np.int64]) -> dict[str, FloatArray]:
        """See Source. The incident energy of an event is the sum over its particles."""
        if not self._several:
            places = self._places(particles)
            return {ENERGY: particles.energies} | {name: places[name] for name in places if name in self._varied}
        starts = np.cumsum(counts) - counts
        sums = np.add.reduceat(particles.energies.astype(np.float64), starts).astype(np.float32)
        return {ENERGY: sums, PARTICLES: counts.astype(np.float32)}

    def request(self) -> dict[str, Any]:
        """See Source."""
        return {"particle": ", ".join(self.names), "conditions": self._description}

    def attributes(self) -> Attributes:
        """See Source."""
        return {
            "particle": ", ".join(self.names),
            "energy_distribution": self._description,
            "entry": "front face, where listed, no magnetic field",
        }

    @cached_property
    def _description(self) -> str:
        digest = hashlib.sha256(self._counts.astype("<i8").tobytes())
        digest.update("\n".join(self._particles.names.tolist()).encode())
        for column in self._particles.columns()[1:]:
            digest.update(column.astype("<f4").tobytes())
        return f"{len(self._particles)} given particles in {len(self)} events, sha256 {digest.hexdigest()}"

    @staticmethod
    def _places(particles: Particles) -> dict[str, FloatArray]:
        return {THETA: particles.theta, PHI: particles.phi, X: particles.x, Y: particles.y}


def read_particles(path: Path | str, particle: str) -> ParticleList:
    """The particles of a CSV file, or those of an event set with one particle per event, which are called `particle`.

    The first line of a CSV file names its columns: `energy` (kinetic, MeV), and as wanted `event` (0, 0, 1, 2, 2, ...; one
    particle per event without it), `particle`, `x` and `y` (mm from the centre of the grid), `theta` and `phi` (rad). Units may
    follow a name in brackets. Raises InvalidCondition, InvalidEventSet.
    """
    path = Path(path)
    if path.suffix.lower() in (".csv", ".txt"):
        return _read_csv(path, particle)
    found = read_conditions(path)
    if PARTICLES in found:
        raise InvalidCondition(
            f"Conditions {path} are an event set with several particles per event, of which it holds the sum alone. "
            "Give the CSV file that it was made from."
        )
    count = len(found[ENERGY])
    columns = (found.get(name, np.zeros(count, np.float32)) for name in (X, Y, THETA, PHI))
    return _listed(path, Particles(np.full(count, particle), found[ENERGY], *columns), np.arange(count))


def _read_csv(path: Path, particle: str) -> ParticleList:
    try:
        if path.stat().st_size > _LARGEST_CSV:
            raise InvalidCondition(f"Conditions {path} are larger than {_LARGEST_CSV} bytes. Split them.")
        with open(path, newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            header = [name.split("[")[0].strip() for name in next(lines, [])]
            unknown = [name for name in header if name not in (*_NUMBERS, "event", "particle")]
            if unknown or "energy" not in header or len(set(header)) < len(header):
                raise InvalidCondition(
                    f"Conditions {path}, line 1: {', '.join(header)[:200] or 'nothing'} are no columns of a list of particles. "
                    "Give energy (MeV) and, as wanted, event, particle, x, y, theta, phi."
                )
            places = {name: header.index(name) for name in header}
            table: dict[str, list[Any]] = {name: [] for name in header}
            for line in lines:
                for name, place in places.items() if line else ():
                    try:
                        table[name].append(line[place].strip() if name == "particle" else _number(name, line[place]))
                    except (ValueError, IndexError):
                        right = "a number from 0 on" if name == "event" else "a number"
                        raise InvalidCondition(
                            f"Conditions {path}, line {lines.line_num}, column {name}: {right} is right."
                        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidCondition(f"Conditions {path} cannot be read as a CSV file ({error}). Give one, or an event set.") from error
    count = len(table["energy"])
    zeros = np.zeros(count, np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, which is then refused
        columns = [np.array(table[name]).astype(np.float32) if name in table else zeros for name in _NUMBERS]
    names = np.array(table["particle"]) if "particle" in table else np.full(count, particle)
    return _listed(path, Particles(names, *columns), np.array(table.get("event", np.arange(count)), np.int64))


def _number(name: str, text: str) -> float:
    return int(text) if name == "event" else float(text)


def _listed(path: Path, particles: Particles, events: NDArray[np.int64]) -> ParticleList:
    """Particles with the numbers of their events, which must begin with 0, rise, and leave none out."""
    if not len(events):
        raise InvalidCondition(f"Conditions {path} hold no particle.")
    steps = np.diff(events, prepend=0)
    if events[0] != 0 or ((steps != 0) & (steps != 1)).any():
        row = 0 if events[0] != 0 else int(np.argmax((steps != 0) & (steps != 1)))
        raise InvalidCondition(
            f"Conditions {path}, particle {row}: event {events[row]} is out of order. Events are numbered from 0 on, none is "
            "left out, and the particles of one stand together."
        )
    return ParticleList(particles, np.bincount(events))
