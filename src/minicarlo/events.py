"""Event sets: N conditions with N samples, in memory and as CaloChallenge HDF5."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicarlo.detectors import described_detector, detector_names, get_detector, infer_detector
from minicarlo.errors import IncompatibleEventSets, InvalidConfig, InvalidEventSet, UnknownDetector
from minicarlo.files import atomic_path
from minicarlo.hdf5 import dataset_names, open_dataset, open_untrusted, read_attributes, read_rows

ENERGY = "incident_energy"
"""The condition every event set has: kinetic energy of the incident particle, MeV."""

THETA, PHI = "incident_theta", "incident_phi"
"""Conditions of event sets with inclined particles: polar and azimuthal angle of the incident direction, rad."""

ENERGIES, SHOWERS = "incident_energies", "showers"  # CaloChallenge's names of the datasets
_UNITS = {ENERGY: "MeV", THETA: "rad", PHI: "rad", "fast_energy": "MeV", "incident_x": "mm", "incident_y": "mm"}
_CHUNK = 64  # events in a compressed chunk: 4 MB of clic-ecal
_LEVEL = 1  # level 4 is 15 % smaller and a third slower; HDF5's shuffle makes showers, mostly zeros, larger
_COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_LARGEST_ATTRIBUTE = 60_000  # bytes; HDF5's oldest format, which everything reads, ends at 64 KiB


@dataclass
class EventSet:
    """N conditions with N samples.

    `conditions` maps a name to N float32 values (`incident_energy` in MeV is always there), `samples` has shape
    (N, z, x, y) or (N, z, phi, r), float32 MeV, `attributes` holds provenance: text, numbers or lists of them.

    Raises InvalidEventSet when shapes do not fit one another or the detector, UnknownDetector for an unknown one.
    """

    conditions: dict[str, NDArray[np.float32]]
    samples: NDArray[np.float32]
    detector: str
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = np.asarray(self.samples, np.float32)
        self.conditions = {name: np.asarray(values, np.float32) for name, values in self.conditions.items()}
        shape = get_detector(self.detector).shape
        if self.samples.ndim != 4 or self.samples.shape[1:] != shape:
            raise InvalidEventSet(
                f"Samples of shape {self.samples.shape} do not fit detector {self.detector}: "
                f"(N, {', '.join(map(str, shape))}) is right."
            )
        if ENERGY not in self.conditions:
            raise InvalidEventSet(f"The condition {ENERGY} (MeV) is missing: one value per sample is needed.")
        for name, values in self.conditions.items():
            if values.shape != (len(self),):
                raise InvalidEventSet(
                    f"Condition {name} has shape {values.shape}; ({len(self)},) is right: one value per sample."
                )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice | ArrayLike) -> EventSet:
        """The events of a slice, an index array or a mask."""
        picked: Any = rows if isinstance(rows, slice) else np.atleast_1d(np.asarray(rows))
        conditions = {name: values[picked] for name, values in self.conditions.items()}
        samples = self.samples[picked]
        return EventSet(conditions, samples, self.detector, _share(self.attributes, len(samples), len(self)))

    @property
    def incident_energy(self) -> NDArray[np.float32]:
        """Kinetic energy of the incident particle, MeV, shape (N,)."""
        return self.conditions[ENERGY]

    def check(self, where: str = "Event set") -> None:
        """Raise InvalidEventSet if a value is NaN, infinite or an impossible energy; `where` begins the message."""
        for name, values in self.conditions.items():
            _check_values(values, where, _dataset_of(name))
        _check_values(self.samples, where, SHOWERS)


def concatenate(event_sets: Sequence[EventSet]) -> EventSet:
    """One event set after another. Attributes that all share are kept, `seconds` added up, differing seeds listed.

    Raises IncompatibleEventSets when detectors or names of conditions differ.
    """
    if not event_sets:
        raise IncompatibleEventSets("There is no event set to join: give at least one.")
    first = event_sets[0]
    for other in event_sets[1:]:
        if other.detector != first.detector:
            raise IncompatibleEventSets(
                f"Event sets of detectors {first.detector} and {other.detector} cannot be joined: give sets of one."
            )
        if other.conditions.keys() != first.conditions.keys():
            raise IncompatibleEventSets(
                f"Event sets with conditions {sorted(first.conditions)} and {sorted(other.conditions)} cannot be "
                "joined: give sets with the same conditions."
            )
    return EventSet(
        {name: np.concatenate([events.conditions[name] for events in event_sets]) for name in first.conditions},
        np.concatenate([events.samples for events in event_sets]),
        first.detector,
        _join_attributes([events.attributes for events in event_sets], sum(map(len, event_sets))),
    )


def read_events(path: Path | str, *, start: int = 0, stop: int | None = None) -> EventSet:
    """Events start .. stop - 1 (as a slice would) of an HDF5 file, or of a folder of shard-*.h5.

    Raises InvalidEventSet for whatever is wrong with the file, UnknownDetector for a detector that is not registered.
    """
    files = event_files(path)
    counts = [_read_header(file).count for file in files] if len(files) > 1 or start or stop is not None else None
    if counts is None:
        return _read_file(files[0], 0, None)
    first, last, _ = slice(start, stop).indices(sum(counts))
    parts, offset = [], 0
    for file, count in zip(files, counts, strict=True):
        begin, end = max(first - offset, 0), min(last - offset, count)
        if begin < end:
            parts.append(_read_file(file, begin, end))
        offset += count
    if not parts:
        return _read_file(files[0], 0, 0)
    return parts[0] if len(parts) == 1 else concatenate(parts)


def iterate_events(path: Path | str, chunk: int = 1000) -> Iterator[EventSet]:
    """The event set in pieces of at most `chunk` events, in order. Raises as `read_events` does."""
    for file in event_files(path):
        count = _read_header(file).count
        for start in range(0, count, chunk):
            yield _read_file(file, start, min(start + chunk, count))


def events_info(path: Path | str) -> dict[str, Any]:
    """What an event set holds, from its header and its conditions; samples are not read.

    Keys: `count`, `detector`, `sample_shape`, `unit`, `conditions` {name: {unit, low, high}}, `attributes`, `files`.
    Raises as `read_events` does.
    """
    headers = [_read_header(file) for file in event_files(path)]
    detectors = {header.detector for header in headers}
    if len(detectors) > 1:
        raise InvalidEventSet(
            f"Event set {path}: its shards are of different detectors ({', '.join(sorted(detectors))}). Keep one."
        )
    count = sum(header.count for header in headers)
    conditions = {}
    for name in headers[0].conditions:
        columns = [header.conditions[name] for header in headers if header.count and name in header.conditions]
        conditions[name] = {
            "unit": _UNITS.get(name, ""),
            "low": min((float(values.min()) for values in columns), default=None),
            "high": max((float(values.max()) for values in columns), default=None),
        }
    return {
        "count": count,
        "detector": headers[0].detector,
        "sample_shape": list(get_detector(headers[0].detector).shape),
        "unit": "MeV",
        "conditions": conditions,
        "attributes": _join_attributes([header.attributes for header in headers], count),
        "files": len(headers),
    }


def read_conditions(path: Path | str) -> dict[str, NDArray[np.float32]]:
    """The conditions alone, (N,) each; samples are not read. Raises as `read_events` does."""
    headers = [_read_header(file) for file in event_files(path)]
    return {
        name: np.concatenate([header.conditions[name] for header in headers])
        for name in headers[0].conditions
        if all(name in header.conditions for header in headers)
    }


def event_files(path: Path | str) -> list[Path]:
    """The file itself, or the shards of a folder in order. Raises InvalidEventSet when one is missing or a link."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    shards = sorted(path.glob("shard-*.h5"))
    if not shards:
        raise InvalidEventSet(f"Folder {path} holds no event set: it has no files shard-00000.h5 and so on.")
    for number, shard in enumerate(shards):
        if shard.name != f"shard-{number:05d}.h5":
            raise InvalidEventSet(
                f"Event set {path}: shard-{number:05d}.h5 is missing before {shard.name}. Finish or copy the run again."
            )
        if shard.is_symlink():
            raise InvalidEventSet(
                f"Event set {path}: {shard.name} is a link, which is never followed. Put the file itself there."
            )
    return shards


