"""Event sets in other formats: read back by the library of each format, cell by cell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from limits import files_at_most
from minicarlo.cli import main
from minicarlo.detectors import get_detector
from minicarlo.errors import InvalidConfig, InvalidEventSet, MissingExtra, OutputError
from minicarlo.events import EventSet, read_events, write_events
from minicarlo.formats import FORMATS, convert
from minicarlo.surrogate import sample_path

COUNT = 300
PAR04 = get_detector("par04-siw")


@pytest.fixture(scope="module")
def events() -> EventSet:
    """Real showers; one of them lost all its energy."""
    sample = read_events(sample_path(), stop=COUNT)
    sample.samples[7] = 0
    return sample


@pytest.fixture(scope="module")
def source(events: EventSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events") / "run"
    folder.mkdir()
    for number, start in enumerate(range(0, COUNT, 200)):
        write_events(folder / f"shard-{number:05d}.h5", events[start : start + 200])
    return folder


def dense(cells, energies, shape: tuple[int, ...]) -> np.ndarray:
    samples = np.zeros((len(cells), int(np.prod(shape))), np.float32)
    for row, (cell, energy) in enumerate(zip(cells, energies, strict=True)):
        samples[row, np.asarray(cell, int)] = energy
    return samples.reshape(len(cells), *shape)


def test_parquet_holds_the_same_energies(events, source, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    result = convert(source, tmp_path / "a.parquet", "parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    made = dense(table["cell"].to_pylist(), table["energy"].to_pylist(), (25, 25, 25))
    assert np.array_equal(made, events.samples)
    assert np.array_equal(table["incident_energy"].to_numpy(), events.incident_energy)
    assert json.loads(table.schema.metadata[b"minicarlo"])["detector"] == "clic-ecal"
    assert (result.events, result.hits) == (COUNT, np.count_nonzero(events.samples))


def test_root_holds_the_same_energies(events, source, tmp_path):
    uproot = pytest.importorskip("uproot")
    convert(source, tmp_path / "a.root", "root")
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["showers"].arrays()
        assert json.loads(str(file["minicarlo"]))["detector"] == "clic-ecal"
    assert np.array_equal(dense(tree["cell"], tree["energy"], (25, 25, 25)), events.samples)
    assert np.array_equal(tree["incident_energy"], events.incident_energy)


def test_points_are_read_by_showerdata(events, source, tmp_path):
    showerdata = pytest.importorskip("showerdata")
    convert(source, tmp_path / "points.h5", "points")
    showers = showerdata.load(str(tmp_path / "points.h5"))
    assert showers.points.shape == (COUNT, np.count_nonzero(events.samples.reshape(COUNT, -1), axis=1).max(), 4)
    assert np.array_equal(showers.energies[:, 0], events.incident_energy)
    layers = showerdata.observables.calc_energy_per_layer(showers, 25)
    assert np.allclose(layers, events.samples.sum((2, 3)), rtol=1e-5, atol=1e-6)
    x, y = get_detector("clic-ecal").transverse()
    columns = np.rint((showers.points[..., :2] - (x[0], y[0])) / 5.1).astype(int)
    cells = (showers.points[..., 2].astype(int) * 25 + columns[..., 0]) * 25 + columns[..., 1]
    hit = showers.points[..., 3] > 0
    made = dense(
        [c[h] for c, h in zip(cells, hit, strict=True)], [p[h, 3] for p, h in zip(showers.points, hit, strict=True)], (25,) * 3
    )
    assert np.array_equal(made, events.samples)


def test_directions_of_inclined_particles_are_kept(tmp_path):
    showerdata = pytest.importorskip("showerdata")
    angles = {"incident_theta": [0.0, np.pi / 2], "incident_phi": [0.0, np.pi / 2], "incident_energy": [1e3, 2e3]}
    samples = np.zeros((2, *PAR04.shape), np.float32)
    samples[:, 1, 1, 0] = 3.0
    write_events(tmp_path / "a.h5", EventSet(angles, samples, PAR04.name, {"particle": "gamma"}))
    convert(tmp_path / "a.h5", tmp_path / "points.h5", "points")
    showers = showerdata.load(str(tmp_path / "points.h5"))
    assert np.allclose(showers.directions, [[0, 0, 1], [0, 1, 0]], atol=1e-6) and set(showers.pdg) == {22}
    x, y = PAR04.transverse()
    assert np.allclose(showers.points[0, 0], [x[PAR04.shape[2]], y[PAR04.shape[2]], 1, 3])


@pytest.mark.parametrize("form", FORMATS)
def test_a_mistake_or_a_full_disk_leaves_nothing(source, tmp_path, form):
    with pytest.raises(InvalidEventSet, match="does not exist"):
        convert(tmp_path / "nothing.h5", tmp_path / "a", form)
    with files_at_most(20_000), pytest.raises(OutputError, match="Cannot write"):
        convert(source, tmp_path / "a", form)
    with pytest.raises(OutputError, match="create it first"):
        convert(source, tmp_path / "missing" / "a", form)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_and_a_missing_library_are_named(source, tmp_path, monkeypatch):
    with pytest.raises(InvalidConfig, match="points, parquet, root"):
        convert(source, tmp_path / "a", "csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "uproot", None)
    for form in ("parquet", "root"):
        with pytest.raises(MissingExtra, match=r"pip install 'minicarlo\[formats\]'"):
            convert(source, tmp_path / "a", form)
    assert list(tmp_path.iterdir()) == []


def test_the_command_converts(source, tmp_path):
    arguments = ["export", str(source), "--to", "points", "-o", str(tmp_path / "points.h5"), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0 and json.loads(done.stdout)["events"] == COUNT
