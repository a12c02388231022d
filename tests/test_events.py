from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from limits import files_at_most
from minicarlo.errors import IncompatibleEventSets, InvalidEventSet, OutputError, UnknownDetector
from minicarlo.events import EventSet, concatenate, events_info, iterate_events, read_events, write_events
from small_events import make_events


def same(first: EventSet, second: EventSet) -> bool:
    return (
        first.samples.tobytes() == second.samples.tobytes()
        and first.conditions.keys() == second.conditions.keys()
        and all(first.conditions[name].tobytes() == second.conditions[name].tobytes() for name in first.conditions)
        and first.detector == second.detector
    )


@pytest.mark.parametrize("compression", ["gzip", None])
@pytest.mark.parametrize("count", [0, 1, 5, 130])  # none, one, part of a chunk, two chunks and a part
def test_what_is_written_is_read(tmp_path: Path, count: int, compression: str | None) -> None:
    events = make_events(count)
    write_events(tmp_path / "a.h5", events, compression=compression)
    read = read_events(tmp_path / "a.h5")
    assert same(read, events) and len(read) == count
    assert read.attributes.items() >= events.attributes.items()
    assert os.listdir(tmp_path) == ["a.h5"]


def test_attributes_keep_their_types(tmp_path: Path) -> None:
    events = make_events(1)
    events.attributes = {
        "text": "\u00b5 = 1",
        "empty": "",
        "int": 2**40,
        "float": 0.1,
        "flag": True,
        "texts": ["a", "bcd"],
        "ints": [1, 2],
    }
    write_events(tmp_path / "a.h5", events)
    read = read_events(tmp_path / "a.h5").attributes
    assert {name: read[name] for name in events.attributes} == events.attributes


def test_files_are_in_calochallenge_format(tmp_path: Path) -> None:
    events = make_events(3)
    write_events(tmp_path / "a.h5", events)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["incident_energies"].shape == (3, 1) and file["incident_energies"].dtype == np.float32
        assert file["showers"].shape == (3, 15625) and file["showers"].dtype == np.float32
        assert file["theta"].shape == (3, 1)
        assert file["showers"].compression == "gzip"
        z, x, y = 7, 3, 19
        np.testing.assert_array_equal(file["showers"][:, (z * 25 + x) * 25 + y], events.samples[:, z, x, y])
        assert file.attrs["detector"].decode() == "clic-ecal"


