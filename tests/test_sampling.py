from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicarlo.errors import InvalidCondition
from minicarlo.sampling import BLOCK, AngleDistribution, EnergyDistribution, event_seed, normal_latents

SEEDS = st.integers(0, 2**64 - 1)
# up to 2^50: far beyond any run, and above 2^32, where a counter of half the width would wrap
STARTS = st.one_of(st.integers(0, 500), st.integers(0, 2**50))
COUNTS = st.integers(0, 3 * BLOCK)
ENERGIES = st.floats(1e-3, 1e9)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, start=STARTS, count=COUNTS, size=st.integers(0, 9), data=st.data())
def test_latents_of_an_event_do_not_depend_on_how_the_work_is_cut(
    seed: int, start: int, count: int, size: int, data: st.DataObject
) -> None:
    whole = normal_latents(seed, start, count, size)
    assert whole.shape == (count, size) and whole.dtype == np.float32
    cut = data.draw(st.integers(0, count))
    pieces = [normal_latents(seed, start, cut, size), normal_latents(seed, start + cut, count - cut, size)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@settings(deadline=None, max_examples=40)
@given(
    seed=SEEDS,
    start=STARTS,
    count=COUNTS,
    low=ENERGIES,
    high=ENERGIES,
    kind=st.sampled_from(["log", "uniform"]),
    data=st.data(),
)
def test_energies_stay_in_range_and_do_not_depend_on_how_the_work_is_cut(
    seed: int, start: int, count: int, low: float, high: float, kind: str, data: st.DataObject
) -> None:
    low, high = sorted((low, high))
    if low == high:
        high = low * 2
    distribution = EnergyDistribution(low, high, kind)
    if np.nextafter(np.float32(low), np.float32(np.inf)) >= np.float32(high):
        return  # no float32 need lie between
    whole = distribution.sample(seed, start, count)
    assert whole.shape == (count,) and whole.dtype == np.float32
    assert np.all(whole.astype(float) >= low) and np.all(whole.astype(float) <= high)
    cut = data.draw(st.integers(0, count))
    pieces = [distribution.sample(seed, start, cut), distribution.sample(seed, start + cut, count - cut)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_latents_are_unit_normal_and_independent_between_events_seeds_and_streams() -> None:
    latents = normal_latents(1, 0, 20_000, 10)
    standard_error = 1 / np.sqrt(latents.size)
    assert abs(latents.mean()) < 5 * standard_error
    assert abs(latents.var() - 1) < 5 * np.sqrt(2) * standard_error
    correlation = np.corrcoef(latents[:-1].ravel(), latents[1:].ravel())[0, 1]
    assert abs(correlation) < 5 * standard_error
    other = normal_latents(2, 0, 20_000, 10)
    assert abs(np.corrcoef(latents.ravel(), other.ravel())[0, 1]) < 5 * standard_error
    energies = EnergyDistribution.parse("1GeV:2GeV:uniform").sample(1, 0, 20_000)
    assert abs(np.corrcoef(latents[:, 0], energies)[0, 1]) < 5 / np.sqrt(20_000)


def test_latents_are_pinned_so_that_published_files_can_be_made_again() -> None:
    np.testing.assert_array_equal(normal_latents(1, 64, 1, 4), np.float32([[0.5657293, 0.14421241, -0.058088828, 0.19999443]]))


@pytest.mark.parametrize(("kind", "mean"), [("uniform", 5500.0), ("log", (10_000 - 1_000) / np.log(10))])
def test_energies_have_the_mean_of_their_distribution(kind: str, mean: float) -> None:
    energies = EnergyDistribution(1_000, 10_000, kind).sample(3, 17, 50_000).astype(float)
    assert abs(energies.mean() - mean) < 5 * energies.std() / np.sqrt(len(energies))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10GeV", (1e4, 1e4, "fixed")),
        (" 10 GeV ", (1e4, 1e4, "fixed")),
        ("1GeV:100GeV", (1e3, 1e5, "log")),
        ("1GeV:100GeV:log", (1e3, 1e5, "log")),
        ("500MeV:2GeV:uniform", (500, 2e3, "uniform")),
        ("1e3MeV:.5TeV", (1e3, 5e5, "log")),
        ("100keV:1gev:uniform", (0.1, 1e3, "uniform")),
    ],
)
def test_energies_are_read_with_their_units(text: str, expected: tuple[float, float, str]) -> None:
    distribution = EnergyDistribution.parse(text)
    assert (distribution.low_mev, distribution.high_mev, distribution.kind) == expected


@settings(deadline=None, max_examples=40)
@given(low=ENERGIES, factor=st.floats(1.001, 1e3), kind=st.sampled_from(["log", "uniform"]))
def test_a_distribution_reads_back_from_its_text(low: float, factor: float, kind: str) -> None:
    for distribution in (EnergyDistribution(low, low * factor, kind), EnergyDistribution(low, low, "fixed")):
        assert EnergyDistribution.parse(str(distribution)) == distribution


