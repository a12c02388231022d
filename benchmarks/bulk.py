"""Showers to disk beside showers computed, what the rest costs, and memory over a long run.

    python benchmarks/bulk.py speed [SURROGATE] [--events 100000] [--rounds 5] [--json FILE]
    python benchmarks/bulk.py memory [SURROGATE] [--events 10000000] [--output FOLDER] [--json FILE]

`speed` does in turn, round by round: inference alone, latents and energies alone, writing alone (compression, HDF5, fsync), and
`generate` into a folder, and prints medians. Shares are of processor time; what is left of `generate` when inference, latents and
writing are taken off it is bookkeeping. What a run takes once, to load and compile the surrogate, is told apart. `memory` prints
resident memory as events pass. Run on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from minicarlo.detectors import get_detector
from minicarlo.engines import machine
from minicarlo.events import ENERGY
from minicarlo.generation import generate
from minicarlo.generation.settings import choose_settings, compile_reproducible
from minicarlo.generation.writer import EventFile
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate

BLOCK = 512  # events of latents drawn at a time, as `generate` does


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("surrogate", nargs="?", default="clic-ecal")
    parser.add_argument("--events", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision")
    parser.add_argument("--output", type=Path, help="where showers go; a folder that is removed by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    surrogate = Surrogate.load(arguments.surrogate)
    precision = arguments.precision or ("tuned" if surrogate.tuned else "fp32")
    with tempfile.TemporaryDirectory() as folder:
        output = arguments.output or Path(folder)
        measure = speed if arguments.what == "speed" else memory
        events = arguments.events or (100_000 if arguments.what == "speed" else 10_000_000)
        found = measure(surrogate, precision, events, arguments.rounds, output)
    found = {
        "surrogate": surrogate.manifest.name,
        "precision": precision,
        "events": events,
        "machine": machine(),
    } | found
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


def speed(surrogate: Surrogate, precision: str, events: int, rounds: int, output: Path) -> dict[str, Any]:
    settings = choose_settings(surrogate, precision)
    compiled, settings = compile_reproducible(surrogate, precision, settings)
    allowed = surrogate.manifest.conditions[ENERGY]
    distribution = EnergyDistribution(allowed.low, allowed.high, "log")
    size = surrogate.manifest.latent_size
    latents, energies = normal_latents(1, 0, 4096, size), distribution.sample(1, 0, 4096)
    showers = compiled.run(latents, energies)
    starts = [start % (len(latents) - settings.batch) for start in range(0, events, settings.batch)]

    def inference() -> None:
        batches = ((start, latents[start : start + settings.batch], energies[start : start + settings.batch]) for start in starts)
        for _ in compiled.map(batches):
            pass

    def inputs() -> None:
        for start in range(0, events, BLOCK):
            normal_latents(1, start, BLOCK, size)
            distribution.sample(1, start, BLOCK)

    def writing() -> None:
        path, detector = output / "written.h5", get_detector(surrogate.manifest.detector)
        with EventFile(path, len(starts) * settings.batch, detector, {}) as file:
            for start in starts:
                file.append(showers[start : start + settings.batch], energies[start : start + settings.batch])
        path.unlink()

    def all_of_it() -> None:
        options = {"streams": settings.streams, "threads": settings.threads, "batch": settings.batch}
        start = now()
        begun: list[NDArray[np.float64]] = []

        def begin(done: int, total: int) -> None:
            if not begun:  # the first call comes when the surrogate is compiled
                begun.append(now() - start)

        generate(surrogate, events, seed=1, precision=precision, output=output / "run", overwrite=True, progress=begin, **options)
        once.append(begun[0])

    once: list[NDArray[np.float64]] = []
    parts: dict[str, Callable[[], None]] = {
        "inference": inference,
        "latents": inputs,
        "writing": writing,
        "to_disk": all_of_it,
    }
    all_of_it()  # warms caches, and leaves showers to measure
    size_on_disk = sum(path.stat().st_size for path in (output / "run").glob("shard-*.h5")) / events
    once.clear()
    clock: dict[str, list[float]] = {name: [] for name in parts}
    processor: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            start = now()
            part()
            spent = now() - start - (once[-1] if name == "to_disk" else 0)
            clock[name].append(float(spent[0]) / events)
            processor[name].append(float(spent[1]) / events)
    ratios = [inference / disk for inference, disk in zip(clock["inference"], clock["to_disk"], strict=True)]
    cpu = {name: statistics.median(values) for name, values in processor.items()}
    whole = cpu["to_disk"]
    return {
        "streams": settings.streams,
        "threads": settings.threads,
        "batch": settings.batch,
        "showers_per_second": {name: 1 / statistics.median(values) for name, values in clock.items()},
        "to_disk_over_computed": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "processor_microseconds_per_shower": {name: 1e6 * value for name, value in cpu.items()},
        "share_of_latents": cpu["latents"] / whole,
        "share_of_writing": cpu["writing"] / whole,
        "share_of_latents_and_bookkeeping": 1 - (cpu["inference"] + cpu["writing"]) / whole,
        "bytes_per_shower": size_on_disk,
        "once": dict(zip(("seconds", "processor_seconds"), np.median(once, axis=0).tolist(), strict=True)),
    }


def now() -> NDArray[np.float64]:
    """Seconds on the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def memory(surrogate: Surrogate, precision: str, events: int, rounds: int, output: Path) -> dict[str, Any]:
    process, seen = psutil.Process(), list[tuple[int, float]]()

    def look(done: int, total: int) -> None:
        if not seen or done - seen[-1][0] >= total / 50 or done == total:
            seen.append((done, process.memory_info().rss / 2**20))

    started = time.perf_counter()
    result = generate(surrogate, events, seed=1, precision=precision, output=output / "run", progress=look)
    mib = [amount for _, amount in seen]
    tenth = next(amount for done, amount in seen if done >= events / 10)
    disk = sum(path.stat().st_size for path in result.files)
    return {
        "seconds": time.perf_counter() - started,
        "showers_per_second": result.events_per_second,
        "files": len(result.files),
        "bytes": disk,
        "mib_after_a_tenth": tenth,
        "mib_at_the_end": mib[-1],
        "mib_most": max(mib),
        "mib": [[done, round(amount, 1)] for done, amount in seen],
        "cores": len(os.sched_getaffinity(0)),
        "slope_mib_per_million": float(np.polyfit([done / 1e6 for done, _ in seen[5:]], mib[5:], 1)[0])
        if len(seen) > 7
        else None,
    }


if __name__ == "__main__":
    main()
