"""Seconds and memory of `validate` without classifiers: `python benchmarks/validate.py SHOWERS.h5 [--events 100000]`.

The file's showers are measured and repeated until there are enough on either side; what is measured on a repeated shower is
changed by a per cent or so, so that no two are the same. Timed is the comparison; benchmarks/observables.py times the
measuring. `--profile` says where the time goes. The limit is that of the issue: 4 GB for 100,000 against 100,000.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicarlo.fidelity import Measured, compare, measure


def repeated(measured: Measured, events: int, random: np.random.Generator) -> Measured:
    """So many showers, no two the same."""
    found = measured[np.arange(events) % len(measured)]

    def perturbed(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values * random.uniform(0.99, 1.01, values.shape).astype(np.float32)

    whole = ("occupancy", "shower_maximum")
    energy = found.energy * random.uniform(0.998, 1.002, len(found)).astype(np.float32)
    return replace(
        found,
        energy=np.clip(energy, measured.energy.min(), measured.energy.max()),
        values={name: values if name in whole else perturbed(values) for name, values in found.values.items()},
        rings=perturbed(found.rings),
        along={axis: perturbed(values) for axis, values in found.along.items()},
        cells=np.maximum(perturbed(found.cells), np.float32(1.001 * found.threshold_mev)),
    )


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("showers", type=Path)
    parser.add_argument("--events", type=int, default=10_000, help="on either side")
    parser.add_argument("--permutations", type=int, default=300)
    parser.add_argument("--bootstrap", type=int, default=100)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()

    random = np.random.default_rng(0)
    showers = measure(arguments.showers)
    sets = [repeated(showers, arguments.events, random) for _ in range(2)]
    before = peak_gb()
    work = partial(
        compare,
        *sets,
        permutations=arguments.permutations,
        bootstrap=arguments.bootstrap,
        feature_distances=True,
    )
    clock, cpu = time.perf_counter(), time.process_time()
    if arguments.profile:
        profiler = cProfile.Profile()
        profiler.runcall(work)
    else:
        work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    if arguments.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    print(f"{arguments.events:,} against {arguments.events:,} showers of {showers.detector.name}, {os.cpu_count()} cores")
    print(f"{clock:.1f} s on the clock, {cpu:.1f} s of CPU; peak memory {peak_gb():.2f} GB ({before:.2f} GB before comparing)")


if __name__ == "__main__":
    main()
