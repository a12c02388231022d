"""A surrogate inside Geant4: the same showers as outside, all else as without it, and every particle accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from minicarlo.cli import main
from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, Detector, get_detector, parse_detector, register_detector
from minicarlo.errors import InvalidCondition, InvalidConfig, OutputError, UnsupportedPrecision
from minicarlo.events import events_info, read_conditions, read_events
from minicarlo.generation import generate
from minicarlo.hybrid import SurrogateShowers, add_shifted
from minicarlo.sampling import EnergyDistribution
from minicarlo.simulators import Acceptance, run, simulate
from minicarlo.simulators.acceptance import FAST, FATES, whole_cells
from minicarlo.simulators.data_sets import DATA_SETS
from minicarlo.surrogate import Surrogate, save_surrogate
from small_surrogate import make_small_surrogate

SHARED = os.environ.get("MINICARLO_SHARED")
needs_geant4 = pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None, reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4 data sets"
)
CELL = 5.1  # mm
MIXED = f"""event,particle,energy [MeV],x [mm],y [mm],theta [rad]
0,e-,5000,0,0,0
0,e-,8000,{2 * CELL},{-CELL},0
0,gamma,300,0,0,0
1,e-,2000,{-12 * CELL},{12 * CELL},0
2,e-,1500,0,0,0.001
2,e+,400,0,0,0
2,e-,1500,0,{0.3 * CELL},0
2,e-,1500,0,0,0.1
2,e-,700,0,0,0
3,gamma,300,10,10,0
4,e-,1500,100,0,0
"""


@pytest.fixture(scope="module", autouse=True)
def geant4():
    with pytest.MonkeyPatch.context() as patch:
        for data in DATA_SETS:
            patch.delenv(data.variable, raising=False)
        if SHARED:
            patch.setenv("GEANT4_DATA_DIR", str(Path(SHARED, "geant4-data")))
        yield


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "particles.csv"
    path.write_text(MIXED)
    return path


@pytest.fixture(scope="module")
def mixed(listed):
    """Events of many particles, of which some take the fast path."""
    path = listed.parent / "fast.h5"
    result = simulate(conditions=listed, output=path, parameterisation=SurrogateShowers("clic-ecal"), seed=3)
    return result, read_events(path)


@needs_geant4
class TestShowers:
    @pytest.mark.parametrize("precision", ["fp32", "tuned"])
    def test_are_those_that_the_surrogate_generates(self, tmp_path, precision):
        fast = SurrogateShowers("clic-ecal", precision=precision)
        simulate(70, "1GeV:100GeV:log", output=tmp_path / "fast.h5", parameterisation=fast, seed=7)
        events = read_events(tmp_path / "fast.h5")
        plain = generate("clic-ecal", 70, "1GeV:100GeV:log", seed=7, precision=precision)
        assert np.array_equal(events.incident_energy, plain.incident_energy)
        assert np.array_equal(events.samples, plain.samples)

    @pytest.mark.parametrize(
        ("particle", "energy", "theta", "reason"),
        [("gamma", "1GeV:2GeV", "0deg", "type"), ("e-", "100MeV:900MeV", "0deg", "energy"), ("e-", "1GeV", "5deg", "angle")],
    )
    def test_of_what_the_surrogate_does_not_know_are_geant4s_to_the_last_bit(self, tmp_path, particle, energy, theta, reason):
        request = {"particle": particle, "theta": theta, "seed": 2}
        simulate(6, energy, output=tmp_path / "full.h5", **request)
        result = simulate(6, energy, output=tmp_path / "fast.h5", parameterisation=SurrogateShowers("clic-ecal"), **request)
        full, fast = read_events(tmp_path / "full.h5"), read_events(tmp_path / "fast.h5")
        assert full.samples.any() and np.array_equal(fast.samples, full.samples)
        assert result.fast["energy_fraction"] == 0 and result.fast[f"tracked_for_{reason}"] == 6
        assert all(np.array_equal(fast.conditions[name], values) for name, values in full.conditions.items())

    def test_lie_where_the_particles_entered_on_top_of_what_geant4_tracked(self, mixed, tmp_path):
        """The last particle of an event is tracked first, with the first random numbers of the event's seed."""
        (tmp_path / "alone.csv").write_text("particle,energy\ngamma,300\n")
        simulate(conditions=tmp_path / "alone.csv", output=tmp_path / "alone.h5", seed=3)
        expected = read_events(tmp_path / "alone.h5").samples[0]
        assert expected.any()
        first, second, _ = generate("clic-ecal", conditions=[5000.0, 8000.0, 1000.0], seed=3).samples
        expected += first
        expected[:, 2:, :-1] += second[:, :-2, 1:]
        assert np.array_equal(mixed[1].samples[0], expected)

    def test_at_the_edge_of_the_grid_lose_what_lies_outside(self, mixed):
        shower = generate("clic-ecal", conditions=[1000.0] * 3 + [2000.0], seed=3).samples[3]
        sample = mixed[1].samples[1]
        assert np.array_equal(sample[:, :13, 12:], shower[:, 12:, :13])
        assert not sample[:, 13:].any() and not sample[:, :, :12].any()

    def test_reach_no_other_event(self, mixed, listed, tmp_path):
        (tmp_path / "other.csv").write_text(listed.read_text().replace("5000", "9000").replace("1,e-,2000", "1,e-,3000"))
        fast = SurrogateShowers("clic-ecal")
        simulate(conditions=tmp_path / "other.csv", output=tmp_path / "other.h5", parameterisation=fast, seed=3)
        same = [np.array_equal(*pair) for pair in zip(read_events(tmp_path / "other.h5").samples, mixed[1].samples, strict=True)]
        assert same == [False, False, True, True, True]

    def test_do_not_depend_on_jobs_batches_or_shards(self, mixed, listed, tmp_path):
        fast = SurrogateShowers("clic-ecal", batch=8)
        simulate(conditions=listed, output=tmp_path / "run", parameterisation=fast, seed=3, jobs=2, shard_size=2)
        events = read_events(tmp_path / "run")
        assert np.array_equal(events.samples, mixed[1].samples)
        assert all(np.array_equal(values, mixed[1].conditions[name]) for name, values in events.conditions.items())
        simulate(2, conditions=listed, output=tmp_path / "few.h5", parameterisation=fast, seed=3)
        assert np.array_equal(read_events(tmp_path / "few.h5").samples, mixed[1].samples[:2])


