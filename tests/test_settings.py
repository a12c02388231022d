"""The search for streams, threads and batch finds about the best, and never asks for more than the process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicarlo
from minicarlo.engines import usable_cores
from minicarlo.errors import InvalidConfig
from minicarlo.generation.settings import Settings, choose_settings, measure, race, remembered
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

NOISE = 0.02  # what one window scatters by on a machine with little else to do


@settings(max_examples=100, deadline=None, derandomize=True)
@given(speeds=st.lists(st.floats(1, 100), min_size=1, max_size=12), seed=st.integers(0, 2**16))
def test_the_winner_of_a_race_is_the_fastest_up_to_the_noise(speeds, seed):
    """Medians of three windows: the winner is at most as much slower as two of them are apart, three standard deviations each."""
    random = np.random.default_rng(seed)
    runners = {Settings(1, 1, batch): speed for batch, speed in enumerate(speeds, start=1)}
    found = race(runners, lambda runner: float(runners[runner] * random.normal(1, NOISE)))
    winner = max(found, key=found.__getitem__)
    assert runners[winner] >= (1 - 6 * NOISE) * max(speeds)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_what_slows_the_whole_machine_down_decides_no_race(seed):
    """Rounds are up to three times as slow as others, windows scatter by 4 %: who is 5 % faster is not beaten by much."""
    random = np.random.default_rng(seed)
    speeds = {1: 100.0, 2: 95.0, 3: 90.0, 4: 97.0}
    windows: list[Settings] = []

    def rate(runner: Settings) -> float:
        windows.append(runner)
        slow = np.random.default_rng(windows.count(runner)).uniform(1, 3)
        return float(speeds[runner.batch] / slow * random.normal(1, 0.04))

    found = race([Settings(1, 1, batch) for batch in speeds], rate)
    assert speeds[max(found, key=found.__getitem__).batch] >= 95


def test_who_is_far_behind_runs_once():
    runs: list[int] = []
    speeds = {1: 100.0, 2: 99.0, 3: 50.0}

    def rate(runner: Settings) -> float:
        runs.append(runner.batch)
        return speeds[runner.batch]

    found = race([Settings(1, 1, batch) for batch in speeds], rate)
    assert runs == [1, 2, 3, 1, 2, 1, 2] and set(found) == {Settings(1, 1, 1), Settings(1, 1, 2)}


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("minicarlo.generation.settings._SECONDS", 0.005)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "pytorch"])
def test_the_search_never_takes_more_threads_than_there_are_cores(surrogate, engine):
    for objective in ("throughput", "latency"):
        found = measure(surrogate, "fp32", engine, objective)
        assert found.streams * found.threads <= usable_cores()
        assert remembered(surrogate, "fp32", engine, objective) == found


def test_what_is_given_leaves_the_other_cores_to_the_rest(surrogate):
    cores = usable_cores()
    assert choose_settings(surrogate, "fp32", streams=1, events=0) == Settings(1, cores, 32)
    assert choose_settings(surrogate, "fp32", threads=cores, events=0) == Settings(1, cores, 32)
    assert choose_settings(surrogate, "fp32", threads=cores, objective="latency") == Settings(1, cores, 1)
    with pytest.raises(InvalidConfig, match="streams must be between"):
        choose_settings(surrogate, "fp32", streams=0)


def test_an_engine_that_compiles_for_minutes_is_not_searched(surrogate):
    assert choose_settings(surrogate, "fp32", engine="inductor") == Settings(usable_cores(), 1, 32)


def test_a_process_that_may_use_one_core_makes_one_stream(surrogate, tmp_path):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from minicarlo.cli import main; main()"
    command = ["generate", str(surrogate.path), "-n", "40", "-o", str(tmp_path / "a.h5"), "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(minicarlo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, check=True)
    assert '"streams": 1' in done.stdout and '"threads": 1' in done.stdout