def test_the_text_of_a_distribution_is_what_a_person_would_write() -> None:
    for text in ("10GeV", "1GeV:100GeV:log", "500MeV:2GeV:uniform", "1TeV", "1.5GeV"):
        assert str(EnergyDistribution.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "10", "GeV", "10 parsec", "-1GeV", "0GeV", "nanGeV", "infGeV", "1GeV:", "1GeV:2GeV:flat", "1GeV:2GeV:log:3",
     "5GeV:1GeV", "1GeV:1GeV", "1e400GeV", "1GeV:1e300TeV", "1GeV;2GeV", "\x00", "9" * 5000 + "GeV"],
)  # fmt: skip
def test_malformed_energies_are_refused_with_a_short_remedy(text: str) -> None:
    with pytest.raises(InvalidCondition, match="10GeV|above zero") as caught:
        EnergyDistribution.parse(text)
    assert len(str(caught.value)) < 400


@settings(deadline=None, max_examples=40)
@given(text=st.text("0123456789.e+-: kMGTeVlogunifrm_\x00\n\u0661\u00b5", max_size=20))
def test_no_text_at_all_makes_the_reader_of_energies_fail_otherwise(text: str) -> None:
    try:
        EnergyDistribution.parse(text)
    except InvalidCondition:
        pass


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, start=STARTS)
def test_seeds_of_events_are_distinct_and_fit_31_bits(seed: int, start: int) -> None:
    seeds = [event_seed(seed, start + index) for index in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(1 <= value <= 2**31 - 2 for value in seeds)


def test_seeds_of_different_runs_do_not_run_in_parallel() -> None:
    first = {event_seed(1, index) for index in range(5_000)}
    second = {event_seed(2, index) for index in range(5_000)}
    assert len(first & second) < 5  # 0.01 are expected by chance


@pytest.mark.parametrize(("seed", "start", "count"), [(-1, 0, 1), (2**64, 0, 1), (0, -1, 1), (0, 0, -1), (0, 2**63, 1)])
def test_seeds_and_event_numbers_out_of_range_are_refused(seed: int, start: int, count: int) -> None:
    with pytest.raises(InvalidCondition):
        normal_latents(seed, start, count, 4)
    with pytest.raises(InvalidCondition):
        EnergyDistribution.parse("1GeV:2GeV").sample(seed, start, count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30deg", (30, 30, "fixed")),
        ("0deg:30deg", (0, 30, "uniform")),
        ("-180deg:180DEG:uniform", (-180, 180, "uniform")),
        ("0 deg : 0.5rad : cos", (0, 90 / np.pi, "cos")),
    ],
)
def test_angles_are_read_with_their_units(text: str, expected: tuple[float, float, str]) -> None:
    distribution = AngleDistribution.parse(text)
    assert (distribution.low_deg, distribution.high_deg, distribution.kind) == pytest.approx(expected)
    assert AngleDistribution.parse(str(distribution)) == distribution


@pytest.mark.parametrize(
    "text", ["", "30", "deg", "30GeV", "30deg:10deg", "0deg:400deg", "nandeg", "0deg:9deg:log", "1deg:1deg", "-9deg:9deg:cos"]
)
def test_malformed_angles_are_refused_with_a_short_remedy(text: str) -> None:
    with pytest.raises(InvalidCondition, match="deg") as caught:
        AngleDistribution.parse(text)
    assert len(str(caught.value)) < 300


def test_angles_fill_their_range_uniformly_in_the_angle_or_in_its_cosine() -> None:
    for text, transform in (("10deg:70deg", np.asarray), ("10deg:70deg:cos", np.cos)):
        angles = AngleDistribution.parse(text).sample("theta", 3, 0, 20_000).astype(float)
        low, high = np.sort(transform(np.radians([10.0, 70.0])))
        values = (transform(angles) - low) / (high - low)
        assert -1e-6 < values.min() < 0.001 and 0.999 < values.max() < 1 + 1e-6
        assert abs(values.mean() - 0.5) < 4 / np.sqrt(12 * 20_000)


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, start=STARTS, count=st.integers(0, 200), cut=st.integers(0, 200))
def test_angles_of_an_event_do_not_depend_on_how_the_work_is_cut_up(seed: int, start: int, count: int, cut: int) -> None:
    distribution, cut = AngleDistribution.parse("0deg:30deg"), min(cut, count)
    whole = distribution.sample("phi", seed, start, count)
    parts = [distribution.sample("phi", seed, start, cut), distribution.sample("phi", seed, start + cut, count - cut)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert count == 0 or not np.array_equal(whole, distribution.sample("theta", seed, start, count))
