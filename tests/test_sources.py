"""Lists of particles: what a file may hold, and what is refused before anything is simulated."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from minicarlo.detectors import CLIC_ECAL, get_detector
from minicarlo.errors import InvalidCondition
from minicarlo.events import EventSet, read_events, write_events
from minicarlo.simulators import ParticleList, Particles, read_particles, run, simulate
from minicarlo.simulators.data_sets import DATA_SETS

SHARED = os.environ.get("MINICARLO_SHARED")
SEVERAL = "event,particle,energy [MeV],x\n0,e-,1000,5.1\n0,gamma,20,-3\n1,e+,7,0\n"


@pytest.fixture
def write(tmp_path):
    def to(text):
        (tmp_path / "list.csv").write_text(text)
        return tmp_path / "list.csv"

    return to


class TestFile:
    def test_holds_the_particles_of_each_event(self, write):
        found = read_particles(write(SEVERAL), "e-")
        assert len(found) == 2 and found.names == ("e+", "e-", "gamma") and found.row(1) == 2
        particles, counts = found.particles(1, 0, 2)
        assert counts.tolist() == [2, 1] and particles.names.tolist() == ["e-", "gamma", "e+"]
        assert list(particles.rows())[1] == ("gamma", 20.0, -3.0, 0.0, 0.0, 0.0)
        conditions = found.conditions(particles, counts)
        assert {name: values.tolist() for name, values in conditions.items()} == {
            "incident_energy": [1020, 7],
            "particles": [2, 1],
        }
        assert found.particles(1, 1, 1)[0].names.tolist() == ["e+"]

    def test_needs_nothing_but_energies(self, write):
        found = read_particles(write("energy\n5\n\n6\n"), "gamma")
        particles, counts = found.particles(1, 0, 2)
        assert counts.tolist() == [1, 1] and particles.names.tolist() == ["gamma", "gamma"]
        assert found.conditions(particles, counts).keys() == {"incident_energy"}

    def test_of_single_particles_gives_the_conditions_that_vary(self, write):
        found = read_particles(write("energy,x,theta,phi\n5,0,0,0\n6,1,0.1,0\n"), "e-")
        names = found.conditions(*found.particles(1, 0, 1)).keys()
        assert names == {"incident_energy", "incident_x", "incident_theta"}  # in every shard, whatever it holds

    def test_may_be_an_event_set(self, tmp_path):
        conditions = {"incident_energy": np.array([5, 6]), "incident_theta": np.array([0.1, 0.2])}
        write_events(tmp_path / "events.h5", EventSet(conditions, np.zeros((2, 25, 25, 25)), CLIC_ECAL))
        particles, _ = read_particles(tmp_path / "events.h5", "e+").particles(1, 0, 2)
        assert list(particles.rows())[1][:4] == ("e+", 6.0, 0.0, 0.0) and particles.theta.tolist() == pytest.approx([0.1, 0.2])

    def test_must_not_be_an_event_set_of_sums(self, tmp_path):
        conditions = {"incident_energy": np.array([5, 6]), "particles": np.array([2, 1])}
        write_events(tmp_path / "events.h5", EventSet(conditions, np.zeros((2, 25, 25, 25)), CLIC_ECAL))
        with pytest.raises(InvalidCondition, match=r"several particles per event.*Give the CSV"):
            read_particles(tmp_path / "events.h5", "e-")

    def test_decides_what_a_run_is_recognised_by(self, write):
        requests = [
            read_particles(write(text), "e-").request()["conditions"]
            for text in (SEVERAL, SEVERAL.replace("1,e+", "0,e+"), SEVERAL.replace("e+", "e-"), SEVERAL.replace("5.1", "5.2"))
        ]
        assert len(set(requests)) == 4
        assert read_particles(write(SEVERAL), "gamma").request()["conditions"] == requests[0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "line 1: nothing are no columns"),
            ("event,x\n0,1\n", "line 1: event, x are no columns"),
            ("energy,z\n1,2\n", "line 1: energy, z"),
            ("energy,energy\n1,2\n", "line 1: energy, energy"),
            ("energy\n", "hold no particle"),
            ("energy\n1\nmuch\n", "line 3, column energy: a number is right"),
            ("energy,x\n1\n", "line 2, column x"),
            ("event,energy\n0.5,1\n", "line 2, column event: a number from 0 on"),
            ("event,energy\n1,1\n", "particle 0: event 1 is out of order"),
            ("event,energy\n0,1\n2,1\n", "particle 1: event 2 is out of order"),
            ("event,energy\n0,1\n1,1\n0,1\n", "particle 2: event 0 is out of order"),
        ],
    )
    def test_with_a_mistake_is_refused_with_its_line(self, write, text, message):
        with pytest.raises(InvalidCondition, match=message):
            read_particles(write(text), "e-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy\n1\n0\n", r"particle 1 \(event 1\): energy 0, .*above zero"),
        ("energy\nnan\n", "above zero"),
        ("energy\n1e40\n", "below 1e15"),
        ("energy,theta\n1,1.5\n", r"theta from 0 to 1\.396 rad \(80 degrees\)"),
        ("energy,phi\n1,inf\n", "finite phi"),
        ("event,energy,x\n0,1,0\n0,1,200\n", r"particle 1 \(event 0\).*within 200 mm"),
        ("energy,particle\n1,pi+\n", "Unknown particle 'pi\\+'"),
    ],
)
def test_a_particle_that_cannot_enter_is_refused_at_once(write, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(run, "Workers", None)
    with pytest.raises(Exception, match=message):
        simulate(conditions=write(text), output=tmp_path / "run.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"energy": "1GeV"}, "not both"),
        ({"theta": "3deg"}, "not both"),
        ({"n": 3}, "hold only 2"),
        ({"conditions": None}, "missing"),
    ],
)
def test_a_list_stands_for_energies_and_angles(write, tmp_path, request_, message):
    request = {"conditions": write(SEVERAL), "output": tmp_path / "run.h5"} | request_
    with pytest.raises(InvalidCondition, match=message):
        simulate(**request)


def test_a_list_is_made_of_arrays_too():
    zeros = np.zeros(3, np.float32)
    particles = Particles(np.array(["e-", "e-", "gamma"]), np.array([1, 2, 3], np.float32), zeros, zeros, zeros, zeros)
    listed = ParticleList(particles, np.array([1, 2]))
    listed.check(get_detector(CLIC_ECAL), "Particles")
    assert listed.conditions(*listed.particles(1, 0, 2))["incident_energy"].tolist() == [1, 5]
    assert len(listed.first(1)) == 1


@pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None, reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4 data sets"
)
class TestShowers:
    @pytest.fixture(autouse=True)
    def geant4(self, monkeypatch):
        for data in DATA_SETS:
            monkeypatch.delenv(data.variable, raising=False)
        monkeypatch.setenv("GEANT4_DATA_DIR", str(Path(SHARED, "geant4-data")))

    def test_of_an_event_set_are_simulated_again_to_the_last_bit(self, tmp_path):
        angles = {"theta": "0deg:30deg", "phi": "0deg:360deg", "seed": 3}
        simulate(6, "200MeV:1GeV", output=tmp_path / "beam.h5", **angles)
        simulate(conditions=tmp_path / "beam.h5", output=tmp_path / "again", seed=3, jobs=2, shard_size=4)
        beam, again = read_events(tmp_path / "beam.h5"), read_events(tmp_path / "again")
        assert beam.samples.any() and np.array_equal(beam.samples, again.samples)
        assert all(np.array_equal(values, again.conditions[name]) for name, values in beam.conditions.items())

    def test_of_several_particles_lie_where_each_of_them_entered(self, tmp_path, write):
        path = write("particle,event,energy,x,y\n" + "".join(f"e-,{i},800,-38,0\ne+,{i},400,38,38\n" for i in range(12)))
        simulate(conditions=path, output=tmp_path / "events.h5", seed=2, jobs=2)
        events = read_events(tmp_path / "events.h5")
        assert events.conditions["particles"].tolist() == [2] * 12 and events.incident_energy.tolist() == [1200] * 12
        plane = events.samples.sum(axis=(0, 1))
        x, y = np.meshgrid(*[(np.arange(25) - 12) * 5.1] * 2, indexing="ij")
        left, right = plane * (x < 0), plane * (x >= 0)
        assert 1.5 < left.sum() / right.sum() < 2.7  # 12 showers each: 2 within some 10 %
        for half, place in ((left, (-38, 0)), (right, (38, 38))):
            centre = [(half * axis).sum() / half.sum() for axis in (x, y)]
            assert np.hypot(*np.subtract(centre, place)) < 6  # mm: 1.2 cells; the edge of the window cuts the second
