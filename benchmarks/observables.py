"""Seconds and memory of measuring 100,000 showers: `python benchmarks/observables.py showers.h5`, on a quiet machine.

The file's showers are repeated in shards of 2,000 in a temporary folder until there are enough. Reading and inflating them
is part of the time. The limits are those of the issue: 60 s and 4 GB for 100,000 showers of 15,625 cells on two cores.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from minicarlo.events import events_info, read_events, write_events
from minicarlo.fidelity import measure

EVENTS, SHARD = 100_000, 2_000


def main(path: str, events: int = EVENTS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _repeat(Path(path), Path(folder), events)
        before = _peak_gb()
        clock, cpu = time.perf_counter(), _cpu()
        measured = measure(folder)
        clock, cpu = time.perf_counter() - clock, _cpu() - cpu
    cells = measured.cells.size / len(measured)
    print(f"{len(measured):,} showers of {measured.detector.voxels:,} cells, {cells:.0f} of them above threshold, from {path}")
    print(f"{clock:.1f} s on the clock, {cpu:.1f} s of CPU ({1e6 * cpu / len(measured):.0f} us each), {os.cpu_count()} cores")
    print(f"peak memory {_peak_gb():.2f} GB ({before:.2f} GB before measuring)")


def _repeat(path: Path, folder: Path, events: int) -> None:
    """Shards of `SHARD` events, all but the last of them the same file."""
    known = events_info(path)["count"]
    if known >= SHARD:
        shard = read_events(path, stop=SHARD)
    else:
        shard = read_events(path)[[row % known for row in range(SHARD)]]
    write_events(folder / "shard-00000.h5", shard)
    for number in range(1, -(-events // SHARD)):
        shutil.copy(folder / "shard-00000.h5", folder / f"shard-{number:05d}.h5")


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