@needs_geant4
class TestAccount:
    def test_holds_every_particle_and_all_energy(self, mixed):
        result, events = mixed
        found = {name: values.tolist() for name, values in events.conditions.items()}
        assert found["particles"] == [3, 1, 5, 1, 1]
        assert found["incident_energy"] == [13300, 2000, 5600, 300, 1500]
        assert found["fast_particles"] == [2, 1, 1, 0, 0]
        assert found["fast_energy"] == [13000, 2000, 1500, 0, 0]
        assert found["tracked_for_type"] == [1, 0, 1, 1, 0]
        assert found["tracked_for_energy"] == [0, 0, 1, 0, 0]
        assert found["tracked_for_angle"] == [0, 0, 1, 0, 0]
        assert found["tracked_for_position"] == [0, 0, 1, 0, 1]
        assert result.fast == {
            "energy_fraction": pytest.approx(16500 / 22700),
            "fast_particles": 4,
            "tracked_for_type": 3,
            "tracked_for_energy": 1,
            "tracked_for_angle": 1,
            "tracked_for_position": 2,
        }
        assert events.attributes["fast_energy_fraction"] == pytest.approx(16500 / 22700)

    def test_covers_what_an_interrupted_run_had_left(self, listed, mixed, tmp_path):
        request = {"conditions": listed, "output": tmp_path / "run", "seed": 3, "shard_size": 2}
        simulate(**request, parameterisation=SurrogateShowers("clic-ecal"))
        (tmp_path / "run" / "shard-00001.h5").unlink()
        result = simulate(**request, parameterisation=SurrogateShowers("clic-ecal"))
        assert result.resumed == 3 and result.fast == mixed[0].fast
        with pytest.raises(OutputError, match="another run: precision 'tuned', not 'fp32'"):
            simulate(**request, parameterisation=SurrogateShowers("clic-ecal", precision="fp32"))
        with pytest.raises(OutputError, match="another run: generator"):
            simulate(**request)

    def test_names_the_surrogate_and_what_was_accepted(self, mixed):
        found = mixed[1].attributes
        assert "surrogate clic-ecal" in found["generator"] and len(found["surrogate_hash"]) == 64
        assert (found["precision"], found["fast_particles_accepted"], found["fast_offset_cells"]) == ("tuned", "e-", 0.05)
        assert (found["fast_low_mev"], found["fast_high_mev"]) == (1000, 100_000)
        assert found["seconds"] > 0 and found["generator"].startswith("Geant4")
        assert found["energy_distribution"].startswith("11 given particles in 5 events, sha256 ")


