"""Opening HDF5 files of strangers: nothing outside the file is reached, nothing is allocated that the file cannot fill.

Links are judged before they are followed, storage before data are read. HDF5 itself would follow external links, read
external storage and virtual datasets from any file, and believe any size the header claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minicarlo.errors import InvalidEventSet

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_LARGEST_CHUNK = 2**28
_LARGEST_EXPANSION = 1100  # deflate reaches 1032
_LARGEST_ATTRIBUTE = 2**20
_MOST_LINKS, _MOST_ATTRIBUTES = 1000, 1000


@contextmanager
def open_untrusted(path: Path) -> Iterator[h5py.File]:
    """Open `path` for reading. Raises InvalidEventSet, also for whatever HDF5 raises inside the block."""
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise InvalidEventSet(f"Event set {path} {what}. Give an HDF5 file or a folder of shards.")
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeError) as error:
        raise InvalidEventSet(f"Event set {path} cannot be read: {_explain(path, error)}") from error


def dataset_names(file: h5py.File, path: Path) -> list[str]:
    """Names of the datasets at the root of the file; groups and named types are left alone.

    Raises InvalidEventSet for any link that is not a plain one, before it is followed.
    """
    links = file.id.links
    if len(file.id) > _MOST_LINKS:
        raise InvalidEventSet(f"Event set {path} has {len(file.id)} objects at its root; at most {_MOST_LINKS} are accepted.")
    names = []
    for raw in list(file.id):
        name = raw.decode("utf-8", "replace")
        kind = links.get_info(raw).type
        if kind != h5py.h5l.TYPE_HARD:
            what = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}.get(kind, "an unknown link")
            raise InvalidEventSet(
                f"Event set {path}: {name!r:.80} is {what}, which could lead out of the file and is never followed. "
                "Copy the data itself into the file (h5repack, or read and write it again)."
            )
        if h5py.h5o.get_info(file.id, raw).type == h5py.h5o.TYPE_DATASET:
            names.append(name)
    return names


def open_dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """A numeric dataset whose data lie in this file, completely. Raises InvalidEventSet."""

    def refuse(reason: str, remedy: str) -> InvalidEventSet:
        return InvalidEventSet(f"Event set {path}, dataset {name!r:.80}: {reason}. {remedy}")

    rewrite = "Write it as a plain float32 dataset (contiguous or chunked with gzip)."
    identifier = h5py.h5d.open(file.id, name.encode())
    creation = identifier.get_create_plist()
    layout = creation.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        raise refuse("it is a virtual dataset, which takes its data from other files", rewrite)
    if creation.get_external_count() > 0:
        raise refuse("its data are stored in other files (external storage)", rewrite)
    if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise refuse("its storage layout is unknown", rewrite)
    kind = identifier.get_type()
    if not isinstance(kind, h5py.h5t.TypeFloatID | h5py.h5t.TypeIntegerID) or kind.get_size() > 8:
        raise refuse("its elements are not plain numbers", rewrite)
    filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    if not set(filters) <= _FILTERS or len(set(filters)) != len(filters):
        raise refuse(f"it is compressed with filters {filters}", "Accepted are gzip, shuffle, lzf and fletcher32, each once.")
    dataset = h5py.Dataset(identifier)
    size = path.stat().st_size
    claimed, stored = dataset.size * kind.get_size() if dataset.shape else 0, identifier.get_storage_size()
    truncated = "Its data are incomplete; copy or download the file again."
    if stored > size or (filters == [] and claimed > size) or claimed > size * _LARGEST_EXPANSION:
        raise refuse(f"it claims {claimed} bytes, which a file of {size} bytes cannot hold", truncated)
    if layout == h5py.h5d.CHUNKED and claimed:
        if prod(dataset.chunks) * kind.get_size() > _LARGEST_CHUNK:
            raise refuse(f"its chunks of {dataset.chunks} are too large", f"Use chunks of at most {_LARGEST_CHUNK} bytes.")
        expected = prod(ceil(length / chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        present = identifier.get_num_chunks()
        if present != expected:
            raise refuse(f"{present} of its {expected} chunks are there", truncated)
    elif stored < claimed:
        raise refuse(f"{stored} of its {claimed} bytes are there", truncated)
    return dataset


def read_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """Attributes of the root that are text, numbers or short lists of them; others are left out. Raises InvalidEventSet."""
    if len(file.attrs) > _MOST_ATTRIBUTES:
        raise InvalidEventSet(f"Event set {path} has {len(file.attrs)} attributes; at most {_MOST_ATTRIBUTES} are accepted.")
    result: dict[str, Any] = {}
    for name in sorted(file.attrs):
        identifier = file.attrs.get_id(name)
        if identifier.get_storage_size() > _LARGEST_ATTRIBUTE:
            raise InvalidEventSet(f"Event set {path}, attribute {name!r:.80}: larger than {_LARGEST_ATTRIBUTE} bytes. Remove it.")
        text = h5py.check_string_dtype(identifier.dtype) is not None
        if len(identifier.shape) > 1 or not (text or identifier.dtype.kind in "biuf"):
            continue
        value = file.attrs[name]
        if isinstance(value, h5py.Empty):
            continue
        values = [_plain(item) for item in np.atleast_1d(value).tolist()]
        result[name] = values if identifier.shape else values[0]
    return result


def _plain(item: object) -> object:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else item


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, PermissionError) or "errno = 13" in text:
        return "you may not read it."
    if "file signature not found" in text:
        return "it is not an HDF5 file. Give a file written by minicarlo simulate or generate, or in CaloChallenge's format."
    if "truncated file" in text:
        return "it is shorter than its header says. Copy or download it again."
    text = re.sub(r"\s+", " ", text)[:200]
    return f"it is damaged ({text}). Copy or download it again."
