"""`validate`: compare a candidate with a reference."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from minicarlo.errors import IncompatibleEventSets, InvalidConfig
from minicarlo.events import PHI, THETA, EventSet
from minicarlo.fidelity import tables
from minicarlo.fidelity.binning import energy_edges
from minicarlo.fidelity.classifiers import CLASSIFIERS_ALPHA, DEFAULT, METHODS, check_classifiers, classifier_score
from minicarlo.fidelity.comparison import OBSERVABLES_ALPHA, Comparison, Progress
from minicarlo.fidelity.conditional import FEWEST as FEWEST_IN_BIN
from minicarlo.fidelity.conditional import Range, with_ranges
from minicarlo.fidelity.duplicates import duplicates
from minicarlo.fidelity.manifold import manifold, standardised
from minicarlo.fidelity.multivariate import fpd_score, kpd_score
from minicarlo.fidelity.observables import Measured, high_level_features, measure
from minicarlo.fidelity.resampling import Resamples
from minicarlo.fidelity.scorecard import DIFFERS, INDISTINGUISHABLE, NOT_ENOUGH, ClassifierScore, Interpolation, Sample, Scorecard
from minicarlo.fidelity.verdicts import FEWEST, POWER, TOLERANCES, headline

_HALVES = 20
_ONE_ANGLE = 1e-3  # rad


def validate(
    reference: EventSet | Path | str,
    candidate: EventSet | Path | str,
    *,
    seed: int = 0,
    bootstrap: int = 100,
    permutations: int = 300,
    energy_bins: Sequence[float] | None = None,
    held_out: Sequence[Range] = (),
    tolerances: Mapping[str, float] = TOLERANCES,
    threshold_mev: float | None = None,
    classifiers: Sequence[str] = DEFAULT,
    classifier_seeds: int | None = None,
    feature_distances: bool = True,
    progress: Progress | None = None,
) -> Scorecard:
    """Compare `candidate` with `reference`: every observable, distance, error, floor and verdict in docs/fidelity.md.

    Arguments:
        seed: of resampling and classifiers; the same call gives the same numbers.
        bootstrap: replicas for standard errors. permutations: of events between the sets, for verdicts (at least 99).
        energy_bins: edges in MeV of the bins of incident energy; default logarithmic over the sets' range.
        held_out: ranges (low, high) of incident energy in MeV that training left out; each becomes a bin, unless
            `energy_bins` are given, of which it marks those inside it.
        tolerances: differences that must have been found before a verdict says "indistinguishable"; an observable's name, or
            "wasserstein" for those that have none of their own (`TOLERANCES`).
        threshold_mev: cells at or below do not count; default the detector's readout threshold.
        classifiers: which to train, of "high", "trees" and, with PyTorch, "dnn-high", "low" and "cnn".
        classifier_seeds: trainings of each, 1 to 5; default three of "high" and "trees", one of the others.
        feature_distances: whether to compute FPD and KPD.
        progress: called with (done, total).

    Raises InvalidEventSet; IncompatibleEventSets for different detectors or energies, or too few events; InvalidConfig;
    MissingExtra for a classifier that needs PyTorch where there is none.
    """
    started = time.monotonic()
    _check_settings(bootstrap, permutations, energy_bins, held_out, threshold_mev)
    check_classifiers(classifiers, classifier_seeds)
    steps = Steps(progress)
    ours = measure(reference, threshold_mev, progress=steps.part(0, 35))
    theirs = measure(candidate, threshold_mev, progress=steps.part(35, 70))
    card = compare(
        ours,
        theirs,
        seed=seed,
        bootstrap=bootstrap,
        permutations=permutations,
        energy_bins=energy_bins,
        held_out=held_out,
        tolerances=tolerances,
        classifiers=classifiers,
        classifier_seeds=classifier_seeds,
        feature_distances=feature_distances,
        progress=steps.part(70, 100),
    )
    for sample, source in ((card.reference, reference), (card.candidate, candidate)):
        sample.path = None if isinstance(source, EventSet) else str(source)
    card.seconds = round(time.monotonic() - started, 2)
    return card


def compare(
    ours: Measured,
    theirs: Measured,
    *,
    seed: int = 0,
    bootstrap: int = 100,
    permutations: int = 300,
    energy_bins: Sequence[float] | None = None,
    held_out: Sequence[Range] = (),
    tolerances: Mapping[str, float] = TOLERANCES,
    classifiers: Sequence[str] = (),
    classifier_seeds: int | None = None,
    feature_distances: bool = False,
    progress: Progress | None = None,
) -> Scorecard:
    """`validate` for sets that are measured already, the reference first; by default what is quick."""
    started = time.monotonic()
    _check_settings(bootstrap, permutations, energy_bins, held_out, ours.threshold_mev)
    _check_tolerances(tolerances, ours)
    check_classifiers(classifiers, classifier_seeds)
    _check_compatible(ours, theirs)
    steps = Steps(progress)
    if energy_bins is None:
        edges = with_ranges(energy_edges(ours.energy, theirs.energy), held_out)
    else:
        edges = np.asarray(energy_bins, np.float64)
    resamples = Resamples.draw(
        ours.strata, theirs.strata, permutations=permutations, bootstrap=bootstrap, halves=_HALVES, seed=seed
    )
    comparison = Comparison(ours, theirs, resamples, edges, tolerances, held_out)
    comparison.compare(steps.part(0, 50))
    family = comparison.family()
    interpolated = comparison.interpolation()
    features = high_level_features(ours), high_level_features(theirs)
    scores: dict[str, ClassifierScore | None] = dict.fromkeys(METHODS)
    classifier_alpha = CLASSIFIERS_ALPHA / max(len(classifiers), 1)
    for place, method in enumerate(classifiers):
        low, high = (50 + 35 * k // len(classifiers) for k in (place, place + 1))
        scores[method] = classifier_score(
            method, ours, theirs, alpha=classifier_alpha, seed=seed, seeds=classifier_seeds, progress=steps.part(low, high)
        )
    steps.part(85, 100)(0, 1)
    card = Scorecard(
        verdict=INDISTINGUISHABLE,
        observables=comparison.scores(family) | {"duplicates": duplicates(ours, theirs, seed=seed)},
        classifier=scores,
        fpd=fpd_score(*features, seed) if feature_distances else None,
        kpd=kpd_score(*features, seed) if feature_distances else None,
        manifold=manifold(*standardised(*features), seed=seed) if feature_distances else None,
        cern_error=comparison.cern(),
        response=tables.energy_table(comparison.linearity, resamples, edges),
        resolution=(resolution := tables.energy_table(comparison.resolution, resamples, edges)),
        resolution_fit=tables.resolution_fit(resolution),
        profiles=tables.profiles(ours, theirs),
        histograms=comparison.histograms,
        layer_histograms=comparison.layer_histograms,
        energy_profiles=tables.energy_profiles(ours, theirs, edges),
        images=tables.images(ours, theirs),
        correlations=comparison.correlations,
        detector=ours.detector.name,
        threshold_mev=ours.threshold_mev,
        reference=_sample(ours),
        candidate=_sample(theirs),
        headline=headline(family),
        interpolation=interpolated,
        settings={
            "seed": seed,
            "bootstrap": bootstrap,
            "permutations": permutations,
            "energy_bins_mev": [float(f"{edge:.7g}") for edge in edges],
            "held_out_mev": [list(limits) for limits in held_out],
            "tolerances": dict(comparison.tolerances),
            "power": POWER,
            "observables_alpha": OBSERVABLES_ALPHA,
            "classifier_alpha": classifier_alpha,
        },
        warnings=_warnings(ours, theirs) + _not_judged(held_out, interpolated),
    )
    if card.differing:
        card.verdict = DIFFERS
    elif any(score.verdict == NOT_ENOUGH for score in card.observables.values()):
        card.verdict = NOT_ENOUGH
    card.seconds = round(time.monotonic() - started, 2)
    steps.part(0, 100)(1, 1)
    return card


class Steps:
    """Turns the progress of each part into one count to a hundred."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def part(self, low: int, high: int) -> Progress:
        def update(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(low + (high - low) * done // max(total, 1), 100)

        return update


def _sample(measured: Measured) -> Sample:
    return Sample(
        path=None,
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


def _not_judged(held_out: Sequence[Range], found: Sequence[Interpolation]) -> list[str]:
    """A warning for every held-out range that no bin stands for."""
    return [
        f"Held out from {low / 1000:g} to {high / 1000:g} GeV is not judged: there, or beside it, either set has fewer than "
        f"{FEWEST_IN_BIN} events."
        for low, high in held_out
        if not any(part.low and part.high and low <= 1.001 * part.low and part.high <= 1.001 * high for part in found)
    ]


def _check_settings(
    bootstrap: int,
    permutations: int,
    energy_bins: Sequence[float] | None,
    held_out: Sequence[Range],
    threshold: float | None,
) -> None:
    if bootstrap < 10 or permutations < 99:
        raise InvalidConfig(f"{bootstrap} bootstrap replicas and {permutations} permutations are too few: use 10 and 99 or more.")
    if energy_bins is not None and (
        len(energy_bins) < 2 or np.any(np.diff(energy_bins) <= 0) or not np.all(np.isfinite(energy_bins))
    ):
        raise InvalidConfig(f"Energy bins {list(energy_bins)} are no edges: give two or more energies in MeV, rising.")
    for low, high in held_out:
        if not (0 < low < high < np.inf):
            raise InvalidConfig(f"Held out from {low:g} to {high:g} MeV is no range: give a lower and a higher energy.")
    if threshold is not None and not (np.isfinite(threshold) and threshold >= 0):
        raise InvalidConfig(f"A threshold of {threshold} MeV is impossible: give zero or more.")


def _check_tolerances(tolerances: Mapping[str, float], measured: Measured) -> None:
    known = {*TOLERANCES, *measured.values, "cell_energy"}
    if unknown := set(tolerances) - known:
        raise InvalidConfig(
            f"No observable {', '.join(sorted(unknown))} to set a tolerance for: choose from {', '.join(sorted(known))}."
        )
    for name, value in tolerances.items():
        if not (0 < value < np.inf):
            raise InvalidConfig(f"A tolerance of {value} for {name} is impossible: give a number above zero.")


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
        if measured.empty == len(measured):
            raise IncompatibleEventSets(
                f"No event of the {who} has a cell above the threshold of {measured.threshold_mev:g} MeV: there is nothing to "
                "compare. Are its energies in MeV? --threshold sets another one."
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
    _check_angles(ours, theirs)


def _check_angles(ours: Measured, theirs: Measured) -> None:
    """Where there are none, particles come along the normal."""
    for name in (THETA, PHI):
        angles = [measured.angles.get(name, np.zeros(len(measured))) for measured in (ours, theirs)]
        gap = max(abs(one - two) for one, two in zip(*((part.min(), part.max()) for part in angles), strict=True))
        span = float(np.ptp(np.concatenate(angles)))
        if gap > max(_ONE_ANGLE, span * 20 / min(map(len, angles))) or ks_2samp(*angles).pvalue < 1e-6:
            ranges = [f"{np.degrees(part.min()):.4g} to {np.degrees(part.max()):.4g} degrees" for part in angles]
            raise IncompatibleEventSets(
                f"The angles of incidence ({name}) are distributed differently: reference {ranges[0]}, candidate {ranges[1]}. "
                "Give a candidate of the reference's own angles."
            )
