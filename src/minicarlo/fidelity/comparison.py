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
from minicarlo.fidelity.conditional import Bins, InBins, Range, angle_bins, interpolation
from minicarlo.fidelity.correlation import CorrelationDistance, pair_words
from minicarlo.fidelity.definitions import UNITS
from minicarlo.fidelity.differences import (
    Moments,
    beyond_chance,
    deviation_difference,
    difference,
    energy_difference,
    shape_difference,
    shared_difference,
)
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
from minicarlo.fidelity.fixed_energy import SharedResolution, SharedResponse, at_fixed_energy, expected
from minicarlo.fidelity.observables import Measured, shower_quantities
from minicarlo.fidelity.resampling import Resampled, Resamples, resample, resample_all
from minicarlo.fidelity.scorecard import (
    DIFFERS,
    INDISTINGUISHABLE,
    NOT_ENOUGH,
    AngleBins,
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

_ENERGY_BINS = "energy bins"  # kinds of distances begin with the condition whose bins they are in
_SHOWN = ("separation_power", "wasserstein", "kolmogorov_smirnov", "fixed_energy", "deviation", "shared")
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
        self.angles = angle_bins(ours, theirs)
        response = self.pooled("response")
        self.linearity = EnergyDependence.of(response, self.bins.index, len(self.bins), 1)
        self.resolution = EnergyDependence.of(response, self.bins.index, len(self.bins), 2)
        self.shared: dict[str, SharedResponse | SharedResolution] = {
            "linearity": SharedResponse.of(response, self.pooled_energy())
        }
        if self.bins.filled:
            self.shared["resolution"] = SharedResolution.of(response, self.pooled_energy(), self.bins.index, self.bins.filled)
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
        for name, shared in self.shared.items():
            self._keep(name, shared=shared)

    def family(self) -> Family:
        """All that was compared, tested together."""
        return Family(self.found, self.events, OBSERVABLES_ALPHA)

    def scores(self, family: Family) -> dict[str, ObservableScore]:
        """A score with its verdict for every observable."""
        order = [name for name in _DEVIATIONS if name in self.found] + [name for name in self.found if name not in _DEVIATIONS]
        return {name: self._score(name, family) for name in order}

    def interpolation(self) -> list[Interpolation]:
        """Held-out bins beside their neighbours."""
        kind = f"{_ENERGY_BINS} {WASSERSTEIN}"
        return interpolation({name: parts[kind] for name, parts in self.found.items() if kind in parts}, self.bins)

    def _score(self, name: str, family: Family) -> ObservableScore:
        parts = {kind: part for kind, part in self.found[name].items() if kind in _SHOWN}
        fields: dict[str, Any] = {kind: _score(part, -1) for kind, part in parts.items()} | self._means(name)
        layered = name in self.ours.values and self.ours.values[name].ndim > 1
        worst = None
        if layered:
            columns = len(parts[WASSERSTEIN].value) - 1
            worst = int(np.max([family.columns[name][kind][:columns] for kind in parts], axis=0).argmax())
            fields["worst_layer"] = worst
            fields["layers"] = [
                LayerScore(layer=k, **{kind: _score(part, k) for kind, part in parts.items()}) for k in range(columns)
            ]
        if f"{_ENERGY_BINS} {WASSERSTEIN}" in self.found[name]:
            fields["bins"], fields["worst_bin"] = self._bin_scores(name, _ENERGY_BINS, self.bins, family)
            angles = {angle: self._bin_scores(name, angle, bins, family) for angle, bins in self.angles.items()}
            fields["angles"] = {
                angle: AngleBins(bins=bins, worst_bin=worst_bin) for angle, (bins, worst_bin) in angles.items()
            } or None
        if name == "correlation":
            fields["worst_pair"] = self._worst_pair()
        differs = family.differs(name)
        enough = self._needed(name, family)
        return ObservableScore(
            verdict=DIFFERS if differs else NOT_ENOUGH if enough > self.events else INDISTINGUISHABLE,
            p_value=family.p_values[name],
            unit=UNITS.get(name, ""),
            difference=self._difference(name, worst, family),
            visible_at=math.ceil(family.visible_at(name)) if differs else None,
            needed=math.ceil(enough),
            **fields,
        )

    def _tolerance(self, name: str) -> float:
        return self.tolerances.get(name, self.tolerances[WASSERSTEIN])

    def _needed(self, name: str, family: Family) -> float:
        """Events at which a difference of the tolerance is found: in every layer, or in the mean over bins of energy.

        A Gaussian moved by t standard deviations has the Wasserstein distance t and the Kolmogorov-Smirnov distance
        t / sqrt(2 pi): whichever finds it first counts. Layers where nothing ever varies do not count.
        """
        tolerance = self._tolerance(name)
        if "deviation" in self.found[name]:
            whole = [family.needed(name, kind, tolerance)[-1] for kind in ("deviation", "shared") if kind in self.found[name]]
            return float(min(whole))
        moved = family.needed(name, "kolmogorov_smirnov", tolerance / math.sqrt(2 * math.pi))
        needed = np.minimum(family.needed(name, WASSERSTEIN, tolerance), moved)[: max(1, len(moved) - 1)]
        return float(needed[np.isfinite(needed)].max(initial=0.0))

    def _bin_scores(self, name: str, condition: str, bins: Bins, family: Family) -> tuple[list[BinScore], int]:
        """The observable in bins of a condition, and the place of the worst."""
        kinds = [f"{condition} {distance}" for distance in (WASSERSTEIN, "kolmogorov_smirnov")]
        parts = [self.found[name][kind] for kind in kinds]
        scores = np.max([family.columns[name][kind] for kind in kinds], axis=0).reshape(len(bins.filled), -1)
        needed = family.needed(name, kinds[0], self._tolerance(name)).reshape(scores.shape)
        columns = scores.shape[1]
        found = []
        for number in range(len(bins)):
            fields: dict[str, Any] = {"p_value": None, "verdict": NOT_ENOUGH}
            if number in bins.filled:
                row = bins.filled.index(number)
                p_value = family.p_value(scores[row].max())
                enough = needed[row, : max(1, columns - 1)]
                enough = enough[np.isfinite(enough)].max(initial=0.0) <= self.events
                verdict: Verdict = DIFFERS if p_value < family.alpha else INDISTINGUISHABLE if enough else NOT_ENOUGH
                distances = [beyond_chance(part, row * columns + columns - 1)[0] for part in parts]
                fields = {"p_value": p_value, "verdict": verdict} | dict(
                    zip((WASSERSTEIN, "kolmogorov_smirnov"), distances, strict=True)
                )
            found.append(
                BinScore(
                    low=bins.edges[number],
                    high=bins.edges[number + 1],
                    events=int(bins.events[number]),
                    held_out=bool(bins.held_out[number]),
                    **fields,
                )
            )
        return found, bins.filled[int(scores.max(axis=1).argmax())]

    def _difference(self, name: str, worst: int | None, family: Family) -> Difference:
        parts, columns, differs = self.found[name], family.columns[name], family.differs(name)
        if name in ("linearity", "resolution"):
            return self._energy_difference(name, columns)
        if name == "correlation":
            most = f", most {self._worst_pair().words}" if differs else ""
            return deviation_difference(parts["deviation"], "", f"coefficients {{}} off on average{most}")
        if name.endswith("_profile"):
            where = "layer" if name == "longitudinal_profile" else "ring"
            return deviation_difference(parts["deviation"], "%", f"mean energy per {where} {{}} off on average")
        where = "" if worst is None else f"{'sector' if name == 'azimuth' else 'layer'} {worst}: "
        column = -1 if worst is None else worst
        shape = shape_difference(parts["kolmogorov_smirnov"], parts.get("fixed_energy"), column, where) if differs else None
        if name == "cell_energy":
            return difference(Moments(self._cell_sums()), self.resamples, "", "", shape)
        values = self.pooled(name)[:, None] if worst is None else self.pooled(name)[:, [worst]]
        level = values.mean(axis=0, dtype=np.float64) - expected(values, self.pooled_energy())[0]
        unit = {"mm": "mm", "layer": "layers"}.get(UNITS[name], "")
        return difference(Moments.of((values + level)[:, 0]), self.resamples, unit, where, shape)

    def _energy_difference(self, name: str, columns: Mapping[str, Float]) -> Difference:
        """Of linearity or resolution: at all energies, or in the bin where it is more significant."""
        what = "response" if name == "linearity" else name
        inside = columns["deviation"][: len(self.bins)]
        if "shared" in columns and columns["shared"].max() >= inside.max():
            shared, n = self.shared[name], len(self.ours)
            weights = (self.resamples.shared[:n], self.resamples.matching[n:])
            sums = [
                np.asarray(part.T @ weight)[None]
                for part, weight in zip((shared.features[:n], shared.features[n:]), weights, strict=True)
            ]
            return shared_difference(what, float(shared.change(*sums)[0]), float(self.found[name]["shared"].error[0]))
        table = tables.energy_table(self.linearity if name == "linearity" else self.resolution, self.resamples, self.edges)
        ratio, error = (np.array([getattr(row, key) or np.nan for row in table]) for key in ("ratio", "error"))
        return energy_difference(what, ratio, error, self.edges, int(inside.argmax()))

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

    @cached_property
    def _cell_scale(self) -> float:
        """Standard deviation of log10 of the reference's cell energies, some million at a time."""
        parts = np.array_split(self.ours.cells, 1 + len(self.ours.cells) // 2**22)
        origin = float(np.log10(parts[0].astype(np.float64)).mean())
        sums = np.zeros(2)
        for part in parts:
            x = np.log10(part.astype(np.float64)) - origin
            sums += x.sum(), (x * x).sum()
        mean, square = sums / max(len(self.ours.cells), 1)
        return math.sqrt(max(square - mean**2, 0.0))

    def _cell_sums(self) -> Float:
        """Number of cells, sum of E and of E^2 per event."""

        def sums(cells: Float, event: NDArray[np.int64], events: int) -> Float:
            return np.stack([np.bincount(event, weights, minlength=events) for weights in (None, cells, cells**2)], axis=1)

        return _per_event((self.ours, self.theirs), sums, 3, np.float64)

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
        fixed = at_fixed_energy(pooled, self.pooled_energy())
        self._keep(name, fixed_energy=Wasserstein.of(fixed, np.ones(fixed.shape[1]), GRID if len(edges) == 1 else LAYER_GRID))
        for condition, bins in {_ENERGY_BINS: self.bins, **self.angles}.items():
            if bins.filled:
                inside = InBins.of(fixed, len(self.ours), bins)
                self._keep(name, **{f"{condition} {kind}": distance for kind, distance in inside.items()})
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
        edges = edges_of("cell_energy", self.ours.cells.max(keepdims=True), self.ours.threshold_mev)  # the largest decides
        sets = self.ours, self.theirs
        step = max(1, sum(len(measured.cells) for measured in sets) // 1_000_000)
        grid = grid_edges(np.log10(np.concatenate([measured.cells[::step] for measured in sets]).astype(np.float64)), GRID)
        widths = np.diff(grid)[None] / (self._cell_scale or 1.0)

        def on_edges(cells: Float, event: NDArray[np.int64], events: int) -> NDArray[np.float32]:
            return _counts(event, bin_index(cells, edges), events, len(edges) + 1)

        def on_grid(cells: Float, event: NDArray[np.int64], events: int) -> NDArray[np.float32]:
            place = np.clip(np.searchsorted(grid, np.log10(cells), side="right") - 1, 0, GRID - 1)
            return _counts(event, place, events, GRID)

        wasserstein = Wasserstein(_per_event(sets, on_grid, GRID), widths)
        separation = SeparationPower(_per_event(sets, on_edges, len(edges) + 1), len(edges) + 1)
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
                "scale": self._cell_scale,
            }
        if name not in self.ours.values or self.ours.values[name].ndim > 1:
            return {}
        ours, theirs = (measured.values[name].astype(np.float64) for measured in (self.ours, self.theirs))
        return {"reference_mean": float(ours.mean()), "candidate_mean": float(theirs.mean()), "scale": float(ours.std())}


def _score(part: Resampled, column: int) -> Score:
    return Score(value=part.value[column], error=part.error[column], floor=part.floor[column])


def _per_event(
    sets: Sequence[Measured],
    work: Callable[[Float, NDArray[np.int64], int], NDArray[Any]],
    columns: int,
    dtype: type[np.floating] = np.float32,
) -> NDArray[Any]:
    """What `work` makes of the cells, the event of each cell and the number of events: rows per event of all sets.

    `_EVENTS` at a time, and in one array from the beginning: for 100,000 showers and as many it takes 0.4 GB.
    """
    found = np.empty((sum(map(len, sets)), columns), dtype)
    row = 0
    for measured in sets:
        for start in range(0, len(measured), _EVENTS):
            offsets = measured.offsets[start : start + _EVENTS + 1]
            events = len(offsets) - 1
            cells = measured.cells[offsets[0] : offsets[-1]].astype(np.float64)
            found[row : row + events] = work(cells, np.repeat(np.arange(events), np.diff(offsets)), events)
            row += events
    return found


def _counts(event: NDArray[np.int64], place: NDArray[np.int64], events: int, bins: int) -> NDArray[np.float32]:
    return np.bincount(event * bins + place, minlength=events * bins).reshape(events, bins).astype(np.float32)
