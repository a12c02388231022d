"""The work of a run in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicarlo.sampling import event_seed
from minicarlo.simulators.acceptance import FAST
from minicarlo.simulators.base import Particles, Primaries, Setup
from minicarlo.simulators.sources import Source

TASK_EVENTS, TASK_MEV = 32, 50e3  # a quarter of a second of Geant4: how often progress is seen


@dataclass(frozen=True)
class Task:
    """Events to simulate: index of the first, what enters, and the number of particles in all events before."""

    first: int
    primaries: Primaries
    row: int = 0


def cut(source: Source, setup: Setup, seed: int, start: int, stop: int, most: int) -> Iterator[Task]:
    """Events start .. stop - 1 in tasks of at most `most` events and, beyond one event, TASK_MEV for the simulator to track."""
    particles, counts = source.particles(seed, start, stop - start)
    ends = np.cumsum(counts)
    sums = np.cumsum(_tracked(particles, setup))[ends - 1]
    begin = 0
    while begin < stop - start:
        spent, first = (sums[begin - 1], ends[begin - 1]) if begin else (0.0, 0)
        affordable = int(np.searchsorted(sums, spent + TASK_MEV, "right"))
        end = min(max(affordable, begin + 1), begin + most, stop - start)
        seeds = np.array([event_seed(seed, start + index) for index in range(begin, end)], np.int64)
        primaries = Primaries(particles[first : ends[end - 1]], counts[begin:end], seeds)
        yield Task(start + begin, primaries, source.row(start + begin))
        begin = end


def _tracked(particles: Particles, setup: Setup) -> NDArray[np.float64]:
    """Energies in MeV (m,) of what is tracked, zero for what will be stopped."""
    energies = particles.energies.astype(np.float64)
    if setup.acceptance is not None:
        fates = [setup.acceptance.fate(setup.detector, name, *numbers) for name, *numbers, _ in particles.rows()]
        energies[np.array(fates) == FAST] = 0
    return energies
