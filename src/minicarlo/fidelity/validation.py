"""`validate`: compare a candidate with a reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from minicarlo.errors import IncompatibleEventSets, InvalidConfig
from minicarlo.events import EventSet
from minicarlo.fidelity import classifier, tables
from minicarlo.fidelity.binning import edges_of, energy_edges
from minicarlo.fidelity.cern import CernFigure
from minicarlo.fidelity.classifier import Separation, classify
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
from minicarlo.fidelity.frechet import fpd, kpd
from minicarlo.fidelity.observables import UNITS, Measured, high_level_features, measure
from minicarlo.fidelity.resampling import Resampled, Resamples, family_p_values, resample
from minicarlo.fidelity.scorecard import (
    DIFFERS,
    INDISTINGUISHABLE,
    CernBin,
    CernScore,
    ClassifierScore,
    Histogram,
    LayerScore,
    ObservableScore,
    Sample,
    Score,
    Scorecard,
)

FEWEST = 50
"""Events needed on either side."""
OBSERVABLES_ALPHA = 0.03
CLASSIFIER_ALPHA = 0.01
"""Chances of a false alarm: of any observable, of each of two classifiers; together the verdict's 5 %."""

_HALVES = 20
_LAYER_HISTOGRAMS = 5
_CORRELATED = ("response", "occupancy", "centre_x", "centre_y", "centre_z", "width_x", "width_y", "width_z", "lateral_mean")
_DEVIATIONS = ("linearity", "resolution", "longitudinal_profile", "lateral_profile", "correlation")

Progress = Callable[[int, int], None]


def validate(
    reference: EventSet | Path | str,
    candidate: EventSet | Path | str,
    *,
    seed: int = 0,
    bootstrap: int = 100,
    permutations: int = 300,
    energy_bins: Sequence[float] | None = None,
    threshold_mev: float | None = None,
    classifiers: Sequence[str] = ("high", "trees"),
    feature_distances: bool = True,
    progress: Progress | None = None,
) -> Scorecard:
    """Compare `candidate` with `reference`: every observable, distance, error, floor and verdict in docs/fidelity.md.

    Arguments:
        seed: of resampling and classifiers; the same call gives the same numbers.
        bootstrap: replicas for standard errors. permutations: of events between the sets, for verdicts (at least 99).
        energy_bins: edges in MeV for response, resolution and the CERN figure; default logarithmic over the sets' range.
        threshold_mev: cells at or below do not count; default the detector's readout threshold.
        classifiers: which to train, of "high" and "trees". feature_distances: whether to compute FPD and KPD.
        progress: called with (done, total).

    Raises InvalidEventSet; IncompatibleEventSets for different detectors or energies, or too few events; InvalidConfig.
    """
    started = time.monotonic()
    _check_settings(bootstrap, permutations, energy_bins, threshold_mev, classifiers)
    report = _Steps(progress)
    ours = measure(reference, threshold_mev, progress=report.part(0, 35))
    theirs = measure(candidate, threshold_mev, progress=report.part(35, 70))
    _check_compatible(ours, theirs)
    edges = np.asarray(energy_bins, np.float64) if energy_bins is not None else energy_edges(ours.energy, theirs.energy)
    resamples = Resamples.draw(
        ours.strata, theirs.strata, permutations=permutations, bootstrap=bootstrap, halves=_HALVES, seed=seed
    )
    comparison = _Comparison(ours, theirs, resamples, edges)
    comparison.compare(report.part(70, 85))
    features = high_level_features(ours), high_level_features(theirs)
    scores: dict[str, ClassifierScore | None] = dict.fromkeys(("high", "low", "cnn", "trees"))
    for place, method in enumerate(classifiers):
        report.part(85, 95)(place, len(classifiers))
        scores[method] = _classifier_score(method, *features, ours.energy, theirs.energy, seed)
    report.part(95, 100)(0, 1)
    card = Scorecard(
        verdict=INDISTINGUISHABLE,
        observables=comparison.scores(),
        classifier=scores,
        fpd=_fpd_score(*features, seed) if feature_distances else None,
        kpd=_kpd_score(*features, seed) if feature_distances else None,
        cern_error=comparison.cern(),
        response=tables.energy_table(comparison.linearity, resamples, edges),
        resolution=(resolution := tables.energy_table(comparison.resolution, resamples, edges)),
        resolution_fit=tables.resolution_fit(resolution),
        profiles=tables.profiles(ours, theirs),
        histograms=comparison.histograms,
        layer_histograms=comparison.layer_histograms,
        energy_profiles=tables.energy_profiles(ours, theirs, edges),
        images=tables.images(ours, theirs),
        correlations=tables.correlations(comparison.correlation, comparison.correlated, len(ours)),
        detector=ours.detector.name,
        threshold_mev=ours.threshold_mev,
        reference=_sample(reference, ours),
        candidate=_sample(candidate, theirs),
        settings={
            "seed": seed,
            "bootstrap": bootstrap,
            "permutations": permutations,
            "energy_bins_mev": [float(f"{edge:.7g}") for edge in edges],
            "observables_alpha": OBSERVABLES_ALPHA,
            "classifier_alpha": CLASSIFIER_ALPHA,
        },
        warnings=_warnings(ours, theirs),
    )
    card.verdict = DIFFERS if card.differing else INDISTINGUISHABLE
    card.seconds = round(time.monotonic() - started, 2)
    report.part(0, 100)(1, 1)
    return card


