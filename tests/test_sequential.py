"""Trials that stop as soon as their verdict is certain: how often they are wrong, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minicarlo.precision import get_criterion, tune
from minicarlo.precision.criterion import Comparison, Summary
from minicarlo.precision.sequential import stages, verdict
from small_surrogate import make_small_surrogate

EVENTS = 2048
POPULATION = 16_384
CONFIDENCE = 0.95


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


@pytest.fixture(scope="module")
def population():
    """What the criterion keeps of reference events, and how each differs from its candidate: a shift and noise on every row."""
    random = np.random.default_rng(0)
    energy = np.exp(random.uniform(np.log(1e3), np.log(1e5), POPULATION))
    response = random.normal(0.02, 0.002, (POPULATION, 1))
    shape = {"z": 25, "x": 25, "y": 25, "rings": 18, "moments": 6, "width": 1, "occupancy": 1, "spectrum": 24}
    rows = {name: random.gamma(4.0, 1.0, (POPULATION, size)) for name, size in shape.items()}
    rows["response"] = np.concatenate([response, response**2], 1)
    noise = {name: random.normal(0, 0.15, row.shape) for name, row in rows.items()}
    return Summary({"incident_energy": energy}, rows), noise


def changed(population, shift):
    """The candidate's rows: all a little more, and noise. The response has none, so that its square stays its square."""
    reference, noise = population
    rows = {name: row * (1 + shift + (0 if name == "response" else noise[name])) for name, row in reference.rows.items()}
    response = reference.rows["response"][:, :1] * (1 + shift)
    return Summary(reference.inputs, rows | {"response": np.concatenate([response, response**2], 1)})


def draws(population, shift, count):
    """What the criterion finds at every stage on each of `count` samples of events, and the value of the whole population."""
    criterion = get_criterion("fidelity", threshold_mev=0.0, confidence=CONFIDENCE, seed=0)
    reference, candidate = population[0], changed(population, shift)
    random = np.random.default_rng(1)
    found = []
    for _ in range(count):
        part = random.choice(POPULATION, EVENTS, replace=False)
        r, c = reference[part], candidate[part]
        found.append({n: criterion.compare_summaries(r[:n], c[:n]) for n in stages(EVENTS)})
    return found, criterion.compare_summaries(reference, candidate).value


def judged(found, tolerance):
    """The rule on one draw: whether it passes, and after how many events that is known."""
    for seen, comparison in found.items():
        passed = verdict(comparison, tolerance, confidence=CONFIDENCE, seen=seen, events=EVENTS)
        if passed is not None:
            return passed, seen
    raise AssertionError


def test_stages_double_and_end_with_all_events():
    assert stages(2048) == (256, 512, 1024, 2048)
    assert stages(2000) == (256, 512, 2000)
    assert stages(300) == (300,) and stages(100) == (100,)


@pytest.mark.parametrize("shift", [0.003, 0.03, 0.1])
def test_early_verdicts_are_those_of_all_events(population, shift):
    """From differences that are nearly all noise to such that have little of it, with the tolerance where half of the draws pass.

    Of 30 draws none may fail early that would pass. Passing early is no acceptance yet: there are the held-out events.
    """
    found, _ = draws(population, shift, 30)
    tolerance = float(np.median([each[EVENTS].high for each in found]))
    failed_early = [each for each in found if judged(each, tolerance) < (False, EVENTS)]
    assert all(each[EVENTS].high > tolerance for each in failed_early)


def test_a_plan_truly_beyond_the_tolerance_hardly_ever_passes_early(population):
    """At the edge, where it is hardest: at most 2.5 % of 30 draws by the normal approximation; four come once in 100 times."""
    found, truth = draws(population, 0.1, 30)
    assert sum(judged(each, truth * 0.9999) in [(True, 256), (True, 512), (True, 1024)] for each in found) <= 3


@pytest.mark.parametrize(
    ("shift", "ratio", "expected"), [(0.03, 5, False), (0.3, 2, False), (0.3, 0.7, True), (0.003, 0.03, True)]
)
def test_a_plan_far_from_the_tolerance_costs_one_stage(population, shift, ratio, expected):
    found, truth = draws(population, shift, 8)
    assert {judged(each, truth / ratio) for each in found} == {(expected, 256)}


def early(value, high):
    return verdict(Comparison(value, 0.0, high, {}), 0.03, confidence=CONFIDENCE, seen=1024, events=EVENTS)


def test_what_is_not_finite_has_failed():
    assert early(math.inf, math.inf) is False


def test_early_verdicts_need_more_than_the_last_one():
    assert early(0.02, 0.0295) is None and early(0.02, 0.025) is True
    assert early(0.035, 0.04) is None and early(0.035, 0.036) is False and early(0.05, 0.1) is False


def test_trials_of_a_search_cost_as_many_events_as_their_verdicts_need(small, tmp_path):
    """Hopeless plans end after the first stage; what passes runs through all held-out events."""
    settings = {"calibration_events": 64, "evaluation_events": 1024, "objective": "macs", "portable": True}
    hopeless = tune(small, tmp_path / "hopeless", tolerance=1e-3, max_trials=1, **settings)
    assert [trial.events for trial in hopeless.history] == [256] and not hopeless.accepted
    easy = tune(small, tmp_path / "easy", tolerance=0.3, max_trials=1, **settings)
    assert [trial.events for trial in easy.history] == [256 + 1024] and easy.accepted
    assert easy.events == 256 + 1024
