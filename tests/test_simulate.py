"""Real Geant4 showers: the same for any number of processes, right by an independent simulation, and never half written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image

from minicarlo.cli import _common, main
from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, get_detector, parse_detector, read_detector
from minicarlo.errors import (
    InvalidCondition,
    InvalidConfig,
    MinicarloError,
    MissingExtra,
    OutputError,
    SimulationError,
    UnknownDetector,
)
from minicarlo.events import EventSet, events_info, read_events
from minicarlo.hybrid import SurrogateShowers
from minicarlo.simulators import Batch, Session, Setup, drawing, get_simulator, run, shards, simulate
from minicarlo.simulators.geant4 import DATA_SETS, Geant4Simulator, find_data_sets

SHARED = os.environ.get("MINICARLO_SHARED")
ABSORBER = {"grid": "cylindrical", "cells": [20, 8, 5], "cell_mm": 10.0}
"""A total absorber: 20 cells in depth, rings of 10 mm; a name and layers make it a detector."""
needs_geant4 = pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None,
    reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4 data sets and reference showers",
)


@pytest.fixture
def geant4(monkeypatch):
    """Geant4's data sets, given by GEANT4_DATA_DIR alone."""
    for data in DATA_SETS:
        monkeypatch.delenv(data.variable, raising=False)
    monkeypatch.setenv("GEANT4_DATA_DIR", str(Path(SHARED, "geant4-data")))


