"""Quantities at fixed incident energy: what is expected, and changes of response and resolution that all energies share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from minicarlo.fidelity.fixed_energy import SharedResolution, SharedResponse, _relative_variance, at_fixed_energy, expected
from minicarlo.fidelity.resampling import Resamples, resample

EVENTS = 4000


def responses(seed: int, events: int = 2 * EVENTS, *, tails: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Incident energies from 1 to 100 GeV, and a response whose width falls with them; with `tails` some leak."""
    random = np.random.default_rng(seed)
    energy = 1000 * 100 ** random.random(events)
    width = 0.15 / np.sqrt(energy / 1000)
    response = 0.028 * (1 + 0.05 * np.log10(energy / 1000)) * (1 + width * random.normal(size=events))
    if tails:
        response *= np.where(random.random(events) < 0.03, random.uniform(0.8, 1, events), 1)
    return energy, response


def bins_of(energy: np.ndarray, number: int = 8) -> tuple[np.ndarray, list[int]]:
    return np.floor(number * np.log(energy / 1000) / np.log(100.001)).astype(np.int64), list(range(number))


def changes(energy: np.ndarray, response: np.ndarray) -> tuple[float, float]:
    """Of the second half against the first: of mean response and of resolution."""
    found = []
    for distance in (SharedResponse.of(response, energy), SharedResolution.of(response, energy, *bins_of(energy))):
        half = len(energy) // 2
        sums = [np.asarray(part.sum(axis=0)).reshape(1, -1) for part in (distance.features[:half], distance.features[half:])]
        found.append(float(distance.change(*sums)[0]))
    return found[0], found[1]


def test_what_is_left_does_not_go_with_the_energy() -> None:
    energy, response = responses(1)
    visible = (response * energy)[:, None]
    expectation, spread = expected(visible, energy)
    found = at_fixed_energy(visible, energy)[:, 0]
    assert abs(np.corrcoef(found, np.log(energy))[0, 1]) < 0.02 and found.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(visible[:, 0], expectation[:, 0] + found * spread[:, 0], rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.95, 1.05), st.integers(0, 1000))
def test_resolution_does_not_depend_on_the_scale(factor: float, seed: int) -> None:
    """The same showers with another scale differ in their mean by that factor and in their resolution by nothing."""
    energy, response = responses(seed, 2000)
    energy, response = np.tile(energy, 2), np.concatenate([response, factor * response])
    mean, resolution = changes(energy, response)
    assert mean == pytest.approx(factor - 1, abs=1e-6)
    assert resolution == pytest.approx(0, abs=2 / 128)  # 128 intervals of the pooled events are what each spread is known to


@pytest.mark.parametrize("tails", [False, True])
def test_narrower_responses_are_as_narrow_as_they_are(tails: bool) -> None:
    energy, response = responses(2, 2 * EVENTS, tails=tails)
    centre = expected(response[:, None], energy)[0][:, 0]
    energy, response = np.tile(energy, 2), np.concatenate([response, centre + 0.95 * (response - centre)])
    assert changes(energy, response)[1] == pytest.approx(-0.05, abs=0.002)


def test_the_spread_is_ginis_mean_difference() -> None:
    """Of every bin: the mean distance of two showers, over the mean."""
    energy, response = responses(3, 1000)
    energy[:] = 5000.0
    distance = SharedResolution.of(response, energy, np.zeros(1000, np.int64), [0])
    found = float(distance.spread(np.asarray(distance.features.sum(axis=0)))[0, 0])
    standardised = at_fixed_energy(response[:, None], energy)
    pairs = pdist(standardised).mean() * 999 / 1000  # int F (1 - F) counts a shower with itself
    assert found == pytest.approx(pairs, rel=0.02)  # F is straight between the edges of the grid, in the tails as well


def test_variance_is_that_of_many_samples() -> None:
    random = np.random.default_rng(4)
    gaussian = _relative_variance(random.normal(size=20_000))
    assert gaussian == pytest.approx(0.5 / 0.98, rel=0.05)  # Gini's mean difference has 98 % of the information

    def draw() -> np.ndarray:
        return random.standard_t(5, 400)

    spreads = [np.log(pdist(draw()[:, None]).mean()) for _ in range(300)]
    assert 400 * np.var(spreads) == pytest.approx(np.mean([_relative_variance(draw()) for _ in range(50)]), rel=0.3)


def test_leaking_showers_cost_the_standard_deviation_more() -> None:
    """With tails, the error of the resolution is smaller than that of standard deviation over mean in bins, pooled alike."""
    energy, response = responses(5)
    random = np.random.default_rng(6)
    response = 0.028 * (1 + 0.05 * random.normal(size=len(energy)))
    response *= np.where(random.random(len(energy)) < 0.05, random.uniform(0.7, 1, len(energy)), 1)
    strata = np.zeros(EVENTS, np.int64)
    resamples = Resamples.draw(strata, strata, permutations=200, bootstrap=2, halves=2, seed=1)
    distance = SharedResolution.of(response, energy, *bins_of(energy))
    ours = np.sqrt(np.mean(resample(distance, resamples).null ** 2))
    bins, filled = bins_of(energy)
    found = at_fixed_energy(response[:, None], energy)[:, 0].astype(np.float64)
    kurtosis = np.array([np.mean(found[bins == k] ** 4) / np.mean(found[bins == k] ** 2) ** 2 for k in filled])
    variance = 2 * (kurtosis - 1) / 4 / (EVENTS / 8)  # of a ratio of standard deviations, in every bin
    assert ours < 0.92 * np.sqrt(1 / np.sum(1 / variance))
