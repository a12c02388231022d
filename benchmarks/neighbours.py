"""Where showers can be told from the Monte Carlo's: trees on groups of features, how cells go together with their neighbours,
layers that few particles cross, and cells about the edge of their spectrum.

    python benchmarks/neighbours.py test.h5 runs/results/fp32.h5

The sets hold the same incident energies in the same order, as those of `results.sh` do. Correlations are of cells being hit
in layers 3 to 16, where the energy is.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from minicarlo.events import EventSet, read_events
from minicarlo.fidelity import measure
from minicarlo.fidelity.classifiers.inputs import Inputs, split
from minicarlo.fidelity.classifiers.quick import trees
from minicarlo.fidelity.classifiers.separation import separation
from minicarlo.fidelity.observables import Measured

ENERGIES_MEV = ((1e3, 4e3), (2e4, 4e4))
RADII = ((1.2, 3.5), (3.5, 5.5), (5.5, 11.0))  # in cells
OFFSETS = {"next cell": (0, 0, 1), "diagonal": (0, 1, 1), "next but one": (0, 0, 2), "next layer": (1, 0, 0)}
LAYERS = slice(3, 17)
LOWEST_MEV = 1780.0
EMPTY_AT_MEV = (1e3, 2e3), (2e3, 5e3), (5e3, 2e4)
WATCHED = 0, 1, 15, 18, 20, 22, 24  # layers
WEAK_MEV = (0.05, 0.12), (0.12, 0.16), (0.16, 0.25), (0.25, 0.4), (0.4, 0.8), (0.8, 1.5), (1.5, 3.0)
LAST = slice(18, None)
SHOWERS_MEV = (1e3, 3e3), (3e3, 1e4), (1e4, 3e4), (3e4, 1.01e5)
CELLS_MEV = 0.05, 0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.2, 0.3


def main(reference: str, candidate: str) -> None:
    pair = read_events(reference), read_events(candidate)
    measured = [measure(events) for events in pair]
    console = Console(width=100)
    console.print(_separations(*measured))
    console.print(_correlations(*pair, measured[0].threshold_mev))
    console.print(_around(*measured))
    console.print(_empty_layers(*pair, measured[0].threshold_mev))
    console.print(_weak_layers(*pair, measured[0].threshold_mev))
    console.print(_spectrum(*pair))


def _separations(reference: Measured, candidate: Measured) -> Table:
    """AUC of the trees of the scorecard where they see some of the high-level features only."""
    inputs = Inputs.of(reference, candidate)
    layers = inputs.detector.layers
    columns = {
        "layer energies": [*range(1, 1 + layers), 1 + 5 * layers],
        "centres in layers": list(range(1 + layers, 1 + 3 * layers)),
        "widths in layers": list(range(1 + 3 * layers, 1 + 5 * layers)),
        "sparsity of layers": list(range(2 + 5 * layers, 2 + 6 * layers)),
        "all": list(range(1, 2 + 6 * layers)),
    }
    labels = np.repeat([0, 1], [len(reference), len(candidate)])
    parts = split(inputs.energy.astype(np.float64), 0, 0)
    table = Table("features", "AUC of trees")
    for name, seen in columns.items():
        features = np.zeros_like(inputs.features)
        features[:, [0, *seen]] = inputs.features[:, [0, *seen]]
        _, scores = trees(replace(inputs, features=features), labels, parts, seed=0, epochs=None, progress=lambda done, of: None)
        tested = labels[parts.test]
        table.add_row(name, f"{separation(scores[tested == 0], scores[tested == 1]).auc:.3f}")
    return table


def _around(*sets: Measured) -> Table:
    """How even showers are around the axis, and how often the first layer is empty at the lowest energies."""
    table = Table("", "reference", "candidate")
    shares = [8 * each.values["azimuth"].mean(0) for each in sets]
    empty = [float((each.values["layer_energy"][each.energy < LOWEST_MEV, 0] == 0).mean()) for each in sets]
    table.add_row("energy in eight sectors", *(" ".join(f"{share:.2f}" for share in each) for each in shares))
    table.add_row(f"first layer empty under {LOWEST_MEV / 1e3} GeV", *(f"{each:.2%}" for each in empty))
    return table


def _correlations(reference: EventSet, candidate: EventSet, threshold_mev: float) -> Table:
    table = Table("energy", "cells from axis", *OFFSETS)
    _, first, second = reference.samples.shape[1:]
    x, y = (np.arange(side) - (side - 1) / 2 for side in (first, second))
    radius = np.hypot(x[:, None], y[None, :])
    energy = reference.incident_energy.reshape(-1)
    for low, high in ENERGIES_MEV:
        rows = (energy >= low) & (energy < high)
        hits = [(events.samples[rows] > threshold_mev).astype(np.float32) for events in (reference, candidate)]
        for inner, outer in RADII:
            ring = (radius >= inner) & (radius < outer)
            found = [_with_neighbours(each, ring) for each in hits]
            cells = [f"{one:.3f}, {other:.3f}" for one, other in zip(*found, strict=True)]
            table.add_row(f"{low / 1e3:.0f} to {high / 1e3:.0f} GeV", f"{inner} to {outer}", *cells)
    return table


def _empty_layers(reference: EventSet, candidate: EventSet, threshold_mev: float) -> Table:
    """In how many showers of an energy a layer holds nothing."""
    table = Table("empty layers", *(str(layer) for layer in WATCHED))
    energy = reference.incident_energy.reshape(-1)
    for low, high in EMPTY_AT_MEV:
        rows = (energy >= low) & (energy < high)
        largest = [events.samples[rows].max((2, 3)) for events in (reference, candidate)]
        shares = [[f"{(each[:, layer] <= threshold_mev).mean():.1%}" for each in largest] for layer in WATCHED]
        table.add_row(f"{low / 1e3:g} to {high / 1e3:g} GeV", *(", ".join(each) for each in shares))
    return table


def _weak_layers(reference: EventSet, candidate: EventSet, threshold_mev: float) -> Table:
    """Cells hit in the last layers by their energy: the mean, the variance over it, and the share of layers with one alone."""
    table = Table("energy of one of the last layers", "layers", "cells hit", "variance over mean", "one alone")
    for low, high in WEAK_MEV:
        found = []
        for events in (reference, candidate):
            cells = np.where(events.samples[:, LAST] > threshold_mev, events.samples[:, LAST], 0)
            energy = cells.sum((2, 3))
            found.append((cells > 0).sum((2, 3))[(energy > low) & (energy <= high)])
        columns = (
            [f"{len(hits):,}" for hits in found],
            [f"{hits.mean():.2f}" for hits in found],
            [f"{hits.var() / hits.mean():.2f}" for hits in found],
            [f"{(hits == 1).mean():.1%}" for hits in found],
        )
        table.add_row(f"{low} to {high} MeV", *(", ".join(column) for column in columns))
    return table


def _spectrum(reference: EventSet, candidate: EventSet) -> Table:
    """Cells of an energy in showers of an energy, over the reference's number of them."""
    table = Table("cells in MeV", *(f"{low} to {high}" for low, high in pairwise(CELLS_MEV)))
    energy = reference.incident_energy.reshape(-1)
    for low, high in SHOWERS_MEV:
        rows = (energy >= low) & (energy < high)
        first, second = (np.histogram(events.samples[rows], CELLS_MEV)[0] for events in (reference, candidate))
        table.add_row(f"{low / 1e3:g} to {high / 1e3:g} GeV", *(f"{ratio:.3f}" for ratio in second / first))
    return table


def _with_neighbours(hits: NDArray[np.float32], ring: NDArray[np.bool_]) -> list[float]:
    """Mean covariance of the cells of a ring with each of their neighbours, over their mean variance."""
    centred = hits - hits.mean(0)
    chosen = np.zeros(hits.shape[1:], bool)
    chosen[LAYERS] = ring
    variance = (centred**2).mean(0)[chosen].sum()
    moved = (np.roll(centred, [-step for step in offset], (1, 2, 3)) for offset in OFFSETS.values())
    return [float((centred * each).mean(0)[chosen].sum() / variance) for each in moved]


if __name__ == "__main__":
    main(*sys.argv[1:])