@pytest.fixture(scope="module")
def electrons(tmp_path_factory):
    """24 electrons of 1 to 2 GeV, simulated by one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEANT4_DATA_DIR", str(Path(SHARED, "geant4-data")))
        path = tmp_path_factory.mktemp("electrons") / "events.h5"
        result = simulate(24, "1GeV:2GeV:log", output=path, seed=5)
    return result, read_events(path)


class TestShowers:
    pytestmark = needs_geant4

    def test_are_the_same_for_any_number_of_jobs_and_any_shards(self, geant4, electrons, tmp_path):
        seen = []
        result = simulate(
            24, "1GeV:2GeV:log", output=tmp_path / "run", seed=5, jobs=3, shard_size=10, progress=lambda *at: seen.append(at)
        )
        events = read_events(tmp_path / "run")
        assert np.array_equal(events.samples, electrons[1].samples)
        assert np.array_equal(events.incident_energy, electrons[1].incident_energy)
        assert [path.name for path in result.files] == ["shard-00000.h5", "shard-00001.h5", "shard-00002.h5"]
        assert (result.events, result.streams, result.seed, result.resumed) == (24, 3, 5, 0)
        assert seen == sorted(seen) and seen[0] == (0, 24) and seen[-1] == (24, 24)

    def test_do_not_depend_on_how_many_are_asked_for(self, geant4, electrons, tmp_path):
        simulate(3, "1GeV:2GeV:log", output=tmp_path / "few.h5", seed=5)
        assert np.array_equal(read_events(tmp_path / "few.h5").samples, electrons[1].samples[:3])

    def test_differ_for_another_seed_and_among_themselves(self, geant4, electrons, tmp_path):
        simulate(3, "1GeV:2GeV:log", output=tmp_path / "other.h5", seed=6)
        totals = np.concatenate([electrons[1].samples, read_events(tmp_path / "other.h5").samples]).sum(axis=(1, 2, 3))
        assert len(np.unique(totals)) == 27

    def test_record_how_they_were_made(self, electrons):
        result, events = electrons
        found = events.attributes
        assert "geant4-11-" in found["generator"] and "geant4_pybind" in found["generator"]
        assert found["physics"] == "G4EmStandardPhysics (option0)"
        assert (found["particle"], found["seed"], found["production_cut_mm"], found["threshold"]) == ("e-", 5, 0.7, "none")
        assert found["energy_distribution"] == "1GeV:2GeV:log (kinetic)"
        assert json.loads(found["geometry"])["layers"][0] == {"material": "G4_W", "mm": 2.24}
        assert found["radiation_lengths"] == pytest.approx(16.1, abs=0.1)
        assert found["seconds"] > 0 and found["seconds_per_event"] == pytest.approx(found["seconds"] / 24)
        assert found["seconds_per_event"] == pytest.approx(result.seconds_per_event)
        gev = float(events.incident_energy.sum()) / 1e3
        assert found["milliseconds_per_gev"] == pytest.approx(1e3 * found["seconds"] / gev, rel=1e-5)

    def test_agree_with_the_reference_showers(self, geant4, tmp_path):
        """Independent events of the same physics: means within 4 statistical errors (by chance 1 seed in 500 fails)."""
        simulate(150, "1GeV:3GeV:log", output=tmp_path / "ours.h5", seed=11, jobs=2)
        ours = read_events(tmp_path / "ours.h5")
        reference = read_events(Path(SHARED, "data", "validation.h5"), stop=3000)
        reference = reference[(reference.incident_energy >= 1e3) & (reference.incident_energy <= 3e3)]
        assert len(reference) > 500
        for name, values in _observables(ours).items():
            other = _observables(reference)[name]
            error = np.sqrt(values.var(axis=0, ddof=1) / len(values) + other.var(axis=0, ddof=1) / len(other))
            deviations = (values.mean(axis=0) - other.mean(axis=0)) / error
            assert np.all(np.abs(deviations) < 4), f"{name}: {np.round(deviations, 1)} standard errors"

    def test_of_gammas_begin_later_than_of_electrons(self, geant4, tmp_path):
        first = {}
        for particle in ("e-", "gamma"):
            simulate(60, "2GeV", output=tmp_path / f"{particle}.h5", particle=particle, seed=2)
            first[particle] = read_events(tmp_path / f"{particle}.h5").samples[:, :2].sum(axis=(1, 2, 3)).mean()
        assert 0 < first["gamma"] < 0.6 * first["e-"]  # a photon crosses 9/7 radiation lengths before it converts

    def test_leave_the_process_of_the_caller_clean(self, geant4, tmp_path, capfd):
        before = dict(os.environ)
        simulate(1, "1GeV", output=tmp_path / "one.h5")
        assert "geant4_pybind" not in sys.modules
        assert dict(os.environ) == before
        assert capfd.readouterr() == ("", "")

    def test_are_made_from_scripts_without_a_guard(self, geant4, tmp_path):
        script = tmp_path / "script.py"
        script.write_text("from minicarlo.simulators import simulate\nsimulate(2, '1GeV', output='two.h5', jobs=2)\n")
        subprocess.run([sys.executable, script], cwd=tmp_path, check=True, capture_output=True)
        assert len(read_events(tmp_path / "two.h5")) == 2


def _observables(events: EventSet) -> dict[str, np.ndarray]:
    """Per event: visible fraction, share of each layer, of rings around the axis, and cells above threshold."""
    visible = events.samples.sum(axis=(1, 2, 3))
    x, y = np.meshgrid(np.arange(25) - 12, np.arange(25) - 12, indexing="ij")
    rings = np.minimum(np.maximum(abs(x), abs(y)), 4)
    plane = events.samples.sum(axis=1)
    return {
        "visible fraction": visible / events.incident_energy,
        "longitudinal profile": events.samples.sum(axis=(2, 3)) / visible[:, None],
        "lateral profile": np.stack([plane[:, rings == ring].sum(axis=1) for ring in range(5)], axis=1) / visible[:, None],
        "cells above 0.05 MeV": (events.samples > 0.05).sum(axis=(1, 2, 3)),
        "mean of x": (plane * x).sum(axis=(1, 2)) / visible,
        "mean of y": (plane * y).sum(axis=(1, 2)) / visible,
    }


SANDWICH = """
name = "lead-scintillator"
grid = "cartesian"
cells = [30, 9, 9]
cell_mm = 20

[[layers]]
material = "G4_Pb"
mm = 4

