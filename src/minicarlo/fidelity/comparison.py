"""Every observable of two measured sets under every distance that applies to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity import tables
from minicarlo.fidelity.binning import edges_of
from minicarlo.fidelity.cern import CernFigure
from minicarlo.fidelity.definitions import UNITS
from minicarlo.fidelity.distances import (
    GRID,
    LAYER_GRID,
    CorrelationDistance,
    Distance,
    EnergyDependence,
    Float,
    ProfileDeviation,
    SeparationPower,
    Wasserstein,
    bin_index,
    grid_edges,
)
from minicarlo.fidelity.observables import Measured
from minicarlo.fidelity.resampling import Resampled, Resamples, family_p_values, resample
from minicarlo.fidelity.scorecard import (
    DIFFERS,
    INDISTINGUISHABLE,
    CernBin,
    CernScore,
    Histogram,
    LayerScore,
    ObservableScore,
    Score,
)

OBSERVABLES_ALPHA = 0.03
"""Chance of a false alarm of any observable."""

_LAYER_HISTOGRAMS = 5
_CORRELATED = ("response", "occupancy", "centre_x", "centre_y", "centre_z", "width_x", "width_y", "width_z", "lateral_mean")
_DEVIATIONS = ("linearity", "resolution", "longitudinal_profile", "lateral_profile", "correlation")

Progress = Callable[[int, int], None]


class Comparison:
    """All distances of two measured sets under one set of resamples."""

    def __init__(self, ours: Measured, theirs: Measured, resamples: Resamples, edges: Float) -> None:
        self.ours, self.theirs, self.resamples, self.edges = ours, theirs, resamples, edges
        bins = np.searchsorted(edges, self.pooled_energy(), side="right") - 1
        response = self.pooled("response")
        self.linearity = EnergyDependence.of(response, bins, len(edges) - 1, 1)
        self.resolution = EnergyDependence.of(response, bins, len(edges) - 1, 2)
        layers = self.pooled("layer_fraction")
        self.correlated = [*_CORRELATED, *(f"layer_fraction_{layer}" for layer in range(layers.shape[1]))]
        self.correlation = CorrelationDistance.of(
            np.concatenate([np.stack([self.pooled(name) for name in _CORRELATED], axis=1), layers], axis=1)
        )
        self.found: dict[tuple[str, str], Resampled] = {}
        self.family: dict[str, list[tuple[Float, Float]]] = {}
        self.histograms: dict[str, Histogram] = {}
        self.layer_histograms: dict[str, list[Histogram]] = {}

    def pooled(self, name: str) -> NDArray[np.float32]:
        return np.concatenate([self.ours.values[name], self.theirs.values[name]])

    def pooled_energy(self) -> NDArray[np.float64]:
        return np.concatenate([self.ours.energy, self.theirs.energy]).astype(np.float64)

    def compare(self, progress: Progress) -> None:
        """Resample every distance; keep values and scores, drop features one by one."""
        energy = self.pooled_energy()[:, None]
        names = list(self.ours.values)
        for done, name in enumerate(names):
            self._observable(name)
            progress(done, len(names) + 3)
        self._cells()
        progress(len(names) + 1, len(names) + 3)
        rings = np.concatenate([self.ours.rings, self.theirs.rings])
        whole: dict[str, Distance] = {
            "linearity": self.linearity,
            "resolution": self.resolution,
            "longitudinal_profile": ProfileDeviation.of(self.pooled("layer_energy") / energy),
            "lateral_profile": ProfileDeviation.of(rings / energy),
            "correlation": self.correlation,
        }
        for name, distance in whole.items():
            self._keep(name, "deviation", distance)

    def scores(self) -> dict[str, ObservableScore]:
        """A score with its verdict for every observable."""
        joined = {
            name: (np.concatenate([value for value, _ in parts]), np.concatenate([null for _, null in parts], axis=1))
            for name, parts in self.family.items()
        }
        p_values = family_p_values(joined)
        found = {}
        for name, p_value in p_values.items():
            parts = {kind: self.found[name, kind] for key, kind in self.found if key == name}
            fields: dict[str, Any] = {kind: _score(part, -1) for kind, part in parts.items()} | self._means(name)
            if name.startswith("layer_") or name == "azimuth":
                columns = len(joined[name][0]) // len(parts) - 1
                fields["worst_layer"] = _worst(joined[name][0], columns)
                fields["layers"] = [
                    LayerScore(layer=k, **{kind: _score(part, k) for kind, part in parts.items()}) for k in range(columns)
                ]
            found[name] = ObservableScore(
                verdict=DIFFERS if p_value < OBSERVABLES_ALPHA else INDISTINGUISHABLE,
                p_value=p_value,
                unit=UNITS.get(name, ""),
                **fields,
            )
        order = [name for name in _DEVIATIONS if name in found] + [name for name in found if name not in _DEVIATIONS]
        return {name: found[name] for name in order}

    def cern(self) -> CernScore | None:
        """The CERN figure in the bins of energy and in all; None when the sets are too small."""
        bins = list(zip(self.edges[:-1].tolist(), self.edges[1:].tolist(), strict=True))
        figure = CernFigure.of(self.ours, self.theirs, [None, *bins] if len(bins) > 1 else [None])
        if not figure.bins:
            return None
        nothing = Resamples(
            self.resamples.permutations[:1],
            self.resamples.bootstrap_reference,
            self.resamples.bootstrap_candidate,
            self.resamples.halves,
            self.resamples.matching,
            self.resamples.shared,
        )
        found = resample(figure, nothing)
        moments = _score(found, 0)
        return CernScore(
            **moments.model_dump(),
            as_coded=2 * found.value[0],
            profiles=_score(found, 1),
            bins=[
                CernBin(
                    low=limits[0] if limits else None,
                    high=limits[1] if limits else None,
                    **_score(found, 2 + k).model_dump(),
                )
                for k, limits in enumerate(figure.bins)
            ],
        )

    def _observable(self, name: str) -> None:
        ours, theirs = (measured.values[name].reshape(len(measured), -1) for measured in (self.ours, self.theirs))
        edges = [edges_of(name, column, self.ours.threshold_mev) for column in ours.T]
        pooled = np.concatenate([ours, theirs])
        self._keep(name, "separation_power", SeparationPower.of(pooled, edges))
        grid = GRID if len(edges) == 1 else LAYER_GRID
        self._keep(name, "wasserstein", Wasserstein.of(pooled, ours.std(axis=0, dtype=np.float64), grid))
        made = [tables.histogram(ours[:, k], theirs[:, k], edges[k], UNITS[name]) for k in range(len(edges))]
        if len(made) == 1:
            self.histograms[name] = made[0]
            return
        self.layer_histograms[name] = made
        if name == "layer_energy":
            for k in np.unique(np.linspace(0, len(made) - 1, _LAYER_HISTOGRAMS + 2).round().astype(int)[1:-1]):
                self.histograms[f"layer_energy_{k}"] = made[k]

    def _cells(self) -> None:
        """Distances of the spectrum of cells; resampled by event, since cells of one shower go together."""
        edges = edges_of("cell_energy", self.ours.cells, self.ours.threshold_mev)
        spectrum = tables.histogram(self.ours.cells, self.theirs.cells, edges, UNITS["cell_energy"])
        (below, above), (their_below, their_above) = spectrum.reference_outside, spectrum.candidate_outside
        spectrum.reference_outside = (below + int(self.ours.unlit.sum()), above)
        spectrum.candidate_outside = (their_below + int(self.theirs.unlit.sum()), their_above)
        self.histograms["cell_energy"] = spectrum
        logarithms = [np.log10(measured.cells.astype(np.float64)) for measured in (self.ours, self.theirs)]
        if min(map(len, logarithms)) < 2:
            return
        step = max(1, sum(map(len, logarithms)) // 1_000_000)
        grid = grid_edges(np.concatenate([part[::step] for part in logarithms]), GRID)
        widths = np.diff(grid)[None] / (logarithms[0].std() or 1.0)
        binned, fine = [], []
        for measured, values in zip((self.ours, self.theirs), logarithms, strict=True):
            event = np.repeat(np.arange(len(measured)), np.diff(measured.offsets))
            binned.append(_counts(event, bin_index(measured.cells, edges), len(measured), len(edges) + 1))
            place = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, GRID - 1)
            fine.append(_counts(event, place, len(measured), GRID))
        self._keep("cell_energy", "separation_power", SeparationPower(np.concatenate(binned), len(edges) + 1))
        self._keep("cell_energy", "wasserstein", Wasserstein(np.concatenate(fine), widths))

    def _keep(self, name: str, kind: str, distance: Distance) -> None:
        found = resample(distance, self.resamples)
        self.found[name, kind] = found
        self.family.setdefault(name, []).append(found.scores(distance.power))

    def _means(self, name: str) -> dict[str, float]:
        if name == "cell_energy":
            return {
                "reference_mean": float(self.ours.cells.mean(dtype=np.float64)),
                "candidate_mean": float(self.theirs.cells.mean(dtype=np.float64)),
                "scale": float(np.log10(self.ours.cells.astype(np.float64)).std()),
            }
        if name not in self.ours.values or self.ours.values[name].ndim > 1:
            return {}
        ours, theirs = (measured.values[name].astype(np.float64) for measured in (self.ours, self.theirs))
        return {"reference_mean": float(ours.mean()), "candidate_mean": float(theirs.mean()), "scale": float(ours.std())}


def _score(part: Resampled, column: int) -> Score:
    return Score(value=part.value[column], error=part.error[column], floor=part.floor[column])


def _worst(scores: Float, columns: int) -> int:
    """The column with the largest score in any distance; each distance has its columns and then their mean."""
    return int(scores.reshape(-1, columns + 1)[:, :columns].max(axis=0).argmax())


def _counts(event: NDArray[np.int64], place: NDArray[np.int64], events: int, bins: int) -> NDArray[np.float32]:
    return np.bincount(event * bins + place, minlength=events * bins).reshape(events, bins).astype(np.float32)
