"""Event sets: N conditions with N samples, in memory and as CaloChallenge HDF5."""

from __future__ import annotations

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

from minicarlo.detectors import get_detector, infer_detector
from minicarlo.errors import IncompatibleEventSets, InvalidEventSet, UnknownDetector
from minicarlo.files import atomic_path
from minicarlo.hdf5 import dataset_names, open_dataset, open_untrusted, read_attributes

ENERGY = "incident_energy"
"""The condition every event set has: kinetic energy of the incident particle, MeV."""

ENERGIES, SHOWERS = "incident_energies", "showers"  # CaloChallenge's names of the datasets
_CHUNK = 64  # events in a compressed chunk: 4 MB of clic-ecal
_COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass
class EventSet:
    """N conditions with N samples.

    `conditions` maps a name to N float32 values (`incident_energy` in MeV is always there), `samples` has shape (N, z, x, y),
    float32 MeV, `attributes` holds provenance: text, numbers or lists of them.

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
        if self.samples.shape[1:] != shape:
            raise InvalidEventSet(
                f"Samples of shape {self.samples.shape} do not fit detector {self.detector}: (N, {', '.join(map(str, shape))}) is right."
            )
        if ENERGY not in self.conditions:
            raise InvalidEventSet(f"The condition {ENERGY} (MeV) is missing.")
        for name, values in self.conditions.items():
            if values.shape != (len(self),):
                raise InvalidEventSet(f"Condition {name} has shape {values.shape}; ({len(self)},) is right: one value per sample.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice | ArrayLike) -> EventSet:
        """The events of a slice, an index array or a mask."""
        picked: Any = rows if isinstance(rows, slice) else np.atleast_1d(np.asarray(rows))
        conditions = {name: values[picked] for name, values in self.conditions.items()}
        return EventSet(conditions, self.samples[picked], self.detector, dict(self.attributes))

    @property
    def incident_energy(self) -> NDArray[np.float32]:
        """Kinetic energy of the incident particle, MeV, shape (N,)."""
        return self.conditions[ENERGY]

    def check(self, where: str = "Event set") -> None:
        """Raise InvalidEventSet if a value is NaN, infinite or a negative energy; `where` begins the message."""
        for name, values in self.conditions.items():
            _check_values(values, where, _dataset_of(name), positive=name == ENERGY, bounded=name == ENERGY)
        _check_values(self.samples, where, SHOWERS)


def concatenate(event_sets: Sequence[EventSet]) -> EventSet:
    """One event set after another. Attributes that all share are kept, `seconds` added up, differing seeds listed.

    Raises IncompatibleEventSets when detectors or names of conditions differ.
    """
    if not event_sets:
        raise IncompatibleEventSets("There is no event set to join.")
    first = event_sets[0]
    for other in event_sets[1:]:
        if other.detector != first.detector:
            raise IncompatibleEventSets(f"Event sets of detectors {first.detector} and {other.detector} cannot be joined.")
        if other.conditions.keys() != first.conditions.keys():
            raise IncompatibleEventSets(
                f"Event sets with conditions {sorted(first.conditions)} and {sorted(other.conditions)} cannot be joined."
            )
    return EventSet(
        {name: np.concatenate([events.conditions[name] for events in event_sets]) for name in first.conditions},
        np.concatenate([events.samples for events in event_sets]),
        first.detector,
        _join_attributes([events.attributes for events in event_sets], len_total=sum(map(len, event_sets))),
    )


def read_events(path: Path | str, *, start: int = 0, stop: int | None = None) -> EventSet:
    """Events start .. stop - 1 (as a slice would) of an HDF5 file, or of a folder of shard-*.h5.

    Raises InvalidEventSet for whatever is wrong with the file, UnknownDetector for a detector that is not registered.
    """
    files = event_files(path)
    counts = [_header(file)[0] for file in files]
    first, last, _ = slice(start, stop).indices(sum(counts))
    parts, offset = [], 0
    for number, (file, count) in enumerate(zip(files, counts, strict=True)):
        begin, end = max(first - offset, 0), min(last - offset, count)
        if begin < end or number == 0:
            parts.append(_read_file(file, min(begin, count), max(end, min(begin, count))))
        offset += count
    filled = [part for part in parts if len(part)] or parts[:1]
    return filled[0] if len(filled) == 1 else concatenate(filled)


def iterate_events(path: Path | str, chunk: int = 1000) -> Iterator[EventSet]:
    """The event set in pieces of at most `chunk` events, in order. Raises as `read_events` does."""
    for file in event_files(path):
        count = _header(file)[0]
        for start in range(0, count, chunk):
            yield _read_file(file, start, min(start + chunk, count))


def events_info(path: Path | str) -> dict[str, Any]:
    """What an event set holds, from its header and its conditions; samples are not read.

    Keys: `count`, `detector`, `sample_shape`, `unit`, `conditions` {name: {unit, low, high}}, `attributes`, `files`.
    Raises as `read_events` does.
    """
    files = event_files(path)
    count, ranges, attributes, detectors = 0, {}, [], set()
    for file in files:
        number, detector, columns, found = _header(file)
        count += number
        detectors.add(detector)
        attributes.append(found)
        for name, values in columns.items():
            if number:
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
    if len(detectors) > 1:
        raise InvalidEventSet(f"Event set {path}: its shards are of different detectors ({', '.join(sorted(detectors))}).")
    detector = detectors.pop()
    return {
        "count": count,
        "detector": detector,
        "sample_shape": list(get_detector(detector).shape),
        "unit": "MeV",
        "conditions": {
            name: {"unit": "MeV" if name == ENERGY else "", "low": low, "high": high} for name, (low, high) in ranges.items()
        },
        "attributes": _join_attributes(attributes, len_total=count),
        "files": len(files),
    }


def event_files(path: Path | str) -> list[Path]:
    """The file itself, or the shards of a folder in order. Raises InvalidEventSet when one is missing or a link."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    shards = sorted(path.glob("shard-*.h5"))
    if not shards:
        raise InvalidEventSet(f"Folder {path} holds no event set: it has no files shard-*.h5.")
    for number, shard in enumerate(shards):
        if shard.name != f"shard-{number:05d}.h5":
            raise InvalidEventSet(f"Event set {path}: shard-{number:05d}.h5 is missing before {shard.name}. Finish or copy the run again.")
        if shard.is_symlink():
            raise InvalidEventSet(f"Event set {path}: {shard.name} is a link, which is never followed. Put the file itself there.")
    return shards


