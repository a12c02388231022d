"""CaloChallenge's classifier gives the area that its published training gives, written here once more as plain loops.

Published (`evaluate.py`, arXiv:2410.21611): an input layer and two hidden ones, 2048 wide, LeakyReLU; cross entropy, Adam 2e-4,
50 epochs; three fifths train, one chooses the epoch by its accuracy, one tests. Batches of 1000 are for the 200,000 events there:
with some thousand both take 20 steps an epoch, and are narrower. What else differs is ours: products in bf16, a first layer
in two parts, the epoch of the best area, other random numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from minicarlo.events import read_events
from minicarlo.fidelity import measure
from minicarlo.fidelity.classifiers import Inputs, Parts, separation, split
from planted import scale_energy

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'minicarlo[train]'")
neural = pytest.importorskip("minicarlo.fidelity.classifiers.neural")

EVENTS, EPOCHS, SEEDS, WIDTH = 2000, 40, 2, 128
CENTRE = slice(9, 16)  # of the transverse plane: where most of the energy is


def published_area(features: np.ndarray, labels: np.ndarray, parts: Parts, seed: int) -> float:
    """Area under the curve of the test events, of the epoch that sorts the most stopping events right."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)
    layers: list = []
    for width in (features.shape[1], WIDTH, WIDTH):
        layers += [torch.nn.Linear(width, WIDTH), torch.nn.LeakyReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1))
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-4)
    best, area = -1.0, 0.5
    for _ in range(EPOCHS):
        order = random.permutation(parts.train)
        batch = len(order) // 20
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            loss = torch.nn.functional.binary_cross_entropy(torch.sigmoid(network(x[rows])[:, 0]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            stop, test = (torch.sigmoid(network(x[rows])[:, 0]).numpy() for rows in (parts.stop, parts.test))
        accuracy = float(((stop > 0.5) == labels[parts.stop]).mean())
        if accuracy > best:
            best, area = accuracy, float(roc_auc_score(labels[parts.test], test))
    return area


def inputs(scale: float) -> Inputs:
    """Geant4 showers, and others whose energies are scaled; of the cells only the centre, to keep the first layer small."""
    shared = os.environ.get("MINICARLO_SHARED")
    if not shared:
        pytest.skip("MINICARLO_SHARED does not say where the Geant4 showers are")
    ours, theirs = (read_events(Path(shared) / "data" / "test.h5", start=k * EVENTS, stop=(k + 1) * EVENTS) for k in range(2))
    theirs = scale_energy(theirs, scale)
    found = Inputs.of(measure(ours), measure(theirs))
    cells = np.concatenate([part.samples[:, :, CENTRE, CENTRE].reshape(EVENTS, -1) for part in (ours, theirs)])
    return Inputs(found.features, sparse.csr_matrix(cells * (cells > 0.05)), found.energy, found.detector)


@pytest.mark.parametrize(("method", "scale"), [("dnn-high", 1.2), ("low", 1.1)])
def test_area_is_that_of_the_published_training(method: str, scale: float) -> None:
    given = inputs(scale)
    labels = np.repeat([0, 1], EVENTS)
    parts = split(given.energy.astype(np.float64), 0, seed=1)
    train, features = neural.dnn_high, given.features
    if method == "low":
        energy, cells = given.energy.astype(np.float64)[:, None], given.cells.toarray().astype(np.float64)
        response = (cells.sum(axis=1, keepdims=True) / energy)[parts.train].mean()
        train, features = neural.dnn_low, np.concatenate([np.log10(energy), cells / energy / response], axis=1)
    ours, published = [], []
    for seed in range(SEEDS):
        scores = train(given, labels, parts, seed=seed, epochs=EPOCHS, progress=lambda *_: None, width=WIDTH)[1]
        kind = labels[parts.test]
        ours.append(separation(scores[kind == 0], scores[kind == 1]).auc)
        published.append(published_area(features, labels, parts, 100 + seed))
    assert 0.52 < np.mean(published) < 0.95  # something is learned, and not everything
    # trainings of one kind are 0.01 to 0.02 apart; the test events are the same
    assert np.mean(ours) == pytest.approx(np.mean(published), abs=0.04), (ours, published)


@pytest.mark.parametrize(("features", "cells"), [(152, 0), (1, 500)])
def test_network_is_the_published_one(features: int, cells: int) -> None:
    """With the same weights it gives the same logits: three layers of 2048 and LeakyReLU of slope 0.01."""
    ours = neural.Dnn(features, cells)
    weights = {name: value.detach().double() for name, value in ours.state_dict().items()}
    known, lit = torch.randn(7, features), torch.rand(7, cells)
    first = torch.cat([weights["features.weight"], *([weights["cells.weight"]] if cells else [])], dim=1)
    x = torch.cat([known, lit], dim=1).double() @ first.T + weights["features.bias"]
    for place in (1, 3):
        x = torch.maximum(x, 0.01 * x) @ weights[f"hidden.{place}.weight"].T + weights[f"hidden.{place}.bias"]
    expected = (torch.maximum(x, 0.01 * x) @ weights["output.weight"].T + weights["output.bias"])[:, 0]
    assert first.shape == (2048, features + cells) and x.shape == (7, 2048)
    found = ours(known, lit) if cells else ours(known)
    assert torch.allclose(found.double(), expected, atol=0.02 * float(expected.std()) + 2e-3)  # products are in bf16
