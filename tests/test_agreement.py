"""Agreement with what others publish: CaloChallenge's features and figures, written again as plain loops; JetNet; prdc."""

from __future__ import annotations

import importlib
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import h5py
import numpy as np
import pytest

from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, get_detector
from minicarlo.events import read_events
from minicarlo.fidelity import Scorecard, fpd, high_level_features, kpd, measure, validate
from minicarlo.fidelity.classifiers import separation
from minicarlo.fidelity.distances import separation_power
from minicarlo.fidelity.manifold import NEIGHBOURS, log_voxels, manifold, prdc, standardised
from minicarlo.surrogate import sample_path

EVENTS = 200
DETECTORS = (CLIC_ECAL, PAR04_SIW)


def geant4_pair() -> tuple[np.ndarray, ...]:
    """Showers and energies of two sets of Geant4's, the second with four per cent more energy; sets with equal strata."""
    events = read_events(sample_path(CLIC_ECAL), stop=2 * EVENTS)
    order = np.argsort(events.incident_energy)
    first, second = np.sort(order[0::2]), np.sort(order[1::2])
    cells, energy = events.samples.reshape(len(events), -1), events.incident_energy
    # the second set gets the first's energies, next to its own, so that no event has a weight
    return cells[first], energy[first], cells[second] * np.float32(1.04), energy[first]