def write_events(path: Path | str, events: EventSet, *, compression: str | None = "gzip") -> None:
    """Write `events` as one CaloChallenge HDF5 file: whole or not at all, the same bytes for the same events.

    `compression` is "gzip" (with shuffle) or None. Raises InvalidEventSet for impossible values, OutputError for whatever the
    file system refuses.
    """
    if compression not in ("gzip", None):
        raise InvalidEventSet(f"Compression {compression!r} is unknown: choose gzip or None.")
    path = Path(path)
    events.check(f"The event set for {path}")
    for name in events.conditions:
        if not _COLUMN_NAME.fullmatch(name) or name in (ENERGIES, SHOWERS):
            raise InvalidEventSet(f"The event set for {path}: {name!r:.80} cannot be the name of a condition.")
    detector = get_detector(events.detector)
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver=("earliest", "v110")) as file:
        for name, values in events.conditions.items():
            file.create_dataset(_dataset_of(name), data=values[:, None], track_times=False)
        _write_samples(file, events.samples.reshape(len(events), detector.voxels), compression)
        geometry = {
            "detector": detector.name,
            "shape": f"{','.join(map(str, detector.shape))} = z,x,y ; flat index = (iz*{detector.shape[1]}+ix)*{detector.shape[2]}+iy",
            "cell_size_mm": list(detector.cell_size_mm),
            "energy_unit": "MeV",
        }
        for name, value in sorted((events.attributes | geometry).items()):
            file.attrs[name] = value


def _write_samples(file: h5py.File, samples: NDArray[np.float32], compression: str | None) -> None:
    """Compress chunks in threads (HDF5 would hold one lock over all of it) and hand them over as they are."""
    if compression is None or not len(samples):
        file.create_dataset(SHOWERS, data=samples, track_times=False)
        return
    rows, voxels = min(_CHUNK, len(samples)), samples.shape[1]
    dataset = file.create_dataset(
        SHOWERS, samples.shape, "<f4", chunks=(rows, voxels), compression="gzip", compression_opts=4, shuffle=True, track_times=False
    )

    def compress(start: int) -> bytes:
        chunk = np.zeros((rows, voxels), "<f4")
        part = samples[start : start + rows]
        chunk[: len(part)] = part
        return zlib.compress(np.ascontiguousarray(chunk.view(np.uint8).reshape(-1, 4).T), 4)

    starts = range(0, len(samples), rows)
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        for group in range(0, len(starts), 32):
            for start, data in zip(starts[group : group + 32], pool.map(compress, starts[group : group + 32]), strict=True):
                dataset.id.write_direct_chunk((start, 0), data)


def _threads() -> int:
    import os

    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def _header(path: Path) -> tuple[int, str, dict[str, NDArray[np.float32]], dict[str, Any]]:
    """(count, detector, conditions, attributes) of one file; everything but the showers is read and checked."""
    with open_untrusted(path) as file:
        return _read_header(file, path)[:4]


