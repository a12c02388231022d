"""Writing samples while they are being made: compression in threads, constant memory, the same bytes every time.

HDF5's own gzip runs under one lock at 2,000 to 5,000 showers per second, slower than the generators. Here chunks are deflated in
threads, by code made for showers (`minicarlo.deflate`), and handed over whole. Byte shuffling makes sparse showers larger.
`benchmarks/compression.py` compares with others.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from minicarlo.deflate import deflate
from minicarlo.detectors import Detector
from minicarlo.engines import usable_cores
from minicarlo.errors import InvalidSurrogate
from minicarlo.events import ENERGIES
from minicarlo.files import atomic_path
from minicarlo.shards import CHUNK, new_event_file

_LEVEL = 2  # as HDF5 knows it; who reads does not look
_INFINITY = 0x7F800000  # as a float32
Array = NDArray[np.float32]


class EventFile:
    """An event set of known length, written in order, batch by batch; it appears whole or not at all.

    A context manager, or `open` and `close`. Energies are exact float32, or rounded to `mantissa_bits`. Chunks are deflated in
    `workers` threads, by default one per usable core. `append` returns at once unless the disk is behind; what goes wrong in
    the background is raised by the next call. Raises OutputError for whatever the file system refuses, InvalidSurrogate for
    samples that are no energies.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        detector: Detector,
        attributes: Mapping[str, Any],
        first_event: int = 0,
        workers: int | None = None,
        mantissa_bits: int | None = None,
    ) -> None:
        self._path, self._count, self._detector, self._attributes = path, count, detector, attributes
        self._first_event, self._mantissa_bits = first_event, mantissa_bits
        self._rows, self._energies = min(CHUNK, count), np.zeros((count, 1), "<f4")
        self._done, self._pieces = 0, list[Array]()
        self._workers = workers or usable_cores()
        self._chunks: queue.Queue[tuple[int, Future[bytes]] | None] = queue.Queue(maxsize=2 * self._workers)
        self._failure: BaseException | None = None
        self._ended = False
        self._pool = ThreadPoolExecutor(self._workers, f"deflate {path.name}")
        self._thread = threading.Thread(target=self._work, name=f"write {path.name}", daemon=True)

    def open(self) -> EventFile:
        """Begin; return the file itself."""
        self._thread.start()
        return self

    def __enter__(self) -> EventFile:
        return self.open()

    def append(self, samples: Array, incident_energy: Array) -> None:
        """Write the next samples (N, z, x, y) and their energies (N,); the arrays must not be changed afterwards."""
        if self._failure is not None:
            raise self._failure
        self._energies[self._done : self._done + len(samples), 0] = incident_energy.reshape(-1)
        taken = 0
        while taken < len(samples):
            step = min(self._rows - self._done % self._rows, len(samples) - taken)
            self._pieces.append(samples[taken : taken + step])
            self._done, taken = self._done + step, taken + step
            if self._done % self._rows == 0:
                self._end_chunk()

    def _end_chunk(self) -> None:
        start, size = self._done - sum(map(len, self._pieces)), 4 * self._rows * self._detector.voxels
        packed = self._pool.submit(_compress, self._pieces, size, self._first_event + start, self._mantissa_bits)
        self._pieces = []
        self._chunks.put((start, packed))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Wait until all is on disk, or, after an `error`, until nothing is left of the file."""
        if error is not None:
            self._failure = self._failure or error
        elif self._pieces:
            self._end_chunk()
        self._chunks.put(None)
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        if error is None and self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            with atomic_path(self._path) as temporary:
                self._write(temporary)
        except BaseException as error:  # for the caller's thread
            self._failure = self._failure or error
            while not self._ended:  # the caller must never wait for room in the queue
                self._ended = self._chunks.get() is None

    def _write(self, temporary: Path) -> None:
        attributes = sorted((dict(self._attributes) | self._detector.attributes()).items())
        fixed = {name: _fixed(value) for name, value in attributes}
        packing = (h5py.h5z.FILTER_DEFLATE, (_LEVEL,))
        with new_event_file(temporary, self._count, self._detector.voxels, fixed, packing) as (file, dataset):
            while (chunk := self._chunks.get()) is not None:
                start, packed = chunk
                dataset.id.write_direct_chunk((start, 0), packed.result())
            self._ended = True
            if self._failure is not None:
                raise self._failure
            if self._done != self._count:
                raise ValueError(f"{self._done} of {self._count} events were appended")
            file.create_dataset(ENERGIES, data=self._energies, track_times=False)


def check_samples(samples: Array, first_event: int) -> None:
    """Raise InvalidSurrogate if a generated sample is NaN, infinite or negative."""
    if samples.view(np.uint32).max() < _INFINITY:  # neither a sign nor the exponent of what is not finite: one pass
        return
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and np.isfinite(high)):
        flat = samples.reshape(len(samples), -1)
        event = int(np.argmax((~np.isfinite(flat) | (flat < 0)).any(axis=1)))
        raise InvalidSurrogate(
            f"The surrogate gave energies that are no energies (negative, infinite or NaN) for event {first_event + event}. "
            "Its network is faulty; train or tune it again, or choose another precision."
        )


def round_mantissa(samples: Array, bits: int) -> Array:
    """Non-negative float32 to the nearest with `bits` (1 to 22) bits of mantissa, ties to even: an error up to 2^-(bits+1)."""
    words, drop = samples.view(np.uint32), np.uint32(23 - bits)
    half = np.uint32((1 << (22 - bits)) - 1)
    kept = (words + half + ((words >> drop) & np.uint32(1))) >> drop
    return (kept << drop).view(np.float32)


def _compress(pieces: list[Array], size: int, first_event: int, mantissa_bits: int | None) -> bytes:
    """Check and deflate a chunk of `size` bytes, zeros at its end left out. How it is cut into pieces changes no byte."""
    stored = [np.ascontiguousarray(piece, "<f4") for piece in pieces]
    if mantissa_bits is not None:
        _check_all(stored, first_event)
        stored = [round_mantissa(piece, mantissa_bits) for piece in stored]
    compressed, largest = deflate(stored, size)
    if largest >= _INFINITY:
        _check_all(stored, first_event)
    return compressed


def _check_all(pieces: list[Array], first_event: int) -> None:
    for piece in pieces:
        check_samples(piece, first_event)
        first_event += len(piece)


def _fixed(value: object) -> NDArray[Any]:
    """An attribute, text as a fixed-length string: HDF5 keeps variable-length ones on a heap."""
    if not isinstance(value, str):
        return np.asarray(value)
    encoded = value.encode()
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))