def _exact_surrogate(folder: Path, detector: Detector) -> Surrogate:
    """A surrogate that puts all incident energy into the four cells around the axis in the first layer."""
    share = np.zeros(detector.shape, np.float32)
    share[0, 1:3, 1:3] = 0.25
    constants = {"share": share.reshape(1, -1), "axes": np.array([1]), "zero": np.zeros(1, np.float32)}
    constants["shape"] = np.array([-1, *detector.shape])
    nodes = [
        helper.make_node("ReduceSum", ["latent", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["incident_energy", "nothing"], ["energy"]),
        helper.make_node("MatMul", ["energy", "share"], ["cells"]),
        helper.make_node("Reshape", ["cells", "shape"], ["showers"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes])
        for name, sizes in (("latent", [4]), ("incident_energy", [1]), ("showers", detector.shape))
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "exact", ports[:2], ports[2:], weights)
    return save_surrogate(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString(),
        name="exact",
        generator="shower2d",
        conditions={"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}},
        latent_size=4,
        sample_shape=detector.shape,
        detector=detector.name,
        readout_threshold_mev=0.0,
        training={"particle": "e-"},
    )


@needs_geant4
def test_all_energy_that_enters_a_total_absorber_is_found_whichever_way_it_took(tmp_path):
    """A metre of lead in a grid whose centre is a corner of cells. Of what Geant4 tracks, up to 3 % leave at the front."""
    layers = [{"material": "G4_Pb", "mm": 100, "read_out": True}]
    description = {"name": "lead", "grid": "cartesian", "cells": [10, 4, 4], "cell_mm": 300, "plate_mm": 2000, "layers": layers}
    detector = register_detector(parse_detector(description))
    fast = SurrogateShowers(_exact_surrogate(tmp_path / "exact", detector))
    (tmp_path / "list.csv").write_text(
        "event,particle,energy,x,y\n0,e-,5000,300,-300\n0,e-,900,0,0\n0,gamma,800,0,0\n1,e-,7000,600,0\n1,e-,2000,150,150\n"
    )
    simulate(conditions=tmp_path / "list.csv", output=tmp_path / "run.h5", detector=detector, parameterisation=fast, cut_mm=10)
    events = read_events(tmp_path / "run.h5")
    first, second = events.samples
    assert 5000 + 0.97 * 1700 < first.sum() < 5000 + 1700.5
    assert np.all(first[0, 2:, :2] >= 1250)  # moved by a cell in x and one back in y
    assert 3500 + 0.97 * 2000 < second.sum() < 3500 + 2000.5  # entered at the edge: half of it lies outside
    assert events.conditions["fast_energy"].tolist() == [5000, 7000]
    assert events.conditions["tracked_for_position"].tolist() == [0, 1]


@needs_geant4
def test_a_killed_run_goes_on_and_ends_with_the_same_events(tmp_path):
    command = [sys.executable, "-m", "minicarlo.cli", "simulate", "-n", "1200", "--shard-size", "100", "--jobs", "2", "-o", "run"]
    command += ["--energy", "900MeV:100GeV", "--seed", "5", "--fast", "clic-ecal", "--fast-above", "1.1GeV"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("run/shard-*.h5"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["shards"]
    whole = {name: (tmp_path / "run" / name).read_bytes() for name in recorded}
    assert 1 <= len(whole) < 12
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["resumed"] == 100 * len(whole) and result["fast"]["tracked_for_energy"] > 0
    assert all((tmp_path / "run" / name).read_bytes() == content for name, content in whole.items())
    fast = SurrogateShowers("clic-ecal", above="1.1GeV")
    simulate(300, "900MeV:100GeV", output=tmp_path / "begin.h5", parameterisation=fast, seed=5)
    begin = read_events(tmp_path / "begin.h5")
    resumed = read_events(tmp_path / "run", stop=300)
    assert np.array_equal(begin.samples, resumed.samples) and np.array_equal(begin.incident_energy, resumed.incident_energy)
    wanted = EnergyDistribution.parse("900MeV:100GeV").sample(5, 0, 1200)
    assert np.array_equal(read_conditions(tmp_path / "run")["incident_energy"], wanted)


@given(st.integers(-30, 30), st.integers(-30, 30))
def test_a_shower_moves_by_whole_cells_and_loses_only_what_leaves_the_grid(dx, dy):
    shower = np.random.default_rng(0).random((2, 25, 25), np.float32)
    sample = np.zeros_like(shower)
    add_shifted(sample, shower, (dx, dy))
    wide = np.zeros((2, 125, 125), np.float32)
    wide[:, 50 + dx : 75 + dx, 50 + dy : 75 + dy] = shower
    assert np.array_equal(sample, wide[:, 50:75, 50:75])


class TestAcceptance:
    clic, rings = get_detector(CLIC_ECAL), get_detector(PAR04_SIW)
    accepted = Acceptance(("e-", "e+"), 1e3, 1e5, 0.01, 0.2)

    @given(st.integers(-12, 12), st.integers(-12, 12), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
    def test_takes_what_enters_near_the_centre_of_any_cell(self, i, j, dx, dy):
        x, y = float(np.float32((i + dx) * CELL)), float(np.float32((j + dy) * CELL))
        assert whole_cells(self.clic, x, y) == (i, j)
        assert self.accepted.fate(self.clic, "e-", 2e3, x, y, 0.0) == FAST

    @given(st.floats(-63, 63), st.floats(-63, 63), st.floats(0.21, 0.5), st.booleans())
    def test_leaves_what_enters_between_cells_or_beside_the_grid(self, x, y, between, swapped):
        here = (round(x / CELL) + between) * CELL
        for wrong in (here, 13 * CELL, -13 * CELL):
            place = (y, wrong) if swapped else (wrong, y)
            assert FATES[self.accepted.fate(self.clic, "e+", 2e3, *place, 0.0)] == "position"

    def test_of_rings_is_their_axis(self):
        assert self.accepted.fate(self.rings, "e-", 2e3, 0.9, -0.9, 0.0) == FAST
        assert FATES[self.accepted.fate(self.rings, "e-", 2e3, 4.65, 0.0, 0.0)] == "position"

    @pytest.mark.parametrize(
        ("particle", "energy", "theta", "reason"),
        [
            ("gamma", 2e3, 0, "type"),
            ("gamma", 10, 1, "type"),
            ("e-", 999, 0, "energy"),
            ("e-", 100_001, 0, "energy"),
            ("e-", 1e3, 0.011, "angle"),
            ("e-", 1e3, 0.01, "fast"),
            ("e+", 1e5, 0, "fast"),
        ],
    )
    def test_gives_the_first_reason(self, particle, energy, theta, reason):
        assert FATES[self.accepted.fate(self.clic, particle, energy, 0.0, 0.0, theta)] == reason


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"precision": "int4"}, UnsupportedPrecision, "no precision 'int4'. Choose fp32, bf16, tuned"),
            ({"above": "500MeV"}, InvalidCondition, "between 1000 and 100000 MeV"),
            ({"above": "1GeV:2GeV"}, InvalidCondition, "one energy"),
            ({"offset": 0.6}, InvalidConfig, "between 0 and 0.5 cells, not 0.6"),
            ({"angle": "0deg:5deg"}, InvalidCondition, "largest angle"),
        ],
    )
    def test_in_the_options_are_told(self, change, error, message):
        with pytest.raises(error, match=message):
            SurrogateShowers("clic-ecal", **change)

    def test_a_surrogate_that_hides_what_it_was_trained_on_needs_the_particles(self, tmp_path):
        make_small_surrogate(tmp_path / "small")
        with pytest.raises(InvalidConfig, match="does not say whose showers"):
            SurrogateShowers(tmp_path / "small")
        assert SurrogateShowers(tmp_path / "small", particles=("e+", "e-")).acceptance.particles == ("e+", "e-")

    @needs_geant4
    def test_in_the_particles_are_refused_before_anything_is_simulated(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "Workers", None)
        with pytest.raises(InvalidConfig, match="Unknown particle 'mu-'"):
            simulate(1, "1GeV", output=tmp_path / "run", parameterisation=SurrogateShowers("clic-ecal", particles=("e-", "mu-")))
        assert list(tmp_path.iterdir()) == []

    def test_of_another_detector_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "Workers", None)
        with pytest.raises(InvalidConfig, match="those of detector clic-ecal, not par04-siw"):
            simulate(1, "1GeV", output=tmp_path / "run", detector=PAR04_SIW, parameterisation=SurrogateShowers("clic-ecal"))
        assert list(tmp_path.iterdir()) == []