class _Comparison:
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
        self.histograms["cell_energy"] = tables.histogram(self.ours.cells, self.theirs.cells, edges, UNITS["cell_energy"])
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


class _Steps:
    """Turns the progress of each part into one count to a hundred."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def part(self, low: int, high: int) -> Progress:
        def update(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(low + (high - low) * done // max(total, 1), 100)

        return update


def _score(part: Resampled, column: int) -> Score:
    return Score(value=part.value[column], error=part.error[column], floor=part.floor[column])


def _worst(scores: Float, columns: int) -> int:
    """The column with the largest score in any distance; each distance has its columns and then their mean."""
    return int(scores.reshape(-1, columns + 1)[:, :columns].max(axis=0).argmax())


def _counts(event: NDArray[np.int64], place: NDArray[np.int64], events: int, bins: int) -> NDArray[np.float32]:
    return np.bincount(event * bins + place, minlength=events * bins).reshape(events, bins).astype(np.float32)


def _classifier_score(
    method: str, ours: Float, theirs: Float, energy: NDArray[np.float32], other: NDArray[np.float32], seed: int
) -> ClassifierScore | None:
    if min(len(ours), len(theirs)) < classifier.FEWEST:
        return None
    found = classify(method, ours, theirs, groups=np.concatenate([energy, other]).astype(np.float64), seed=seed)
    order = np.random.default_rng([seed, 12]).permutation(len(ours))
    first, second = order[: len(ours) // 2], order[len(ours) // 2 :]
    floor = classify(method, ours[first], ours[second], groups=energy[order].astype(np.float64), seed=seed)
    edges = _score_edges(found)
    return ClassifierScore(
        auc=found.auc,
        error=found.error,
        floor=floor.auc,
        p_value=found.p_value,
        verdict=DIFFERS if found.p_value < CLASSIFIER_ALPHA else INDISTINGUISHABLE,
        edges=edges.tolist(),
        reference=np.histogram(found.reference_scores, edges)[0].tolist(),
        candidate=np.histogram(found.candidate_scores, edges)[0].tolist(),
    )


def _score_edges(found: Separation) -> Float:
    every = np.concatenate([found.reference_scores, found.candidate_scores])
    low, high = every.min(), every.max()
    return np.linspace(low, high if high > low else low + 1, 41)


def _fpd_score(ours: Float, theirs: Float, seed: int) -> Score | None:
    """FPD with batches of a third to all of the events; None below ten events per feature."""
    if min(len(ours), len(theirs)) < 10 * ours.shape[1]:
        return None

    def estimate(first: Float, second: Float) -> tuple[float, float]:
        most = min(len(first), len(second), 50_000)
        return fpd(first, second, min_samples=most // 3, max_samples=most, num_batches=3, num_points=4, replace=False, seed=seed)

    value, error = estimate(ours, theirs)
    random = np.random.default_rng([seed, 13])
    floors, halves = [], []
    for _ in range(3):
        a, b = (np.array_split(random.permutation(len(sample)), 2) for sample in (ours, theirs))
        floors.append(estimate(ours[a[0]], ours[a[1]])[0])
        halves += [estimate(ours[one], theirs[two])[0] for one, two in zip(a, b, strict=True)]
    return Score(value=value, error=np.hypot(np.std(halves, ddof=1) / np.sqrt(2), error), floor=float(np.mean(floors)))


def _kpd_score(ours: Float, theirs: Float, seed: int) -> Score | None:
    """KPD of ten batches; None below 500 events. Its error is that of a median of batches: half their 68 % range."""
    fewest = min(len(ours), len(theirs))
    if fewest < 500:
        return None
    value, error = kpd(ours, theirs, batch_size=min(2500, fewest // 2), replace=False, seed=seed)
    order = np.random.default_rng([seed, 14]).permutation(len(ours))
    half = len(ours) // 2
    floor, _ = kpd(
        ours[order[:half]], ours[order[half:]], batch_size=min(2500, fewest // 2, half), num_batches=4, replace=False, seed=seed
    )
    return Score(value=value, error=error, floor=floor)


def _sample(source: EventSet | Path | str, measured: Measured) -> Sample:
    return Sample(
        path=None if isinstance(source, EventSet) else str(source),
        events=len(measured),
        low_mev=float(measured.energy.min()),
        high_mev=float(measured.energy.max()),
        empty=measured.empty,
        duplicates=_repeated(_fingerprints(measured)),
    )


def _fingerprints(measured: Measured) -> NDArray[np.float32]:
    """Numbers that two different showers do not share."""
    chosen = ("visible_energy", "occupancy", "centre_x", "centre_y", "centre_z")
    rows = np.stack([measured.values[name] for name in chosen], axis=1)
    return rows[rows[:, 0] > 0]


def _repeated(rows: NDArray[np.float32]) -> int:
    return len(rows) - len(np.unique(rows, axis=0)) if len(rows) else 0


def _warnings(ours: Measured, theirs: Measured) -> list[str]:
    found = []
    for who, measured in (("reference", ours), ("candidate", theirs)):
        if measured.empty:
            found.append(
                f"{measured.empty} of {len(measured)} events of the {who} have no cell above {measured.threshold_mev:g} MeV."
            )
        if repeated := _repeated(_fingerprints(measured)):
            found.append(f"{repeated} events of the {who} repeat another event of it: errors are larger than stated.")
    both = np.concatenate([np.unique(_fingerprints(measured), axis=0) for measured in (ours, theirs)])
    if shared := _repeated(both):
        found.append(f"{shared} showers are in both sets: they are not independent, and agreement means little.")
    return found


def _check_settings(
    bootstrap: int, permutations: int, energy_bins: Sequence[float] | None, threshold: float | None, classifiers: Sequence[str]
) -> None:
    if bootstrap < 10 or permutations < 99:
        raise InvalidConfig(f"{bootstrap} bootstrap replicas and {permutations} permutations are too few: use 10 and 99 or more.")
    if energy_bins is not None and (
        len(energy_bins) < 2 or np.any(np.diff(energy_bins) <= 0) or not np.all(np.isfinite(energy_bins))
    ):
        raise InvalidConfig(f"Energy bins {list(energy_bins)} are no edges: give two or more energies in MeV, rising.")
    if threshold is not None and not (np.isfinite(threshold) and threshold >= 0):
        raise InvalidConfig(f"A threshold of {threshold} MeV is impossible: give zero or more.")
    if unknown := set(classifiers) - {"high", "trees"}:
        raise InvalidConfig(f"Unknown classifier {', '.join(sorted(unknown))}: choose from high, trees.")


def _check_compatible(ours: Measured, theirs: Measured) -> None:
    if ours.detector != theirs.detector:
        raise IncompatibleEventSets(
            f"The reference is of detector {ours.detector.name}, the candidate of {theirs.detector.name}: "
            "only event sets of one detector can be compared."
        )
    for who, measured in (("reference", ours), ("candidate", theirs)):
        if len(measured) < FEWEST:
            raise IncompatibleEventSets(
                f"The {who} has {len(measured)} events; a comparison needs {FEWEST} or more on either side."
            )
    one, two = (np.log(measured.energy.astype(np.float64)) for measured in (ours, theirs))
    span = max(one.max(), two.max()) - min(one.min(), two.min())
    gap = max(abs(one.min() - two.min()), abs(one.max() - two.max()))
    if gap > max(0.001, span * 20 / min(len(one), len(two))) or ks_2samp(one, two).pvalue < 1e-6:
        ranges = [f"{measured.energy.min() / 1000:.4g} to {measured.energy.max() / 1000:.4g} GeV" for measured in (ours, theirs)]
        raise IncompatibleEventSets(
            f"The incident energies are distributed differently: reference {ranges[0]}, candidate {ranges[1]}. "
            "Generate the candidate at the reference's own energies (minicarlo generate --conditions REFERENCE)."
        )
