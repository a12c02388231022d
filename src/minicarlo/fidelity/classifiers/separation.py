"""How far scores of two sets lie apart: area under the ROC curve, Jensen-Shannon divergence, chances under the null."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Float = NDArray[np.float64]

OVERLAP = 1 / 3
"""Correlation between trainings, at most: of the three fifths that one learns from, one tests another, and vice versa."""


@dataclass(frozen=True)
class Separation:
    """Area under the curve, its standard error, and what that would be if both sets came from one population."""

    auc: float
    error: float
    null_error: float


@dataclass(frozen=True)
class Divergence:
    """Jensen-Shannon divergence in bits with its standard error."""

    jsd: float
    error: float


@dataclass(frozen=True)
class Fold:
    """One training: what it found on events it has not seen, and their scores (larger: more like the candidate)."""

    separation: Separation
    divergence: Divergence
    reference_scores: Float
    candidate_scores: Float


@dataclass(frozen=True)
class Classification:
    """Several trainings of one method, each tested on events that no other is tested on."""

    folds: tuple[Fold, ...]

    @cached_property
    def auc(self) -> float:
        """Mean area under the curve."""
        return float(np.mean([fold.separation.auc for fold in self.folds]))

    @cached_property
    def error(self) -> float:
        """Standard error of `auc` from the number of test events."""
        return self._of_mean([fold.separation.error for fold in self.folds])

    @cached_property
    def spread(self) -> float | None:
        """Standard deviation of the area over trainings; None for a single one."""
        return float(np.std([fold.separation.auc for fold in self.folds], ddof=1)) if len(self.folds) > 1 else None

    @cached_property
    def p_value(self) -> float:
        """Chance of an area as large if both sets came from one population."""
        return float(norm.sf((self.auc - 0.5) / self.null_error))

    @cached_property
    def null_error(self) -> float:
        """Standard error of `auc` if both sets came from one population."""
        return self._of_mean([fold.separation.null_error for fold in self.folds])

    @cached_property
    def jsd(self) -> float:
        """Mean Jensen-Shannon divergence in bits."""
        return float(np.mean([fold.divergence.jsd for fold in self.folds]))

    @cached_property
    def jsd_error(self) -> float:
        """Standard error of `jsd` from the number of test events."""
        return self._of_mean([fold.divergence.error for fold in self.folds])

    def _of_mean(self, errors: list[float]) -> float:
        """Error of the mean of quantities with these errors and a correlation of `OVERLAP`."""
        count = len(errors)
        return float(np.sqrt(np.mean(np.square(errors)) * (1 + (count - 1) * OVERLAP) / count))


def separation(reference: Float, candidate: Float) -> Separation:
    """Area under the curve of two sets of scores, ties counting half; error after DeLong et al., Biometrics 44 (1988) 837."""
    n, m = len(reference), len(candidate)
    both = rankdata(np.concatenate([reference, candidate]))
    below = (both[n:] - rankdata(candidate)) / n  # share of the reference below each candidate
    above = 1 - (both[:n] - rankdata(reference)) / m
    error = np.sqrt(below.var(ddof=1) / m + above.var(ddof=1) / n)
    return Separation(float(below.mean()), float(error), float(np.sqrt((n + m + 1) / (12 * n * m))))


def divergence(scores: Float, labels: NDArray[np.int64], calibration: Float, calibration_labels: NDArray[np.int64]) -> Divergence:
    """1 - H / ln 2 with the cross entropy H of calibrated scores, either set counting half.

    Calibrated by isotonic regression on other events, as in CaloChallenge's `evaluate.py`. Of n of these, even if all on one side
    of a score are of one kind, the chance of the other is not said to be below 1 / (n + 2) (Laplace); upstream's limit is 1e-6.
    """
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(calibration) + 2)
    balance = 1 / np.bincount(calibration_labels)[calibration_labels]
    curve = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    curve.fit(calibration, calibration_labels, sample_weight=balance)
    chance = curve.predict(scores)
    bits = [-np.log2(np.where(kind == 1, chance, 1 - chance)[labels == kind]) for kind in (0, 1)]
    error = np.sqrt(sum(part.var(ddof=1) / len(part) for part in bits)) / 2
    return Divergence(1 - float(np.mean([part.mean() for part in bits])), float(error))
