"""Defects planted in real showers, and the observables that should name them. Also used by benchmarks/calibration.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from minicarlo.events import EventSet

LOW_ENERGY_MEV = 0.2
"""Cells below are low: a minimum ionising particle leaves some 0.15 MeV in a sensor of clic-ecal."""
LAYER = 8
"""The layer whose energy is wrong."""


@dataclass(frozen=True)
class Defect:
    """`plant` makes the defect in an event set; any of `names` is a right answer to the question what is wrong.

    `rows`: where the defect is in which events there are, those of so many; a sub-sample would lose it.
    """

    words: str
    plant: Callable[[EventSet, np.random.Generator], EventSet]
    names: frozenset[str]
    layer: int | None = None
    rows: Callable[[int, np.random.Generator], NDArray[np.int64]] | None = None


def scale_energy(events: EventSet, factor: float = 1.01) -> EventSet:
    """All energies times a factor."""
    return replace(events, samples=events.samples * np.float32(factor))


def narrow_resolution(events: EventSet, factor: float = 0.98) -> EventSet:
    """Visible energies moved towards their mean at that incident energy, so that their spread shrinks by the factor.

    The mean is a parabola in log E, fitted to the response.
    """
    visible = events.samples.sum(axis=(1, 2, 3), dtype=np.float64)
    energy = events.incident_energy.astype(np.float64)
    mean = energy * np.polyval(np.polyfit(np.log(energy), visible / energy, 2), np.log(energy))
    wanted = mean + factor * (visible - mean)
    ratio = np.divide(wanted, visible, out=np.ones_like(visible), where=visible > 0)
    return replace(events, samples=events.samples * ratio.astype(np.float32)[:, None, None, None])


def scale_layer(events: EventSet, factor: float = 1.02, layer: int = LAYER) -> EventSet:
    """The energies of one layer times a factor."""
    samples = events.samples.copy()
    samples[:, layer] *= np.float32(factor)
    return replace(events, samples=samples)


def shift_sideways(events: EventSet, shift_mm: float = 1.0, pitch_mm: float = 5.1) -> EventSet:
    """Every shower moved along x: a cell gives its neighbour the share of its energy that overlaps with it.

    Energy that leaves the window is lost.
    """
    share = np.float32(shift_mm / pitch_mm)
    samples = (1 - share) * events.samples
    samples[:, :, 1:] += share * events.samples[:, :, :-1]
    return replace(events, samples=samples)


def repeated_rows(events: int, random: np.random.Generator, share: float = 0.05) -> NDArray[np.int64]:
    """Numbers of events of which a share are copies of others."""
    chosen = random.permutation(events)
    count = round(share * events)
    rows = np.arange(events)
    rows[chosen[:count]] = chosen[count : 2 * count]
    return rows


def repeat_events(events: EventSet, random: np.random.Generator, share: float = 0.05) -> EventSet:
    """A share of the events are copies of others of the set."""
    return events[repeated_rows(len(events), random, share)]


def lose_low_cells(events: EventSet, random: np.random.Generator, share: float = 0.05) -> EventSet:
    """A share of the cells below `LOW_ENERGY_MEV` are empty."""
    samples = events.samples.copy()
    low = np.flatnonzero((samples.reshape(-1) > 0) & (samples.reshape(-1) < LOW_ENERGY_MEV))
    samples.reshape(-1)[low[random.random(len(low)) < share]] = 0
    return replace(events, samples=samples)


def shuffle_layers(events: EventSet, random: np.random.Generator, group: int = 10) -> EventSet:
    """Every layer taken from another event of nearly the same incident energy: all distributions but no correlations stay."""
    order = np.argsort(events.incident_energy, kind="stable")
    samples = np.empty_like(events.samples)
    for layer in range(samples.shape[1]):
        shuffled = np.concatenate([random.permutation(part) for part in np.array_split(order, max(1, len(order) // group))])
        samples[order, layer] = events.samples[shuffled, layer]
    return replace(events, samples=samples)


DEFECTS = {
    "energy scale": Defect(
        "energies 1 % higher", lambda events, _: scale_energy(events), frozenset({"response", "linearity", "visible_energy"})
    ),
    "resolution": Defect("resolution 2 % narrower", lambda events, _: narrow_resolution(events), frozenset({"resolution"})),
    "layer": Defect(
        f"layer {LAYER} 2 % higher",
        lambda events, _: scale_layer(events),
        frozenset({"layer_fraction", "layer_energy", "longitudinal_profile"}),
        LAYER,
    ),
    "shift": Defect("1 mm along x", lambda events, _: shift_sideways(events), frozenset({"centre_x", "layer_centre_x"})),
    "duplicates": Defect("5 % of the events repeated", repeat_events, frozenset({"duplicates"}), rows=repeated_rows),
    "low cells": Defect(
        f"5 % of the cells below {LOW_ENERGY_MEV:g} MeV missing",
        lose_low_cells,
        frozenset({"occupancy", "cell_energy", "layer_sparsity"}),
    ),
    "correlations": Defect("layers of different events", shuffle_layers, frozenset({"correlation"})),
}
"""Name to defect."""
