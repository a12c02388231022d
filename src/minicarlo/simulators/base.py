"""What a reference Monte Carlo must offer: conditions and seeds in, samples out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import Detector

FloatArray = NDArray[np.float32]
SeedArray = NDArray[np.int64]
Attributes = dict[str, str | int | float]


@dataclass(frozen=True)
class Setup:
    """Everything that distinguishes one simulation from another, besides its primaries.

    `cut_mm` is the production cut as a range in mm; `physics` is a name that the simulator knows. With `tracks`, events come
    with the tracks of their particles, for drawing.
    """

    detector: Detector
    particle: str
    physics: str
    cut_mm: float
    tracks: bool = False


@dataclass(frozen=True)
class Primaries:
    """What enters the front face at the centre of the grid, one particle per event.

    `energies` (n,) float32 are kinetic energies in MeV; `theta` and `phi` (n,) float32 the polar and azimuthal angle of the
    direction in rad, zero along z; `seeds` (n,) int64.
    """

    energies: FloatArray
    theta: FloatArray
    phi: FloatArray
    seeds: SeedArray

    def __len__(self) -> int:
        return len(self.energies)


@dataclass(frozen=True)
class Track:
    """A particle's way: `points` (n, 3) in mm, z from the front face and x, y from the centre of the grid; MeV at its start."""

    particle: str
    energy: float
    points: FloatArray


@dataclass(frozen=True)
class Batch:
    """Simulated events: `samples` (n, z, x, y) or (n, z, phi, r) float32 MeV and the CPU seconds they took.

    `tracks` are those of all events, where the setup asks for them and the simulator has them.
    """

    samples: FloatArray
    seconds: float
    tracks: list[Track] = field(default_factory=list)


class Session(Protocol):
    """A simulation that is set up and can make events. It lives in a worker process of its own."""

    def run(self, primaries: Primaries) -> Batch:
        """Simulate one event per primary; an event depends on its primary and its seed alone."""
        ...

    def provenance(self) -> Attributes:
        """Return what an event set should record about how its events were made."""
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