def write_events(path: Path | str, events: EventSet, *, compression: str | None = "gzip") -> None:
    """Write `events` as one CaloChallenge HDF5 file: whole or not at all, the same bytes for the same events.

    `compression` is "gzip" or None. Attributes named as those of the geometry (`Detector.attributes`) are replaced by the
    detector's. Raises InvalidEventSet for impossible values, OutputError for whatever the file system refuses.
    """
    if compression not in ("gzip", None):
        raise ValueError(f"Compression must be 'gzip' or None, not {compression!r}")
    path = Path(path)
    where = f"The event set for {path}"
    events.check(where)
    for name in events.conditions:
        if not _COLUMN_NAME.fullmatch(name) or name in (ENERGIES, SHOWERS):
            raise InvalidEventSet(f"{where}: {name!r:.80} cannot name a condition. Use letters, digits and _.")
    detector = get_detector(events.detector)
    attributes = events.attributes | detector.attributes()
    encoded = {name: _fixed(attributes[name], f"{where}, attribute {name!r:.80}") for name in sorted(attributes)}
    # In memory first: HDF5 crashes the process when the disk fills up under an open file.
    memory: dict[str, Any] = {"driver": "core", "backing_store": False, "block_size": 2**24}
    with h5py.File(path.name, "w", libver=("earliest", "v110"), **memory) as file:
        for name, values in events.conditions.items():
            file.create_dataset(_dataset_of(name), data=values[:, None].astype("<f4"), track_times=False)
        _write_samples(file, events.samples.reshape(len(events), detector.voxels), compression)
        for name, value in encoded.items():
            file.attrs[name] = value
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def _fixed(value: object, where: str) -> NDArray[Any]:
    """An attribute with strings of fixed length, which a reader can bound before it reads them."""
    array = np.asarray(value)
    if array.dtype.kind == "U":
        encoded = np.char.encode(array, "utf-8")
        array = encoded.astype(h5py.string_dtype("utf-8", max(1, encoded.dtype.itemsize)))
    elif array.dtype.kind not in "biufS" or array.ndim > 1:
        raise TypeError(f"{where} must be text, a number or a list of them, not {type(value).__name__}")
    if array.nbytes > _LARGEST_ATTRIBUTE:
        raise InvalidEventSet(f"{where}: {array.nbytes} bytes are too many; shorten it to {_LARGEST_ATTRIBUTE}.")
    return array


