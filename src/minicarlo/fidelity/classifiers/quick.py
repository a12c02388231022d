"""Classifiers of high-level features that train in seconds, without PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity.classifiers.inputs import Float, Inputs, Labels, Parts, Progress
from minicarlo.fidelity.classifiers.separation import separation

_EPOCHS, _PATIENCE = 30, 5
_STEPS, _LARGEST_BATCH = 20, 256
_ROUNDS = 120


def trees(
    inputs: Inputs, labels: Labels, parts: Parts, *, seed: int, epochs: int | None, progress: Progress
) -> tuple[Float, Float]:
    """Gradient boosting on histograms of the features; an epoch is a tree."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    x = _relative(inputs)
    model = HistGradientBoostingClassifier(
        max_iter=epochs or _ROUNDS,
        learning_rate=0.1,
        max_leaf_nodes=15,
        min_samples_leaf=40,
        early_stopping=True,
        n_iter_no_change=8,
        class_weight="balanced",
        random_state=seed,
    )
    model.fit(x[parts.train], labels[parts.train], X_val=x[parts.stop], y_val=labels[parts.stop])
    progress(1, 1)
    return np.asarray(model.decision_function(x[parts.stop])), np.asarray(model.decision_function(x[parts.test]))


def network(
    inputs: Inputs, labels: Labels, parts: Parts, *, seed: int, epochs: int | None, progress: Progress
) -> tuple[Float, Float]:
    """Three layers of 128 on standardised features; kept as it was when it told the stopping events apart best."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    x = _relative(inputs)
    scaler = StandardScaler().fit(x[parts.train])
    x = scaler.transform(x).clip(-8, 8).astype(np.float32)
    y, y_stop = labels[parts.train], labels[parts.stop]
    model = MLPClassifier(
        (128, 128, 128),
        batch_size=min(_LARGEST_BATCH, max(1, len(y) // _STEPS)),
        learning_rate_init=5e-4,
        alpha=1e-3,
        random_state=seed,
    )
    epochs = epochs or _EPOCHS
    best, waited, scores = -np.inf, 0, (np.zeros(len(parts.stop)), np.zeros(len(parts.test)))
    for epoch in range(epochs):
        model.partial_fit(x[parts.train], y, classes=[0, 1])
        found = _logit(model.predict_proba(x[parts.stop]))
        auc = separation(found[y_stop == 0], found[y_stop == 1]).auc
        waited += 1
        if auc > best:
            best, waited, scores = auc, 0, (found, _logit(model.predict_proba(x[parts.test])))
        progress(epoch + 1, epochs)
        if waited >= _PATIENCE:
            break
    return scores


def _relative(inputs: Inputs) -> Float:
    """The features with energies per incident energy: a wrong scale then shows in one column, not in the ratio of two."""
    layers = inputs.detector.layers
    found = inputs.features.copy()
    found[:, [*range(1, 1 + layers), 1 + 5 * layers]] -= found[:, :1]
    return found


def _logit(probabilities: NDArray[np.floating]) -> Float:
    p = probabilities.astype(np.float64).clip(1e-30, 1)
    return np.asarray(np.log(p[:, 1]) - np.log(p[:, 0]))
