"""Simulated showers against the theory of electromagnetic cascades, for both built-in detectors."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, get_detector
from minicarlo.events import read_events
from minicarlo.sampling import EnergyDistribution, event_seed
from minicarlo.simulators import Primaries, Setup, simulate
from minicarlo.simulators.geant4 import DATA_SETS, Geant4Simulator
from minicarlo.simulators.tasks import Task
from minicarlo.simulators.workers import Workers

SHARED = os.environ.get("MINICARLO_SHARED")
pytestmark = pytest.mark.skipif(
    not SHARED or find_spec("geant4_pybind") is None, reason="needs geant4-pybind, and MINICARLO_SHARED with Geant4 data sets"
)
EVENTS = {0.5: 120, 2.0: 60, 8.0: 20}
"""Showers by energy in GeV; `benchmarks/geant4.py physics` makes the same checks with more."""


@pytest.fixture(scope="module")
def physics():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module("shower_physics")
    sys.modules.pop("shower_physics")


@pytest.fixture(scope="module")
def data():
    with pytest.MonkeyPatch.context() as patch:
        for data in DATA_SETS:
            patch.delenv(data.variable, raising=False)
        patch.setenv("GEANT4_DATA_DIR", str(Path(SHARED, "geant4-data")))
        yield


@pytest.fixture(scope="module", params=[CLIC_ECAL, PAR04_SIW])
def showers(request, data, tmp_path_factory):
    """The detector and its electron showers by energy in GeV."""
    folder = tmp_path_factory.mktemp("showers")
    events = {}
    for gev, count in EVENTS.items():
        simulate(count, f"{gev}GeV", output=folder / f"{gev}.h5", detector=request.param, seed=3, jobs=2)
        events[gev] = read_events(folder / f"{gev}.h5")
    return get_detector(request.param), events


class TestElectrons:
    def test_see_as_many_radiation_lengths_as_geant4_counts(self, physics, showers):
        detector, events = showers
        lengths = physics.expected(detector).lengths * detector.layers
        assert lengths == pytest.approx(events[2.0].attributes["radiation_lengths"], rel=2e-3)

    def test_reach_their_maximum_deeper_by_one_radiation_length_per_factor_e(self, physics, showers):
        """t_max = ln(E/Ec) - 0.5: the slope is exact, the offset a rule of thumb for a homogeneous absorber."""
        detector, events = showers
        logs = [np.log(1e3 * gev / physics.expected(detector).critical) for gev in events]
        slope, offset = physics.fit_line(logs, [physics.shower_maximum(part) for part in events.values()])
        assert slope.error < 0.15 and abs(slope.value - 1) < 4 * slope.error
        middle = np.mean(logs)
        assert abs(slope.value * middle + offset.value - (middle - 0.5)) < 1

    def test_leave_energy_in_proportion_to_theirs(self, physics, showers):
        """Linear within 4 statistical errors and 3 %: what leaves at the back (16 radiation lengths) and through the sides."""
        responses = [physics.response(part) for part in showers[1].values()]
        mean = np.mean([response.value for response in responses])
        for response in responses:
            assert abs(response.value / mean - 1) < 0.03 + 4 * response.error / mean

    def test_are_measured_with_an_error_that_falls_with_the_root_of_their_energy(self, physics, showers):
        """16 % at 1 GeV with layers of 0.64 radiation lengths (CALICE, W and Si: 16.5 %), 12 % with layers of 0.40."""
        values = [physics.resolution(part) for part in showers[1].values()]
        stochastic, constant = physics.fit_resolution(list(showers[1]), values)
        usual = {CLIC_ECAL: 0.16, PAR04_SIW: 0.12}[showers[0].name]
        assert abs(stochastic.value - usual) < 0.02 + 4 * stochastic.error and stochastic.error < 0.02
        assert constant.value < 0.03 + 4 * constant.error
        chi2 = sum(
            ((value.value - np.hypot(stochastic.value / np.sqrt(gev), constant.value)) / value.error) ** 2
            for gev, value in zip(showers[1], values, strict=True)
        )
        assert chi2 < 15  # one degree of freedom: by chance once in 10,000

    def test_stay_to_90_percent_within_a_moliere_radius(self, physics, showers):
        detector, events = showers
        moliere = physics.expected(detector).moliere
        for part in events.values():
            radius = physics.radius_90(part)
            assert abs(radius.value / moliere - 1) < 0.35 + 4 * radius.error / moliere

    def test_leave_less_in_silicon_than_minimum_ionising_particles_would(self, physics, showers):
        """Soft electrons and photons end in the absorber: e/mip is 0.6 to 0.9 for tungsten (Wigmans, Calorimetry, ch. 3)."""
        detector, events = showers
        ratio = physics.sampling_fraction(events[2.0]).value / physics.expected(detector).mip_fraction
        assert 0.6 < ratio < 0.95


def test_the_default_production_cut_costs_hardly_any_energy_in_thin_sensors(physics, data, tmp_path):
    """The cut is in the range of secondaries; below 0.7 mm the sampling fraction stays within 3 % and 4 statistical errors."""
    fractions = []
    for cut in (0.1, 0.7):
        simulate(150, "500MeV", output=tmp_path / f"{cut}.h5", detector=PAR04_SIW, cut_mm=cut, seed=4, jobs=2)
        fractions.append(physics.sampling_fraction(read_events(tmp_path / f"{cut}.h5")))
    fine, usual = fractions
    assert abs(usual.value / fine.value - 1) < 0.03 + 4 * np.hypot(fine.error, usual.error) / fine.value


def test_memory_does_not_grow_with_the_number_of_events(data):
    """A leak of 100 bytes per hit or 1 kB per event would show: 4,000 events make 4 MB."""
    engine, setup = Geant4Simulator(), Setup(get_detector(CLIC_ECAL), ("e-",), "option0", 0.7)
    count, pages = 500, []
    with Workers(engine, setup, engine.prepare(setup), 1) as workers:
        tasks = [
            Task(
                start,
                Primaries.single(
                    "e-",
                    EnergyDistribution.parse("20MeV").sample(1, start, count),
                    np.array([event_seed(1, start + index) for index in range(count)]),
                ),
            )
            for start in range(0, 12 * count, count)
        ]
        (process,) = [worker.process.pid for worker in workers._workers.values()]
        for _ in workers.run(tasks):
            pages.append(int(Path(f"/proc/{process}/statm").read_text().split()[1]))
    grown = (pages[-1] - pages[3]) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 3e6
