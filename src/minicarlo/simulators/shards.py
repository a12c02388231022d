"""Where simulated events go: one file or the shards of a folder, claimed by one request and resumable."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import InvalidEventSet, OutputError
from minicarlo.events import events_info
from minicarlo.files import output_error, write_json


@dataclass(frozen=True)
class Shard:
    """Events start .. stop - 1, which go to the file `path`."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def finished(self, seed: int) -> bool:
        """Whether an earlier run wrote this shard."""
        if not self.path.exists():
            return False
        try:
            info = events_info(self.path)
        except InvalidEventSet:
            return False
        found = info["attributes"]
        return bool(info["count"] == len(self) and (found.get("seed"), found.get("first_event")) == (seed, self.start))


def is_file(output: Path) -> bool:
    """Whether `output` means one file rather than a folder of shards."""
    return output.suffix == ".h5"


def shards(output: Path, events: int, size: int) -> list[Shard]:
    """The files that `events` events go to."""
    if is_file(output):
        return [Shard(output, 0, events)]
    starts = range(0, events, size)
    return [Shard(output / f"shard-{number:05d}.h5", start, min(start + size, events)) for number, start in enumerate(starts)]


@contextmanager
def claim(folder: Path, request: Mapping[str, Any]) -> Iterator[None]:
    """Make `folder` the place of `request`, or find that it is. If the block leaves no shard there, that is undone.

    Raises OutputError when the folder cannot be made or holds something else.
    """
    record = folder / "run.json"
    created = not folder.exists()
    if record.exists():
        _check_same_request(record, request)
    elif folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty and holds no simulation. Choose a new folder, or a name that ends in .h5.")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        if not record.exists():
            write_json(record, dict(request))
        yield
    finally:
        if not any(folder.glob("shard-*.h5")):
            with suppress(OSError):
                record.unlink(missing_ok=True)
                if created:
                    folder.rmdir()


def check_same_origin(shard: Shard, provenance: Mapping[str, Any]) -> None:
    """Refuse to continue a run with another version of the simulator or of its data. Raises OutputError."""
    found = events_info(shard.path)["attributes"]
    changed = [
        f"{key} was {found.get(key)!r:.80}, is {value!r:.80}" for key, value in provenance.items() if found.get(key) != value
    ]
    if changed:
        folder = shard.path.parent
        raise OutputError(
            f"{folder} was begun under other circumstances: {'; '.join(changed)}. Restore them, or choose a new folder."
        )


@contextmanager
def buffer(shard: Shard, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Samples of a shard, kept in a nameless file beside it: memory stays flat, and a kill leaves nothing behind.

    Its disk space is reserved at once. Raises OutputError when there is not enough.
    """
    with tempfile.TemporaryFile(dir=shard.path.parent) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, 4 * len(shard) * math.prod(shape))
            except OSError as error:
                raise output_error(shard.path, error) from error
        yield np.memmap(file, np.float32, "w+", shape=(len(shard), *shape))


def _check_same_request(record: Path, request: Mapping[str, Any]) -> None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        changed = [
            f"{key} {found.get(key)!r:.80}, not {request.get(key)!r}"
            for key in {**request, **found}
            if found.get(key) != request.get(key)
        ]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OutputError(f"{record} is damaged ({error}). Choose a new folder.") from error
    if changed:
        raise OutputError(
            f"{record.parent} holds another run: {'; '.join(changed)}. Repeat that request to finish it, or choose a new folder."
        )