def _read_header(
    file: h5py.File, path: Path
) -> tuple[int, str, dict[str, NDArray[np.float32]], dict[str, Any], h5py.Dataset]:
    names = dataset_names(file, path)
    for name in (ENERGIES, SHOWERS):
        if name not in names:
            raise InvalidEventSet(
                f"Event set {path} has no dataset {name!r} (it has {', '.join(names[:8]) or 'none'}). CaloChallenge's format needs "
                f"{ENERGIES!r} (N, 1) and {SHOWERS!r} (N, voxels), both in MeV."
            )
    showers = open_dataset(file, path, SHOWERS)
    if len(showers.shape) != 2 or not showers.shape[1]:
        raise InvalidEventSet(f"Event set {path}, dataset {SHOWERS!r}: shape {showers.shape} is wrong, (N, voxels) is right.")
    attributes = read_attributes(file, path)
    detector = _detector_of(path, attributes, showers.shape[1])
    conditions = {}
    for name in sorted(names, key=lambda name: (name != ENERGIES, name)):
        if name == SHOWERS:
            continue
        column = open_dataset(file, path, name)
        if column.shape not in ((len(showers), 1), (len(showers),)):
            if name != ENERGIES:
                continue
            raise InvalidEventSet(
                f"Event set {path}, dataset {name!r}: shape {column.shape} is wrong, ({len(showers)}, 1) is right: one energy per shower."
            )
        if name != ENERGIES and not _COLUMN_NAME.fullmatch(name):
            raise InvalidEventSet(f"Event set {path}: {name!r:.80} cannot be the name of a condition. Rename the dataset.")
        values = column[...].reshape(-1).astype(np.float32)
        energy = name == ENERGIES
        _check_values(values, f"Event set {path}", name, positive=energy, bounded=energy)
        conditions[ENERGY if energy else name] = values
    return len(showers), detector, conditions, attributes, showers


def _detector_of(path: Path, attributes: dict[str, Any], voxels: int) -> str:
    name = attributes.pop("detector", None)
    if name is None:
        inferred = infer_detector(voxels)
        if inferred is None:
            raise InvalidEventSet(
                f"Event set {path}, dataset {SHOWERS!r}: no known detector has {voxels} voxels. Showers of clic-ecal have 15625 (25 x 25 x 25)."
            )
        return inferred.name
    try:
        detector = get_detector(str(name))
    except UnknownDetector as error:
        raise UnknownDetector(f"Event set {path}, attribute 'detector': {error}") from None
    if detector.voxels != voxels:
        raise InvalidEventSet(
            f"Event set {path}, dataset {SHOWERS!r}: {voxels} voxels do not fit detector {detector.name}, which has {detector.voxels}."
        )
    return detector.name


def _read_file(path: Path, start: int, stop: int) -> EventSet:
    with open_untrusted(path) as file:
        count, detector, conditions, attributes, showers = _read_header(file, path)
        shape = get_detector(detector).shape
        samples = np.empty((stop - start, *shape), np.float32)
        flat = samples.reshape(len(samples), showers.shape[1])
        for begin in range(start, stop, 10 * _CHUNK):
            end = min(begin + 10 * _CHUNK, stop)
            showers.read_direct(flat, np.s_[begin:end], np.s_[begin - start : end - start])
            _check_values(flat[begin - start : end - start], f"Event set {path}", SHOWERS, first=begin)
        return EventSet({name: values[start:stop] for name, values in conditions.items()}, samples, detector, attributes)


def _check_values(
    values: NDArray[np.float32], where: str, dataset: str, *, positive: bool = False, bounded: bool = True, first: int = 0
) -> None:
    """Refuse what is not finite and, when `bounded`, what is negative (or, when `positive`, zero)."""
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())  # NaN wins both
    if np.isfinite(low) and np.isfinite(high) and (not bounded or low > 0 or (low == 0 and not positive)):
        return
    bad = ~np.isfinite(values)
    if bounded:
        bad |= (values <= 0) if positive else (values < 0)
    event = int(np.argmax(bad.reshape(len(values), -1).any(axis=1)))
    value = values[event].reshape(-1)[np.argmax(bad[event].reshape(-1))]
    right = "finite numbers" if not bounded else "finite energies above zero" if positive else "finite energies, zero or more"
    raise InvalidEventSet(f"{where}, dataset {dataset!r}: event {first + event} holds {value}; {right} (MeV) are right. Repair or remove the event.")


def _dataset_of(condition: str) -> str:
    return ENERGIES if condition == ENERGY else condition


def _join_attributes(attributes: Sequence[dict[str, Any]], *, len_total: int) -> dict[str, Any]:
    first = attributes[0]
    if len(attributes) == 1:
        return dict(first)
    joined = {name: value for name, value in first.items() if all(other.get(name) == value for other in attributes[1:])}
    if all("seconds" in found for found in attributes):
        joined["seconds"] = sum(float(found["seconds"]) for found in attributes)
        if len_total:
            joined["seconds_per_event"] = joined["seconds"] / len_total
    seeds = [found.get("seed") for found in attributes]
    if "seed" not in joined and all(seed is not None for seed in seeds):
        joined["seed"] = [value for seed in seeds for value in (seed if isinstance(seed, list) else [seed])]
    return joined
