"""Event sets in other programs' formats: the cells that were hit, event by event, in constant memory.

CaloChallenge's layout, which every other verb reads, holds all cells of every event. Here only those with energy are written:
as point clouds for `showerdata`, as Parquet for data frames (pyarrow, pandas, polars), as a ROOT tree for uproot and ROOT.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import Detector, get_detector
from minicarlo.errors import InvalidConfig, MissingExtra
from minicarlo.events import ENERGY, PHI, THETA, events_info, iterate_events
from minicarlo.files import atomic_path, check_writable

_PDG = {"e-": 11, "e+": -11, "gamma": 22}
_EVENTS_AT_ONCE = 2_000


@dataclass(frozen=True)
class ConvertResult:
    """What was written: the file, its format, its events and the cells with energy in them."""

    path: Path
    format: str
    events: int
    hits: int
    bytes: int


@dataclass(frozen=True)
class Hits:
    """The cells with energy of some events.

    `counts` (n,) int64 cells per event, `cells` (hits,) int32 flat index (z slowest) and `energies` (hits,) float32 MeV, one
    event after another; `conditions` name to (n,) float32.
    """

    counts: NDArray[np.int64]
    cells: NDArray[np.int32]
    energies: NDArray[np.float32]
    conditions: dict[str, NDArray[np.float32]]


class _Sink(Protocol):
    def write(self, hits: Hits) -> None: ...


def convert(
    source: Path | str, output: Path | str, to: str, *, progress: Callable[[int, int], None] | None = None
) -> ConvertResult:
    """Write an event set (file or folder of shards) as `to`: "points", "parquet" or "root". Energies are exact float32.

    The file appears whole or not at all. `progress` is called with (events done, events in all).
    Raises InvalidConfig for an unknown format, InvalidEventSet, UnknownDetector, MissingExtra, OutputError.
    """
    if to not in FORMATS:
        raise InvalidConfig(f"Format {to!r:.40} is unknown: choose {', '.join(FORMATS)}.")
    output = Path(output)
    info = events_info(source)
    check_writable(output)
    detector, done, found = get_detector(info["detector"]), 0, 0
    attributes = info["attributes"] | detector.attributes()
    with atomic_path(output) as temporary, FORMATS[to](temporary, info["count"], detector, attributes) as sink:
        for events in iterate_events(source, _EVENTS_AT_ONCE):
            hits = sparse(events.samples, events.conditions)
            sink.write(hits)
            done, found = done + len(events), found + len(hits.cells)
            if progress is not None:
                progress(done, info["count"])
    return ConvertResult(output, to, done, found, output.stat().st_size)


def sparse(samples: NDArray[np.float32], conditions: dict[str, NDArray[np.float32]]) -> Hits:
    """The cells with energy of samples (n, ...)."""
    flat = samples.reshape(len(samples), -1)
    event, cell = np.nonzero(flat)
    return Hits(np.bincount(event, minlength=len(flat)), cell.astype(np.int32), flat[event, cell], conditions)


@contextmanager
def _points(path: Path, count: int, detector: Detector, attributes: dict[str, Any]) -> Iterator[_Sink]:
    """HDF5 as `showerdata` 0.7 reads it: points (x, y, layer, energy), x and y in mm from the centre, energies in MeV."""
    with open(path, "wb+", buffering=0) as stream, h5py.File(guarded := _Guarded(stream), "w") as file:
        yield _Points(file, count, detector, _PDG.get(str(attributes.get("particle")), 0), guarded)
        file.attrs.update({name: _plain(value) for name, value in attributes.items()})
        file.attrs["showerdata_version"] = "0.7.0"
        file.flush()
        guarded.check()


class _Guarded:
    """A file for HDF5, which crashes the process when rows of variable length meet a full disk: `check` tells of failures."""

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._failure: OSError | None = None
        self.seek, self.tell, self.flush = stream.seek, stream.tell, stream.flush
        self.read, self.readinto = stream.read, stream.readinto

    def write(self, data: memoryview) -> int:
        try:
            done = 0
            while done < len(data):
                done += self._stream.write(data[done:])
        except OSError as error:
            self._failure = self._failure or error
            self._stream.seek(len(data) - done, io.SEEK_CUR)
        return len(data)

    def truncate(self, size: int) -> None:
        with suppress(OSError):
            self._stream.truncate(size)

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure


class _Points:
    def __init__(self, file: h5py.File, count: int, detector: Detector, pdg: int, guarded: _Guarded) -> None:
        self._guarded, self._done, self._most = guarded, 0, 0
        x, y = detector.transverse()
        layers = np.arange(detector.layers)
        columns = [np.tile(x, len(layers)), np.tile(y, len(layers)), np.repeat(layers, len(x))]
        self._places = np.stack(columns, axis=1).astype(np.float32)
        self._showers = file.create_dataset("showers", (count,), h5py.vlen_dtype(np.dtype("float32")))
        self._columns = {
            "energies": file.create_dataset("energies", (count, 1), "f4"),
            "directions": file.create_dataset("directions", (count, 3), "f4"),
            "num_points": file.create_dataset("num_points", (count,), "i4"),
        }
        file.create_dataset("pdg", data=np.full(count, pdg, np.int32))
        file.create_dataset("shower_ids", data=np.arange(count, dtype=np.int32))
        self._shape = file.create_dataset("shape", data=np.array([count, 0, 4], np.int64))

    def write(self, hits: Hits) -> None:
        points = np.concatenate([self._places[hits.cells], hits.energies[:, None]], axis=1)
        rows = [part.reshape(-1) for part in np.split(points, np.cumsum(hits.counts)[:-1])]
        zero = np.zeros(len(rows), np.float32)
        theta, phi = hits.conditions.get(THETA, zero), hits.conditions.get(PHI, zero)
        target = slice(self._done, self._done + len(rows))
        if len(set(hits.counts)) > 1:
            column = np.empty(len(rows), object)
            column[:] = rows
            self._showers[target] = column
        else:  # NumPy and h5py would take rows of one length for a table
            for event, row in enumerate(rows, target.start):
                self._showers[event] = row
        self._columns["energies"][target, 0] = hits.conditions[ENERGY]
        self._columns["directions"][target] = np.stack(
            [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1
        )
        self._columns["num_points"][target] = hits.counts
        self._done, self._most = target.stop, max(self._most, int(hits.counts.max(initial=0)))
        self._shape[1] = self._most
        self._guarded.check()


@contextmanager
def _parquet(path: Path, count: int, detector: Detector, attributes: dict[str, Any]) -> Iterator[_Sink]:
    """A row per event: its conditions and the lists `cell` and `energy`; attributes as JSON under the key `minicarlo`."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise _missing("Parquet", error) from error

    writer: Any = None

    class Parquet:
        def write(self, hits: Hits) -> None:
            nonlocal writer
            offsets = pa.array(np.concatenate([[0], np.cumsum(hits.counts)]).astype(np.int32))
            lists = {"cell": pa.array(hits.cells), "energy": pa.array(hits.energies)}
            columns = {name: pa.array(values) for name, values in hits.conditions.items()}
            columns |= {name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()}
            table = pa.table(columns).replace_schema_metadata({"minicarlo": _as_json(attributes)})
            if writer is None:
                writer = parquet.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)

    try:
        yield Parquet()
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _root(path: Path, count: int, detector: Detector, attributes: dict[str, Any]) -> Iterator[_Sink]:
    """A tree `showers`: a branch per condition, jagged branches `cell` and `energy`. `minicarlo` holds the attributes."""
    try:
        import awkward as ak
        import uproot
    except ModuleNotFoundError as error:
        raise _missing("ROOT", error) from error

    with uproot.recreate(path) as file:
        file["minicarlo"] = _as_json(attributes)

        class Tree:
            def write(self, hits: Hits) -> None:
                if "showers" not in file:
                    kinds = dict.fromkeys(hits.conditions, "float32")
                    file.mktree("showers", {**kinds, "cell": "var * int32", "energy": "var * float32"})
                jagged = {"cell": ak.unflatten(hits.cells, hits.counts), "energy": ak.unflatten(hits.energies, hits.counts)}
                file["showers"].extend({**hits.conditions, **jagged})

        yield Tree()


FORMATS: dict[str, Callable[[Path, int, Detector, dict[str, Any]], Any]] = {"points": _points, "parquet": _parquet, "root": _root}
"""What an event set can be written as."""


def _missing(what: str, error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra(
        f"Writing {what} needs {error.name}, which is not installed. Install it with: pip install 'minicarlo[formats]'"
    )


def _as_json(attributes: dict[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in attributes.items()}, sort_keys=True)


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
