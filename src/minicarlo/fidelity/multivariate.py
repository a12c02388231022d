"""Scores of the high-level features as a whole: FPD, KPD."""

from __future__ import annotations

import numpy as np

from minicarlo.fidelity.distances import Float
from minicarlo.fidelity.frechet import fpd, kpd
from minicarlo.fidelity.scorecard import Score


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
