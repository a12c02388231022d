"""Every observable of two measured sets under every distance that applies to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity import tables
from minicarlo.fidelity.binning import edges_of
from minicarlo.fidelity.cern import CernFigure
from minicarlo.fidelity.conditional import Bins, InBins, Range, interpolation
from minicarlo.fidelity.correlation import CorrelationDistance, at_fixed_energy, pair_words
from minicarlo.fidelity.definitions import UNITS
from minicarlo.fidelity.differences import Moments, beyond_chance, deviation_difference, difference, energy_difference
from minicarlo.fidelity.distances import (
    GRID,
    LAYER_GRID,
    Distance,
    EnergyDependence,
    Float,
    KolmogorovSmirnov,
    ProfileDeviation,
    SeparationPower,
    Wasserstein,
    bin_index,
    grid_edges,
)
from minicarlo.fidelity.observables import Measured, shower_quantities
from minicarlo.fidelity.resampling import Resampled, Resamples, resample, resample_all
from minicarlo.fidelity.scorecard import (
    DIFFERS,
    INDISTINGUISHABLE,
    NOT_ENOUGH,
    BinScore,
    CernBin,
    CernScore,
    Correlations,
    Difference,
    Histogram,
    Interpolation,
    LayerScore,
    ObservableScore,
    PairScore,
    Score,
    Verdict,
)
from minicarlo.fidelity.verdicts import TOLERANCES, WASSERSTEIN, Family

OBSERVABLES_ALPHA = 0.03
"""Chance of a false alarm of any observable."""

_BINS = "bins"
_EVENTS = 4000
_LAYER_HISTOGRAMS = 5
_DEVIATIONS = ("linearity", "resolution", "longitudinal_profile", "lateral_profile", "correlation")

Progress = Callable[[int, int], None]


class Comparison:
    """All distances of two measured sets under one set of resamples."""

    def __init__(
        self,
        ours: Measured,
        theirs: Measured,
        resamples: Resamples,
        edges: Float,
        tolerances: Mapping[str, float] = TOLERANCES,
        held_out: Sequence[Range] = (),
    ) -> None:
        self.ours, self.theirs, self.resamples, self.edges = ours, theirs, resamples, edges
        self.tolerances = {**TOLERANCES, **tolerances}
        self.events = 2 * len(ours) * len(theirs) / (len(ours) + len(theirs))
        self.bins = Bins.of(ours.energy, theirs.energy, edges, held_out)
        response = self.pooled("response")
        self.linearity = EnergyDependence.of(response, self.bins.index, len(self.bins), 1)
        self.resolution = EnergyDependence.of(response, self.bins.index, len(self.bins), 2)
        self.correlated, quantities = shower_quantities(ours)
        pooled = np.concatenate([quantities, shower_quantities(theirs)[1]])
        self.correlation = CorrelationDistance.of(at_fixed_energy(pooled, self.pooled_energy()))
        self.found: dict[str, dict[str, Resampled]] = {}
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
            self._keep(name, deviation=distance)

    def family(self) -> Family:
        """All that was compared, tested together."""
        return Family({name: list(parts.values()) for name, parts in self.found.items()}, self.events, OBSERVABLES_ALPHA)

    def scores(self, family: Family) -> dict[str, ObservableScore]:
        """A score with its verdict for every observable."""
        order = [name for name in _DEVIATIONS if name in self.found] + [name for name in self.found if name not in _DEVIATIONS]
        return {name: self._score(name, family) for name in order}

    def interpolation(self) -> list[Interpolation]:
        """Held-out bins beside their neighbours."""
        return interpolation({name: parts[_BINS] for name, parts in self.found.items() if _BINS in parts}, self.bins)

    def _score(self, name: str, family: Family) -> ObservableScore:
        parts = {kind: part for kind, part in self.found[name].items() if kind != _BINS}
        fields: dict[str, Any] = {kind: _score(part, -1) for kind, part in parts.items()} | self._means(name)
        layered = name in self.ours.values and self.ours.values[name].ndim > 1
        worst = None
        if layered:
            columns = len(parts[WASSERSTEIN].value) - 1
            worst = _worst(np.concatenate([part.scores()[0] for part in parts.values()]), columns)
            fields["worst_layer"] = worst
            fields["layers"] = [
                LayerScore(layer=k, **{kind: _score(part, k) for kind, part in parts.items()}) for k in range(columns)
            ]
        if _BINS in self.found[name]:
            fields |= self._bin_scores(name, family)
        if name == "correlation":
            fields["worst_pair"] = self._worst_pair()
        differs = family.differs(name)
        enough = self._needed(name, parts, family)
        return ObservableScore(
            verdict=DIFFERS if differs else NOT_ENOUGH if enough > self.events else INDISTINGUISHABLE,
            p_value=family.p_values[name],
            unit=UNITS.get(name, ""),
            difference=self._difference(name, worst, differs),
            visible_at=math.ceil(family.visible_at(name)) if differs else None,
            needed=math.ceil(enough),
            **fields,
        )

    def _tolerance(self, name: str) -> float:
        return self.tolerances.get(name, self.tolerances[WASSERSTEIN])

    def _needed(self, name: str, parts: Mapping[str, Resampled], family: Family) -> float:
        """Events at which a difference of the tolerance is found: in every layer, or in the mean over bins of energy.

        A Gaussian moved by t standard deviations has the Wasserstein distance t and the Kolmogorov-Smirnov distance
        t / sqrt(2 pi): whichever finds it first counts. Layers where nothing ever varies do not count.
        """
        tolerance = self._tolerance(name)
        if "deviation" in parts:
            shared = 1 if name == "correlation" else 2  # by all bins, or pairs
            return float(family.needed(name, parts["deviation"], tolerance)[-shared:].min())
        moved = family.needed(name, parts["kolmogorov_smirnov"], tolerance / math.sqrt(2 * math.pi))
        needed = np.minimum(family.needed(name, parts[WASSERSTEIN], tolerance), moved)[: max(1, len(moved) - 1)]
        return float(needed[np.isfinite(needed)].max(initial=0.0))

    def _bin_scores(self, name: str, family: Family) -> dict[str, Any]:
        part = self.found[name][_BINS]
        filled = self.bins.filled
        scores = part.scores()[0].reshape(len(filled), -1)
        needed = family.needed(name, part, self._tolerance(name)).reshape(scores.shape)
        columns = scores.shape[1]
        found = []
        for number in range(len(self.bins)):
            p_value, value = None, None
            verdict: Verdict = NOT_ENOUGH
            if number in filled:
                row = filled.index(number)
                p_value = family.p_value(name, scores[row].max())
                enough = needed[row, : max(1, columns - 1)]
                enough = enough[np.isfinite(enough)].max(initial=0.0) <= self.events
                verdict = DIFFERS if p_value < family.alpha else INDISTINGUISHABLE if enough else NOT_ENOUGH
                value, _ = beyond_chance(part, row * columns + columns - 1)
            found.append(
                BinScore(
                    low=self.edges[number],
                    high=self.edges[number + 1],
                    events=int(self.bins.events[number]),
                    p_value=p_value,
                    verdict=verdict,
                    wasserstein=value,
                    held_out=bool(self.bins.held_out[number]),
                )
            )
        return {"bins": found, "worst_bin": filled[int(scores.max(axis=1).argmax())]}

    def _difference(self, name: str, worst: int | None, differs: bool) -> Difference:
        parts = self.found[name]
        if name in ("linearity", "resolution"):
            distance = self.linearity if name == "linearity" else self.resolution
            table = tables.energy_table(distance, self.resamples, self.edges)
            ratio, error = (np.array([getattr(row, key) or np.nan for row in table]) for key in ("ratio", "error"))
            place = int(parts["deviation"].scores()[0][: len(table)].argmax())
            return energy_difference("response" if name == "linearity" else name, ratio, error, self.edges, place)
        if name == "correlation":
            most = f", most {self._worst_pair().words}" if differs else ""
            return deviation_difference(parts["deviation"], "", f"coefficients {{}} off on average{most}")
        if name.endswith("_profile"):
            where = "layer" if name == "longitudinal_profile" else "ring"
            return deviation_difference(parts["deviation"], "%", f"mean energy per {where} {{}} off on average")
        shape = beyond_chance(parts["kolmogorov_smirnov"], -1 if worst is None else worst) if differs else None
        if name == "cell_energy":
            return difference(Moments(self._cell_sums()), self.resamples, "", "", shape)
        values = self.pooled(name)
        where = "" if worst is None else f"{'sector' if name == 'azimuth' else 'layer'} {worst}: "
        unit = {"mm": "mm", "layer": "layers"}.get(UNITS[name], "")
        return difference(Moments.of(values if worst is None else values[:, worst]), self.resamples, unit, where, shape)

    @cached_property
    def correlations(self) -> Correlations:
        """Pearson matrices of both sets."""
        return tables.correlations(self.correlation, self.correlated, self.resamples)

    def _worst_pair(self) -> PairScore:
        part = self.found["correlation"]["deviation"]
        column = int(part.scores()[0][:-1].argmax())
        row, other = self.correlation.pair(column)
        first, second = self.correlated[row], self.correlated[other]
        reference, candidate = (matrix[row][other] for matrix in (self.correlations.reference, self.correlations.candidate))
        return PairScore(
            first=first,
            second=second,
            reference=reference,
            candidate=candidate,
            error=part.error[column],
            words=pair_words(first, second, reference or 0.0, candidate or 0.0),
        )

    def _cell_sums(self) -> Float:
        """Number of cells, sum of E and of E^2 per event."""

        def sums(cells: Float, event: NDArray[np.int64], events: int) -> Float:
            return np.stack([np.bincount(event, weights, minlength=events) for weights in (None, cells, cells**2)], axis=1)

        return np.concatenate([_per_event(measured, sums) for measured in (self.ours, self.theirs)])

    def cern(self) -> CernScore | None:
        """The CERN figure in the bins of energy and in all; None when the sets are too small."""
        bins = list(zip(self.edges[:-1].tolist(), self.edges[1:].tolist(), strict=True))
        figure = CernFigure.of(self.ours, self.theirs, [None, *bins] if len(bins) > 1 else [None])
        if not figure.bins:
            return None
        found = resample(figure, self.resamples, permute=False)
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
        wasserstein = Wasserstein.of(pooled, ours.std(axis=0, dtype=np.float64), GRID if len(edges) == 1 else LAYER_GRID)
        separation = SeparationPower.of(pooled, edges)
        self._keep(name, separation_power=separation)
        self._keep(name, wasserstein=wasserstein, kolmogorov_smirnov=KolmogorovSmirnov(wasserstein))
        if self.bins.filled:
            self._keep(name, **{_BINS: InBins.of(ours, theirs, self.bins)})
        made = self._histograms(separation, edges, UNITS[name])
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
        sets = self.ours, self.theirs
        step = max(1, sum(len(measured.cells) for measured in sets) // 1_000_000)
        grid = grid_edges(np.log10(np.concatenate([measured.cells[::step] for measured in sets]).astype(np.float64)), GRID)
        widths = np.diff(grid)[None] / (np.log10(self.ours.cells.astype(np.float64)).std() or 1.0)

        def on_edges(cells: Float, event: NDArray[np.int64], events: int) -> NDArray[np.float32]:
            return _counts(event, bin_index(cells, edges), events, len(edges) + 1)

        def on_grid(cells: Float, event: NDArray[np.int64], events: int) -> NDArray[np.float32]:
            place = np.clip(np.searchsorted(grid, np.log10(cells), side="right") - 1, 0, GRID - 1)
            return _counts(event, place, events, GRID)

        binned, fine = ([_per_event(measured, count) for measured in sets] for count in (on_edges, on_grid))
        wasserstein = Wasserstein(np.concatenate(fine), widths)
        separation = SeparationPower(np.concatenate(binned), len(edges) + 1)
        (spectrum,) = self._histograms(separation, [edges], UNITS["cell_energy"])
        (below, above), (their_below, their_above) = spectrum.reference_outside, spectrum.candidate_outside
        spectrum.reference_outside = (below + int(self.ours.unlit.sum()), above)
        spectrum.candidate_outside = (their_below + int(self.theirs.unlit.sum()), their_above)
        self.histograms["cell_energy"] = spectrum
        self._keep("cell_energy", separation_power=separation)
        self._keep("cell_energy", wasserstein=wasserstein, kolmogorov_smirnov=KolmogorovSmirnov(wasserstein))

    def _histograms(self, separation: SeparationPower, edges: Sequence[Float], unit: str) -> list[Histogram]:
        """The histograms that the separation power compares."""
        n = len(self.ours)
        sums = [
            np.asarray(part.sum(axis=0, dtype=np.float64)).reshape(len(edges), -1)
            for part in (separation.features[:n], separation.features[n:])
        ]
        return [
            tables.histogram(ours[: len(edge) + 1], theirs[: len(edge) + 1], edge, unit)
            for ours, theirs, edge in zip(*sums, edges, strict=True)
        ]

    def _keep(self, name: str, **distances: Distance) -> None:
        """Resample distances that share their features."""
        found = resample_all(list(distances.values()), self.resamples)
        self.found.setdefault(name, {}).update(zip(distances, found, strict=True))

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


def _per_event(measured: Measured, work: Callable[[Float, NDArray[np.int64], int], NDArray[Any]]) -> NDArray[Any]:
    """What `work` makes of the cells, the event of each cell and the number of events: rows per event, `_EVENTS` at a time."""
    found = []
    for start in range(0, len(measured), _EVENTS):
        offsets = measured.offsets[start : start + _EVENTS + 1]
        events = len(offsets) - 1
        cells = measured.cells[offsets[0] : offsets[-1]].astype(np.float64)
        found.append(work(cells, np.repeat(np.arange(events), np.diff(offsets)), events))
    return np.concatenate(found)


def _counts(event: NDArray[np.int64], place: NDArray[np.int64], events: int, bins: int) -> NDArray[np.float32]:
    return np.bincount(event * bins + place, minlength=events * bins).reshape(events, bins).astype(np.float32)
