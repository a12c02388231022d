"""Runs of real Geant4: into one file, again where they were killed, and on a cluster whose workers are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import minicarlo
from dask_cluster import kill, working
from minicarlo.errors import InvalidConfig, MissingExtra, OutputError
from minicarlo.events import EventSet, events_info, read_events
from minicarlo.simulators import simulate

SHARED = os.environ.get("MINICARLO_SHARED")
pytestmark = pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None, reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4 data sets"
)
EVENTS, ENERGY, SEED = 200, "200MeV:300MeV", 5


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        data = Path(str(SHARED), "geant4-data")
        for variable, name in (
            ("GEANT4_DATA_DIR", "."),
            ("G4LEDATA", "G4EMLOW-mini"),
            ("G4ENSDFSTATEDATA", "G4ENSDFSTATE-mini"),
            ("G4LEVELGAMMADATA", "G4LEVELGAMMA-empty"),
        ):
            patch.setenv(variable, str(data / name))
        patch.setenv("DASK_CONFIG", str(tmp_path_factory.mktemp("dask")))
        patch.setenv("PYTHONPATH", str(Path(minicarlo.__file__).parents[1]))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> EventSet:
    path = tmp_path_factory.mktemp("whole") / "events.h5"
    simulate(EVENTS, ENERGY, seed=SEED, output=path)
    return read_events(path)


def command(output: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "minicarlo.cli", "simulate", "-n", str(EVENTS), "--energy", ENERGY, "--seed", str(SEED)]
    return [*program, "-o", str(output), *more]


def test_one_file_from_several_shards_holds_the_same_events_and_their_cost(whole, tmp_path):
    result = simulate(EVENTS, ENERGY, seed=SEED, output=tmp_path / "a.h5", shard_size=64, jobs=2)
    made = read_events(tmp_path / "a.h5")
    assert np.array_equal(made.samples, whole.samples) and np.array_equal(made.incident_energy, whole.incident_energy)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"] and result.files == [tmp_path / "a.h5"]
    attributes = made.attributes
    assert attributes["seconds_per_event"] == pytest.approx(result.seconds_per_event)
    assert attributes["seconds"] == pytest.approx(EVENTS * result.seconds_per_event)
    assert attributes["milliseconds_per_gev"] == pytest.approx(1e6 * attributes["seconds"] / made.incident_energy.sum(), rel=1e-5)
    assert attributes.keys() == whole.attributes.keys() and attributes["first_event"] == 0


def test_a_file_is_never_overwritten_unasked(tmp_path):
    simulate(2, ENERGY, output=tmp_path / "a.h5")
    with pytest.raises(OutputError, match="there is a file of that name.*--overwrite"):
        simulate(3, ENERGY, output=tmp_path / "a.h5")
    assert events_info(tmp_path / "a.h5")["count"] == 2
    simulate(3, ENERGY, output=tmp_path / "a.h5", overwrite=True)
    assert events_info(tmp_path / "a.h5")["count"] == 3


def test_a_killed_run_into_one_file_goes_on(whole, tmp_path):
    hidden = tmp_path / ".a.h5.shards"
    process = subprocess.Popen(command(tmp_path / "a.h5", "--shard-size", "64"), stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(hidden.glob("shard-*.h5"))) >= 2, process)
    process.kill()
    process.wait()
    assert not (tmp_path / "a.h5").exists()
    result = simulate(EVENTS, ENERGY, seed=SEED, output=tmp_path / "a.h5", shard_size=64)
    assert result.resumed >= 64
    assert np.array_equal(read_events(tmp_path / "a.h5").samples, whole.samples)


def test_workers_of_a_cluster_are_killed_and_the_events_are_the_same(whole, tmp_path):
    pytest.importorskip("distributed")
    process = subprocess.Popen(
        command(tmp_path / "run", "--shard-size", "40", "--cluster", "local:2"), stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: len(list((tmp_path / "run").glob("shard-*.h5"))) >= 1, process)
    kill(working(process.pid))
    assert process.wait(timeout=200) == 0
    assert np.array_equal(read_events(tmp_path / "run").samples, whole.samples)


def test_a_worker_without_data_sets_says_so(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    for variable in ("GEANT4_DATA_DIR", "G4LEDATA"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingExtra, match="minicarlo geant4-data install"):
        simulate(4, ENERGY, output=tmp_path / "run", cluster="local:1")
    assert not (tmp_path / "run").exists()


def test_jobs_and_a_cluster_exclude_one_another(tmp_path):
    with pytest.raises(InvalidConfig, match="take the place of jobs"):
        simulate(4, ENERGY, output=tmp_path / "run", cluster="local:1", jobs=2)
    with pytest.raises(InvalidConfig, match="is unknown"):
        simulate(4, ENERGY, output=tmp_path / "run", cluster="pbs")


def wait_until(condition, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
