"""Classifier two-sample tests: scores against scikit-learn's, levels and power, architectures, what they need and refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom
from sklearn.metrics import log_loss, roc_auc_score

from minicarlo import detectors
from minicarlo.cli import main
from minicarlo.errors import InvalidConfig
from minicarlo.events import EventSet, write_events
from minicarlo.fidelity import DIFFERS, INDISTINGUISHABLE, NOT_ENOUGH, Measured, classify, measure, validate
from minicarlo.fidelity.classifiers import (
    DEFAULT,
    FEWEST,
    METHODS,
    Classification,
    classifier_score,
    divergence,
    separation,
    split,
)
from minicarlo.fidelity.classifiers.inputs import Inputs

QUICK = ("high", "trees")
NEURAL = ("dnn-high", "low", "cnn")
WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocked())
"""
GRIDS = (detectors.CLIC_ECAL, detectors.PAR04_SIW)


def toy_showers(count: int, seed: int, detector: str = detectors.CLIC_ECAL, scale: float = 1.0) -> EventSet:
    """Showers with a gamma profile in depth, an exponential one in radius, Poisson quanta of 0.12 MeV; not physics, but alike."""
    random = np.random.default_rng(seed)
    grid = detectors.get_detector(detector)
    energy = np.exp(random.uniform(np.log(1000), np.log(20_000), count)).astype(np.float32)
    depth = (np.arange(grid.layers) + 0.5) * 25 / grid.layers
    peak = 4 + 0.9 * np.log(energy / 1000) + random.normal(0, 0.7, count)
    profile = depth ** (0.5 * peak[:, None]) * np.exp(-0.5 * depth)
    profile /= profile.sum(axis=1, keepdims=True)
    lateral = np.exp(-grid.radii_mm() / 6) * grid.areas_mm2()
    mean = 0.028 * scale * energy[:, None, None] * profile[:, :, None] * lateral / lateral.sum()
    samples = 0.12 * random.poisson(mean / 0.12)
    return EventSet({"incident_energy": energy}, samples.reshape(count, *grid.shape), detector)


@pytest.fixture(scope="module")
def reference() -> Measured:
    return measure(toy_showers(600, 1))


@pytest.fixture(scope="module")
def same() -> Measured:
    return measure(toy_showers(600, 2))


@pytest.fixture(scope="module")
def scaled() -> Measured:
    """The energy scale is 5 % too high."""
    return measure(toy_showers(600, 2, scale=1.05))


@pytest.fixture(scope="module")
def shuffled() -> Measured:
    """Every other layer comes from another event, of an energy some 40 % higher."""
    events = toy_showers(600, 2)
    samples = events.samples.copy()
    order = np.argsort(events.incident_energy)
    for layer in range(0, 25, 2):
        samples[order[:-80], layer] = events.samples[order[80:], layer]
    return measure(replace(events, samples=samples))


def need_torch() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'minicarlo[train]'")


# scores


@given(
    arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 9)),
    arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 9)),
)
@settings(max_examples=60, deadline=None)
def test_area_is_that_of_scikit_learn(first: np.ndarray, second: np.ndarray) -> None:
    labels = np.repeat([0, 1], [len(first), len(second)])
    expected = roc_auc_score(labels, np.concatenate([first, second]))
    assert separation(first, second).auc == pytest.approx(expected, abs=1e-12)  # ties and all


def test_error_of_the_area_is_its_spread() -> None:
    random = np.random.default_rng(7)
    first, second = random.normal(0, 1, 400).round(1), random.normal(0.4, 1, 600).round(1)
    again = [separation(random.choice(first, 400), random.choice(second, 600)).auc for _ in range(400)]
    assert separation(first, second).error == pytest.approx(np.std(again), rel=0.15)  # 400 replicas know their spread to 4 %


def test_divergence_is_one_less_the_cross_entropy_in_bits() -> None:
    """As scikit-learn's calibration and log loss give it, weighted so that either set counts half."""
    from sklearn.isotonic import IsotonicRegression

    random = np.random.default_rng(8)
    (labels, scores), (known, calibration) = (
        (kinds := np.repeat([0, 1], [300, 500]), random.normal(kinds, 1.5)) for _ in range(2)
    )
    weights = np.where(known == 1, 300, 500)
    curve = IsotonicRegression(y_min=1 / 802, y_max=801 / 802, out_of_bounds="clip").fit(
        calibration, known, sample_weight=weights
    )
    entropy = log_loss(labels, curve.predict(scores), sample_weight=np.where(labels == 1, 300, 500))
    found = divergence(scores, labels, calibration, known)
    assert found.jsd == pytest.approx(1 - entropy / np.log(2), abs=1e-12)
    assert 0.005 < found.error < 0.1


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (1.0, 0.1607), (20.0, 1.0)])
def test_divergence_of_gaussians(shift: float, expected: float) -> None:
    """N(0, 1) and N(1, 1): 0.1607 bits, by numerical integration."""
    random = np.random.default_rng(9)
    labels = np.repeat([0, 1], 20_000)
    found = divergence(random.normal(shift * labels), labels, random.normal(shift * labels), labels)
    assert found.jsd == pytest.approx(expected, abs=4 * found.error + 0.004)  # the calibration costs a few per mille