def _write_samples(file: h5py.File, samples: NDArray[np.float32], compression: str | None) -> None:
    """Compress chunks in threads (HDF5 would hold one lock over all of it) and hand them over as they are."""
    if compression is None or not len(samples):
        file.create_dataset(SHOWERS, data=samples.astype("<f4", copy=False), track_times=False)
        return
    rows, voxels = min(_CHUNK, len(samples)), samples.shape[1]
    layout: dict[str, Any] = {"chunks": (rows, voxels), "compression": "gzip", "compression_opts": _LEVEL}
    dataset = file.create_dataset(SHOWERS, samples.shape, "<f4", track_times=False, **layout)

    def compress(start: int) -> bytes:
        chunk = np.zeros((rows, voxels), "<f4")
        part = samples[start : start + rows]
        chunk[: len(part)] = part
        return zlib.compress(chunk.tobytes(), _LEVEL)

    starts = range(0, len(samples), rows)
    with ThreadPoolExecutor(_threads()) as pool:
        for first in range(0, len(starts), 32):
            group = starts[first : first + 32]
            for start, data in zip(group, pool.map(compress, group), strict=True):
                dataset.id.write_direct_chunk((start, 0), data)


def _threads() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


@dataclass(frozen=True)
class _Header:
    """What a file says about its events; everything but the showers is read and checked."""

    count: int
    detector: str
    conditions: dict[str, NDArray[np.float32]]
    attributes: dict[str, Any]


def _read_header(path: Path) -> _Header:
    with open_untrusted(path) as file:
        return _parse(file, path)[0]


def _parse(file: h5py.File, path: Path) -> tuple[_Header, h5py.Dataset]:
    names = dataset_names(file, path)
    for name in (ENERGIES, SHOWERS):
        if name not in names:
            raise InvalidEventSet(
                f"Event set {path} has no dataset {name!r}; it has {', '.join(sorted(names)[:8]) or 'none'}. "
                f"CaloChallenge's format needs {ENERGIES!r} (N, 1) and {SHOWERS!r} (N, voxels), both in MeV."
            )
    showers = open_dataset(file, path, SHOWERS)
    if len(showers.shape) != 2 or not showers.shape[1]:
        raise InvalidEventSet(
            f"Event set {path}, dataset {SHOWERS!r}: shape {showers.shape} is wrong, (N, voxels) is right. Flatten (z, x, y)."
        )
    count, voxels = showers.shape
    attributes = read_attributes(file, path)
    detector = _detector_of(path, attributes, voxels)
    conditions = {}
    for name in sorted(set(names) - {SHOWERS}, key=lambda name: (name != ENERGIES, name)):
        column = open_dataset(file, path, name)
        if column.shape not in ((count, 1), (count,)):
            if name != ENERGIES:
                continue
            raise InvalidEventSet(
                f"Event set {path}, dataset {name!r}: shape {column.shape} is wrong, ({count}, 1) is right: "
                "one energy per shower."
            )
        if not _COLUMN_NAME.fullmatch(name):
            raise InvalidEventSet(f"Event set {path}: {name!r:.80} cannot name a condition. Rename the dataset.")
        with np.errstate(over="ignore"):  # becomes infinite, which is then refused
            values = column[...].reshape(-1).astype(np.float32)
        _check_values(values, f"Event set {path}", name)
        conditions[ENERGY if name == ENERGIES else name] = values
    return _Header(count, detector, conditions, attributes), showers


