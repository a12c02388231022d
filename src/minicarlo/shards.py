"""Runs on disk: a folder claimed by one request, its shards found again after a kill, and shards joined into one file."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import OutputError
from minicarlo.events import ENERGIES, SHOWERS
from minicarlo.files import atomic_path, output_error, sha256, write_json

RUN = "run.json"
CHUNK = 64
"""Events of a compressed chunk; shards that are to be joined hold a multiple of it."""

TOKEN = ".cluster-"
"""How the name of a file begins by which workers know the folder of a run."""

_LARGEST_RUN = 2**28


@dataclass(frozen=True)
class Shard:
    """Events start .. stop - 1, which go to the file `path`."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def is_file(output: Path) -> bool:
    """Whether `output` means one file rather than a folder of shards."""
    return output.suffix.lower() in (".h5", ".hdf5")


def hidden_folder(output: Path) -> Path:
    """Where the shards of the one file `output` are until it is complete."""
    return output.with_name(f".{output.name}.shards")


def shards(folder: Path, events: int, size: int) -> list[Shard]:
    """The files that `events` events go to."""
    return _cut(folder, [*range(0, events, size), events])


def parts(output: Path, events: int, size: int) -> list[Shard]:
    """The hidden shards of the one file `output`: about `size` events each, in whole chunks but for the end of the last."""
    starts = range(0, max(events - CHUNK, 0) + 1, -(-size // CHUNK) * CHUNK)
    return _cut(hidden_folder(output), [*starts, events])


def _cut(folder: Path, bounds: Sequence[int]) -> list[Shard]:
    return [Shard(folder / f"shard-{number:05d}.h5", start, stop) for number, (start, stop) in enumerate(pairwise(bounds))]


@dataclass
class Run:
    """The record (`run.json`) of a folder: what was asked for, and the checksum of every shard that is complete."""

    folder: Path
    request: Mapping[str, Any]
    shards: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] | None = None

    def has(self, shard: Shard) -> bool:
        """Whether an earlier run completed this shard and it is still as it was."""
        record = self.shards.get(shard.path.name)
        if not isinstance(record, dict) or shard.path.is_symlink() or not shard.path.is_file():
            return False
        return shard.path.stat().st_size == record.get("bytes") and sha256(shard.path) == record.get("sha256")

    def add(self, shard: Shard) -> None:
        """Record a shard that was just written. Raises OutputError."""
        try:
            size, digest = shard.path.stat().st_size, sha256(shard.path)
        except OSError as error:
            raise output_error(shard.path, error) from error
        self.shards[shard.path.name] = {"sha256": digest, "bytes": size, "events": len(shard)}
        self.write()

    def write(self) -> None:
        """Write the record. Raises OutputError."""
        last = {} if self.last is None else {"last": self.last}
        write_json(self.folder / RUN, {"format_version": 1, "request": self.request, "shards": self.shards} | last)


@contextmanager
def claim(folder: Path, request: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Run]:
    """The run of `request` in `folder`, new or begun earlier, for this process alone.

    With `overwrite`, the shards of another run there are removed. A folder that was made here and holds no shard when the block
    fails is removed again. Raises OutputError when the folder cannot be made or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            f"Cannot write {folder}: there is a file of that name. Choose a folder, or a name that ends in .h5 for one file."
        )
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"Cannot write {folder}: another run is writing there now. Wait for it or choose another folder."
            ) from error
        except OSError:
            pass  # a file system without locks
        for token in folder.glob(f"{TOKEN}*"):  # of a run that was killed
            with suppress(OSError):
                token.unlink()
        if overwrite and (folder / RUN).exists():
            for path in folder.glob("shard-*.h5"):
                path.unlink()
            run = Run(folder, request)
        else:
            run = _read(folder, request)
        try:
            run.write()
            yield run
        except BaseException:
            if not run.shards and made:
                with suppress(OSError):
                    (folder / RUN).unlink(missing_ok=True)
                    folder.rmdir()
            raise
    finally:
        os.close(handle)


@contextmanager
def claim_hidden(output: Path, request: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Run]:
    """`claim` for the shards of the one file `output`: the hidden folder beside it, which is removed when the block ends well."""
    folder = hidden_folder(output)
    with claim(folder, request, overwrite=overwrite) as run:
        yield run
    shutil.rmtree(folder, ignore_errors=True)


Packing = tuple[int, tuple[int, ...]]
"""An HDF5 filter and its values, as files record them."""


@contextmanager
def new_event_file(
    path: Path, count: int, voxels: int, attributes: Mapping[str, NDArray[Any]], packing: Packing
) -> Iterator[tuple[h5py.File, h5py.Dataset]]:
    """A new event set with room for `count` showers, to be filled by direct writes of packed chunks.

    HDF5 needs no code for the filter. When the disk is full, closing fails too, with a RuntimeError that would hide the cause.
    """
    file = h5py.File(path, "w", libver=("earliest", "v110"))
    try:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)
        creation.set_chunk((min(CHUNK, count), voxels))
        number, values = packing
        creation.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
        space = h5py.h5s.create_simple((count, voxels))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, SHOWERS.encode(), h5py.h5t.IEEE_F32LE, space, creation))
        for name, value in attributes.items():
            file.attrs[name] = value
        yield file, dataset
    except BaseException:
        with suppress(OSError, RuntimeError):
            file.close()
        raise
    try:
        file.close()
    except RuntimeError as error:
        raise OSError(str(error)) from error


def join(pieces: Sequence[Shard], output: Path, changed: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write the events of `pieces` as one file: the same bytes as if it had been written at once.

    Compressed chunks are copied as they are. Attributes are those of the first part but for `changed`. Raises OutputError.
    """
    count = pieces[-1].stop
    with h5py.File(pieces[0].path, locking=False) as first:
        attributes = {name: _raw_attribute(first, name) for name in first.attrs} | dict(changed or {})
        columns = {name: first[name].dtype for name in first if name != SHOWERS}
        voxels, packing = first[SHOWERS].shape[1], first[SHOWERS].id.get_create_plist().get_filter(0)
    with (
        atomic_path(output) as temporary,
        new_event_file(temporary, count, voxels, dict(sorted(attributes.items())), (packing[0], packing[2])) as (file, showers),
    ):
        values = {name: np.zeros((count, 1), kind) for name, kind in columns.items()}
        for part in pieces:
            with h5py.File(part.path, locking=False) as source:
                for name, column in values.items():
                    column[part.start : part.stop] = source[name][...]
                for start in range(0, len(part), CHUNK):
                    _, data = source[SHOWERS].id.read_direct_chunk((start, 0))
                    showers.id.write_direct_chunk((part.start + start, 0), data)
        for name in sorted(values, key=lambda name: (name != ENERGIES, name)):
            file.create_dataset(name, data=values[name], track_times=False)


def _raw_attribute(file: h5py.File, name: str) -> NDArray[Any]:
    attribute = file.attrs.get_id(name)
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value


def _read(folder: Path, request: Mapping[str, Any]) -> Run:
    path = folder / RUN
    if not path.exists():
        if foreign := [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]:
            raise OutputError(
                f"Cannot write {folder}: it is not empty (it holds {foreign[0]}) and has no {RUN} of a run to complete. "
                "Choose a new folder, or a name that ends in .h5 for one file."
            )
        return Run(folder, request)
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST_RUN:
            raise ValueError("it is a link or too large")
        record = json.loads(path.read_text(encoding="utf-8"))
        found, complete, last = record["request"], record["shards"], record.get("last")
        if record["format_version"] != 1 or not isinstance(found, dict) or not isinstance(complete, dict):
            raise ValueError("it is of another format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"Cannot write {folder}: its {RUN} is damaged ({error}). Choose another folder, or --overwrite what is there."
        ) from error
    if found != request:
        differs = [name for name in {**request, **found} if found.get(name) != request.get(name)]
        changed = "; ".join(f"{name} {found.get(name)!r:.80}, not {request.get(name)!r:.80}" for name in differs)
        raise OutputError(
            f"Cannot write {folder}: it holds another run: {changed}. Repeat that request to finish it, choose another name, "
            "or --overwrite it."
        )
    return Run(folder, request, dict(complete), last)
