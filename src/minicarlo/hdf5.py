"""Opening HDF5 files of strangers: nothing outside the file is reached, nothing is allocated that it cannot fill.

HDF5 itself follows external links, reads external storage and virtual datasets from any file, and believes any size a
header claims. So links are judged before they are followed, and storage before data are read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import ceil, prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from minicarlo import _attributes
from minicarlo.errors import InvalidEventSet

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CACHE_IMAGE, _CONTINUATION = 0x18, 0x10  # types of object header messages
_FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_LZF: "lzf",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
}
_LARGEST_CHUNK = 2**28
_LARGEST_EXPANSION = 1100  # deflate reaches 1032
_MOST_ENTRIES = 1000
_SECONDS = 5  # of computing; ten times that on the clock, for a busy machine

_REWRITE = "Write it as a plain float32 dataset (contiguous, or chunked with gzip)."
_INCOMPLETE = "Copy or download the file again."


@contextmanager
def open_untrusted(path: Path) -> Iterator[h5py.File]:
    """Open `path` for reading. Raises InvalidEventSet, also for whatever h5py raises inside the block."""
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise InvalidEventSet(f"Event set {path} {what}. Give an HDF5 file or a folder of shards.")
        _check_superblock(path)
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise InvalidEventSet(f"Event set {path} cannot be read: {_explain(error)}") from error


def dataset_names(file: h5py.File, path: Path) -> list[str]:
    """Names of the datasets at the root of the file; groups and named types are left alone.

    Raises InvalidEventSet for any link that is not a plain one, before it is followed.
    """
    if len(file.id) > _MOST_ENTRIES:
        raise InvalidEventSet(
            f"Event set {path} has {len(file.id)} objects at its root; at most {_MOST_ENTRIES} are accepted. Remove the others."
        )
    names = []
    for raw in list(file.id):
        kind = file.id.links.get_info(raw).type
        if kind != h5py.h5l.TYPE_HARD:
            known = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
            what = f"{raw.decode('utf-8', 'replace')!r:.80} is {known.get(kind, 'an unknown link')}"
            raise InvalidEventSet(
                f"Event set {path}: {what}, which could lead out of the file and is never followed. "
                "Copy the data themselves into the file."
            )
        if h5py.h5o.get_info(file.id, raw).type == h5py.h5o.TYPE_DATASET:
            names.append(raw.decode("utf-8"))
    return names


def open_dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """A numeric dataset whose data lie in this file, completely. Raises InvalidEventSet."""

    def refusal(reason: str, remedy: str = _REWRITE) -> InvalidEventSet:
        return InvalidEventSet(f"Event set {path}, dataset {name!r:.80}: {reason}. {remedy}")

    identifier = h5py.h5d.open(file.id, name.encode())
    creation = identifier.get_create_plist()
    layout = creation.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        raise refusal("it is a virtual dataset, which takes its data from other files")
    if creation.get_external_count() > 0:
        raise refusal("its data are stored in other files (external storage)")
    if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise refusal("its storage layout is unknown")
    kind = identifier.get_type()
    if not isinstance(kind, h5py.h5t.TypeFloatID | h5py.h5t.TypeIntegerID) or kind.get_size() > 8:
        raise refusal("its elements are not plain numbers")
    filters = _filters(identifier)
    if not _FILTERS.keys() >= set(filters) or len(set(filters)) != len(filters):
        accepted = ", ".join(_FILTERS.values())
        raise refusal(f"it is compressed with filters {filters}", f"Accepted are {accepted}, each once.")
    if identifier.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE:
        raise refusal("it is not an array")
    dataset = h5py.Dataset(identifier)
    size, stored, claimed = path.stat().st_size, identifier.get_storage_size(), prod(dataset.shape) * kind.get_size()
    if stored > size or claimed > size * (_LARGEST_EXPANSION if filters else 1):
        raise refusal(f"it claims {claimed} bytes, which a file of {size} bytes cannot hold", _INCOMPLETE)
    if layout != h5py.h5d.CHUNKED:
        if stored < claimed:
            raise refusal(f"only {stored} of its {claimed} bytes are there", _INCOMPLETE)
    elif claimed:
        if prod(dataset.chunks) * kind.get_size() > _LARGEST_CHUNK:
            raise refusal(f"its chunks {dataset.chunks} are too large", f"At most {_LARGEST_CHUNK} bytes are accepted.")
        expected = prod(ceil(length / chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        present = identifier.get_num_chunks()
        if present != expected:
            raise refusal(f"only {present} of its {expected} chunks are there", _INCOMPLETE)
    return dataset


def read_rows(dataset: h5py.Dataset, start: int, out: NDArray[np.float32]) -> None:
    """Fill `out` (n, K) with rows start .. start + n - 1 of a dataset (N, K) that `open_dataset` has accepted.

    Whole rows of float32 in gzip, which event sets are, go around HDF5's filters: zlib-ng inflates three to six times as fast.
    """
    stop, unpack = start + len(out), _unpacking(dataset)
    if unpack is None:
        dataset.read_direct(out, np.s_[start:stop])
        return
    rows, width = dataset.chunks
    every = 2 ** len(_filters(dataset.id)) - 1
    for first in range(start - start % rows, stop, rows):
        low, high = max(first, start), min(first + rows, stop)
        mask, data = dataset.id.read_direct_chunk((first, 0))
        skipped = mask & every  # filters that did not make the chunk smaller
        if skipped not in (0, every):
            dataset.read_direct(out, np.s_[low:high], np.s_[low - start : high - start])
            continue
        chunk = (np.frombuffer(data, "<f4") if skipped else unpack(data, 4 * rows * width)).reshape(rows, width)
        out[low - start : high - start] = chunk[low - first : high - first]


def _filters(dataset: h5py.h5d.DatasetID) -> tuple[int, ...]:
    creation = dataset.get_create_plist()
    return tuple(creation.get_filter(number)[0] for number in range(creation.get_nfilters()))


def _unpacking(dataset: h5py.Dataset) -> Callable[[bytes, int], NDArray[Any]] | None:
    """What unpacks a chunk to so many bytes, if these are whole rows of float32 in a way that `read_rows` knows."""
    rows = dataset.ndim == 2 and dataset.chunks is not None and dataset.chunks[1] == dataset.shape[1]
    return _UNPACKINGS.get(_filters(dataset.id)) if rows and dataset.dtype == np.dtype("<f4") else None


def _inflate(data: bytes, size: int) -> bytes:
    stream = zlib_ng.decompressobj()
    try:
        inflated: bytes = stream.decompress(data, size + 1)
    except zlib_ng.error as error:  # type: ignore[misc]
        raise ValueError(str(error)) from None
    if len(inflated) != size or not stream.eof:
        raise ValueError(f"a chunk holds {len(inflated)} bytes, not {size}")
    return inflated


def _unshuffle(data: bytes) -> NDArray[np.float32]:
    """Undo HDF5's shuffle: the first bytes of all numbers lie before all second ones, and so on."""
    planes = np.frombuffer(data, np.uint8).reshape(4, -1)
    words: NDArray[np.uint32] = planes[3].astype(np.uint32)
    for plane in planes[2::-1]:
        words <<= 8
        words |= plane
    return words.view(np.float32)