def _detector_of(path: Path, attributes: dict[str, Any], voxels: int) -> str:
    """Take the name of the detector out of the attributes, or infer it from the number of voxels.

    A detector that is described there needs not be known beforehand.
    """
    name = attributes.pop("detector", None)
    try:
        described = described_detector(attributes.get("geometry"), f"Event set {path}, attribute 'geometry'")
    except InvalidConfig as error:
        raise InvalidEventSet(str(error)) from None
    if name is None:
        inferred = infer_detector(voxels)
        if inferred is None:
            raise InvalidEventSet(
                f"Event set {path}, dataset {SHOWERS!r}: shape (N, {voxels}) fits no known detector. Showers of "
                f"{' and '.join(_voxels_of(name) for name in detector_names())}."
            )
        return inferred.name
    if described is not None and described.name != name:
        raise InvalidEventSet(
            f"Event set {path}: attribute 'detector' is {name!r:.80}, but 'geometry' describes {described.name!r}. "
            "Make them agree."
        )
    try:
        detector = get_detector(str(name))
    except UnknownDetector as error:
        raise UnknownDetector(f"Event set {path}, attribute 'detector': {error}") from None
    if detector.voxels != voxels:
        raise InvalidEventSet(
            f"Event set {path}, dataset {SHOWERS!r}: shape (N, {voxels}) does not fit detector {detector.name}; "
            f"(N, {detector.voxels}) is right."
        )
    return detector.name


def _voxels_of(name: str) -> str:
    detector = get_detector(name)
    return f"{name} have {detector.voxels} voxels ({' x '.join(map(str, detector.shape))})"


def _read_file(path: Path, start: int, stop: int | None) -> EventSet:
    with open_untrusted(path) as file:
        header, showers = _parse(file, path)
        stop = header.count if stop is None else min(stop, header.count)
        samples = np.empty((stop - start, *get_detector(header.detector).shape), np.float32)
        flat = samples.reshape(len(samples), showers.shape[1])
        for begin in range(start, stop, 10 * _CHUNK):
            rows = slice(begin, min(begin + 10 * _CHUNK, stop))
            target = slice(rows.start - start, rows.stop - start)
            read_rows(showers, begin, flat[target])
            _check_values(flat[target], f"Event set {path}", SHOWERS, first=begin)
    conditions = {name: values[start:stop] for name, values in header.conditions.items()}
    return EventSet(conditions, samples, header.detector, _share(header.attributes, len(samples), header.count))


def _check_values(values: NDArray[np.float32], where: str, dataset: str, *, first: int = 0) -> None:
    """Refuse what is not finite, showers below zero, and incident energies that are not above it."""
    if not values.size:
        return
    lowest, right = {
        SHOWERS: (0.0, "finite energies in MeV, zero or more"),
        ENERGIES: (float(np.finfo(np.float32).smallest_subnormal), "finite energies in MeV, above zero"),
    }.get(dataset, (-np.inf, "finite numbers"))
    low, high = values.min(), values.max()  # NaN if there is one
    if np.isfinite(low) and np.isfinite(high) and low >= lowest:
        return
    bad = (~np.isfinite(values) | (values < lowest)).reshape(len(values), -1)
    event = int(np.argmax(bad.any(axis=1)))
    value = values.reshape(len(values), -1)[event, np.argmax(bad[event])]
    raise InvalidEventSet(
        f"{where}, dataset {dataset!r}: event {first + event} holds {value}, but {right} are right. Repair or remove the event."
    )


def _dataset_of(condition: str) -> str:
    return ENERGIES if condition == ENERGY else condition


def _share(attributes: dict[str, Any], part: int, whole: int) -> dict[str, Any]:
    """Attributes of a part of the events: its share of the time they all took, the rest as it is."""
    if part == whole or not isinstance(attributes.get("seconds"), int | float):
        return dict(attributes)
    return {**attributes, "seconds": attributes["seconds"] * part / whole}


def _join_attributes(every: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    first = every[0]
    if len(every) == 1:
        return dict(first)
    joined = {name: value for name, value in first.items() if all(other.get(name) == value for other in every[1:])}
    if all(isinstance(found.get("seconds"), int | float) for found in every):
        joined["seconds"] = sum(found["seconds"] for found in every)
        if count:
            joined["seconds_per_event"] = joined["seconds"] / count
    seeds = [found.get("seed") for found in every]
    if "seed" not in joined and all(seed is not None for seed in seeds):
        joined["seed"] = [value for seed in seeds for value in (seed if isinstance(seed, list) else [seed])]
    return joined
