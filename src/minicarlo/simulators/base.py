"""What a reference Monte Carlo must offer: conditions and seeds in, samples out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import Detector
from minicarlo.simulators.acceptance import Acceptance

FloatArray = NDArray[np.float32]
SeedArray = NDArray[np.int64]
Attributes = dict[str, str | int | float]


@dataclass(frozen=True)
class Setup:
    """Everything that distinguishes one simulation from another, besides its primaries.

    `particles` are all that may occur, `cut_mm` is the production cut as a range in mm; `physics` is a name that the simulator
    knows. With `tracks`, events come with the tracks of their particles, for drawing. What `acceptance` accepts is stopped.
    """

    detector: Detector
    particles: tuple[str, ...]
    physics: str
    cut_mm: float
    tracks: bool = False
    acceptance: Acceptance | None = None


@dataclass(frozen=True)
class Particles:
    """m particles that enter the front face.

    `names` (m,) text, and (m,) float32 each: kinetic `energies` in MeV, the entry `x`, `y` in mm from the centre of the grid,
    the polar and azimuthal angle of the direction `theta`, `phi` in rad, zero along z.
    """

    names: NDArray[np.str_]
    energies: FloatArray
    x: FloatArray
    y: FloatArray
    theta: FloatArray
    phi: FloatArray

    def __len__(self) -> int:
        return len(self.energies)

    def __getitem__(self, rows: slice) -> Particles:
        return Particles(*(column[rows] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """All arrays, in the order of the fields."""
        return self.names, self.energies, self.x, self.y, self.theta, self.phi

    def rows(self) -> Iterator[tuple[str, float, float, float, float, float]]:
        """One particle after the other."""
        return zip(*(column.tolist() for column in self.columns()), strict=True)


@dataclass(frozen=True)
class Primaries:
    """What enters the front face in n events, event by event: `counts` (n,) says how many of `particles` are of each.

    `seeds` (n,) int64.
    """

    particles: Particles
    counts: NDArray[np.int64]
    seeds: SeedArray

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def single(
        cls, particle: str, energies: FloatArray, seeds: SeedArray, theta: FloatArray | None = None, phi: FloatArray | None = None
    ) -> Primaries:
        """One particle in each event, which enters at the centre of the grid; `theta` and `phi` are zero if not given."""
        zeros = np.zeros(len(energies), np.float32)
        angles = (zeros if angle is None else angle for angle in (theta, phi))
        names = np.full(len(energies), particle)
        return cls(Particles(names, energies, zeros, zeros, *angles), np.ones(len(energies), np.int64), seeds)


@dataclass(frozen=True)
class Track:
    """A particle's way: `points` (n, 3) in mm, z from the front face and x, y from the centre of the grid; MeV at its start."""

    particle: str
    energy: float
    points: FloatArray


@dataclass(frozen=True)
class Stopped:
    """k particles as they were when they were stopped at the front face.

    `rows` (k,) are their numbers among the particles of the task; `energies` MeV, `x` and `y` mm as in Particles.
    """

    rows: NDArray[np.int64]
    energies: FloatArray
    x: FloatArray
    y: FloatArray


@dataclass(frozen=True)
class Batch:
    """Simulated events: `samples` (n, z, x, y) or (n, z, phi, r) float32 MeV and the CPU seconds they took.

    `tracks` are those of all events, where the setup asks for them and the simulator has them. With an acceptance, `fates` (m,)
    int8 are indices of FATES, one per particle, and `stopped` are those on the fast path; their showers are not in `samples`.
    """

    samples: FloatArray
    seconds: float
    tracks: list[Track] = field(default_factory=list)
    fates: NDArray[np.int8] | None = None
    stopped: Stopped | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What goes from process to process: of the samples, those that hold anything."""
        filled = np.flatnonzero(self.samples.any(axis=(1, 2, 3)))
        return vars(self) | {"samples": (self.samples.shape, filled, self.samples[filled])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shape, filled, samples = state["samples"]
        whole = np.zeros(shape, np.float32)
        whole[filled] = samples
        vars(self).update(state | {"samples": whole})


class Session(Protocol):
    """A simulation that is set up and can make events. It lives in a worker process of its own."""

    def run(self, primaries: Primaries) -> Batch:
        """Simulate the events; each depends on its particles and its seed alone."""
        ...

    def provenance(self) -> Attributes:
        """Return what an event set should record about how its events were made, `generator` in any case."""
        ...


class Simulator(Protocol):
    """A reference Monte Carlo. Entry points of the group `minicarlo.simulators` name classes of this shape.

    The class is created without arguments, in the caller's process and again in every worker.
    """

    name: str

    def prepare(self, setup: Setup) -> Mapping[str, str]:
        """Check all that can be checked in the caller's process, cheaply and without side effects.

        Returns environment variables that the workers need. Raises a MinicarloError that says what is missing.
        """
        ...

    def open(self, setup: Setup) -> Session:
        """Set the simulation up. Called once in a worker process, with the variables from `prepare` set."""
        ...

    def explain(self, log: str) -> str:
        """Say in a sentence or two what a worker died of, from what it wrote to standard error; empty if that is unclear."""
        ...
