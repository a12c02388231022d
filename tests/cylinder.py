"""Real showers in a cylindrical grid, for tests: those of clic-ecal, cell by cell at a random place within the cell."""

from __future__ import annotations

import numpy as np

from minicarlo.detectors import PAR04_SIW, get_detector
from minicarlo.events import EventSet

SAMPLING_FRACTION = 0.028  # of clic-ecal


def in_cylinder(events: EventSet, seed: int = 0) -> EventSet:
    """The showers of `events` (clic-ecal) in par04-siw: its depth in our layers, calibrated; what lies outside is lost."""
    random = np.random.default_rng(seed)
    ours, theirs = get_detector(events.detector), get_detector(PAR04_SIW)
    event, *cells = np.nonzero(events.samples)
    energy = events.samples[event, cells[0], cells[1], cells[2]] / SAMPLING_FRACTION
    z, x, y = (index + random.random(len(index)) for index in cells)
    x, y = (x - ours.shape[1] / 2) * ours.cell_size[1], (y - ours.shape[2] / 2) * ours.cell_size[2]
    layer = np.floor(z * theirs.shape[0] / ours.shape[0]).astype(np.int64)
    sector = np.floor(np.arctan2(y, x) % (2 * np.pi) / theirs.cell_size[1]).astype(np.int64) % theirs.shape[1]
    ring = np.floor(np.hypot(x, y) / theirs.cell_size[2]).astype(np.int64)
    inside = ring < theirs.shape[2]
    samples = np.zeros((len(events), *theirs.shape), np.float32)
    np.add.at(samples, (event[inside], layer[inside], sector[inside], ring[inside]), energy[inside])
    return EventSet(events.conditions, samples, PAR04_SIW)
