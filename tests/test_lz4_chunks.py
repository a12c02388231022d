"""Chunks packed by LZ4: as HDF5's own filter makes and reads them, and whatever else is refused."""

from __future__ import annotations

import struct

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicarlo import hdf5, lz4_chunks


@given(st.binary(min_size=1, max_size=300), st.integers(1, 200))
def test_packing_is_undone_and_random_bytes_take_twelve_more_and_four(data: bytes, repeated: int) -> None:
    data *= repeated
    packed = lz4_chunks.pack(data)
    assert lz4_chunks.unpack(packed, len(data)) == data and len(packed) <= len(data) + 16


@given(st.binary(max_size=400), st.integers(1, 10**9))
def test_bytes_that_nobody_packed_are_refused_and_nothing_else_happens(data: bytes, size: int) -> None:
    if data[:8] != struct.pack(">Q", size):
        with pytest.raises(ValueError):
            lz4_chunks.unpack(data, size)
    with pytest.raises(ValueError):
        lz4_chunks.unpack(struct.pack(">QI", 10**9, 10**9) + struct.pack(">I", len(data)) + data, 10**9)


@pytest.mark.parametrize("change", ["cut", "longer", "other size", "no blocks", "bomb"])
def test_damage_is_named(change: str) -> None:
    data = bytes(1000)
    packed = lz4_chunks.pack(data)
    size = len(data)
    match change:
        case "cut":
            packed = packed[:-1]
        case "longer":
            packed += b"x"
        case "other size":
            size += 1
        case "no blocks":
            packed = packed[:8] + bytes(4) + packed[12:]
        case "bomb":
            packed = struct.pack(">QI", 100, 100) + lz4_chunks.pack(bytes(10**6))[12:]
            size = 100
    with pytest.raises(ValueError, match="chunk|block|[Dd]ecompress"):
        lz4_chunks.unpack(packed, size)


@pytest.mark.parametrize("block", [0, 64, 100, 1200], ids="block {}".format)
def test_what_the_filter_of_hdf5_wrote_is_read(tmp_path, block: int) -> None:
    values = np.where(np.arange(90, dtype="f4") % 7 == 0, np.arange(90, dtype="f4"), 0).reshape(9, 10)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("showers", data=values, chunks=(4, 10), **hdf5plugin.LZ4(nbytes=block))
    out = np.zeros((9, 10), "f4")
    with h5py.File(tmp_path / "a.h5") as file:
        hdf5.read_rows(file["showers"], 0, out)
    np.testing.assert_array_equal(out, values)