_UNPACKINGS: dict[tuple[int, ...], Callable[[bytes, int], NDArray[Any]]] = {
    (h5py.h5z.FILTER_DEFLATE,): lambda data, size: np.frombuffer(_inflate(data, size), "<f4"),
    (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE): lambda data, size: _unshuffle(_inflate(data, size)),
}


def read_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """Attributes of the root that are text, numbers or lists of them; others are left out.

    Strings of variable length are read in another process (see `_attributes`). Raises InvalidEventSet.
    """
    if len(file.attrs) > _MOST_ENTRIES:
        raise InvalidEventSet(
            f"Event set {path} has {len(file.attrs)} attributes; at most {_MOST_ENTRIES} are accepted. Remove the others."
        )
    variable = False
    for name in file.attrs:
        identifier = file.attrs.get_id(name)
        if identifier.shape is not None and prod(identifier.shape) * identifier.dtype.itemsize > _attributes.LARGEST:
            raise InvalidEventSet(
                f"Event set {path}, attribute {name!r:.80}: larger than {_attributes.LARGEST} bytes. Remove it."
            )
        text = h5py.check_string_dtype(identifier.dtype)
        variable |= text is not None and text.length is None
    if not variable:
        return _attributes.attributes_of(file)
    state = path.stat()
    return dict(_attributes_from_child(os.path.realpath(path), state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=256)
def _attributes_from_child(path: str, *state: int) -> dict[str, Any]:
    command = [sys.executable, "-P", _attributes.__file__, path, str(_SECONDS)]
    try:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # its threads would count against the memory
        done = subprocess.run(command, env=environment, capture_output=True, timeout=10 * _SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError("reading its attributes does not end") from None
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ValueError(f"its attributes cannot be read: {last[0]}" if last else "reading its attributes does not end")
    attributes: dict[str, Any] = json.loads(done.stdout)
    return attributes


def _check_superblock(path: Path) -> None:
    """Raise ValueError when the file holds a metadata cache image, which HDF5 would load as it stands on opening.

    Follows the HDF5 File Format Specification 3.0: II.A (superblock), II.C (its extension), IV.A.1 (object headers).
    """
    with path.open("rb") as stream:
        size = path.stat().st_size
        start = 0
        while stream.seek(start) < size and stream.read(8) != _SIGNATURE:
            start = max(512, 2 * start)
        version, offset_size = (stream.read(2) + b"\0\0")[:2]
        if version < 2:
            return
        stream.seek(start + 12 + offset_size)
        address = int.from_bytes(stream.read(offset_size), "little")
        if address == 256**offset_size - 1:
            return
        if start + address >= size:
            raise ValueError("its superblock extension lies beyond its end")
        stream.seek(start + address)
        types = _message_types(stream.read(2**16))
    if {_CACHE_IMAGE, _CONTINUATION} & set(types):
        raise ValueError("it holds a metadata cache image; h5repack removes it")


def _message_types(header: bytes) -> Iterator[int]:
    """Types of the messages in the first chunk of an object header."""
    if header[:4] == b"OHDR":
        flags = header[5]
        position = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        length, position = int.from_bytes(header[position : position + width], "little"), position + width
        type_width, head = 1, 4 + 2 * bool(flags & 0x04)
    else:
        length, position = int.from_bytes(header[8:12], "little"), 16
        type_width, head = 2, 8
    end = position + length
    if end > len(header):
        raise ValueError("its superblock extension is too long")
    while position + head <= end:
        yield int.from_bytes(header[position : position + type_width], "little")
        position += head + int.from_bytes(header[position + type_width : position + type_width + 2], "little")


def _explain(error: Exception) -> str:
    text = str(error)
    if isinstance(error, MemoryError):
        return "it does not fit into memory. Read it in pieces (start, stop)."
    if isinstance(error, PermissionError) or "errno = 13" in text:
        return "you may not read it. Change its permissions."
    if "file signature not found" in text:
        return "it is not an HDF5 file. Give one of minicarlo simulate or generate, or in CaloChallenge's format."
    if "truncated file" in text:
        return "it is shorter than its header says. Copy or download it again."
    text = re.sub(r"\s+", " ", text)[:200]
    return f"it is damaged ({text}). Copy or download it again."
