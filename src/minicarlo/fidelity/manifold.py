"""Precision, recall, density and coverage: does every candidate event look like the reference, and is all of it there?

Every event of a sample of N has a neighbourhood, the ball that reaches to its `NEIGHBOURS`-th nearest other event. A candidate
lies on the reference's manifold when it is in one of its neighbourhoods (precision; the same the other way round is recall);
density counts in how many, over `NEIGHBOURS`; coverage is the share of the reference's neighbourhoods with a candidate in them.
Kynkaanniemi et al., arXiv:1904.06991 (precision, recall); Naeem et al., arXiv:2002.09797 (density, coverage, package `prdc`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from minicarlo.events import EventSet
from minicarlo.fidelity.scorecard import Manifold, Score

Float = NDArray[np.float64]

NEIGHBOURS = 5
"""CaloChallenge's choice."""
SPLITS = 5
"""Disjoint pieces of either set, compared piece by piece; their scatter is the error."""
LARGEST = 2_000
"""Events of a piece."""
FEWEST = 50
"""Events of the smallest piece."""

_EMPTY_CELL = 0.1
_BLOCK = 500


def prdc(reference: NDArray[np.floating], candidate: NDArray[np.floating], neighbours: int = NEIGHBOURS) -> Float:
    """Precision, recall, density and coverage of two samples (N, K) and (M, K), of more than `neighbours` events each. (4,)"""
    ours, theirs = _reach(reference, neighbours), _reach(candidate, neighbours)
    within_ours = np.zeros(len(candidate), np.int64)
    within_theirs, covered = (np.empty(len(reference), bool) for _ in range(2))
    for rows, distance in _distances(reference, candidate):
        inside = distance < ours[rows, None]
        within_ours += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        within_theirs[rows] = (distance < theirs).any(axis=1)
    return np.array([(within_ours > 0).mean(), within_theirs.mean(), within_ours.mean() / neighbours, covered.mean()])


def manifold(reference: NDArray[np.floating], candidate: NDArray[np.floating], *, seed: int) -> Manifold | None:
    """The four of two sets of features (N, K) and (M, K), with errors and floors; None below 250 events on either side.

    All depend on the number of events. Each is the mean over `SPLITS` pairs of disjoint pieces of the sets, chosen at random,
    of at most `LARGEST` events; the error is that of a mean of so many; the floor compares pieces of the reference.
    """
    size = min(len(reference) // SPLITS, len(candidate) // SPLITS, LARGEST)
    if size < FEWEST:
        return None
    random = np.random.default_rng([seed, 15])
    ours, theirs = (sample[random.permutation(len(sample))[: SPLITS * size]] for sample in (reference, candidate))
    pieces, others = (sample.reshape(SPLITS, size, -1) for sample in (ours, theirs))
    found = np.stack([prdc(one, two) for one, two in zip(pieces, others, strict=True)])
    floors = np.stack([prdc(pieces[k - 1], pieces[k]) for k in range(SPLITS)]).mean(axis=0)
    values, errors = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(SPLITS)
    scores = (Score(value=value, error=error, floor=floor) for value, error, floor in zip(values, errors, floors, strict=True))
    precision, recall, density, coverage = scores
    return Manifold(precision=precision, recall=recall, density=density, coverage=coverage, events=size)


def standardised(reference: Float, candidate: Float) -> tuple[Float, Float]:
    """Features (N, K) and (M, K) in standard deviations of the reference from its mean; constant ones are only centred."""
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    deviation[deviation < 1e-12] = 1
    return (reference - mean) / deviation, (candidate - mean) / deviation


def log_voxels(events: EventSet, threshold_mev: float) -> NDArray[np.float32]:
    """CaloChallenge's array for these figures: log10 of all cells in MeV, those at or below the threshold 0.1. (N, cells)"""
    cells = events.samples.reshape(len(events), -1)
    return np.log10(np.where(cells > threshold_mev, cells, np.float32(_EMPTY_CELL)))


def _reach(sample: NDArray[np.floating], neighbours: int) -> Float:
    """Distance of every event to its n-th nearest other one."""
    reach = np.empty(len(sample))
    for rows, distance in _distances(sample, sample):
        distance[np.arange(len(distance)), np.arange(rows.start, rows.stop)] = np.inf
        reach[rows] = np.partition(distance, neighbours - 1, axis=1)[:, neighbours - 1]
    return reach


def _distances(first: NDArray[np.floating], second: NDArray[np.floating]) -> Iterator[tuple[slice, Float]]:
    """Euclidean distances of a block of the first sample's rows to all of the second's."""
    from sklearn.metrics.pairwise import euclidean_distances

    for start in range(0, len(first), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(first)))
        yield rows, euclidean_distances(first[rows], second)
