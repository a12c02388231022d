"""What the judge says: three verdicts, the events they need, differences in words, bins of energy, the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, ks_2samp

from minicarlo.cli import main
from minicarlo.errors import IncompatibleEventSets, InvalidConfig
from minicarlo.events import EventSet, write_events
from minicarlo.fidelity import DIFFERS, INDISTINGUISHABLE, NOT_ENOUGH, Resamples, Scorecard, compare, measure, resample, validate
from minicarlo.fidelity.conditional import with_ranges
from minicarlo.fidelity.distances import GRID, KolmogorovSmirnov, Wasserstein, grid_edges, on_grid
from minicarlo.fidelity.verdicts import Family, critical_score
from test_fidelity import QUICK, toy_showers

SCHEMA = Path(__file__).parents[1] / "docs" / "scorecard.schema.json"
ALPHA = 0.03


def sums(features: object, n: int) -> list[np.ndarray]:
    return [np.asarray(part.sum(axis=0)).reshape(1, -1) for part in (features[:n], features[n:])]  # type: ignore[index]


def gaussian_family(first: np.ndarray, second: np.ndarray, seed: int = 0, permutations: int = 199) -> Family:
    """One observable, its Wasserstein distance on a coarse grid."""
    strata = np.zeros(len(first), np.int64), np.zeros(len(second), np.int64)
    resamples = Resamples.draw(*strata, permutations=permutations, bootstrap=40, halves=2, seed=seed)
    part = resample(Wasserstein.of(np.concatenate([first, second]), [1.0], 64), resamples)
    return Family({"x": {"wasserstein": part}}, 2 * len(first) * len(second) / (len(first) + len(second)), ALPHA)


@pytest.fixture(scope="module")
def reference() -> EventSet:
    return toy_showers(800, 1)


@pytest.fixture(scope="module")
def other() -> EventSet:
    return toy_showers(800, 2)


@pytest.fixture(scope="module")
def scaled(reference: EventSet, other: EventSet) -> Scorecard:
    """A candidate with 5 % more energy above 10 GeV."""
    wrong = other.incident_energy > 10_000
    samples = other.samples * np.where(wrong, np.float32(1.05), np.float32(1))[:, None, None, None]
    return validate(reference, replace(other, samples=samples), held_out=[(10_000, 20_000)], **QUICK)


# Kolmogorov-Smirnov


@pytest.mark.parametrize("discrete", [False, True])
def test_kolmogorov_smirnov_on_the_grid_is_scipys(discrete: bool) -> None:
    random = np.random.default_rng(2)
    first, second = random.gamma(2, 3, 4000), random.gamma(2.2, 3.1, 4000)
    if discrete:
        first, second = first.round(), second.round()
    distance = KolmogorovSmirnov(Wasserstein.of(np.concatenate([first, second]), [1.0]))
    found, exact = distance(*sums(distance.features, 4000))[0, 0], ks_2samp(first, second).statistic
    # between two edges lie 2 of 512 parts of one set at most
    assert exact - (0 if discrete else 2 / GRID) - 1e-6 <= found <= exact + 1e-6


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, st.integers(2, 60), elements=st.integers(0, 20).map(float)), st.integers(1, 16))
def test_values_lie_between_their_edges(values: np.ndarray, intervals: int) -> None:
    edges, place = on_grid(values, intervals)
    np.testing.assert_array_equal(edges, grid_edges(values, intervals))
    expected = np.searchsorted(edges, values, side="right") - 1
    np.testing.assert_array_equal(place, expected)


# events


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, 99, elements=st.integers(0, 40).map(float)), st.floats(0, 40))
def test_scores_above_the_critical_one_differ(null: np.ndarray, score: float) -> None:
    p_value = (1 + np.count_nonzero(null >= score)) / (1 + len(null))
    assert (score > critical_score(null, ALPHA)) == (p_value < ALPHA)


@pytest.mark.parametrize(("shift", "spread"), [(0.2, 1.0), (0.0, 1.25)])
def test_differences_are_found_with_ninety_per_cent_power_at_visible_at(shift: float, spread: float) -> None:
    random = np.random.default_rng(3)

    def draw(events: int) -> tuple[np.ndarray, np.ndarray]:
        return random.normal(0, 1, events), random.normal(shift, spread, events)

    events = int(np.median([gaussian_family(*draw(3000), seed, 999).visible_at("x") for seed in range(5)]))
    found, half = (
        sum(gaussian_family(*draw(number), seed).differs("x") for seed in range(100)) for number in (events, events // 2)
    )
    # the error of the estimate is provided for, so that with the median of five estimates more are found than 90 %
    assert found >= binom.ppf(0.001, 100, 0.9) - 3, (events, found)
    assert half <= 80, (events, half)


def test_a_difference_of_the_tolerance_is_found_with_ninety_per_cent_power_at_needed() -> None:
    random = np.random.default_rng(4)
    family = gaussian_family(*random.normal(0, 1, (2, 1500)), permutations=999)
    events = int(family.needed("x", "wasserstein", 0.15)[0])
    found = sum(
        gaussian_family(random.normal(0, 1, events), random.normal(0.15, 1, events), seed).differs("x") for seed in range(100)
    )
    low, high = binom.interval(0.999, 100, 0.9)
    assert low - 3 <= found <= high, (events, found)


def test_needed_does_not_depend_on_the_events_at_hand() -> None:
    random = np.random.default_rng(5)
    small, large = (gaussian_family(*random.normal(0, 1, (2, events)), permutations=999) for events in (500, 4000))
    needed = [family.needed("x", "wasserstein", 0.1)[0] for family in (small, large)]
    assert needed[0] == pytest.approx(needed[1], rel=0.25)  # 999 permutations know the 97 % quantile to 4 %, here squared twice
    assert large.needed("x", "wasserstein", 0.05)[0] == pytest.approx(4 * large.needed("x", "wasserstein", 0.1)[0])


def test_verdict_follows_the_tolerance(reference: EventSet, other: EventSet) -> None:
    ours, theirs = measure(reference[:400]), measure(other[:400])
    quick = {"permutations": 99, "bootstrap": 10}
    strict = compare(ours, theirs, tolerances={"wasserstein": 0.02, "linearity": 1e-4}, **quick)
    assert strict.verdict == NOT_ENOUGH and strict.headline is None
    assert all((score.needed or 0) > 400 for score in strict.observables.values() if score.verdict == NOT_ENOUGH)
    assert strict.observables["response"].verdict == strict.observables["linearity"].verdict == NOT_ENOUGH
    generous = compare(ours, theirs, tolerances={"wasserstein": 2.0, "linearity": 1.0}, **quick)
    assert generous.observables["response"].verdict == generous.observables["linearity"].verdict == INDISTINGUISHABLE


# words


def test_differences_are_told_in_the_terms_of_physics(reference: EventSet, other: EventSet) -> None:
    moved = np.roll(other.samples, 1, axis=2)  # one cell, 5.1 mm
    found = validate(reference, replace(other, samples=moved * np.float32(1.03)), **QUICK)
    response, centre = (found.observables[name].difference for name in ("response", "centre_x"))
    assert response is not None and response.unit == "%" and response.words.startswith("mean ")
    assert response.words.endswith("% higher") and response.value == pytest.approx(3, abs=4 * response.error)
    assert centre is not None and centre.words.endswith("mm higher") and centre.value == pytest.approx(5.1, abs=0.2)
    assert found.observables["layer_centre_x"].difference.words.startswith("layer ")
    assert all(score.difference.words for name, score in found.observables.items() if name != "duplicates")


def test_headline_is_the_observable_that_shows_it_first(scaled: Scorecard) -> None:
    assert scaled.verdict == DIFFERS and scaled.headline is not None
    visible = {name: score.visible_at for name, score in scaled.observables.items() if score.visible_at}
    assert scaled.headline.observable in visible and scaled.headline.events == min(visible.values())
    assert scaled.headline.low <= scaled.headline.events <= scaled.headline.high


# bins of energy


def test_the_worst_bin_is_where_the_defect_is(scaled: Scorecard) -> None:
    score = scaled.observables["response"]
    assert score.verdict == DIFFERS and score.bins is not None
    worst = score.bins[score.worst_bin]
    assert worst.low >= 9_999 and worst.verdict == DIFFERS
    assert all(one.verdict != DIFFERS for one in score.bins if one.high < 9_999)
    assert sum(one.events for one in score.bins) <= 800


def test_held_out_energies_stand_beside_their_neighbours(scaled: Scorecard) -> None:
    (found,) = scaled.interpolation
    assert found.low == 10_000 and found.high == pytest.approx(20_000, rel=0.01)
    response = found.observables["response"]
    assert response.held_out > response.beside + 3 * np.hypot(response.held_out_error, response.beside_error)
    assert found.mean.held_out > found.mean.beside and "held out" in found.words


def test_held_out_energies_with_too_few_events_are_told(reference: EventSet, other: EventSet) -> None:
    found = validate(reference[:200], other[:200], held_out=[(5000, 5100)], **QUICK)
    assert found.interpolation == [] and "5 to 5.1 GeV is not judged" in found.warnings[0]


def test_ranges_become_bins() -> None:
    edges = with_ranges(np.geomspace(1000, 100_000, 9), [(20_000, 30_000)])
    assert 20_000 in edges and 30_000 in edges and not np.any((edges > 20_000) & (edges < 30_000))
    assert np.all(np.diff(edges) > 0) and edges[0] == 1000 and edges[-1] == pytest.approx(100_000)


# the schema, the command


def descriptions(schema: dict, where: str = "") -> Iterator[tuple[str, bool]]:
    for name, part in {**schema.get("$defs", {}), "": schema}.items():
        yield name, bool(part.get("description"))
        for key, entry in part.get("properties", {}).items():
            yield f"{name}.{key}", bool(entry.get("description"))


def test_the_schema_is_documented_and_in_the_docs() -> None:
    schema = Scorecard.model_json_schema()
    assert json.loads(SCHEMA.read_text()) == schema, "minicarlo validate --schema > docs/scorecard.schema.json"
    assert [where for where, described in descriptions(schema) if not described] == []
    printed = CliRunner().invoke(main, ["validate", "--schema"])
    assert printed.exit_code == 0 and json.loads(printed.stdout) == schema


def test_the_summary_comes_first(reference: EventSet, other: EventSet, tmp_path: Path) -> None:
    write_events(tmp_path / "a.h5", reference)
    write_events(tmp_path / "b.h5", replace(other, samples=other.samples * np.float32(1.1)))
    arguments = [
        "validate",
        str(tmp_path / "a.h5"),
        str(tmp_path / "b.h5"),
        "--fast",
        "--permutations",
        "99",
        "--bootstrap",
        "10",
    ]
    printed = CliRunner().invoke(
        main, [*arguments, "--held-out", "5:10GeV", "--tolerance", "0.2", "--tolerance", "linearity=0.5"]
    )
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.splitlines()
    assert lines[0].startswith("Differs: 800 events against 800") and "Monte Carlo events" in lines[1]
    assert "5 to 10 GeV, held out" in printed.stdout and max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    "wrong",
    [("--held-out", "20"), ("--held-out", "low:high"), ("--held-out", "30:20"), ("--tolerance", "big"), ("--tolerance", "x=1")],
)
def test_the_command_explains_wrong_options(reference: EventSet, tmp_path: Path, wrong: tuple[str, str]) -> None:
    write_events(tmp_path / "a.h5", reference[:60])
    result = CliRunner().invoke(main, ["validate", str(tmp_path / "a.h5"), str(tmp_path / "a.h5"), "--fast", *wrong])
    assert result.exit_code == 2 and "Traceback" not in result.stderr and len(result.stderr) > 20


def test_showers_without_energy_are_refused(reference: EventSet) -> None:
    with pytest.raises(IncompatibleEventSets, match="No event of the candidate has a cell above"):
        validate(reference[:100], replace(reference[:100], samples=np.zeros_like(reference.samples[:100])), **QUICK)


@pytest.mark.parametrize(
    "wrong", [{"tolerances": {"colour": 1.0}}, {"tolerances": {"response": 0.0}}, {"held_out": [(2.0, 1.0)]}]
)
def test_impossible_settings_are_refused(reference: EventSet, wrong: dict) -> None:
    with pytest.raises(InvalidConfig):
        validate(reference[:60], reference[:60], **(QUICK | wrong))