def test_folds_test_every_event_once_and_keep_pairs_together() -> None:
    energies = np.random.default_rng(0).uniform(1, 2, 103)
    groups = np.concatenate([energies, energies])
    tested = []
    for fold in range(5):
        parts = split(groups, fold, seed=3)
        assert sorted(np.concatenate([parts.train, parts.stop, parts.test])) == list(range(206))
        assert len(parts.train) == pytest.approx(0.6 * 206, abs=4)
        for part in (parts.train, parts.stop, parts.test):
            assert set(part[part < 103]) == {event - 103 for event in part if event >= 103}
        tested.append(parts.test)
    assert sorted(np.concatenate(tested)) == list(range(206))


def test_events_of_one_energy_are_split_all_the_same() -> None:
    parts = split(np.full(100, 50_000.0), 0, seed=0)
    assert (len(parts.train), len(parts.stop), len(parts.test)) == (60, 20, 20)


def test_false_alarms_come_at_their_level() -> None:
    """A linear classifier on ten features of one population, three trainings: p < 0.05 in at most 5 % of 300 tries."""
    random = np.random.default_rng(10)
    labels = np.repeat([0, 1], 250)
    areas, p_values = [], []
    for number in range(300):
        features = random.normal(size=(500, 10))
        folds = []
        for fold in range(3):
            parts = split(np.arange(500.0), fold, seed=number)
            x, y = features[parts.train], labels[parts.train]
            scores = features[parts.test] @ (x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0))
            kind = labels[parts.test]
            folds.append(_fold(scores[kind == 0], scores[kind == 1]))
        found = Classification(tuple(folds))
        areas.append(found.auc)
        p_values.append(found.p_value)
    assert np.sum(np.array(p_values) < 0.05) <= binom.ppf(0.999, 300, 0.05)
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / np.sqrt(300)
    assert np.std(areas) < 1.1 * found.null_error  # which is an upper bound; 300 tries know the spread to 4 %


def _fold(first: np.ndarray, second: np.ndarray):
    from minicarlo.fidelity.classifiers.separation import Divergence, Fold

    return Fold(separation(first, second), Divergence(0.0, 0.0), first, second)


# methods


@pytest.mark.parametrize("method", QUICK)
def test_quick_ones_tell_what_differs_and_only_that(
    reference: Measured, same: Measured, scaled: Measured, shuffled: Measured, method: str
) -> None:
    found = classify(method, reference, same, seed=1, seeds=1, epochs=30)
    assert abs(found.auc - 0.5) < 4 * found.error and found.jsd < 4 * found.jsd_error
    for defect in (scaled, shuffled):
        found = classify(method, reference, defect, seed=1, seeds=1, epochs=30)
        assert found.p_value < 1e-3 and found.auc > 0.6, (found.auc, found.p_value)


@pytest.mark.parametrize("method", NEURAL)
@pytest.mark.parametrize("detector", GRIDS)
def test_neural_ones_see_a_plain_difference_on_either_grid(method: str, detector: str) -> None:
    need_torch()
    ours, theirs = (measure(toy_showers(300, seed, detector, scale)) for seed, scale in ((1, 1.0), (2, 3.0)))
    seen: list[tuple[int, int]] = []
    found = classify(method, ours, theirs, epochs=3, progress=lambda done, total: seen.append((done, total)))
    assert found.p_value < 1e-3, found.auc
    assert seen in ([(done, 3) for done in range(1, stop)] for stop in (2, 3, 4))  # it ends early when it errs no more
    assert len(np.unique(found.folds[0].candidate_scores)) > 50  # of 60: scores are not rounded


@pytest.mark.parametrize("method", NEURAL)
def test_neural_ones_see_nothing_where_nothing_is(reference: Measured, same: Measured, method: str) -> None:
    need_torch()
    found = classify(method, reference[:300], same[:300], seed=2, epochs=1)
    assert abs(found.auc - 0.5) < 4 * found.error


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_scores(reference: Measured, scaled: Measured, method: str) -> None:
    if method in NEURAL:
        need_torch()
    once, again, other = (
        classify(method, reference[:250], scaled[:250], seed=seed, seeds=1, epochs=1).folds[0].candidate_scores
        for seed in (4, 4, 5)
    )
    assert np.array_equal(once, again) and not np.array_equal(once, other)


# architectures


