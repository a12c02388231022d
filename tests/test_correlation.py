"""Correlations: coefficients against numpy, at fixed energy, in little memory; the pair that differs is named."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicarlo.events import EventSet, read_events
from minicarlo.fidelity import DIFFERS, Measured, Scorecard, compare, measure
from minicarlo.fidelity.correlation import CorrelationDistance, pair_words
from minicarlo.fidelity.fixed_energy import at_fixed_energy
from minicarlo.fidelity.observables import shower_quantities
from minicarlo.fidelity.resampling import Resamples, resample
from planted import LAYER, shuffle_layers

EVENTS = 1000


def quantities(events: int, seed: int, number: int = 6) -> np.ndarray:
    """(events, number) correlated values in float32 with means far from zero and heavy tails."""
    random = np.random.default_rng(seed)
    values = random.standard_t(4, (events, number)) @ random.normal(size=(number, number))
    return (values * 10.0 ** random.integers(-6, 7, number) + 30 * values.std(axis=0)).astype(np.float32)


def coefficients(distance: CorrelationDistance, weights: np.ndarray) -> np.ndarray:
    return distance.matrix(distance.features.sums(weights.astype(np.float32)[:, None]))[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(10, 3000), st.integers(0, 2**32 - 1))
def test_coefficients_are_numpys(events: int, seed: int) -> None:
    """Whatever the scale, and with events drawn several times: float32 loses nothing that matters."""
    values = quantities(events, seed)
    distance = CorrelationDistance.of(values)
    np.testing.assert_allclose(coefficients(distance, np.ones(events)), np.corrcoef(values.T.astype(np.float64)), atol=1e-5)
    drawn = np.random.default_rng(seed).integers(0, 4, events)
    drawn[:5] = 1
    expected = np.corrcoef(np.repeat(values, drawn, axis=0).T.astype(np.float64))
    np.testing.assert_allclose(coefficients(distance, drawn), expected, atol=1e-4)


def test_a_hundred_thousand_showers_are_as_exact_and_take_little_memory() -> None:
    values = quantities(100_000, 1, 44)
    distance = CorrelationDistance.of(values)
    weights = np.ones((len(values), 2), np.float32)
    tracemalloc.start()
    sums = distance.features.sums(weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(distance.matrix(sums)[1], np.corrcoef(values.T.astype(np.float64)), atol=1e-6)
    assert peak < 40e6  # all products of all events: 400 MB


def test_what_does_not_vary_goes_with_nothing() -> None:
    """Not even when it has another value in the other set."""
    values = quantities(400, 2)
    values[:200, 3] = values[0, 3]
    values[:, 4] = 0.1
    distance = CorrelationDistance.of(values)
    matrix = coefficients(distance, np.arange(400) < 200)
    assert np.all(matrix[3] == 0) and np.all(matrix[4] == 0)
    other = coefficients(distance, np.arange(400) >= 200)
    assert other[3, 3] == pytest.approx(1) and abs(other[3, 0]) > 0 and np.all(other[4] == 0)


def test_the_distance_is_the_mean_difference_of_all_pairs() -> None:
    values = quantities(700, 3)
    strata = np.zeros(300, np.int64), np.zeros(400, np.int64)
    distance = CorrelationDistance.of(values)
    found = resample(distance, Resamples.draw(*strata, permutations=2, bootstrap=2, halves=2, seed=0))
    ours, theirs = (np.corrcoef(part.T.astype(np.float64)) for part in (values[:300], values[300:]))
    expected = [abs(ours[distance.pair(column)] - theirs[distance.pair(column)]) for column in range(15)]
    np.testing.assert_allclose(found.value, [*expected, np.mean(expected)], atol=1e-5)


def test_energy_dependence_is_no_correlation() -> None:
    """Two quantities that rise with the energy, and whose spread does: at fixed energy they go together as the noise."""
    random = np.random.default_rng(4)
    energy = 10 ** random.uniform(4, 6, 20_000)
    noise = random.multivariate_normal([0, 0], [[1, -0.4], [-0.4, 1]], len(energy))
    values = np.stack([energy, np.log(energy)], axis=1) * (1 + 0.1 * noise)
    assert np.corrcoef(values.T)[0, 1] > 0.3
    # of 20,000 events a coefficient has an error of 0.006
    assert np.corrcoef(at_fixed_energy(values, energy).T)[0, 1] == pytest.approx(-0.4, abs=0.03)


@pytest.mark.parametrize("energy", [np.full(200, 5e4), np.repeat([1e3, 1e4], 100), np.geomspace(1e3, 1e6, 200)])
def test_any_choice_of_energies_will_do(energy: np.ndarray) -> None:
    values = quantities(200, 5)
    values[:, 2] = 0.1
    found = at_fixed_energy(values, energy)
    assert np.all(np.isfinite(found)) and np.all(found[:, 2] == 0)
    np.testing.assert_allclose(found.std(axis=0)[[0, 1, 3]], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        (0.95, 0.81, "layer 3 and centre z: 0.81 instead of 0.95"),
        (0.5, -0.5, "layer 3 and centre z: -0.50 instead of 0.50"),
        (0.9912, 0.9952, "layer 3 and centre z: 0.9952 instead of 0.9912"),
    ],
)
def test_coefficients_are_given_with_the_digits_that_tell_them_apart(reference: float, candidate: float, words: str) -> None:
    assert pair_words("layer_fraction_3", "centre_z", reference, candidate) == words


def showers(name: str) -> EventSet:
    shared = os.environ.get("MINICARLO_SHARED")
    if not shared:
        pytest.skip("MINICARLO_SHARED does not say where the Geant4 showers are")
    return read_events(Path(shared) / "data" / name, stop=EVENTS)


@pytest.fixture(scope="module")
def reference() -> Measured:
    return measure(showers("validation.h5"))


@pytest.fixture(scope="module")
def candidate() -> EventSet:
    return showers("test.h5")


def judged(reference: Measured, candidate: EventSet) -> Scorecard:
    return compare(reference, measure(candidate), permutations=99, bootstrap=10)


def test_all_observables_of_the_shower_are_correlated(reference: Measured, candidate: EventSet) -> None:
    card = judged(reference, candidate)
    score, found = card.observables["correlation"], card.correlations
    assert score.verdict != DIFFERS and found is not None and found.names == shower_quantities(reference)[0]
    upper = np.triu_indices(len(found.names), 1)
    gap = np.abs(np.array(found.candidate) - np.array(found.reference))[upper]
    assert score.deviation is not None and score.deviation.value == pytest.approx(gap.mean(), rel=1e-4)
    pair = score.worst_pair
    assert pair is not None
    row, column = found.names.index(pair.first), found.names.index(pair.second)
    assert (pair.reference, pair.candidate) == (found.reference[row][column], found.candidate[row][column])


def test_layers_of_different_showers_are_named(reference: Measured, candidate: EventSet) -> None:
    """Two hundred showers tell, although the distribution of every layer stays as it is."""
    shuffled = shuffle_layers(candidate, np.random.default_rng(1))
    card = judged(reference[:200], shuffled[:200])
    score = card.observables["correlation"]
    assert card.differing[0] == "correlation" and score.visible_at is not None and score.visible_at < 200
    assert score.worst_pair is not None and abs(score.worst_pair.candidate) < abs(score.worst_pair.reference)
    assert score.difference is not None and score.difference.words.endswith(f"most {score.worst_pair.words}")


def test_one_layer_of_other_showers_is_named(reference: Measured, candidate: EventSet) -> None:
    samples = candidate.samples.copy()
    order = np.argsort(candidate.incident_energy)
    samples[order[:-1], LAYER] = candidate.samples[order[1:], LAYER]
    score = judged(reference, replace(candidate, samples=samples)).observables["correlation"]
    assert score.verdict == DIFFERS and score.worst_pair is not None
    assert f"layer_fraction_{LAYER}" in (score.worst_pair.first, score.worst_pair.second)
