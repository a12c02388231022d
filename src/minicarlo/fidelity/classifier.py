"""Classifier two-sample tests: can a classifier tell candidate from reference?

Area under the ROC curve on events it has not seen, 0.5 when it cannot. `trees` is gradient boosting; `high` a small network
(CaloChallenge's is three layers of 512 to 2048; ours, for two cores, three of 128), both on CaloChallenge's high-level
features, 60 % of the events for training, 20 % to stop, 20 % to measure. Scores are never rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Float = NDArray[np.float64]
Labels = NDArray[np.int64]

FEWEST = 250
"""Events needed on either side."""

_SPLIT = (0.6, 0.8)
_EPOCHS, _PATIENCE = 30, 5


@dataclass
class Separation:
    """Area under the curve, its standard error, the chance of one as large without a difference, scores of the test events."""

    auc: float
    error: float
    p_value: float
    reference_scores: Float
    candidate_scores: Float


def classify(method: str, reference: Float, candidate: Float, *, groups: Float, seed: int) -> Separation:
    """Train `method` ("high" or "trees") on (n, K) and (m, K) features and test it on events held out.

    `groups` (n + m,): events with one value (the incident energy, when the candidate was generated at the reference's
    energies) go to the same part, or a classifier could learn from one of a pair what the other is.
    """
    features = np.concatenate([reference, candidate])
    labels = np.repeat([0, 1], [len(reference), len(candidate)])
    part = _parts(groups, seed)
    train, stop, test = (np.flatnonzero(part == number) for number in range(3))
    scores = _METHODS[method](features[train], labels[train], features[stop], labels[stop], features[test], seed)
    return separation(scores[labels[test] == 0], scores[labels[test] == 1])


def separation(reference: Float, candidate: Float) -> Separation:
    """AUC of two sets of scores, ties counting half; error after DeLong et al., Biometrics 44 (1988) 837."""
    n, m = len(reference), len(candidate)
    both = rankdata(np.concatenate([reference, candidate]))
    below = (both[n:] - rankdata(candidate)) / n  # share of the reference below each candidate
    above = 1 - (both[:n] - rankdata(reference)) / m
    auc = float(below.mean())
    error = float(np.sqrt(below.var(ddof=1) / m + above.var(ddof=1) / n))
    null = np.sqrt((n + m + 1) / (12 * n * m))
    return Separation(auc, error, float(norm.sf((auc - 0.5) / null)), reference, candidate)


def _parts(groups: Float, seed: int) -> Labels:
    """0 train, 1 stop, 2 test, by group where groups are small, by event where many events share one."""
    random = np.random.default_rng([seed, 11])
    values, index = np.unique(groups, return_inverse=True)
    number = len(values)
    if number < 0.2 * len(groups):
        number, index = len(groups), np.arange(len(groups))
    return np.searchsorted(_SPLIT, random.permutation(number) / number, side="right")[index]


def _trees(x: Float, y: Labels, x_stop: Float, y_stop: Labels, x_test: Float, seed: int) -> Float:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=120,
        learning_rate=0.1,
        max_leaf_nodes=15,
        min_samples_leaf=40,
        early_stopping=True,
        n_iter_no_change=8,
        random_state=seed,
    )
    model.fit(x, y, X_val=x_stop, y_val=y_stop)
    return np.asarray(model.decision_function(x_test))


def _network(x: Float, y: Labels, x_stop: Float, y_stop: Labels, x_test: Float, seed: int) -> Float:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    x, x_stop, x_test = ((scaler.transform(part)).clip(-8, 8).astype(np.float32) for part in (x, x_stop, x_test))
    model = MLPClassifier((128, 128, 128), batch_size=min(256, len(x)), learning_rate_init=5e-4, alpha=1e-3, random_state=seed)
    best, waited, scores = -np.inf, 0, np.zeros(len(x_test))
    for _ in range(_EPOCHS):
        model.partial_fit(x, y, classes=[0, 1])
        found = _logit(model.predict_proba(x_stop))
        auc = separation(found[y_stop == 0], found[y_stop == 1]).auc
        waited += 1
        if auc > best:
            best, waited, scores = auc, 0, _logit(model.predict_proba(x_test))
        if waited >= _PATIENCE:
            break
    return scores


def _logit(probabilities: NDArray[np.floating]) -> Float:
    p = probabilities.astype(np.float64).clip(1e-30, 1)
    return np.asarray(np.log(p[:, 1]) - np.log(p[:, 0]))


_METHODS: dict[str, Callable[[Float, Labels, Float, Labels, Float, int], Float]] = {"trees": _trees, "high": _network}
