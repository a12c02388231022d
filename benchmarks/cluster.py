"""What a cluster costs: showers per second on 1, 2, … local Dask workers beside plain `generate`, and the seconds a shard adds.

    python benchmarks/cluster.py [SURROGATE] [--events 40000] [--rounds 3] [--workers 1,2] [--json FILE]

Every round does each in turn, without starting workers; medians. `seconds_per_shard` comes from runs whose shards hold 64 events:
it is what scheduling, writing, fsync and the record cost, and bounds how many shards per second one run can have. Run on a quiet
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from minicarlo import cluster
from minicarlo.engines import machine, usable_cores
from minicarlo.generation import bulk, generate
from minicarlo.surrogate import Surrogate

TINY, TINY_SHARDS = 64, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogate", nargs="?", default="clic-ecal")
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--shard-size", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default=",".join(map(str, sorted({1, usable_cores()}))))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    surrogate = Surrogate.load(arguments.surrogate)
    numbers = [int(number) for number in arguments.workers.split(",")]
    rates: dict[str, list[float]] = {"one stream, no cluster": [], **{f"local:{number}": [] for number in numbers}}
    per_shard: dict[str, list[float]] = {f"local:{number}": [] for number in numbers}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            plain = generate(
                surrogate,
                arguments.events,
                output=Path(folder, "run"),
                overwrite=True,
                streams=1,
                threads=1,
                shard_size=arguments.shard_size,
            )
            rates["one stream, no cluster"].append(plain.events_per_second or 0.0)
            for where in per_shard:
                with ready(where):
                    rates[where].append(
                        arguments.events / seconds(surrogate, folder, where, arguments.events, arguments.shard_size)
                    )
                    per_shard[where].append(seconds(surrogate, folder, where, TINY * TINY_SHARDS, TINY) / TINY_SHARDS)
    found = {
        "machine": machine(),
        "showers_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "seconds_per_shard": {name: statistics.median(values) for name, values in per_shard.items()},
    }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


@contextmanager
def ready(where: str) -> Iterator[None]:
    """Runs on `where` inside the block use workers that are already there."""
    with cluster.connect(where, usable_cores()) as client:
        client.wait_for_workers(int(where.partition(":")[2]))

        @contextmanager
        def same(*_: object) -> Iterator[object]:
            yield client

        with mock.patch.object(bulk, "connect", same):
            yield


def seconds(surrogate: Surrogate, folder: str, where: str, events: int, shard_size: int) -> float:
    """Time to make and record the shards, from the first that is there to the last: workers compile before the first."""
    times: list[tuple[float, int]] = []

    def look(done: int, _: int) -> None:
        times.append((time.perf_counter(), done))

    output = Path(folder, "run")
    generate(surrogate, events, output=output, overwrite=True, cluster=where, shard_size=shard_size, progress=look)
    (first, before), (last, after) = next(entry for entry in times if entry[1]), times[-1]
    return (last - first) * events / (after - before)


if __name__ == "__main__":
    main()