class TestCommand:
    @needs_geant4
    def test_tells_which_way_the_energy_took(self, listed, mixed, tmp_path):
        arguments = [
            "simulate",
            "--conditions",
            str(listed),
            "--fast",
            "clic-ecal",
            "--seed",
            "3",
            "-o",
            str(tmp_path / "run.h5"),
        ]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.stderr
        assert "4 particles with 72.7% of the energy took the fast path; tracked: 3 for their type, 1 for" in done.stderr
        assert np.array_equal(read_events(tmp_path / "run.h5").samples, mixed[1].samples)
        assert events_info(tmp_path / "run.h5")["conditions"]["fast_energy"]["high"] == 13000
        more = [*arguments[:-1], str(tmp_path / "more.h5"), "--fast-offset", "0.3", "--fast-angle", "6deg", "--json"]
        done = CliRunner().invoke(main, [*more, "--fast-particles", "e-,e+", "--precision", "fp32", "--fast-above", "1.6GeV"])
        assert json.loads(done.stdout)["fast"] == {
            "energy_fraction": pytest.approx(15000 / 22700),
            "fast_particles": 3,
            "tracked_for_type": 2,
            "tracked_for_energy": 6,
            "tracked_for_angle": 0,
            "tracked_for_position": 0,
        }

    def test_needs_an_energy_or_conditions(self, tmp_path):
        done = CliRunner().invoke(main, ["simulate", "-n", "3", "-o", str(tmp_path / "run.h5")])
        assert done.exit_code == 2 and "'--energy' or '--conditions'" in done.stderr

    @pytest.mark.parametrize("option", [["--precision", "fp32"], ["--fast-offset", "0.1"], ["--fast-above", "5GeV"]])
    def test_takes_no_options_of_a_surrogate_without_one(self, option, tmp_path):
        done = CliRunner().invoke(main, ["simulate", "-n", "3", "--energy", "1GeV", "-o", str(tmp_path / "run.h5"), *option])
        assert done.exit_code == 2 and "those of '--fast', which is missing" in done.stderr
