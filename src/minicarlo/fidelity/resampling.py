"""Uncertainty, floor and null distribution of a distance, all from the same events with other weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity.correlation import Products
from minicarlo.fidelity.distances import Distance, Float

Weights = NDArray[np.uint8]

_BLOCK = 50  # resamples in one matrix product


@dataclass
class Resamples:
    """Weights of the events in every resample, shared by all distances so that their fluctuations can be compared.

    `permutations` (P, n + m): 1 where an event plays the reference. Events change sides only within their stratum of incident
    energy, so that a difference in energies is in every permutation alike. `bootstrap_reference` (B, n) and
    `bootstrap_candidate` (B, m): how often an event was drawn. `halves` (H, n): 1 and 2 for two random halves of the
    reference, 0 for one left over.
    `matching` (n + m,): the weight of an event that plays the candidate, so that the energies match the reference's; `shared`
    (n + m,): 1 where both sets have events in its stratum, otherwise 0.
    """

    permutations: Weights
    bootstrap_reference: Weights
    bootstrap_candidate: Weights
    halves: Weights
    matching: Float
    shared: Float

    @property
    def matched(self) -> bool:
        """Whether the energies of both sets are distributed alike already."""
        return bool(np.all(self.matching == 1))

    @cached_property
    def blocks(self) -> dict[str, list[NDArray[np.float32]]]:
        """Columns of weights as they are multiplied: (events, at most `_BLOCK`) each, by name; halves as two.

        Of a permutation `permutations` are the weights of events that play the reference; `exchanged` are what the same events
        would weigh in the candidate.
        """
        n = self.bootstrap_reference.shape[1]
        permutations = _blocks(self.permutations, self.shared)
        return {
            "permutations": permutations,
            "exchanged": permutations if self.matched else _blocks(self.permutations, self.matching),
            "bootstrap_reference": _blocks(self.bootstrap_reference, self.shared[:n]),
            "bootstrap_candidate": _blocks(self.bootstrap_candidate, self.matching[n:]),
            "first_half": _blocks(self.halves == 1, self.shared[:n]),
            "second_half": _blocks(self.halves == 2, self.shared[:n]),
        }

    @classmethod
    def draw(
        cls,
        reference_strata: NDArray[np.int64],
        candidate_strata: NDArray[np.int64],
        *,
        permutations: int,
        bootstrap: int,
        halves: int,
        seed: int,
    ) -> Resamples:
        """All resamples of `seed`."""
        shuffling, drawing, halving = (np.random.default_rng([seed, stream]) for stream in range(3))
        n, m = len(reference_strata), len(candidate_strata)
        strata = np.concatenate([reference_strata, candidate_strata])
        _, place = np.unique(strata, return_inverse=True)
        ours, theirs = (np.bincount(part, minlength=place.max() + 1).astype(np.float64) for part in (place[:n], place[n:]))
        matching = np.divide(ours * m, theirs * n, out=np.zeros_like(ours), where=(ours > 0) & (theirs > 0))[place]
        by_stratum = np.argsort(strata, kind="stable")  # the reference's events come first within a stratum
        is_reference = np.zeros(n + m, np.uint8)
        is_reference[:n] = 1
        labels = is_reference[by_stratum]
        shuffled = np.empty((permutations, n + m), np.uint8)
        for row in shuffled:
            row[np.argsort(strata + shuffling.random(n + m))] = labels
        split = np.zeros((halves, n), np.uint8)
        for row in split:
            order = halving.permutation(n)
            order = order[np.argsort(reference_strata[order], kind="stable")]  # neighbours have nearly equal energies
            row[order[0 : n // 2 * 2 : 2]] = 1
            row[order[1 : n // 2 * 2 : 2]] = 2
        boot = [_draws(drawing, bootstrap, part) for part in (reference_strata, candidate_strata)]
        return cls(shuffled, boot[0], boot[1], split, matching, (matching > 0).astype(np.float64))


@dataclass
class Resampled:
    """A distance of C columns with what belongs to it.

    `null` (P, C): the distances of the permutations; `replicas` (B, C): those of the bootstrap.
    """

    value: Float
    error: Float
    floor: Float
    null: Float
    replicas: Float
    power: float

    def scores(self) -> tuple[Float, Float]:
        """How many standard deviations the value (C,) and every permutation (P, C) lie above the mean of all others.

        On a scale where the null distribution is nearly Gaussian: the cube root of what is quadratic (Wilson and Hilferty).
        Counted among the others, a value far from them would widen the scale that it is measured on.
        """
        scores = _among_others(self.quadratic(np.concatenate([self.value[None], self.null])))
        return scores[0], scores[1:]

    def null_scores(self) -> Float:
        """The scores of the permutations (P, C) as they are without the value."""
        return _among_others(self.quadratic(self.null))

    def quadratic(self, distances: Float) -> Float:
        """The distances to the power that makes them quadratic in a small difference."""
        return distances ** (1 / self.power)


def moments_of_others(samples: Float) -> tuple[Float, Float, Float]:
    """Mean, standard deviation and skewness of all samples (n, ...) but each in turn, each (n, ...); zero if they do not vary."""
    number = len(samples) - 1
    origin = samples.mean(axis=0)
    x = samples - origin
    first, second, third = ((np.sum(x**order, axis=0) - x**order) / number for order in (1, 2, 3))
    spread = np.sqrt(np.clip(second - first**2, 0, None))
    central = third - 3 * first * second + 2 * first**3
    skewness = np.divide(central, spread**3, out=np.zeros_like(central), where=spread > 1e-12)
    return origin + first, spread, skewness


def _among_others(quadratic: Float) -> Float:
    every = quadratic ** (1 / 3)
    mean, spread, _ = moments_of_others(every)
    return np.asarray(np.where(every.std(axis=0) > 1e-12, (every - mean) / np.maximum(spread, 1e-12), 0.0))


def resample(distance: Distance, resamples: Resamples, *, permute: bool = True) -> Resampled:
    """Value, bootstrap replicas and error, floor and permutation null (empty without `permute`) of a distance."""
    return resample_all([distance], resamples, permute=permute)[0]


def resample_all(distances: Sequence[Distance], resamples: Resamples, *, permute: bool = True) -> list[Resampled]:
    """`resample` for distances that share their features, whose sums are then taken once."""
    features = distances[0].features
    n = resamples.bootstrap_reference.shape[1]
    m = features.shape[0] - n
    shared, matching = (weights.astype(np.float32)[:, None] for weights in (resamples.shared, resamples.matching))
    ours, theirs = _transposed(features[:n]), _transposed(features[n:])

    def pooled(weights: NDArray[np.float32]) -> Float:
        return _sums(ours, weights[:n]) + _sums(theirs, weights[n:])

    value = _all(distances, _sums(ours, shared[:n]), _sums(theirs, matching[n:]))
    blocks = resamples.blocks
    replicas = [
        _all(distances, _sums(ours, one), _sums(theirs, two))
        for one, two in zip(blocks["bootstrap_reference"], blocks["bootstrap_candidate"], strict=True)
    ]
    halves = [
        _all(distances, _sums(ours, one), _sums(ours, two))
        for one, two in zip(blocks["first_half"], blocks["second_half"], strict=True)
    ]
    null = []
    if permute:
        total = pooled(matching)
        for playing, exchanged in zip(blocks["permutations"], blocks["exchanged"], strict=True):
            first = pooled(playing)
            null.append(_all(distances, first, total - (first if resamples.matched else pooled(exchanged))))
    found = []
    for k, distance in enumerate(distances):
        boot = np.concatenate([part[k] for part in replicas])
        shrink = ((1 / n + 1 / m) / (2 / (n // 2))) ** distance.power
        found.append(
            Resampled(
                value=value[k][0],
                error=boot.std(axis=0, ddof=1),
                floor=np.concatenate([part[k] for part in halves]).mean(axis=0) * shrink,
                null=np.concatenate([part[k] for part in null]) if permute else np.empty((0, boot.shape[1])),
                replicas=boot,
                power=distance.power,
            )
        )
    return found


def _draws(random: np.random.Generator, number: int, strata: NDArray[np.int64]) -> Weights:
    """Bootstrap counts; events are drawn within their stratum."""
    order = np.argsort(strata, kind="stable")
    _, starts, place, sizes = np.unique(strata[order], return_index=True, return_inverse=True, return_counts=True)
    drawn = np.empty((number, len(strata)), np.uint8)
    for row in drawn:
        chosen = starts[place] + (random.random(len(strata)) * sizes[place]).astype(np.int64)
        row[:] = np.bincount(order[chosen], minlength=len(strata))
    return drawn


def _transposed(features: Any) -> Any:  # noqa: ANN401 - dense, sparse or products
    if isinstance(features, Products):
        return features
    return features.T.tocsr() if hasattr(features, "tocsr") else features.T


def _sums(transposed: Any, weights: NDArray[np.float32]) -> Float:  # noqa: ANN401
    if isinstance(transposed, Products):
        return transposed.sums(weights)
    return np.ascontiguousarray((transposed @ weights).T, dtype=np.float64)


def _blocks(resamples: Weights | NDArray[np.bool_], weights: Float) -> list[NDArray[np.float32]]:
    column = weights.astype(np.float32)[:, None]
    return [
        np.ascontiguousarray(resamples[start : start + _BLOCK].T, dtype=np.float32) * column
        for start in range(0, len(resamples), _BLOCK)
    ]


def _all(distances: Sequence[Distance], first: Float, second: Float) -> list[Float]:
    return [distance(first, second) for distance in distances]
