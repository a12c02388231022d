"""What a surrogate inside Geant4 gains in time, and what it costs where it was not trained; used by benchmarks/geant4.py."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from minicarlo.detectors import CLIC_ECAL, get_detector, parse_detector
from minicarlo.events import EventSet, read_events, write_events
from minicarlo.hybrid import SurrogateShowers, add_shifted
from minicarlo.simulators import Batch, ParticleList, Particles, Setup, simulate
from minicarlo.simulators.geant4 import PARTICLES, Geant4Simulator
from minicarlo.simulators.tasks import TASK_EVENTS, Task, cut
from minicarlo.simulators.workers import Workers

SINGLE_GEV = {1.0: 200, 10.0: 40, 100.0: 6}
"""Full events of a round by their energy; a second or two of two processors."""

EACH = 20
"""Particles of a many-particle event."""


def single(gev: float, events: int, particle: str = "e-") -> ParticleList:
    """Particles of one energy that enter at the centre of the grid, one to an event."""
    zeros = np.zeros(events, np.float32)
    names, energies = np.full(events, particle), np.full(events, 1e3 * gev, np.float32)
    return ParticleList(Particles(names, energies, zeros, zeros, zeros, zeros), np.ones(events, np.int64))


def electrons(events: int, each: int = EACH, low: float = 1.0, high: float = 20.0, seed: int = 1) -> ParticleList:
    """`each` electrons per event, log-uniform in energy (GeV), at right angles into centres of cells within 6 of the middle."""
    random = np.random.default_rng(seed)
    count = events * each
    x, y = (5.1 * random.integers(-6, 7, count).astype(np.float32) for _ in range(2))
    zeros = np.zeros(count, np.float32)
    particles = Particles(np.full(count, "e-"), _energies(random, count, low, high), x, y, zeros, zeros)
    return ParticleList(particles, np.full(events, each))


def mixture(events: int) -> ParticleList:
    """As `electrons`, from 0.2 GeV on, of which a third each are electrons, positrons and photons."""
    particles, counts = electrons(events, low=0.2).particles(0, 0, events)
    names = np.random.default_rng(2).choice(PARTICLES, len(particles))
    return ParticleList(Particles(names, *particles.columns()[1:]), counts)


def _energies(random: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    return np.exp(random.uniform(np.log(1e3 * low), np.log(1e3 * high), count)).astype(np.float32)


def write_list(listed: ParticleList, path: Path) -> None:
    """The list as the CSV file that `minicarlo simulate --conditions` reads."""
    particles, counts = listed.particles(0, 0, len(listed))
    events = np.repeat(np.arange(len(listed)), counts).tolist()
    with open(path, "w", encoding="utf-8") as stream:
        stream.write("event,particle,energy [MeV],x [mm],y [mm],theta [rad],phi [rad]\n")
        for event, (name, *numbers) in zip(events, particles.rows(), strict=True):
            stream.write(",".join([str(event), name, *(f"{number:.9g}" for number in numbers)]) + "\n")


def speed(rounds: int, jobs: int, surrogate: str, precision: str | None, fast_events: int) -> None:
    """Print events per second and processor time per event, full and fast, in turn, simulated and written."""
    showers = SurrogateShowers(surrogate, precision=precision)
    engine, detector = Geant4Simulator(), get_detector(CLIC_ECAL)
    full, fast = (Setup(detector, PARTICLES, "option0", 0.7, acceptance=found) for found in (None, showers.acceptance))
    environment = engine.prepare(full)
    cases = [(f"{gev:g} GeV", single(gev, count), single(gev, fast_events)) for gev, count in SINGLE_GEV.items()]
    cases.append((f"{EACH} electrons", electrons(6), electrons(max(fast_events // EACH, 1))))
    cases.append((f"{EACH} e-, e+, gamma", mixture(6), mixture(6)))
    cases.append(("1 GeV gamma", single(1.0, 200, "gamma"), single(1.0, 200, "gamma")))
    print("| event | full, events/s | fast, events/s | ratio | full, ms of a core | fast, ms of a core | fast energy |")
    print("|---|---|---|---|---|---|---|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        slow_pool, fast_pool = (stack.enter_context(Workers(engine, setup, environment, jobs)) for setup in (full, fast))

        def run(pool: Workers, listed: ParticleList, number: int) -> tuple[float, float, float]:
            """Seconds, processor seconds, and share of the energy on the fast path."""
            start = time.perf_counter()
            results = pool.run(cut(listed, fast if pool is fast_pool else full, number, 0, len(listed), TASK_EVENTS))
            stopping = 0.0

            def counted() -> Iterator[tuple[Task, Batch]]:
                nonlocal stopping
                for task, batch in results:
                    stopping += batch.seconds
                    yield task, batch

            done = list(showers.complete(counted(), number) if pool is fast_pool else results)
            if pool is fast_pool:
                print(f"Geant4's part of the fast path: {1e3 * stopping / len(listed):.3g} ms of a core", file=sys.stderr)
            samples = np.concatenate([batch.samples for _, batch in done])
            particles, counts = listed.particles(0, 0, len(listed))
            write_events(folder / "events.h5", EventSet(listed.conditions(particles, counts), samples, CLIC_ECAL))
            seconds = time.perf_counter() - start
            taken = sum(float(batch.stopped.energies.sum()) for _, batch in done if batch.stopped is not None)
            return seconds, sum(batch.seconds for _, batch in done), taken / float(particles.energies.sum())

        for name, slow_list, fast_list in cases:
            found = []
            for number in range(rounds + 1):  # the first warms up
                order = [(slow_pool, slow_list), (fast_pool, fast_list)]
                taken = {pool is fast_pool: run(pool, listed, number) for pool, listed in order[:: 1 if number % 2 else -1]}
                (slow, slow_cpu, _), (quick, quick_cpu, share) = taken[False], taken[True]
                rates = len(slow_list) / slow, len(fast_list) / quick
                cpu = 1e3 * slow_cpu / len(slow_list), 1e3 * quick_cpu / len(fast_list)
                print(f"{name}, round {number}: {rates[0]:.3g} and {rates[1]:.3g} events/s", file=sys.stderr)
                found.append((*rates, rates[1] / rates[0], *cpu, share))
            texts = [_with_error([row[column] for row in found[1:]]) for column in range(5)]
            print(f"| {name} | {' | '.join(texts)} | {found[-1][5]:.1%} |", flush=True)


def _with_error(values: list[float]) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3g}"
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    digits = max(0, 1 - int(np.floor(np.log10(error)))) if error > 0 else 2
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def position(events: int, gev: list[float], jobs: int, folder: Path) -> None:
    """Print how showers change with the distance of their entry from the centre of a cell, and with a small angle.

    For each offset along x in cells, and each angle in x: mean and spread of the centre of energy in x, share of the energy in
    the column of cells that was entered, and cells above threshold. All from full simulation.
    """
    detector = get_detector(CLIC_ECAL)
    pitch, middle = detector.cell_size[1], detector.shape[1] // 2
    x = (np.arange(detector.shape[1]) - middle) * pitch
    print("| energy | entry | centre of energy, mm | its spread, mm | energy in the entered column | cells |")
    print("|---|---|---|---|---|---|")
    for energy in gev:
        for cells, degrees in ((0, 0), (0.05, 0), (0.1, 0), (0.2, 0), (0.3, 0), (0.5, 0), (0, 0.5), (0, 1), (0, 2)):
            path = folder / f"offset-{energy:g}GeV-{cells:g}-{degrees:g}.h5"
            listed = single(energy, events)
            particles, counts = listed.particles(0, 0, events)
            ones = np.ones(events, np.float32)
            columns = particles.names, particles.energies, cells * pitch * ones, 0 * ones, np.radians(degrees) * ones, 0 * ones
            if not path.exists():
                moved = ParticleList(Particles(*columns), counts)
                simulate(conditions=moved, output=path, seed=int(1000 * energy + 100 * cells + 10 * degrees), jobs=jobs)
            showers = read_events(path).samples
            showers = np.where(showers >= detector.readout_threshold_mev, showers, 0)
            total = showers.sum(axis=(1, 2, 3))
            centres = (showers.sum(axis=(1, 3)) * x).sum(axis=1) / total
            column = showers[:, :, middle, middle].sum(axis=1) / total
            numbers = (showers > 0).sum(axis=(1, 2, 3)).astype(float)
            spread = float(np.std(centres, ddof=1))
            texts = [f"{energy:g} GeV", f"{cells:g} cells, {degrees:g}°", _with_error(list(centres))]
            texts += [f"{spread:.3f} ± {spread / np.sqrt(2 * events):.3f}", _with_error(list(column)), _with_error(list(numbers))]
            print(f"| {' | '.join(texts)} |", flush=True)


def edges(events: int, gev: float, jobs: int, folder: Path) -> None:
    """Print the share of a shower's visible energy that lies farther than the surrogate's grid reaches on one side.

    That is what a shower lacks inside the grid when it is moved by whole cells towards the other side. Measured by full
    simulation of the same plates with a grid twice as wide.
    """
    narrow = get_detector(CLIC_ECAL)
    wide = parse_detector(narrow.to_description() | {"name": f"{CLIC_ECAL}-wide", "cells": [25, 51, 51]})
    path = folder / f"wide-{gev:g}GeV.h5"
    if not path.exists():
        simulate(events, f"{gev:g}GeV", output=path, detector=wide, seed=1, jobs=jobs)
    showers = read_events(path).samples
    showers = np.where(showers >= narrow.readout_threshold_mev, showers, 0)
    inside = showers[:, :, 13:38, 13:38].sum(axis=(1, 2, 3))
    for cells in (1, 3, 6, 12):
        beyond = list(100 * showers[:, :, 38 : 38 + cells, 13:38].sum(axis=(1, 2, 3)) / inside)
        print(f"{gev:g} GeV, moved by {cells} cells: {_with_error(beyond)} % of the visible energy are missing")


def overlap(path: Path, each: int) -> None:
    """Print what is lost when `each` single showers of an event set are cut at the threshold before they are added up."""
    showers = read_events(path).samples
    threshold = get_detector(CLIC_ECAL).readout_threshold_mev
    sums = np.zeros((2, len(showers) // each, *showers.shape[1:]), np.float32)
    shifts = np.random.default_rng(1).integers(-6, 7, (len(showers), 2)).tolist()
    for index, (shower, shift) in enumerate(zip(showers[: sums.shape[1] * each], shifts, strict=False)):
        add_shifted(sums[0, index // each], shower, shift)
        add_shifted(sums[1, index // each], np.where(shower >= threshold, shower, 0), shift)
    after, before = (np.where(part >= threshold, part, 0) for part in sums)
    print(f"{each} showers: cut one by one, they lose {1 - before.sum(dtype=float) / after.sum(dtype=float):.3%} of the energy")
    print(f"and {1 - (before > 0).sum() / (after > 0).sum():.3%} of the cells that they have when cut as a sum")
