"""Scores of the high-level features as a whole: classifiers, FPD, KPD."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity import classifier
from minicarlo.fidelity.classifier import Separation, classify
from minicarlo.fidelity.distances import Float
from minicarlo.fidelity.frechet import fpd, kpd
from minicarlo.fidelity.scorecard import DIFFERS, INDISTINGUISHABLE, ClassifierScore, Score

CLASSIFIER_ALPHA = 0.01
"""Chance of a false alarm of one classifier."""


def classifier_score(
    method: str, ours: Float, theirs: Float, energy: NDArray[np.float32], other: NDArray[np.float32], seed: int
) -> ClassifierScore | None:
    """A classifier and its floor; None with too few events."""
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


def fpd_score(ours: Float, theirs: Float, seed: int) -> Score | None:
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


def kpd_score(ours: Float, theirs: Float, seed: int) -> Score | None:
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
