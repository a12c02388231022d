"""Where the events of a shard are until it is written, and whether shards belong together."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import OutputError
from minicarlo.events import events_info
from minicarlo.files import output_error
from minicarlo.shards import Shard


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
