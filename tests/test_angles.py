"""Showers of inclined particles, really simulated: judged in bins of the angles of incidence, and the bin that is wrong named."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicarlo.cli._scorecard import summary
from minicarlo.errors import IncompatibleEventSets
from minicarlo.events import PHI, THETA, EventSet, read_events
from minicarlo.fidelity import DIFFERS, Measured, Scorecard, compare, measure
from minicarlo.report.inputs import History
from minicarlo.report.sections import sections
from minicarlo.simulators import simulate

SHARED = os.environ.get("MINICARLO_SHARED", "")
QUICK = {"permutations": 99, "bootstrap": 10}

pytestmark = pytest.mark.skipif(
    not SHARED or importlib.util.find_spec("geant4_pybind") is None, reason="needs Geant4 and MINICARLO_SHARED with its data"
)


def inclined(folder: Path, seed: int) -> EventSet:
    path = folder / f"{seed}.h5"
    simulate(1000, "200MeV:400MeV:log", output=path, seed=seed, theta="0deg:30deg", phi="-180deg:180deg")
    return read_events(path)


@pytest.fixture(scope="module")
def showers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EventSet, EventSet]]:
    folder = tmp_path_factory.mktemp("inclined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEANT4_DATA_DIR", str(Path(SHARED, "geant4-data")))
        yield inclined(folder, 1), inclined(folder, 2)


@pytest.fixture(scope="module")
def reference(showers: tuple[EventSet, EventSet]) -> Measured:
    return measure(showers[0])


@pytest.fixture(scope="module")
def wrong(showers: tuple[EventSet, EventSet], reference: Measured) -> Scorecard:
    """Beyond 24 degrees a fifth too much energy."""
    factor = np.where(showers[1].conditions[THETA] > np.radians(24), 1.2, 1.0).astype(np.float32)
    planted = replace(showers[1], samples=showers[1].samples * factor[:, None, None, None])
    return compare(reference, measure(planted), **QUICK)


def test_showers_of_the_same_angles_do_not_differ(showers: tuple[EventSet, EventSet], reference: Measured) -> None:
    card = compare(reference, measure(showers[1]), **QUICK)
    assert card.differing == []
    angles = card.observables["centre_x"].angles
    assert angles is not None and set(angles) == {THETA, PHI}
    for found, low, high in ((angles[THETA], 0, np.radians(30)), (angles[PHI], -np.pi, np.pi)):
        assert len(found.bins) == 5 and sum(one.events for one in found.bins) > 900
        assert found.bins[0].low == pytest.approx(low, abs=0.02) and found.bins[-1].high == pytest.approx(high, abs=0.02)
        assert all(one.verdict != DIFFERS and one.wasserstein is not None for one in found.bins)


def test_the_wrong_angle_is_named(wrong: Scorecard) -> None:
    score = wrong.observables["response"]
    assert score.verdict == DIFFERS and score.angles is not None
    found = score.angles[THETA]
    assert found.worst_bin == 4 and found.bins[4].verdict == DIFFERS
    assert all(one.verdict != DIFFERS for one in found.bins[:3])
    assert "theta 24-30°" in summary(wrong)
    assert Scorecard.from_dict(wrong.to_dict()) == wrong


def test_the_report_shows_the_angles(wrong: Scorecard) -> None:
    (found,) = [part for part in sections({"wrong": wrong}, "Geant4", None, History(), None) if part.title == "By angle"]
    assert [plot.title for group in found.groups for plot in group.plots] == ["wrong, angle to the normal", "wrong, azimuth"]


def test_other_angles_are_refused(showers: tuple[EventSet, EventSet], reference: Measured) -> None:
    upright = replace(showers[1], conditions={"incident_energy": showers[1].incident_energy})
    with pytest.raises(IncompatibleEventSets, match="reference 0.* to 29.9.* degrees, candidate 0 to 0 degrees"):
        compare(reference, measure(upright), **QUICK)
    steep = showers[1][showers[1].conditions[THETA] < np.radians(20)]
    with pytest.raises(IncompatibleEventSets, match="angles of incidence"):
        compare(reference, measure(steep), **QUICK)