def test_cylindrical_showers_are_in_calochallenge_format(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    samples = random.random((3, 45, 16, 9)).astype(np.float32)
    events = EventSet({"incident_energy": np.full(3, 1e4)}, samples, "par04-siw")
    write_events(tmp_path / "a.h5", events)
    z, phi, r = 44, 3, 7
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["showers"].shape == (3, 6480)
        np.testing.assert_array_equal(file["showers"][:, (z * 16 + phi) * 9 + r], samples[:, z, phi, r])
        assert file.attrs["shape"].decode() == "45,16,9 = z,phi,r ; flat index = (iz*16+iphi)*9+ir"
        assert "cell_size_mm" not in file.attrs and file.attrs["cell_size_mm_rad_mm"][1] == pytest.approx(np.pi / 8)
    read = read_events(tmp_path / "a.h5")
    assert read.detector == "par04-siw" and same(read, events)
    assert events_info(tmp_path / "a.h5")["sample_shape"] == [45, 16, 9]


def test_files_of_data_set_2_are_known_by_their_number_of_voxels(tmp_path: Path) -> None:
    read = read_events(plain(tmp_path / "dataset_2_1.hdf5", showers=np.ones((4, 6480), "f4")))
    assert read.detector == "par04-siw" and read.samples.shape == (4, 45, 16, 9)


def test_the_same_events_make_the_same_bytes_at_any_time_under_any_name(tmp_path: Path) -> None:
    write_events(tmp_path / "a.h5", make_events(70))
    time.sleep(1.1)  # HDF5 counts in seconds
    write_events(tmp_path / "b.h5", make_events(70))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten events in three shards."""
    path = tmp_path_factory.mktemp("run")
    events = make_events(10)
    for number, rows in enumerate([slice(0, 4), slice(4, 8), slice(8, 10)]):
        write_events(path / f"shard-{number:05d}.h5", events[rows])
    (path / "run.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 4), (3, 9), (4, 8), (9, 10), (9, 99), (-2, None), (5, 5), (8, 2), (50, 60)]
)
def test_part_of_a_file_or_folder_is_what_a_slice_would_be(folder: Path, start: int, stop: int | None) -> None:
    expected = make_events(10)[start:stop]
    assert same(read_events(folder, start=start, stop=stop), expected)
    write_events(folder.parent / "whole.h5", make_events(10))
    assert same(read_events(folder.parent / "whole.h5", start=start, stop=stop), expected)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_iteration_yields_every_event_once_in_order(folder: Path, chunk: int) -> None:
    pieces = list(iterate_events(folder, chunk))
    assert max(map(len, pieces)) <= chunk
    assert same(concatenate(pieces), make_events(10))


def test_info_of_a_folder_adds_its_shards_up(folder: Path) -> None:
    info = events_info(folder)
    energy = make_events(10).incident_energy
    assert info["count"] == 10 and info["files"] == 3
    assert info["detector"] == "clic-ecal" and info["sample_shape"] == [25, 25, 25] and info["unit"] == "MeV"
    assert info["conditions"]["incident_energy"] == {
        "unit": "MeV",
        "low": float(energy.min()),
        "high": float(energy.max()),
    }
    assert info["attributes"]["seconds"] == pytest.approx(1.5)
    assert info["attributes"]["seconds_per_event"] == pytest.approx(0.15)


def test_a_folder_without_shards_or_with_a_gap_or_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidEventSet, match="no files shard"):
        read_events(tmp_path)
    shard = folder / "shard-00000.h5"
    (tmp_path / "shard-00001.h5").write_bytes(shard.read_bytes())
    with pytest.raises(InvalidEventSet, match="shard-00000.h5 is missing"):
        read_events(tmp_path)
    (tmp_path / "shard-00000.h5").symlink_to(shard)
    with pytest.raises(InvalidEventSet, match="link"):
        events_info(tmp_path)


def test_events_are_picked_by_slice_index_and_mask() -> None:
    events = make_events(6)
    assert same(events[[5, 1]], concatenate([events[5], events[1]]))
    assert same(events[events.conditions["theta"] > 0], events[np.flatnonzero(events.conditions["theta"] > 0)])
    assert len(events[2]) == 1


def test_joined_sets_keep_what_they_share_and_list_their_seeds() -> None:
    joined = concatenate([make_events(2, seed=3), make_events(3, seed=4)])
    assert len(joined) == 5
    assert joined.attributes == {"generator": "a test", "seed": [3, 4], "seconds": 3.0, "seconds_per_event": 0.6}


def test_sets_with_other_conditions_or_none_at_all_cannot_be_joined() -> None:
    events, other = make_events(2), make_events(2)
    del other.conditions["theta"]
    with pytest.raises(IncompatibleEventSets, match="theta"):
        concatenate([events, other])
    with pytest.raises(IncompatibleEventSets):
        concatenate([])


def test_shapes_that_do_not_fit_are_refused_in_memory() -> None:
    energy, samples = np.ones(2), np.zeros((2, 25, 25, 25))
    with pytest.raises(InvalidEventSet, match=r"\(N, 25, 25, 25\)"):
        EventSet({"incident_energy": energy}, np.zeros((2, 15625)), "clic-ecal")
    with pytest.raises(InvalidEventSet, match="incident_energy"):
        EventSet({}, samples, "clic-ecal")
    with pytest.raises(InvalidEventSet, match=r"\(2, 1\).*\(2,\) is right"):
        EventSet({"incident_energy": energy[:, None]}, samples, "clic-ecal")
    with pytest.raises(InvalidEventSet, match=r"\(2, 25, 25, 25\) do not fit detector par04-siw: \(N, 45, 16, 9\) is right"):
        EventSet({"incident_energy": energy}, samples, "par04-siw")
    with pytest.raises(UnknownDetector):
        EventSet({"incident_energy": energy}, samples, "elsewhere")


def plain(path: Path, count: int = 4, **change: object) -> Path:
    """A CaloChallenge file as others write it, with datasets replaced, added or (None) left out."""
    datasets: dict[str, object] = {
        "incident_energies": np.full((count, 1), 1e4, "f4"),
        "showers": np.zeros((count, 15625), "f4"),
    }
    with h5py.File(path, "w") as file:
        for name, value in (datasets | change).items():
            if value is not None:
                file[name] = value
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i4", "u2"])
def test_any_plain_numbers_are_read_and_the_detector_is_inferred(tmp_path: Path, dtype: str) -> None:
    values = np.arange(4 * 15625).reshape(4, 15625) % 100
    read = read_events(plain(tmp_path / "a.h5", showers=values.astype(dtype), incident_energies=np.arange(1, 5, dtype="f8")))
    assert read.detector == "clic-ecal"
    np.testing.assert_array_equal(read.samples.reshape(4, -1), values)
    np.testing.assert_array_equal(read.incident_energy, [1, 2, 3, 4])


def test_what_is_not_one_number_per_event_is_no_condition(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.h5", phi=np.ones((4, 1)), edges=np.ones((7, 2)))
    with h5py.File(path, "a") as file:
        file.create_group("notes")["incident_energies"] = 3
    assert read_events(path).conditions.keys() == {"incident_energy", "phi"}


def showers_with(value: float) -> np.ndarray:
    showers = np.zeros((4, 15625))
    showers[2, 77] = value
    return showers


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no energies": ({"incident_energies": None}, "no dataset 'incident_energies'.*showers"),
    "no showers": ({"showers": None}, "no dataset 'showers'"),
    "showers is a group": ({"showers": None, "showers/a": 1}, "no dataset 'showers'"),
    "showers not flat": ({"showers": np.zeros((4, 25, 25, 25))}, r"'showers'.*\(4, 25, 25, 25\).*\(N, voxels\)"),
    "no voxels": ({"showers": np.zeros((4, 0))}, r"'showers'.*\(4, 0\)"),
    "a scalar": ({"showers": 1.0}, "'showers'.*"),
    "other voxels": ({"showers": np.zeros((4, 368))}, "'showers'.*368.*clic-ecal have 15625.*par04-siw have 6480"),
    "fewer energies": ({"incident_energies": np.ones((3, 1))}, r"'incident_energies'.*\(3, 1\).*\(4, 1\)"),
    "wide energies": ({"incident_energies": np.ones((4, 2))}, r"'incident_energies'.*\(4, 2\).*\(4, 1\)"),
    "NaN in a shower": ({"showers": showers_with(np.nan)}, "'showers': event 2 holds nan"),
    "infinite shower": ({"showers": showers_with(np.inf)}, "'showers': event 2 holds inf"),
    "beyond float32": ({"showers": showers_with(1e300)}, "'showers': event 2 holds inf"),
    "negative shower": ({"showers": showers_with(-1e-3)}, r"'showers': event 2 holds -0.001"),
    "NaN energy": ({"incident_energies": [[1], [np.nan], [1], [1]]}, "'incident_energies': event 1 holds nan"),
    "negative energy": ({"incident_energies": [[1], [1], [1], [-5]]}, "'incident_energies': event 3 holds -5"),
    "zero energy": ({"incident_energies": [[0], [1], [1], [1]]}, "'incident_energies': event 0 holds 0"),
    "huge energy": ({"incident_energies": [[1e300], [1], [1], [1]]}, "'incident_energies': event 0 holds inf"),
    "NaN condition": ({"theta": [[1], [1], [np.nan], [1]]}, "'theta': event 2 holds nan"),
    "odd condition": ({"<script>": np.ones((4, 1))}, "<script>.*cannot name"),
    "text": ({"showers": ["a", "b", "c", "d"]}, "'showers'.*not plain numbers"),
    "complex": ({"showers": np.zeros((4, 15625), "c8")}, "'showers'.*not plain numbers"),
    "flags": ({"showers": np.zeros((4, 15625), bool)}, "'showers'.*not plain numbers"),
    "no dataspace": ({"showers": h5py.Empty("f4")}, "'showers'.*not an array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_by_name_dataset_and_remedy(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    path = plain(tmp_path / "wrong.h5", **change)
    with pytest.raises(InvalidEventSet, match=message) as caught:
        read_events(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidEventSet):
        list(iterate_events(path, 1))


@pytest.mark.parametrize(("name", "error"), [("elsewhere", UnknownDetector), ("", UnknownDetector), (3, UnknownDetector)])
def test_an_unknown_detector_in_a_file_is_named_with_the_file(tmp_path: Path, name: object, error: type[Exception]) -> None:
    path = plain(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.attrs["detector"] = name
    with pytest.raises(error, match="a.h5.*'detector'.*Known detectors: clic-ecal"):
        events_info(path)


def not_there(path: Path) -> None:
    pass


def not_hdf5(path: Path) -> None:
    path.write_text("incident_energies,showers\n")


def empty(path: Path) -> None:
    path.touch()


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_there, "does not exist"),
        (not_hdf5, "not an HDF5 file"),
        (empty, "not an HDF5 file"),
        (pipe, "is not a file"),
    ],
)
def test_what_is_no_hdf5_file_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "a.h5"
    make(path)
    for read in (read_events, events_info, lambda path: list(iterate_events(path))):
        with pytest.raises(InvalidEventSet, match=f"a.h5.*{message}"):
            read(path)


@pytest.mark.parametrize("compression", ["gzip", None])
@pytest.mark.parametrize("part", [0.002, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float, compression: str | None) -> None:
    write_events(tmp_path / "a.h5", make_events(5), compression=compression)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(part * len(data))])
    with pytest.raises(InvalidEventSet, match="a.h5"):
        read_events(tmp_path / "a.h5")


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_impossible_values_are_never_written(tmp_path: Path, value: float) -> None:
    events = make_events(3)
    events.samples[1, 2, 3, 4] = value
    with pytest.raises(InvalidEventSet, match="a.h5, dataset 'showers': event 1"):
        write_events(tmp_path / "a.h5", events)
    assert os.listdir(tmp_path) == []


def test_conditions_and_attributes_that_hdf5_cannot_hold_are_refused(tmp_path: Path) -> None:
    events = make_events(2)
    events.conditions["a/b"] = events.conditions.pop("theta")
    with pytest.raises(InvalidEventSet, match="a/b"):
        write_events(tmp_path / "a.h5", events)
    events = make_events(2)
    events.attributes["long"] = "x" * 100_000
    with pytest.raises(InvalidEventSet, match="'long'.*shorten"):
        write_events(tmp_path / "a.h5", events)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [100, 5_000, 60_000])
def test_a_full_disk_leaves_no_half_written_set(tmp_path: Path, limit: int) -> None:
    with files_at_most(limit), pytest.raises(OutputError, match="a.h5"):
        write_events(tmp_path / "a.h5", make_events(50))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif("MINICARLO_SHARED" not in os.environ, reason="MINICARLO_SHARED names no folder with reference data")
@pytest.mark.parametrize(("name", "count"), [("test", 10_000), ("validation", 5_000), ("train-0", 15_000)])
def test_the_geant4_reference_is_read(name: str, count: int) -> None:
    path = Path(os.environ["MINICARLO_SHARED"], "data", f"{name}.h5")
    info = events_info(path)
    assert info["count"] == count and info["detector"] == "clic-ecal"
    assert info["attributes"]["particle"] == "e-" and info["attributes"]["seconds"] > 0
    events = read_events(path, start=count - 100)
    visible = events.samples.sum() / events.incident_energy.sum()
    assert visible == pytest.approx(0.028, abs=0.001)  # 2.7-2.9 % of the energy is seen in silicon


def test_a_part_of_the_events_took_its_share_of_the_time(tmp_path: Path) -> None:
    events = make_events(8)
    events.attributes["seconds"] = 4.0
    write_events(tmp_path / "events.h5", events)
    assert events[:2].attributes["seconds"] == 1.0
    assert events[np.arange(8) % 2 == 0].attributes["seconds"] == 2.0
    assert read_events(tmp_path / "events.h5", stop=2).attributes["seconds"] == 1.0
    assert read_events(tmp_path / "events.h5").attributes["seconds"] == 4.0