[[layers]]
material = "G4_POLYSTYRENE"
mm = 3
read_out = true
"""


class TestDetectors:
    pytestmark = needs_geant4

    @pytest.fixture
    def sandwich(self, geant4, tmp_path):
        path = tmp_path / "sandwich.toml"
        path.write_text(SANDWICH)
        return path

    def test_of_users_need_nothing_but_their_event_sets_afterwards(self, sandwich, tmp_path):
        result = simulate(3, "1GeV", output=tmp_path / "events.h5", detector=sandwich)
        sandwich.unlink()
        program = (
            "from minicarlo.events import read_events; from minicarlo.detectors import get_detector;"
            f"events = read_events({str(result.path)!r}); detector = get_detector(events.detector);"
            "print(events.samples.shape, detector.materials[0].name, detector.cell_size)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "(3, 30, 9, 9) G4_Pb (7.0, 20.0, 20.0)\n"
        response = read_events(result.path).samples.sum(axis=(1, 2, 3)) / 1e3
        assert np.all((0.04 < response) & (response < 0.14))  # minimum ionising particles: 0.6 MeV of 5.7 MeV per layer

    def test_of_users_resume_only_as_they_were(self, sandwich, tmp_path):
        simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, detector=sandwich)
        thicker = parse_detector(tomllib.loads(SANDWICH.replace("mm = 4", "mm = 5")))
        with pytest.raises(InvalidConfig, match=r"two different detectors 'lead-scintillator' \(layers .*'mm': 4.*'mm': 5"):
            simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, detector=thicker)

    def test_of_unknown_materials_are_refused_with_names_that_are_near(self, geant4, tmp_path):
        detector = parse_detector(ABSORBER | {"name": "led", "layers": [{"material": "G4_LED", "mm": 1, "read_out": True}]})
        with pytest.raises(
            InvalidConfig, match=r"Detector led, layers: Geant4 knows no material 'G4_LED'\. Near are .*G4_Pb|G4_"
        ):
            simulate(1, "1GeV", output=tmp_path / "run.h5", detector=detector)
        assert list(tmp_path.iterdir()) == []

    def test_that_absorb_everything_measure_the_incident_energy(self, geant4, tmp_path):
        """4 m of lead read out in three kinds of plates and in rings: all but what leaves at the front and as neutrinos."""
        layers = [{"material": "G4_Pb", "mm": mm, "read_out": True} for mm in (10, 20, 30)]
        detector = parse_detector(ABSORBER | {"name": "absorber", "cell_mm": 100.0, "plate_mm": 2000, "layers": layers})
        simulate(4, "1GeV", output=tmp_path / "run.h5", detector=detector, cut_mm=10)
        response = read_events(tmp_path / "run.h5").samples.sum(axis=(1, 2, 3)) / 1e3
        assert np.all((0.97 < response) & (response < 1.0005))

    def test_with_rings_hold_what_the_same_plates_hold_in_squares(self, geant4, tmp_path):
        """Deposits in the plates do not depend on how they are divided: means within 4 statistical errors."""
        plates = {
            "cells": [25, 16, 15],
            "layers": [{"material": "G4_W", "mm": 2.8}, {"material": "G4_Si", "mm": 0.6, "read_out": True}],
        }
        rings = parse_detector(ABSORBER | plates | {"name": "rings", "cell_mm": 10.0})
        squares = parse_detector(ABSORBER | plates | {"name": "squares", "grid": "cartesian", "cell_mm": [18.75, 20.0]})
        sums = []
        for detector in (rings, squares):
            simulate(40, "500MeV", output=tmp_path / f"{detector.name}.h5", detector=detector)
            sums.append(read_events(tmp_path / f"{detector.name}.h5").samples.sum(axis=(1, 2, 3)))
        error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in sums))
        assert abs(sums[0].mean() - sums[1].mean()) < 4 * error

    @pytest.mark.parametrize("name", [CLIC_ECAL, PAR04_SIW])
    def test_see_inclined_particles_where_they_go(self, geant4, tmp_path, name):
        simulate(10, "2GeV", output=tmp_path / "run.h5", detector=name, theta="20deg:30deg", phi="90deg", particle="e+")
        events = read_events(tmp_path / "run.h5")
        assert np.all(
            (np.radians(20) <= events.conditions["incident_theta"]) & (events.conditions["incident_theta"] <= np.radians(30))
        )
        assert np.all(events.conditions["incident_phi"] == np.float32(np.pi / 2))
        detector = get_detector(name)
        x, y = detector.transverse()
        mean = events.samples.reshape(len(events), detector.layers, -1).mean(axis=0)
        assert abs((mean * x).sum() / mean.sum()) < 1.5  # mm; the spread of single showers over the root of ten
        depths = (np.arange(detector.layers) + 0.5) * detector.cell_size[0]
        used = slice(2, detector.layers // 2)  # enough energy, and inside the window
        slope = np.polyfit(depths[used], (mean * y).sum(axis=1)[used] / mean.sum(axis=1)[used], 1)[0]
        assert np.tan(np.radians(15)) < slope < np.tan(np.radians(32))

    def test_fill_the_same_rings_for_any_number_of_jobs_whatever_enters(self, geant4, tmp_path):
        request = {"detector": PAR04_SIW, "particle": "gamma", "theta": "0deg:30deg:cos", "phi": "-180deg:180deg", "seed": 4}
        simulate(7, "500MeV:1GeV:uniform", output=tmp_path / "run", jobs=2, shard_size=3, **request)
        simulate(5, "500MeV:1GeV:uniform", output=tmp_path / "run.h5", **request)
        several, single = read_events(tmp_path / "run")[:5], read_events(tmp_path / "run.h5")
        assert np.array_equal(several.samples, single.samples) and single.samples.any(axis=(1, 2, 3)).all()
        assert single.conditions.keys() == {"incident_energy", "incident_theta", "incident_phi"}
        for name, values in single.conditions.items():
            assert len(np.unique(values)) == 5 and np.array_equal(values, several.conditions[name])
        found = single.attributes
        assert (found["theta_distribution"], found["phi_distribution"]) == ("0deg:30deg:cos", "-180deg:180deg:uniform")
        assert found["particle"] == "gamma" and found["seconds"] > 0

    def test_par04_siw_is_calibrated_and_isotropic(self, geant4, tmp_path):
        simulate(60, "1GeV", output=tmp_path / "run.h5", detector=PAR04_SIW)
        samples = read_events(tmp_path / "run.h5").samples
        assert samples.shape == (60, 45, 16, 9)
        response = samples.sum(axis=(1, 2, 3)) / 1e3
        assert 0.85 < response.mean() < 1.05  # calibrated by 1 / 0.033; a few percent leave the window of 42 mm
        sectors = samples.sum(axis=(1, 3)) / samples.sum(axis=(1, 2, 3))[:, None]
        deviations = (sectors.mean(axis=0) - 1 / 16) / (sectors.std(axis=0, ddof=1) / np.sqrt(60))
        assert np.all(np.abs(deviations) < 4)

    def test_are_drawn_with_a_shower(self, sandwich, tmp_path):
        for arguments in (["--detector", str(sandwich)], ["--detector", PAR04_SIW, "--theta", "20deg", "--particle", "gamma"]):
            picture = tmp_path / "picture.png"
            done = CliRunner().invoke(main, ["simulate", "--energy", "1GeV", *arguments, "--draw", str(picture)])
            assert done.exit_code == 0, done.stderr
            pixels = image.imread(picture)
            assert pixels.shape[0] > 800 and pixels.shape[1] > 1500
            assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 500
            picture.unlink()


class TestInterruption:
    pytestmark = needs_geant4

    def test_a_killed_run_goes_on_and_ends_with_the_same_events(self, geant4, electrons, tmp_path):
        command = _command("-n", "24", "--energy", "1GeV:2GeV:log", "--seed", "5", "--shard-size", "4", "-o", "run")
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        _wait_for(lambda: len(list(tmp_path.glob("run/shard-*.h5"))) > 1)  # the first is on record then
        workers = _children(process.pid)
        assert workers
        process.kill()
        process.wait()
        _wait_for(lambda: not any(_running(worker) for worker in workers))  # no orphans
        whole = list(tmp_path.glob("run/shard-*.h5"))
        for path in whole:
            assert len(read_events(path)) == 4
        result = simulate(24, "1GeV:2GeV:log", output=tmp_path / "run", seed=5, shard_size=4, jobs=2)
        assert result.resumed >= 4 * (len(whole) - 1) > 0
        assert np.array_equal(read_events(tmp_path / "run").samples, electrons[1].samples)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
            "run.json",
            *(f"shard-{n:05d}.h5" for n in range(6)),
        ]

    def test_a_finished_run_is_not_repeated(self, geant4, tmp_path, monkeypatch):
        simulate(4, "1GeV", output=tmp_path / "run", shard_size=2)
        monkeypatch.setattr(run, "Workers", None)
        assert simulate(4, "1GeV", output=tmp_path / "run", shard_size=2).resumed == 4

    def test_a_single_file_appears_whole_or_not_at_all(self, geant4, tmp_path):
        process = subprocess.Popen(
            _command("-n", "3000", "--energy", "1GeV", "-o", "run.h5"), cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        _wait_for(lambda: _children(process.pid))
        time.sleep(2)
        process.kill()
        process.wait()
        assert [path.name for path in tmp_path.iterdir()] == [".run.h5.shards"]

    def test_control_c_ends_at_once_with_its_workers(self, geant4, tmp_path):
        command = _command("-n", "3000", "--energy", "1GeV", "--shard-size", "1000", "-o", "run")
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so would this
        try:
            process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
        finally:
            signal.signal(signal.SIGINT, before)
        _wait_for(lambda: _children(process.pid))
        workers = _children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, workers included
        _, text = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in text
        assert not any(_running(worker) for worker in workers)
        assert list(tmp_path.iterdir()) == []

    def test_a_material_without_its_data_is_told_in_words_of_geant4(self, geant4, tmp_path):
        uranium = parse_detector(ABSORBER | {"name": "uranium", "layers": [{"material": "G4_U", "mm": 1, "read_out": True}]})
        with pytest.raises(SimulationError, match=r"being set up.*em0003.*brem_SB.br92.*official"):
            simulate(1, "1GeV", output=tmp_path / "run", detector=uranium)
        assert list(tmp_path.iterdir()) == []

    def test_physics_without_its_data_is_refused_at_once(self, geant4, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "Workers", None)
        with pytest.raises(MissingExtra, match=r"'livermore' needs fluor/binding\.dat.*G4EMLOW-mini lacks.*option0, option1"):
            simulate(1, "1GeV", output=tmp_path / "run", physics="livermore")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_noticed_before_anything_is_simulated(self, geant4, tmp_path):
        limited = f"ulimit -f 1000; exec {' '.join(_command('-n', '100', '--energy', '1GeV', '-o', 'big.h5'))}"
        done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "big.h5" in done.stderr and "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "minicarlo.cli", "simulate", *arguments]


def _wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.02)
    return found


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


class PretendSimulator:
    """A simulator whose events hold their seed, and that fails in a chosen way at a chosen energy."""

    name = "pretend"

    def __init__(self, failure: str = "") -> None:
        self.failure = failure

    def prepare(self, setup: Setup) -> dict[str, str]:
        return {"PRETEND": "yes"}

    def open(self, setup: Setup) -> Session:
        return _PretendSession(setup, self.failure)

    def explain(self, log: str) -> str:
        return ""


class _PretendSession:
    def __init__(self, setup: Setup, failure: str) -> None:
        assert os.environ["PRETEND"] == "yes"
        print("noise on standard output")
        self._setup, self._failure, self._events = setup, failure, 0

    def run(self, primaries):
        seeds = primaries.seeds
        self._events += len(seeds)
        if self._events > 2:
            if self._failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._failure == "exception":
                raise ValueError("the calorimeter is on fire")
            if self._failure == "mistake":
                raise InvalidConfig("This is what you did wrong.")
        samples = np.zeros((len(seeds), *self._setup.detector.shape), np.float32)
        samples[:, 0, 0, 0] = seeds
        return Batch(samples, 0.5 * len(seeds))

    def provenance(self):
        return {"generator": f"pretend {os.environ.get('PRETEND_VERSION', '1')}"}


@pytest.fixture
def pretend(monkeypatch):
    def use(failure: str = "") -> None:
        for module in (run, drawing):
            monkeypatch.setattr(module, "get_simulator", lambda name: PretendSimulator(failure))

    use()
    return use


class TestFailure:
    @pytest.mark.parametrize(
        ("failure", "error", "message"),
        [
            ("kill", SimulationError, r"was ended by SIGKILL at events 2 to 2; .*Memory may have run out"),
            ("exception", SimulationError, r"exit code 1 at events 2 to 2; .*the calorimeter is on fire"),
            ("mistake", InvalidConfig, r"what you did wrong"),
        ],
    )
    def test_of_a_worker_is_told_and_leaves_only_complete_shards(self, pretend, tmp_path, failure, error, message):
        pretend(failure)
        with pytest.raises(error, match=message):
            simulate(3, "1GeV", output=tmp_path / "run", shard_size=1)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "shard-00000.h5", "shard-00001.h5"]
        with pytest.raises(error, match=message):
            simulate(3, "1GeV", output=tmp_path / "run.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        pretend()
        assert simulate(3, "1GeV", output=tmp_path / "run", shard_size=1).resumed == 2
        assert len(read_events(tmp_path / "run")) == 3

    def test_before_the_first_shard_leaves_nothing(self, pretend, tmp_path):
        pretend("exception")
        with pytest.raises(SimulationError):
            simulate(3, "1GeV", output=tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    def test_of_the_disk_is_noticed_before_anything_is_simulated(self, pretend, tmp_path, monkeypatch):
        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        pretend("exception")
        monkeypatch.setattr(shards.os, "posix_fallocate", full)
        with pytest.raises(OutputError, match=r"run\.h5: the disk is full"):
            simulate(3, "1GeV", output=tmp_path / "run.h5")
        assert list(tmp_path.iterdir()) == []


class TestFolder:
    def test_of_another_request_is_refused(self, pretend, tmp_path):
        simulate(2, "1GeV", output=tmp_path / "run", shard_size=1)
        with pytest.raises(OutputError, match=r"another run: seed 1, not 2"):
            simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, seed=2)
        assert len(read_events(tmp_path / "run")) == 2

    def test_of_other_angles_or_of_another_detector_is_refused(self, pretend, tmp_path):
        layers = [{"material": "G4_Si", "mm": 1, "read_out": True}]
        mine = parse_detector(ABSORBER | {"name": "mine", "layers": layers})
        simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, theta="0deg:30deg", detector=mine)
        with pytest.raises(OutputError, match="another run: theta '0deg:30deg:uniform', not '0deg:20deg:uniform'"):
            simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, theta="0deg:20deg", detector=mine)
        with pytest.raises(OutputError, match=r"another run: detector 'mine', not 'par04-siw'; .*geometry {'name': 'mine'"):
            simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, theta="0deg:30deg", detector=PAR04_SIW)
        record = tmp_path / "run" / "run.json"
        record.write_text(record.read_text().replace('"mm": 1', '"mm": 2'))
        with pytest.raises(OutputError, match="another run: geometry"):
            simulate(2, "1GeV", output=tmp_path / "run", shard_size=1, theta="0deg:30deg", detector=mine)

    def test_of_somebody_else_is_refused(self, pretend, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(OutputError, match="not empty"):
            simulate(2, "1GeV", output=tmp_path)
        (tmp_path / "run.json").write_text("[]")
        with pytest.raises(OutputError, match="damaged"):
            simulate(2, "1GeV", output=tmp_path)

    def test_with_a_damaged_shard_is_repaired(self, pretend, tmp_path):
        simulate(3, "1GeV", output=tmp_path / "run", shard_size=1)
        before = read_events(tmp_path / "run").samples
        path = tmp_path / "run" / "shard-00001.h5"
        path.write_bytes(path.read_bytes()[:-100])
        assert simulate(3, "1GeV", output=tmp_path / "run", shard_size=1).resumed == 2
        assert np.array_equal(read_events(tmp_path / "run").samples, before)

    def test_begun_with_another_version_of_the_simulator_is_refused(self, pretend, tmp_path, monkeypatch):
        simulate(2, "1GeV", output=tmp_path / "run", shard_size=1)
        (tmp_path / "run" / "shard-00001.h5").unlink()
        monkeypatch.setenv("PRETEND_VERSION", "2")
        with pytest.raises(OutputError, match="generator was 'pretend 1', is 'pretend 2'"):
            simulate(2, "1GeV", output=tmp_path / "run", shard_size=1)

    def test_of_a_simulator_that_cannot_stop_particles_is_not_begun_with_a_surrogate(self, pretend, tmp_path):
        with pytest.raises(InvalidConfig, match="Simulator pretend cannot stop particles"):
            simulate(2, "1GeV", output=tmp_path / "run", parameterisation=SurrogateShowers("clic-ecal"))
        assert list(tmp_path.iterdir()) == []

    def test_sums_up_the_seconds_of_its_shards(self, pretend, tmp_path):
        simulate(5, "1GeV", output=tmp_path / "run", shard_size=2, jobs=2)
        assert events_info(tmp_path / "run")["attributes"]["seconds"] == 2.5


WRONG = [
    ({"n": 0}, InvalidCondition, "at least 1"),
    ({"energy": "10 parsec"}, InvalidCondition, "10 parsec"),
    ({"energy": "-1GeV"}, InvalidCondition, "-1GeV"),
    ({"seed": -1}, InvalidCondition, "seed"),
    ({"jobs": 0}, InvalidConfig, "jobs"),
    ({"shard_size": 0}, InvalidConfig, "shard size"),
    ({"detector": "atlas"}, UnknownDetector, "clic-ecal"),
    ({"particle": "pi+"}, InvalidConfig, "e-, e\\+, gamma"),
    ({"physics": "QGSP"}, InvalidConfig, "option0"),
    ({"theta": "85deg"}, InvalidCondition, "between 0deg and 80deg"),
    ({"theta": "-5deg:5deg"}, InvalidCondition, "between 0deg and 80deg"),
    ({"theta": "0deg:30"}, InvalidCondition, "30deg"),
    ({"phi": "0deg:360deg"}, InvalidCondition, "normal incidence"),
    ({"cut_mm": -1.0}, InvalidConfig, "cut"),
    ({"cut_mm": float("nan")}, InvalidConfig, "cut"),
    ({"simulator": "geant5"}, InvalidConfig, "Known simulators: geant4"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_a_wrong_request_is_refused_at_once(tmp_path, monkeypatch, change, error, message):
    monkeypatch.setattr(run, "Workers", None)
    request = {"n": 1, "energy": "1GeV", "output": tmp_path / "run"} | change
    with pytest.raises(error, match=message):
        simulate(**request)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["missing/run.h5", "missing/run", "file/run", "file/run.h5", "folder.h5", "file"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_simulated(pretend, tmp_path, monkeypatch, output):
    (tmp_path / "file").touch()
    (tmp_path / "folder.h5").mkdir()
    monkeypatch.setattr(run, "Workers", None)
    with pytest.raises(OutputError, match=Path(output).name):
        simulate(1, "1GeV", output=tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.h5"]


class TestDataSets:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("G4EMLOW8.8/brem_SB", "G4ENSDFSTATE3.0", "PhotonEvaporation6.1"):
            (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data/G4ENSDFSTATE3.0/ENSDFSTATE.dat").touch()
        return tmp_path / "data"

    def test_are_found_in_one_folder(self, folder):
        found = find_data_sets({"GEANT4_DATA_DIR": str(folder), "HOME": "/nowhere"})
        assert found["G4LEDATA"] == str(folder / "G4EMLOW8.8")
        assert found["G4ENSDFSTATEDATA"] == str(folder / "G4ENSDFSTATE3.0")
        assert found["G4LEVELGAMMADATA"] == str(folder / "PhotonEvaporation6.1")
        assert found["GEANT4_DATA_DIR"] == str(folder)

    def test_are_found_where_geant4_pybind_downloads_them(self, folder, tmp_path):
        folder.rename(tmp_path / ".geant4_pybind")
        assert find_data_sets({"HOME": str(tmp_path)})["G4LEDATA"] == str(tmp_path / ".geant4_pybind/G4EMLOW8.8")

    def test_are_found_by_their_own_variables_first(self, folder, tmp_path):
        own = tmp_path / "own"
        (own / "brem_SB").mkdir(parents=True)
        found = find_data_sets({"G4LEDATA": str(own), "GEANT4_DATA_DIR": str(folder), "HOME": "/nowhere"})
        assert found["G4LEDATA"] == str(own)

    def test_of_a_geant4_installation_never_lead_to_a_download(self, folder):
        environment = {
            "G4LEDATA": str(folder / "G4EMLOW8.8"),
            "G4ENSDFSTATEDATA": str(folder / "G4ENSDFSTATE3.0"),
            "G4LEVELGAMMADATA": str(folder / "PhotonEvaporation6.1"),
            "CI": "true",
        }
        assert find_data_sets(environment)["GEANT4_DATA_DIR"] == str(folder)  # while set, geant4_pybind downloads nothing

    @pytest.mark.parametrize("data", DATA_SETS, ids=lambda data: data.variable)
    def test_that_are_missing_are_named_with_the_remedy(self, folder, data):
        (folder / next(path.name for pattern in data.directories for path in folder.glob(pattern))).rename(folder / "gone")
        with pytest.raises(MissingExtra, match=rf"{data.variable} is not set.*download"):
            find_data_sets({"GEANT4_DATA_DIR": str(folder), "HOME": "/nowhere"})

    def test_that_are_not_what_they_should_be_are_named(self, folder):
        with pytest.raises(MissingExtra, match=r"G4LEDATA=.*but .*brem_SB does not exist"):
            find_data_sets({"GEANT4_DATA_DIR": str(folder), "HOME": "/nowhere", "G4LEDATA": str(folder / "G4ENSDFSTATE3.0")})


def test_without_the_extra_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("minicarlo.simulators.geant4.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'minicarlo\[geant4\]'"):
        simulate(1, "1GeV", output=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


def test_geant4_is_a_simulator():
    assert isinstance(get_simulator("geant4"), Geant4Simulator)


class TestCommand:
    def test_prints_one_json_object(self, pretend, tmp_path):
        arguments = ["simulate", "-n", "3", "--energy", "1GeV:2GeV", "--seed", "9", "-o", str(tmp_path / "run.h5"), "--json"]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0 and done.stderr == ""
        result = json.loads(done.stdout)
        stable = {"events", "seconds", "events_per_second", "path", "files", "precision", "streams", "batch", "seed"}
        assert stable <= result.keys()
        assert (result["events"], result["seed"], result["files"]) == (3, 9, [str(tmp_path / "run.h5")])

    def test_shows_showers_per_second(self, pretend, tmp_path):
        done = CliRunner().invoke(main, ["simulate", "-n", "3", "--energy", "1GeV", "-o", str(tmp_path / "run.h5")])
        assert done.exit_code == 0 and done.stdout == ""
        assert "3 of 3 showers, " in done.stderr and "showers/s" in done.stderr and "left" not in done.stderr

    def test_shows_the_time_left(self, monkeypatch, capsys):
        monkeypatch.setattr(_common, "_SECONDS_BETWEEN_LINES", 0.0)
        with _common.progress_bar("Simulating", unit="showers", rate=True) as progress:
            progress(100, 1000)  # left by an interrupted run
            time.sleep(0.05)
            progress(400, 1000)
        first, second = capsys.readouterr().err.splitlines()
        assert first == "Simulating: 100 of 1,000 showers"
        found = re.fullmatch(r"Simulating: 400 of 1,000 showers, ([\d,]+) showers/s, ([\d.]+) (m?s) left", second)
        assert found is not None
        seconds = float(found[2]) * (1e-3 if found[3] == "ms" else 1)
        assert seconds == pytest.approx(600 / float(found[1].replace(",", "")), rel=0.02)

    def test_tells_a_mistake_in_one_paragraph(self, tmp_path):
        done = CliRunner().invoke(
            main, ["simulate", "-n", "3", "--energy", "1GeV", "--detector", "x", "-o", str(tmp_path / "run")]
        )
        assert done.exit_code == MinicarloError.exit_code == 2
        assert done.stderr.startswith("Error: Unknown detector 'x'") and "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_draws_where_the_simulator_has_no_tracks(self, pretend, tmp_path):
        arguments = ["simulate", "--energy", "1GeV", "--draw", str(tmp_path / "picture.png"), "--json"]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0 and json.loads(done.stdout) == {"path": str(tmp_path / "picture.png")}
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(["--draw", "picture.pdf"], "ends in .png"), (["-n", "3"], "-o"), (["-o", "run.h5"], "-n"), ([], "-n")],
    )
    def test_says_what_is_missing(self, pretend, arguments, message):
        done = CliRunner().invoke(main, ["simulate", "--energy", "1GeV", *arguments])
        assert done.exit_code == 2 and message in done.stderr

    def test_takes_the_detector_of_the_documentation(self, tmp_path):
        page = Path(__file__).parents[1] / "docs" / "geant4.md"
        (tmp_path / "my.toml").write_text(re.search(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)[1])
        assert read_detector(tmp_path / "my.toml").shape == (40, 15, 15)

    def test_help_shows_an_example(self):
        assert "minicarlo simulate -n 1000 --energy" in CliRunner().invoke(main, ["simulate", "--help"]).stdout
