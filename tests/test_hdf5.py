"""Event sets of strangers: each way in which HDF5 reaches other files or exhausts memory is refused."""

from __future__ import annotations

import ctypes
import os
import random
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from minicarlo import hdf5
from minicarlo.errors import InvalidEventSet, MinicarloError
from minicarlo.events import events_info, read_events, write_events
from small_events import make_events


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A valid event set outside the attacker's file, in another folder."""
    path = tmp_path / "secret" / "secret.h5"
    path.parent.mkdir()
    write_events(path, make_events(2), compression=None)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the attacker's file goes: energies are there, showers not yet."""
    path = tmp_path / "stranger.h5"
    with h5py.File(path, "w") as file:
        file["incident_energies"] = np.ones((2, 1), "f4")
    return path


def refused(path: Path, message: str) -> None:
    for read in (read_events, events_info):
        with pytest.raises(InvalidEventSet, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_an_external_link_is_not_followed(path: Path, secret: Path) -> None:
    with h5py.File(path, "a") as file:
        file["showers"] = h5py.ExternalLink(str(secret), "showers")
        assert file["showers"].shape == (2, 15625)  # plain h5py does follow it
    refused(path, "'showers' is an external link")


def test_an_external_link_anywhere_at_the_root_is_refused(path: Path, secret: Path) -> None:
    with h5py.File(path, "a") as file:
        file["showers"] = np.zeros((2, 15625), "f4")
        file["theta"] = h5py.ExternalLink(str(secret), "theta")
    refused(path, "'theta' is an external link")


def test_a_soft_link_that_leaves_the_file_through_a_group_is_not_followed(path: Path, secret: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_group("inner")["door"] = h5py.ExternalLink(str(secret), "/")
        file["showers"] = h5py.SoftLink("/inner/door/showers")
        assert file["showers"].shape == (2, 15625)
    refused(path, "'showers' is a soft link")


def test_external_storage_is_not_read(path: Path, tmp_path: Path) -> None:
    raw = tmp_path / "secret.raw"
    raw.write_bytes(b"s" * 4 * 2 * 15625)
    with h5py.File(path, "a") as file:
        file.create_dataset("showers", (2, 15625), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
    refused(path, "'showers'.*external storage")


def test_a_virtual_dataset_is_not_read(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((2, 15625), "f4")
    layout[...] = h5py.VirtualSource(str(secret), "showers", (2, 15625))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("showers", layout)
        assert file["showers"][...].any()
    refused(path, "'showers'.*virtual")


@pytest.mark.parametrize(
    "dtype", [h5py.string_dtype(), h5py.vlen_dtype(np.float32), h5py.ref_dtype, np.dtype([("x", "f4")]), np.dtype("V8")]
)
def test_elements_that_are_not_plain_numbers_are_refused(path: Path, dtype: np.dtype) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("showers", (2, 15625), dtype)
    refused(path, "'showers'.*not plain numbers")


def test_a_size_that_the_file_cannot_hold_is_refused_before_memory_is_taken(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("showers", (10**9, 15625), "f4", chunks=(1, 15625), compression="gzip")  # 62 TB, no chunk written
    refused(path, "'showers'.*claims 62500000000000 bytes")
    with h5py.File(path, "a") as file:
        del file["showers"]
        file.create_dataset("showers", (10**9, 15625), "f4")
    refused(path, "'showers'.*claims 62500000000000 bytes")


def test_chunks_and_bytes_that_are_missing_are_noticed(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["padding"] = np.random.default_rng(0).random(10**5)  # so that the size itself is plausible
        showers = file.create_dataset("showers", (2, 15625), "f4", chunks=(1, 15625), compression="gzip")
        showers[0] = 1
    refused(path, "'showers'.*only 1 of its 2 chunks")
    with h5py.File(path, "a") as file:
        del file["showers"]
        file.create_dataset("showers", (2, 15625), "f4")  # contiguous, never written
    refused(path, "'showers'.*only 0 of its 125000 bytes")


def test_chunks_that_would_fill_the_memory_are_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["padding"] = np.random.default_rng(0).random(10**5)
        file.create_dataset("showers", (2, 15625), "f4", chunks=(6_000, 15625), maxshape=(None, 15625), compression="gzip")
    refused(path, "'showers'.*chunks .*too large")


@pytest.mark.parametrize("filters", [(32004,), (32015,), (h5py.h5z.FILTER_SZIP,), (h5py.h5z.FILTER_DEFLATE,) * 2])
def test_filters_that_load_plugins_or_multiply_expansion_are_refused(path: Path, filters: tuple[int, ...]) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((2, 15625))
    for number in filters:
        values = {h5py.h5z.FILTER_SZIP: (4, 8), h5py.h5z.FILTER_DEFLATE: (1,)}.get(number, ())
        creation.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
    with h5py.File(path, "a") as file:
        h5py.h5d.create(file.id, b"showers", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2, 15625)), creation)
    refused(path, "'showers'.*filters")


def test_a_metadata_cache_image_is_refused_before_hdf5_loads_it(tmp_path: Path) -> None:
    class Config(ctypes.Structure):
        _fields_ = (
            ("version", ctypes.c_int),
            ("generate", ctypes.c_bool),
            ("resize", ctypes.c_bool),
            ("age", ctypes.c_int),
        )

    libraries = [
        *Path(h5py.__file__).parent.parent.glob("h5py.libs/libhdf5-*"),
        *Path(h5py.__file__).parent.glob(".dylibs/libhdf5.*"),
    ]
    if not libraries:
        pytest.skip("h5py brings no HDF5 library of its own")
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    configure = ctypes.CDLL(str(libraries[0])).H5Pset_mdc_image_config
    configure.argtypes = [ctypes.c_int64, ctypes.POINTER(Config)]
    assert configure(access.id, ctypes.byref(Config(1, True, False, -1))) == 0
    path = tmp_path / "image.h5"
    with h5py.File(h5py.h5f.create(str(path).encode(), h5py.h5f.ACC_TRUNC, fapl=access)) as file:
        file["incident_energies"] = np.ones((2, 1), "f4")
        file["showers"] = np.zeros((2, 15625), "f4")
    refused(path, "metadata cache image")


@pytest.mark.parametrize(
    "options",
    [{"libver": "latest"}, {"libver": "earliest"}, {"userblock_size": 1024}, {"fs_strategy": "page", "fs_persist": 1},
     {"libver": "latest", "fs_strategy": "fsm", "fs_persist": True, "userblock_size": 1024}],
)  # fmt: skip
def test_every_ordinary_kind_of_file_is_accepted(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", **options) as file:
        file["incident_energies"] = np.ones((2, 1), "f4")
        file.create_dataset(
            "showers", data=np.ones((2, 15625), "f4"), chunks=(1, 999), compression="lzf", shuffle=True, fletcher32=True
        )
    assert len(read_events(path)) == 2


def test_attributes_of_others_are_read_and_what_is_neither_text_nor_number_is_left_out(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["showers"] = np.ones((2, 15625), "f4")
        file.attrs.update({"text": "\u00b5", "bytes": np.bytes_("b"), "number": 1.5, "list": [1, 2], "texts": ["a", "b"]})
        file.attrs["reference"] = file["showers"].ref
        file.attrs["nothing"] = h5py.Empty("f4")
        file.attrs["matrix"] = np.eye(2)
    assert read_events(path).attributes == {
        "text": "\u00b5",
        "bytes": "b",
        "number": 1.5,
        "list": [1, 2],
        "texts": ["a", "b"],
    }


def test_too_many_or_too_large_attributes_and_objects_are_refused(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["incident_energies"], file["showers"] = np.ones((2, 1)), np.zeros((2, 15625))
        file.attrs["large"] = np.zeros(200_000)
    refused(path, "'large'.*larger than")
    with h5py.File(path, "w", libver="latest") as file:
        file["incident_energies"], file["showers"] = np.ones((2, 1)), np.zeros((2, 15625))
        for number in range(1001):
            file.attrs[str(number)] = 1
    refused(path, "1001 attributes")
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(1001):
            file.create_group(str(number))
    refused(path, "1001 objects")


def test_damage_on_which_hdf5_loops_for_ever_ends_in_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(path, "a") as file:
        file["showers"] = np.zeros((2, 15625), "f4")
        file.attrs["detector"] = "clic-ecal"  # of variable length, in a global heap
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    assert data[heap + 24] == len("clic-ecal")
    data[heap + 24] = 0  # an object of no size: HDF5 2.0 never gets past it
    path.write_bytes(data)
    monkeypatch.setattr(hdf5, "_SECONDS", 1)
    with pytest.raises(InvalidEventSet, match="reading its attributes does not end"):
        events_info(path)


@pytest.mark.parametrize("compression", ["gzip", None])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, compression: str | None) -> None:
    events = make_events(2)
    write_events(tmp_path / "good.h5", events, compression=compression)
    good, choose = (tmp_path / "good.h5").read_bytes(), random.Random(1)
    outcomes = set()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(choose.choice((1, 1, 4))):
            data[choose.choice((choose.randrange(2048), choose.randrange(len(data))))] = choose.randrange(256)
        (tmp_path / "bad.h5").write_bytes(data)
        try:
            read_events(tmp_path / "bad.h5")
            outcomes.add("read")
        except MinicarloError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.skipif(os.getuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_refused(path: Path) -> None:
    path.chmod(0)
    refused(path, "may not read")


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (0, 1), (3, 5), (2, 9), (8, 9), (4, 4)])
@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (4, 30), "compression": "gzip"},
        {"chunks": (100, 30), "maxshape": (None, 30), "compression": "gzip", "compression_opts": 9},
        {"chunks": (4, 30), "compression": "gzip", "shuffle": True},
        {"chunks": (4, 7), "compression": "gzip"},
        {"chunks": (4, 30), "compression": "gzip", "dtype": ">f4"},
        {"chunks": (4, 30)},
        {},
    ],
    ids=repr,
)
def test_rows_are_those_that_hdf5_reads(tmp_path: Path, layout: dict, start: int, stop: int) -> None:
    values = np.random.default_rng(1).normal(0, 1, (9, 30)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("showers", data=values, **({"dtype": "f4"} | layout))
        out = np.full((stop - start, 30), np.nan, np.float32)
        hdf5.read_rows(dataset, start, out)
    np.testing.assert_array_equal(out, values[start:stop])


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_chunk_that_its_writer_left_uncompressed_is_read(tmp_path: Path, shuffle: bool) -> None:
    values = np.arange(12, dtype="<f4").reshape(2, 6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("showers", (2, 6), "<f4", chunks=(2, 6), compression="gzip", shuffle=shuffle)
        dataset.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=3 if shuffle else 1)
    out = np.zeros((2, 6), np.float32)
    with h5py.File(tmp_path / "a.h5") as file:
        hdf5.read_rows(file["showers"], 0, out)
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("size", [15625, 3 * 15625, 10**8], ids=["short", "long", "a bomb"])
def test_a_chunk_that_inflates_to_another_size_is_refused(path: Path, size: int) -> None:
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset("showers", (2, 15625), "<f4", chunks=(2, 15625), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(4 * size)))
    with pytest.raises(InvalidEventSet, match=f"stranger.h5.*a chunk holds {min(4 * size, 125001)} bytes, not 125000"):
        read_events(path)
