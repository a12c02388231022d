"""Arrays that a report plots: profiles, images, tables by energy, histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import nnls

from minicarlo.fidelity.correlation import CorrelationDistance
from minicarlo.fidelity.distances import EnergyDependence, Float
from minicarlo.fidelity.observables import Measured, layer_depths, ring_radii
from minicarlo.fidelity.resampling import Resamples
from minicarlo.fidelity.scorecard import BinProfiles, Correlations, EnergyBin, Histogram, ImagePair, Profile, ResolutionFit

_BLOCK = 50


def histogram(reference: NDArray[np.floating], candidate: NDArray[np.floating], edges: Float, unit: str) -> Histogram:
    """From counts of both (len(edges) + 1,), those below the edges first and those above last."""
    ours, theirs = (np.rint(counts).astype(int).tolist() for counts in (reference, candidate))
    return Histogram(
        edges=edges.tolist(),
        reference=ours[1:-1],
        candidate=theirs[1:-1],
        unit=unit,
        reference_outside=(ours[0], ours[-1]),
        candidate_outside=(theirs[0], theirs[-1]),
    )


def stratum_weights(reference: Measured, candidate: Measured) -> tuple[dict[int, float], dict[int, float]]:
    """Weight of one event of each stratum of incident energy, in the reference and the candidate.

    Strata that only one of them has count nowhere; the weights of all events of a set add up to one.
    """
    ours, theirs = _sizes(reference.strata), _sizes(candidate.strata)
    shared = ours.keys() & theirs.keys()
    total = sum(ours[number] for number in shared) or 1
    return {number: 1 / total for number in shared}, {number: ours[number] / total / theirs[number] for number in shared}


def profiles(reference: Measured, candidate: Measured) -> dict[str, Profile]:
    """Longitudinal (per layer) and lateral (per ring) mean energy in MeV, errors from the spread at equal incident energy."""
    weights = stratum_weights(reference, candidate)
    found = {}
    for name, x, ours, theirs in (
        ("longitudinal", layer_depths(reference.detector), reference.values["layer_energy"], candidate.values["layer_energy"]),
        ("lateral", ring_radii(reference.detector), reference.rings, candidate.rings),
    ):
        mean, error = _stratified(ours, reference.strata, weights[0])
        other, other_error = _stratified(theirs, candidate.strata, weights[1])
        found[name] = Profile(
            x=x.tolist(),
            reference=mean.tolist(),
            reference_error=error.tolist(),
            candidate=other.tolist(),
            candidate_error=other_error.tolist(),
            unit="MeV",
            x_unit="mm",
        )
    return found


def images(reference: Measured, candidate: Measured) -> dict[str, ImagePair]:
    """Mean shower projected to zx, zy (rows x or y, columns z) and xy (rows x, columns y), MeV per cell of the projection.

    Nothing for a sub-sample, which has no images.
    """
    if not (reference.images and candidate.images):
        return {}
    weights = stratum_weights(reference, candidate)
    pictures: dict[str, list[Float]] = {}
    for measured, weight in zip((reference, candidate), weights, strict=True):
        for name in next(iter(measured.images.values())):
            empty = np.zeros_like(next(iter(measured.images.values()))[name])
            total = sum(
                (weight[number] * picture[name] for number, picture in measured.images.items() if number in weight), empty
            )
            pictures.setdefault(name, []).append(total)
    return {name: ImagePair(reference=ours.tolist(), candidate=theirs.tolist()) for name, (ours, theirs) in pictures.items()}


def energy_profiles(reference: Measured, candidate: Measured, edges: Float) -> list[BinProfiles]:
    """Profiles in every bin of incident energy that both sets have 20 events in."""
    found = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        ours, theirs = (measured[(measured.energy >= low) & (measured.energy < high)] for measured in (reference, candidate))
        if min(len(ours), len(theirs)) >= 20:
            both = profiles(ours, theirs)
            found.append(BinProfiles(low=low, high=high, longitudinal=both["longitudinal"], lateral=both["lateral"]))
    return found


def energy_table(distance: EnergyDependence, resamples: Resamples, edges: Float) -> list[EnergyBin]:
    """Mean or relative deviation per bin of incident energy, with bootstrap errors; empty bins have nulls."""
    n = resamples.bootstrap_reference.shape[1]
    ours, theirs = (part.T.tocsr() for part in (distance.features[:n], distance.features[n:]))
    whole = [np.asarray(part.sum(axis=1)).reshape(1, -1) for part in (ours, theirs)]
    replicas = [_replicas(ours, resamples.bootstrap_reference), _replicas(theirs, resamples.bootstrap_candidate)]
    reference, candidate = (distance.figure(sums)[0] for sums in whole)
    reference_error, candidate_error = (_spread(distance.figure(sums)) for sums in replicas)
    error = _spread(distance.ratio(*replicas))
    events = [distance.counts(sums)[0].astype(int) for sums in whole]
    ratio = distance.ratio(*whole)[0]
    return [
        EnergyBin(
            low=edges[k],
            high=edges[k + 1],
            ratio=ratio[k],
            error=error[k],
            reference=reference[k],
            reference_error=reference_error[k],
            candidate=candidate[k],
            candidate_error=candidate_error[k],
            reference_events=events[0][k],
            candidate_events=events[1][k],
        )
        for k in range(distance.bins)
    ]


def resolution_fit(table: list[EnergyBin]) -> dict[str, ResolutionFit]:
    """sigma / mean = a / sqrt(E) (+) b / E (+) c with E in GeV, added in quadrature: `stochastic` a, `noise` b, `constant` c.

    None with fewer than four bins.
    """
    names = ("stochastic", "noise", "constant")
    found: dict[str, ResolutionFit] = {}
    for who in ("reference", "candidate"):
        rows = [
            (np.sqrt(row.low * row.high) / 1000, getattr(row, who), getattr(row, f"{who}_error"))
            for row in table
            if row.low is not None and row.high is not None and getattr(row, who) and getattr(row, f"{who}_error")
        ]
        if len(rows) < 4:
            found[who] = ResolutionFit(**dict.fromkeys(names))
            continue
        energy, value, error = np.array(rows, np.float64).T
        weight = 1 / (2 * value * error)
        design = np.stack([1 / energy, 1 / energy**2, np.ones_like(energy)], axis=1)
        squares, _ = nnls(design * weight[:, None], value**2 * weight)
        found[who] = ResolutionFit(**dict(zip(names, np.sqrt(squares).tolist(), strict=True)))
    return found


def correlations(distance: CorrelationDistance, names: list[str], resamples: Resamples) -> Correlations:
    """Both Pearson matrices, the candidate's events weighted to the reference's incident energies."""
    n = resamples.bootstrap_reference.shape[1]
    ours = distance.features[:n].sums(resamples.shared[:n, None].astype(np.float32))
    theirs = distance.features[n:].sums(resamples.matching[n:, None].astype(np.float32))
    return Correlations(names=names, reference=distance.matrix(ours)[0].tolist(), candidate=distance.matrix(theirs)[0].tolist())


def _sizes(strata: NDArray[np.int64]) -> dict[int, int]:
    numbers, counts = np.unique(strata, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _stratified(values: NDArray[np.floating], strata: NDArray[np.int64], weights: dict[int, float]) -> tuple[Float, Float]:
    """Weighted mean of (N, K) values and its standard error, from the variance within strata."""
    numbers, index, counts = np.unique(strata, return_inverse=True, return_counts=True)
    weight = np.array([weights.get(int(number), 0.0) for number in numbers])
    which = sparse.csr_matrix((np.ones(len(index)), (index, np.arange(len(index)))), shape=(len(numbers), len(index)))
    x = values.astype(np.float64)
    mean = (which @ x) / counts[:, None]
    squares = which @ (x - mean[index]) ** 2
    pooled = squares.sum(axis=0) / max(len(x) - len(numbers), 1)
    variance = np.where(counts[:, None] > 2, squares / np.maximum(counts[:, None] - 1, 1), pooled)
    return (weight * counts) @ mean, np.sqrt((weight**2 * counts) @ variance)


def _replicas(transposed: sparse.csr_matrix, weights: NDArray[np.uint8]) -> Float:
    blocks = [transposed @ weights[start : start + _BLOCK].T.astype(np.float64) for start in range(0, len(weights), _BLOCK)]
    return np.concatenate(blocks, axis=1).T


def _spread(replicas: Float) -> Float:
    usable = np.isfinite(replicas).sum(axis=0) > 2
    spread = np.full(replicas.shape[1], np.nan)
    spread[usable] = np.nanstd(np.where(np.isfinite(replicas), replicas, np.nan)[:, usable], axis=0, ddof=1)
    return spread