def test_the_dnn_has_the_published_layers() -> None:
    """Input, two hidden layers of 2048, one output; 152 features or 1 + 15,625 inputs."""
    need_torch()
    from torch import nn

    from minicarlo.fidelity.classifiers.neural import DNN_BATCH, DNN_EPOCHS, DNN_RATE, Dnn

    hidden = 2 * (2048 * 2048 + 2048) + 2048 + 1
    for features, cells in ((152, 0), (1, 15_625)):
        network = Dnn(features, cells)
        inputs = features + cells
        assert sum(weights.numel() for weights in network.parameters()) == (inputs + 1) * 2048 + hidden
        assert sum(isinstance(layer, nn.LeakyReLU) for layer in network.modules()) == 3
        spread = float(network.features.weight.detach().std())
        assert spread == pytest.approx(1 / np.sqrt(3 * inputs), rel=0.1)  # as PyTorch begins one layer of all inputs
    assert (DNN_EPOCHS, DNN_BATCH, DNN_RATE) == (50, 1000, 2e-4)


def test_the_cnn_does_not_see_where_phi_begins() -> None:
    """Turning a shower by four sectors, a multiple of all strides, changes nothing; on a cartesian grid a shift does."""
    need_torch()
    import torch

    from minicarlo.fidelity.classifiers.neural import Cnn

    torch.manual_seed(0)
    for detector, periodic in ((detectors.PAR04_SIW, True), (detectors.CLIC_ECAL, False)):
        grid = detectors.get_detector(detector)
        network = Cnn(grid, 3).eval()
        images = torch.zeros(1, *grid.shape)
        images[:, :, :2] = 1  # at the edge, or where phi begins
        with torch.inference_mode():
            first, second = (network.body(part).mean((2, 3)) for part in (images, images.roll(4, 2)))
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-6) == periodic


def test_low_level_inputs_are_the_cells(reference: Measured) -> None:
    events = toy_showers(20, 1)
    inputs = Inputs.of(measure(events), measure(events))
    dense = inputs.cells.toarray().reshape(2, 20, 25, 25, 25)
    assert np.array_equal(dense[0], np.where(events.samples > 0.05, events.samples, 0)) and np.array_equal(dense[0], dense[1])
    assert inputs.cells.dtype == np.float32


# the scorecard


def test_score_has_a_floor_and_every_training(reference: Measured, scaled: Measured) -> None:
    seen: list[tuple[int, int]] = []
    score = classifier_score("high", reference, scaled, alpha=0.01, progress=lambda done, total: seen.append((done, total)))
    assert score is not None and score.verdict == DIFFERS
    assert len(score.seeds) == 3 and score.auc == pytest.approx(np.mean([seed.auc for seed in score.seeds]), abs=1e-6)
    assert abs(score.floor - 0.5) < 0.15 and score.spread < 0.1 and score.jsd > score.jsd_floor
    assert sum(score.reference) + sum(score.candidate) == 240 and len(score.edges) == len(score.reference) + 1
    shares = [done / total for done, total in seen]
    assert shares == sorted(shares) and 0 < shares[0] and shares[-1] <= 1


def test_few_events_say_so(reference: Measured, same: Measured) -> None:
    assert classifier_score("trees", reference[: FEWEST - 1], same, alpha=0.01) is None
    few = classifier_score("high", reference[:FEWEST], same[:FEWEST], alpha=0.05, seeds=1)
    enough = classifier_score("high", reference, same, alpha=0.05)
    assert few is not None and few.verdict == NOT_ENOUGH
    assert enough is not None and enough.verdict == INDISTINGUISHABLE


def test_false_alarms_are_shared_out() -> None:
    events = toy_showers(80, 1)
    quick = {"feature_distances": False, "permutations": 99, "bootstrap": 10}
    card = validate(events, toy_showers(80, 2), classifiers=("trees",), **quick)  # null below 250 events
    assert card.settings["classifier_alpha"] == 0.02 and set(card.classifier) == set(METHODS)
    assert validate(events, toy_showers(80, 2), **quick).settings["classifier_alpha"] == 0.01


# what a user can do wrong


def test_unknown_names_are_answered_with_the_known_ones(reference: Measured, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="'mlp': choose from high, trees, dnn-high, low, cnn"):
        classify("mlp", reference, reference)
    for seeds in (0, 6):
        with pytest.raises(InvalidConfig, match="1 to 5"):
            classify("trees", reference, reference, seeds=seeds)
    write_events(tmp_path / "a.h5", toy_showers(5, 1))
    result = CliRunner().invoke(main, ["validate", str(tmp_path / "a.h5"), str(tmp_path / "a.h5"), "--classifier", "mlp"])
    assert result.exit_code == 2 and "high, trees, dnn-high, low, cnn" in " ".join(result.stderr.split())


def test_without_pytorch_the_extra_is_named_before_any_work(tmp_path: Path) -> None:
    write_events(tmp_path / "a.h5", toy_showers(5, 1))
    script = f"""{WITHOUT_TORCH}
from minicarlo.cli import main
main(["validate", {str(tmp_path / "a.h5")!r}, {str(tmp_path / "a.h5")!r}, "--classifier", "cnn"])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "minicarlo[train]" in result.stderr and "high, trees" in " ".join(result.stderr.split())


def test_the_default_needs_no_pytorch() -> None:
    script = f"""{WITHOUT_TORCH}
from minicarlo.fidelity.classifiers import check_classifiers
check_classifiers({DEFAULT!r})
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