def cylinder(seed: int, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Random sparse showers in (45, 16, 9), wider in azimuth on one side; one without energy."""
    random = np.random.default_rng(seed)
    energy = np.exp(np.random.default_rng(1).uniform(math.log(1e3), math.log(1e5), EVENTS)).astype(np.float32)
    z, phi, r = np.ogrid[:45, :16, :9]
    mean = 0.02 * (z + 1) * np.exp(-z / 8) * (1 + slope * np.cos((phi + 0.5) * np.pi / 8)) * np.exp(-r / 1.5)
    hits = random.poisson(mean * (energy / 1e3)[:, None, None, None])
    cells = random.gamma(np.maximum(hits, 1), 0.05) * (hits > 0) + 0.01 * random.random(hits.shape)
    cells[7] = 0
    return cells.reshape(EVENTS, -1).astype(np.float32), energy


@pytest.fixture(scope="module", params=DETECTORS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A detector, and two event sets with nothing in them but what CaloChallenge's files hold."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == CLIC_ECAL:
        showers, energy, other, other_energy = geant4_pair()
    else:
        (showers, energy), (other, other_energy) = cylinder(2, 0.2), cylinder(3, 0.3)
    paths = folder / "reference.hdf5", folder / "generated.hdf5"
    for path, cells, energies in zip(paths, (showers, other), (energy, other_energy), strict=True):
        with h5py.File(path, "w") as file:
            file.create_dataset("incident_energies", data=energies[:, None], compression="gzip")
            file.create_dataset("showers", data=cells, compression="gzip")
    return request.param, *paths


@pytest.fixture(scope="module")
def published(files: tuple[str, Path, Path]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    detector, *paths = files
    return tuple(published_features(path, detector) for path in paths)


@pytest.fixture(scope="module")
def card(files: tuple[str, Path, Path]) -> Scorecard:
    return validate(*files[1:], classifiers=(), feature_distances=False, permutations=99, bootstrap=10)


def cell_centres(detector: str) -> list[tuple[float, float, float]]:
    """(x, y, r) of the cells of a layer in the order of the file; `XMLHandler.py` begins with the sector at alpha = -pi."""
    found = []
    if detector == CLIC_ECAL:
        for i in range(25):
            for j in range(25):
                x, y = (i - 12) * 5.1, (j - 12) * 5.1
                found.append((x, y, math.sqrt(x * x + y * y)))
    else:
        for j in range(16):
            for k in range(9):
                alpha, r = -math.pi + (j + 0.5) * 2 * math.pi / 16, (k + 0.5) * 4.65
                found.append((r * math.cos(alpha), r * math.sin(alpha), r))
    return found


def published_features(path: Path, detector: str) -> dict[str, np.ndarray]:
    """`HighLevelFeatures.py`, cell by cell: per layer E, sparsity, sum(xE) / sum(E), sqrt(sum(xxE) / sum(E) - its square)."""
    centres = cell_centres(detector)
    layers, cells = {CLIC_ECAL: (25, 625), PAR04_SIW: (45, 144)}[detector]
    cut = {CLIC_ECAL: 0.05, PAR04_SIW: 0.01515}[detector]
    names = ("E", "sparsity", "x", "y", "width_x", "width_y", "r", "width_r")
    with h5py.File(path) as file:
        energy, showers = file["incident_energies"][:, 0].astype(float), file["showers"][:].astype(float)
    found = {name: np.zeros((len(showers), layers)) for name in names}
    for event, shower in enumerate(showers):
        for layer in range(layers):
            total = x1 = y1 = r1 = x2 = y2 = r2 = 0.0
            lit = 0
            for cell in np.flatnonzero(shower[layer * cells : (layer + 1) * cells] > cut):
                e = shower[layer * cells + cell]
                x, y, r = centres[cell]
                total, lit = total + e, lit + 1
                x1, y1, r1 = x1 + e * x, y1 + e * y, r1 + e * r
                x2, y2, r2 = x2 + e * x * x, y2 + e * y * y, r2 + e * r * r
            found["E"][event, layer] = total
            found["sparsity"][event, layer] = 1 - lit / cells
            for name, first, second in (("x", x1, x2), ("y", y1, y2), ("r", r1, r2)):
                centre = first / (total + 1e-16)
                found[name][event, layer] = centre
                found[f"width_{name}"][event, layer] = math.sqrt(max(second / (total + 1e-16) - centre**2, 0))
    return found | {"incident": energy, "cells": np.where(showers > cut, showers, 0).ravel(), "cut": np.array(cut)}


def published_array(features: dict[str, np.ndarray], *, radial: bool) -> np.ndarray:
    """The array of `evaluate.py`, in its order."""
    columns = [np.log10(features["incident"])[:, None], np.log10(features["E"] + 1e-8)]
    columns += [features[name] / 100 for name in ("x", "y", "width_x", "width_y")]
    columns += [np.log10(features["E"].sum(axis=1) + 1e-8)[:, None], features["sparsity"]]
    columns += [features[name] / 100 for name in ("r", "width_r")] if radial else []
    return np.concatenate(columns, axis=1)


def published_separation(first: list[int], second: list[int]) -> float:
    """1/2 sum (h1 - h2)^2 / (h1 + h2) of two histograms with unit sum, bin by bin."""
    separation = 0.0
    for one, two in zip(first, second, strict=True):
        a, b = one / max(sum(first), 1), two / max(sum(second), 1)
        if a + b > 0:
            separation += 0.5 * (a - b) ** 2 / (a + b)
    return separation


def assert_histogram(counts: list[int], below: int, values: np.ndarray, edges: np.ndarray, name: str) -> None:
    """Counts in bins are right, but for values that are an edge up to rounding (multiples of the pitch, with one cell)."""
    for edge, found in zip(edges, below + np.cumsum([0, *counts]), strict=True):
        rounding = 1e-5 * (1 + abs(edge))
        assert np.sum(values < edge - rounding) <= found <= np.sum(values < edge + rounding), (name, edge)


# CaloChallenge


def test_features_are_calochallenges(
    files: tuple[str, Path, Path], published: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
) -> None:
    detector, *paths = files
    for path, features in zip(paths, published, strict=True):
        found = high_level_features(measure(path))
        expected = published_array(features, radial=detector == PAR04_SIW)
        assert found.shape == expected.shape
        # observables are kept as float32; a width is the root of a difference of squares of up to 60 mm
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_separation_powers_are_calochallenges(
    files: tuple[str, Path, Path], published: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], card: Scorecard
) -> None:
    """Its bins, the response's around the reference's mean where that is far from one; with values in them only, as it counts.

    minicarlo's first sector begins at phi = 0, so that x and y (but not the features above) have the other sign.
    """
    turned = -1 if files[0] == PAR04_SIW else 1
    ours, theirs = (features | {axis: turned * features[axis] for axis in "xy"} for features in published)
    cut, layers = float(ours["cut"]), ours["E"].shape[1]
    mean = float((ours["E"].sum(axis=1) / ours["incident"]).mean())
    mean = 1.0 if 0.5 <= mean <= 1.5 else mean
    response = [features["E"].sum(axis=1) / features["incident"] / mean for features in published]
    pairs = {"response": (*response, np.linspace(0.5, 1.5, 101), card.histograms["response"])}
    cells = (ours["cells"], theirs["cells"], np.geomspace(cut, ours["cells"].max(), 50), card.histograms["cell_energy"])
    pairs["cell_energy"] = cells
    for layer in range(layers):
        edges = {
            "layer_energy": ("E", np.geomspace(cut, max(ours["E"][:, layer].max(), cut), 40)),
            "layer_centre_x": ("x", np.linspace(-30, 30, 101)),
            "layer_centre_y": ("y", np.linspace(-30, 30, 101)),
            "layer_width_x": ("width_x", np.linspace(0, 30, 101)),
            "layer_width_y": ("width_y", np.linspace(0, 30, 101)),
        }
        for name, (key, limits) in edges.items():
            if limits[-1] > limits[0]:
                pairs[f"{name} {layer}"] = (
                    ours[key][:, layer],
                    theirs[key][:, layer],
                    limits,
                    card.layer_histograms[name][layer],
                )
    for name, (one, two, limits, histogram) in pairs.items():
        np.testing.assert_allclose(np.array(histogram.edges) / (mean if name == "response" else 1), limits, rtol=1e-6, atol=1e-6)
        assert_histogram(histogram.reference, histogram.reference_outside[0], one, limits, name)
        assert_histogram(histogram.candidate, histogram.candidate_outside[0], two, limits, name)
        found = float(separation_power(histogram.reference, histogram.candidate))
        assert found == pytest.approx(published_separation(histogram.reference, histogram.candidate), rel=1e-9), name
    assert sum(float(separation_power(h.reference, h.candidate)) > 0.01 for *_, h in pairs.values()) > 10  # they do differ


def test_scores_hold_the_separation_power_with_what_lies_outside(card: Scorecard) -> None:
    """The number of the scorecard is the published formula with two more bins, below (but cells below threshold) and above."""
    for name, score in card.observables.items():
        if score.layers is None:
            histograms = [card.histograms[name]] if name in card.histograms else []
            scores = [score.separation_power]
        else:
            histograms, scores = card.layer_histograms[name], [layer.separation_power for layer in score.layers]
        for histogram, found in zip(histograms, scores, strict=False):
            counts = [
                [0 if name == "cell_energy" else outside[0], *inside, outside[1]]
                for inside, outside in (
                    (histogram.reference, histogram.reference_outside),
                    (histogram.candidate, histogram.candidate_outside),
                )
            ]
            assert found is not None
            assert found.value == pytest.approx(float(separation_power(*counts)), rel=1e-5, abs=1e-9), name


def test_auc_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(5)
    first, second = random.normal(0, 1, 200).round(1), random.normal(0.4, 1.3, 150).round(1)
    pairs = 0.0
    for one in first:
        for two in second:
            pairs += 1.0 if two > one else 0.5 if two == one else 0.0
    assert separation(first, second).auc == pytest.approx(pairs / (200 * 150), abs=1e-12)


# prdc


def clouds(count: int = 400, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.normal(0, 1, (count, features)), random.normal(0.2, 0.8, (count - 50, features))


def test_precision_recall_density_coverage_are_those_of_prdc(capsys: pytest.CaptureFixture[str]) -> None:
    package = pytest.importorskip("prdc", reason="the package prdc is not installed (make test installs it)")
    first, second = clouds()
    expected = package.compute_prdc(first, second, NEIGHBOURS)
    np.testing.assert_allclose(prdc(first, second), list(expected.values()), rtol=1e-12)
    assert list(expected) == ["precision", "recall", "density", "coverage"]


def test_precision_recall_density_coverage_are_their_definitions() -> None:
    first, second = (sample[:60] for sample in clouds())

    def balls(sample: np.ndarray) -> list[float]:
        return [sorted(math.dist(a, b) for b in sample)[NEIGHBOURS] for a in sample]  # the first is the event itself

    ours, theirs = balls(first), balls(second)
    inside = [[math.dist(a, b) < reach for b in second] for a, reach in zip(first, ours, strict=True)]
    precision = np.mean([any(row[j] for row in inside) for j in range(len(second))])
    recall = np.mean([any(math.dist(a, b) < reach for b, reach in zip(second, theirs, strict=True)) for a in first])
    density = np.mean([sum(row[j] for row in inside) for j in range(len(second))]) / NEIGHBOURS
    coverage = np.mean([any(row) for row in inside])
    np.testing.assert_allclose(prdc(first, second), [precision, recall, density, coverage], rtol=1e-12)


def test_manifold_sees_a_collapse_and_nothing_else() -> None:
    random = np.random.default_rng(4)
    first, second = random.normal(0, 1, (2, 1500, 5))
    same = manifold(first, second, seed=1)
    assert same is not None and same.events == 300
    for score in (same.precision, same.recall, same.density, same.coverage):
        assert abs(score.value - score.floor) < 5 * score.error  # errors of five pieces: known to a third
    collapsed = manifold(first, 0.3 * second, seed=1)
    assert collapsed is not None and collapsed.precision.value > 0.99 > same.precision.value
    assert collapsed.recall.value < 0.5 and collapsed.coverage.value < 0.7 and collapsed.density.value > 1.3
    assert manifold(first[:200], second, seed=1) is None


def test_features_are_standardised_and_voxels_logarithmic() -> None:
    events = read_events(sample_path(CLIC_ECAL), stop=20)
    voxels = log_voxels(events, get_detector(CLIC_ECAL).readout_threshold_mev)
    assert voxels.shape == (20, 15625) and np.all(voxels[events.samples.reshape(20, -1) <= 0.05] == np.float32(-1))
    assert 10 ** voxels.max() == pytest.approx(events.samples.max(), rel=1e-5)
    features = high_level_features(measure(events))
    ours, theirs = standardised(features, features + 1)
    varied = features.std(axis=0) > 1e-9
    np.testing.assert_allclose(ours.std(axis=0)[varied], 1, rtol=1e-9)
    np.testing.assert_allclose(
        (theirs - ours)[:, varied], np.broadcast_to(1 / features.std(axis=0)[varied], ours[:, varied].shape)
    )


# JetNet


@pytest.fixture(scope="module")
def jetnet() -> ModuleType:
    """JetNet's own `gen_metrics`.

    It imports, for jets, packages that FPD and KPD do not use; one of them (wasserstein 1.0.1) is built for NumPy 1 and cannot
    be imported with ours. Empty modules stand for these. Compiling its loops takes longer than running them.
    """
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
    pytest.importorskip("torch", reason="PyTorch is not installed (make test installs it)")
    pytest.importorskip("numba", reason="numba is not installed (make test installs it)")
    unused = ["awkward", "coffea", "coffea.nanoevents", "coffea.nanoevents.methods", "energyflow", "energyflow.emd", "requests"]
    unused = [name for name in unused if name not in sys.modules]
    sys.modules.update({name: MagicMock() for name in unused})
    try:
        return importlib.import_module("jetnet.evaluation.gen_metrics")
    except ModuleNotFoundError as error:
        pytest.skip(f"JetNet is not installed ({error}; make test installs it)")
    finally:
        for name in unused:
            del sys.modules[name]


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """High-level features of 1,000 and 1,000 Geant4 showers, the second's layers shifted a little."""
    found = high_level_features(measure(sample_path(CLIC_ECAL)))
    first, second = found[:1000], found[1000:2000].copy()
    second[:, 1:26] += 0.05
    return first, second


@pytest.mark.filterwarnings("ignore:Recommended number of samples:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_fpd_is_jetnets(jetnet: ModuleType, features: tuple[np.ndarray, np.ndarray]) -> None:
    sizes = {"min_samples": 400, "max_samples": 1000, "num_batches": 2, "num_points": 4, "seed": 11}
    value, error = jetnet.fpd(*features, **sizes)
    ours, our_error = fpd(*features, **sizes)
    # the same draws; JetNet's fit stops at a tolerance of 1e-8 of its parameters, which are scaled very differently
    assert ours == pytest.approx(value, rel=1e-3) and our_error == pytest.approx(error, rel=1e-3)
    assert ours > 3 * our_error


@pytest.mark.filterwarnings("ignore::Warning")
def test_kpd_is_jetnets(jetnet: ModuleType, features: tuple[np.ndarray, np.ndarray]) -> None:
    value, error = jetnet.kpd(*features, num_batches=4, batch_size=500, seed=11)
    ours, our_error = kpd(*features, num_batches=4, batch_size=500, seed=11)
    assert ours == pytest.approx(value, rel=1e-6, abs=1e-12) and our_error == pytest.approx(error, rel=1e-6)
