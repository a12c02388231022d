"""A surrogate inside Geant4 on a cluster: the events of one machine, also when workers are killed, and none of other bits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dask_cluster import OLDER, kill, start, wait_until, worker, working
from minicarlo.errors import ClusterError
from minicarlo.events import EventSet, read_events
from minicarlo.hybrid import SurrogateShowers
from minicarlo.simulators import simulate
from minicarlo.simulators.data_sets import DATA_SETS

SHARED = os.environ.get("MINICARLO_SHARED")
EVENTS, SHARD = 60, 6
OF_A_SHARD = {"first_event", "seconds", "seconds_per_event", "milliseconds_per_gev", "fast_energy_fraction"}

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None, reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4 data sets"
)


@pytest.fixture(scope="module", autouse=True)
def data_sets(dask_folders: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for data in DATA_SETS:
            patch.delenv(data.variable, raising=False)
        patch.setenv("GEANT4_DATA_DIR", str(Path(SHARED or "", "geant4-data")))
        yield


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events of an electron that takes the fast path and of a photon that Geant4 tracks."""
    path = tmp_path_factory.mktemp("list") / "particles.csv"
    rows = [f"{i},e-,{1500 + 100 * i},0,0,0\n{i},gamma,{300 + i},10,10,0\n" for i in range(EVENTS)]
    path.write_text("event,particle,energy [MeV],x [mm],y [mm],theta [rad]\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def alone(listed: Path) -> EventSet:
    """What one machine makes."""
    folder = listed.parent / "alone"
    simulate(conditions=listed, output=folder, parameterisation=SurrogateShowers("clic-ecal"), seed=3, shard_size=SHARD)
    return read_events(folder)


def assert_same(found: EventSet, expected: EventSet) -> None:
    assert np.array_equal(found.samples, expected.samples)
    assert found.conditions.keys() == expected.conditions.keys()
    assert all(np.array_equal(values, expected.conditions[name]) for name, values in found.conditions.items())
    assert {k: v for k, v in found.attributes.items() if k not in OF_A_SHARD} == {
        k: v for k, v in expected.attributes.items() if k not in OF_A_SHARD
    }


def test_workers_are_killed_and_the_events_are_those_of_one_machine(listed, alone, tmp_path):
    folder = tmp_path / "run"
    process = start(
        *(sys.executable, "-m", "minicarlo.cli", "simulate", "--conditions", str(listed), "--fast", "clic-ecal"),
        *("--seed", "3", "--shard-size", str(SHARD), "--cluster", "local:2", "-o", str(folder)),
    )
    wait_until(lambda: len(list(folder.glob("shard-*.h5"))) >= 2 or process.poll() is not None)
    assert process.poll() is None
    kill(working(process.pid))
    assert process.wait(timeout=300) == 0
    assert_same(read_events(folder), alone)


def test_a_run_of_one_machine_is_completed_by_two_threads_of_a_worker(listed, alone, address, tmp_path):
    """Each thread has a surrogate of its own; the account of the run covers what was there before."""
    request = {"conditions": listed, "output": tmp_path / "run", "seed": 3, "shard_size": SHARD}
    whole = simulate(**request, parameterisation=SurrogateShowers("clic-ecal"))
    for name in ("shard-00001.h5", "shard-00002.h5", "shard-00008.h5"):
        (tmp_path / "run" / name).unlink()
    with worker(address, threads=2):
        result = simulate(**request, parameterisation=SurrogateShowers("clic-ecal"), cluster=address)
    assert result.resumed == EVENTS - 3 * SHARD and result.fast == whole.fast
    assert_same(read_events(tmp_path / "run"), alone)


def test_a_worker_whose_surrogate_computes_other_bits_is_refused(listed, narrow, address, tmp_path):
    """An older instruction set rounds differently, as an older processor would."""
    fast = SurrogateShowers(narrow, particles=("e-",))
    request = {"conditions": listed, "output": tmp_path / "run", "parameterisation": fast}
    with worker(address, ONEDNN_MAX_CPU_ISA=OLDER), pytest.raises(ClusterError, match=r"other bits .* fast path"):
        simulate(**request, seed=3, cluster=address)
    assert not (tmp_path / "run").exists()
