"""From a simulator to an event set on disk: seeds, workers, shards."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import CLIC_ECAL, Detector, find_detector, is_built_in
from minicarlo.errors import InvalidCondition, InvalidConfig
from minicarlo.events import ENERGY, EventSet, read_conditions, write_events
from minicarlo.files import check_writable
from minicarlo.sampling import AngleDistribution, EnergyDistribution, event_seed
from minicarlo.simulators.acceptance import FAST_ENERGY, FATE_CONDITIONS, Acceptance, accounts
from minicarlo.simulators.base import Attributes, Batch, Setup
from minicarlo.simulators.incidence import incidence
from minicarlo.simulators.registry import get_simulator
from minicarlo.simulators.shards import Shard, buffer, check_same_origin, claim, is_file, shards
from minicarlo.simulators.sources import Beam, ParticleList, Source, read_particles
from minicarlo.simulators.tasks import TASK_EVENTS, Task, cut
from minicarlo.simulators.workers import Workers

SHARD_SIZE = 1000
"""Events of a shard: a minute or two of Geant4, which is what a kill can cost at most."""


@dataclass(frozen=True)
class SimulateResult:
    """What was simulated and how long it took.

    `seconds` is the wall clock of this call. `events_per_second` counts the events that it made, without those that an
    interrupted run had left (`resumed`). `seconds_per_event` is the processor time of one event, `streams` the number of
    processes, `batch` the most events they take at a time. With a parameterisation, `fast` holds the share of the energy that it
    took (`energy_fraction`), and how many particles took which way (FATE_CONDITIONS).
    """

    events: int
    seconds: float
    events_per_second: float
    seconds_per_event: float
    path: Path
    files: list[Path]
    precision: str
    streams: int
    batch: int
    seed: int
    resumed: int
    fast: dict[str, float] | None = None


class Parameterisation(Protocol):
    """Makes the showers of particles that a simulation stops at the front face."""

    detector: Detector
    acceptance: Acceptance

    def request(self) -> dict[str, Any]:
        """The fields that two calls must share to contribute to the same folder."""
        ...

    def attributes(self) -> Attributes:
        """What an event set should record about these showers: all that decides them."""
        ...

    def complete(self, results: Iterator[tuple[Task, Batch]], seed: int) -> Iterator[tuple[Task, Batch]]:
        """The same results in the same order with the showers of stopped particles in their samples and in their seconds.

        The shower of particle i of a run (`Task.row` is that of the first) must depend on `seed` and i alone.
        """
        ...


@dataclass(frozen=True)
class _Run:
    """What is asked for, apart from where it goes and how many processes work on it."""

    simulator: str
    setup: Setup
    source: Source
    seed: int
    events: int
    shard_size: int
    parameterisation: Parameterisation | None

    def request(self) -> dict[str, Any]:
        """The fields that two calls must share to contribute to the same folder."""
        detector = self.setup.detector
        geometry = {} if is_built_in(detector) else {"geometry": detector.to_description()}
        return {
            "verb": "simulate",
            "simulator": self.simulator,
            "detector": detector.name,
            "physics": self.setup.physics,
            "cut_mm": self.setup.cut_mm,
            "seed": self.seed,
            "events": self.events,
            "shard_size": self.shard_size,
            **self.source.request(),
            **geometry,
            **({} if self.parameterisation is None else self.parameterisation.request()),
        }

    def event_set(
        self,
        shard: Shard,
        samples: NDArray[np.float32],
        seconds: float,
        provenance: Attributes,
        fates: Sequence[NDArray[np.int8]],
    ) -> EventSet:
        """The events of a shard with everything worth knowing about them.

        `seconds` is the processor time they took, `fates` are those of their particles, task by task.
        """
        particles, counts = self.source.particles(self.seed, shard.start, len(shard))
        conditions = self.source.conditions(particles, counts)
        total = float(particles.energies.sum(dtype=np.float64))
        attributes = provenance | {
            "simulator": self.simulator,
            "production_cut_mm": self.setup.cut_mm,
            **self.source.attributes(),
            "seed": self.seed,
            "first_event": shard.start,
            "processor": _processor(),
            "seconds": seconds,
            "seconds_per_event": seconds / len(shard),
            "milliseconds_per_gev": 1e6 * seconds / total,
        }
        if self.parameterisation is not None:
            fast = accounts(particles.energies, counts, np.concatenate(fates))
            conditions |= fast
            attributes["fast_energy_fraction"] = float(fast[FAST_ENERGY].sum(dtype=np.float64)) / total
        return EventSet(conditions, samples, self.setup.detector.name, attributes)


def simulate(
    n: int | None = None,
    energy: str | EnergyDistribution | None = None,
    *,
    output: Path | str,
    conditions: Path | str | ParticleList | None = None,
    detector: str | Path | Detector = CLIC_ECAL,
    particle: str = "e-",
    theta: str | AngleDistribution = "0deg",
    phi: str | AngleDistribution = "0deg",
    seed: int = 1,
    jobs: int = 1,
    cut_mm: float = 0.7,
    physics: str = "option0",
    simulator: str = "geant4",
    shard_size: int = SHARD_SIZE,
    parameterisation: Parameterisation | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SimulateResult:
    """Simulate `n` events with a reference Monte Carlo and write them as an event set.

    `energy` is the distribution of the incident kinetic energy ("1GeV:100GeV:log", "10GeV"), `cut_mm` the production cut.
    `detector` is the name of a built-in one, a TOML file or a Detector. `theta` ("30deg", "0deg:30deg") and `phi` are the
    angles of the incident direction to the normal of the front face and around it; unless theta is zero they are recorded as
    conditions in rad. `conditions` lists the particles of each event instead (`read_particles`); those that it does not name
    are `particle`, and `n` may be left out. What a `parameterisation` accepts (`minicarlo.hybrid`) is stopped at the front face,
    where its shower is put.
    Event i of `seed` is the same for any `n`, `jobs` and `shard_size`. An `output` that ends in .h5 becomes one file; any
    other a folder of shards of `shard_size` events, where an interrupted run of the same request goes on. The simulation
    runs in `jobs` processes of its own. `progress` is called with (events done, n).

    Raises InvalidCondition, InvalidConfig, UnknownDetector, MissingExtra and OutputError before anything is simulated,
    SimulationError when a process dies.
    """
    source, n = _source(n, energy, conditions, particle, theta, phi)
    for name, value in (("jobs", jobs), ("shard size", shard_size)):
        if value < 1:
            raise InvalidConfig(f"The {name} must be at least 1, not {value}.")
    event_seed(seed, n)  # refuses an impossible seed
    engine = get_simulator(simulator)
    found = find_detector(detector)
    acceptance = None
    if parameterisation is not None:
        if parameterisation.detector != found:
            raise InvalidConfig(
                f"The showers of the fast path are those of detector {parameterisation.detector.name}, not {found.name}. "
                "Choose the detector, or another surrogate."
            )
        acceptance = parameterisation.acceptance
    if isinstance(source, ParticleList):
        source.check(found, "Conditions" if isinstance(conditions, ParticleList) else f"Conditions {conditions}")
    setup = Setup(found, source.names, physics, cut_mm, acceptance=acceptance)
    run = _Run(engine.name, setup, source, seed, n, shard_size, parameterisation)
    environment = engine.prepare(run.setup)
    output = Path(output)
    every = shards(output, n, shard_size)
    started = time.perf_counter()
    with ExitStack() as stack:
        finished: list[Shard] = []
        if not is_file(output):
            stack.enter_context(claim(output, run.request()))
            finished = [shard for shard in every if shard.finished(seed)]
        missing = [shard for shard in every if shard not in finished]
        new = sum(map(len, missing))
        jobs = min(jobs, max(new, 1))
        most = min(TASK_EVENTS, math.ceil(max(new, 1) / (4 * jobs)))
        seconds, done = 0.0, n - new
        if progress is not None:
            progress(done, n)
        if missing:
            check_writable(missing[0].path)
            workers = stack.enter_context(Workers(engine, run.setup, environment, jobs))
            results = workers.run(task for shard in missing for task in cut(source, setup, seed, shard.start, shard.stop, most))
            made_by: Attributes = {}
            if parameterisation is not None:
                results = parameterisation.complete(results, seed)
                made_by = parameterisation.attributes()
            for shard in missing:
                with buffer(shard, run.setup.detector.shape) as samples:
                    spent, filled = 0.0, 0
                    fates: list[NDArray[np.int8]] = []
                    while filled < len(shard):
                        task, made = next(results)
                        if finished:
                            check_same_origin(finished.pop(), workers.provenance | made_by)
                        samples[filled : filled + len(task.primaries)] = made.samples
                        if made.fates is not None:
                            fates.append(made.fates)
                        elif parameterisation is not None:
                            raise InvalidConfig(
                                f"Simulator {engine.name} cannot stop particles for a surrogate: leave the surrogate out."
                            )
                        filled += len(task.primaries)
                        done += len(task.primaries)
                        spent += made.seconds
                        if progress is not None:
                            progress(done, n)
                    provenance = workers.provenance | made_by
                    write_events(shard.path, run.event_set(shard, samples, spent, provenance, fates))
                seconds += spent
    elapsed = time.perf_counter() - started
    return SimulateResult(
        events=n,
        seconds=elapsed,
        events_per_second=new / elapsed,
        seconds_per_event=seconds / max(new, 1),
        path=output,
        files=[shard.path for shard in every],
        precision="fp64",
        streams=jobs,
        batch=most,
        seed=seed,
        resumed=n - new,
        fast=_totals(output) if parameterisation is not None else None,
    )


def _source(
    n: int | None,
    energy: str | EnergyDistribution | None,
    conditions: Path | str | ParticleList | None,
    particle: str,
    theta: str | AngleDistribution,
    phi: str | AngleDistribution,
) -> tuple[Source, int]:
    """What enters, and in how many events. Raises InvalidCondition."""
    if n is not None and n < 1:
        raise InvalidCondition(f"The number of events must be at least 1, not {n}.")
    angles = incidence(theta, phi)
    if conditions is None:
        if n is None or energy is None:
            raise InvalidCondition("The number of events and their energy are missing; give both, or conditions.")
        distribution = energy if isinstance(energy, EnergyDistribution) else EnergyDistribution.parse(energy)
        return Beam(particle, distribution, *angles), n
    if energy is not None or angles[0].high_deg:
        raise InvalidCondition("Give either an energy and angles or conditions, which hold both, not both.")
    listed = conditions if isinstance(conditions, ParticleList) else read_particles(conditions, particle)
    if n is not None and n > len(listed):
        raise InvalidCondition(
            f"{n} events are asked for, but the conditions hold only {len(listed)}. Ask for at most that many."
        )
    n = len(listed) if n is None else n
    return listed.first(n), n


def _totals(output: Path) -> dict[str, float]:
    """Share of the energy that took the fast path, and particles by their fate, in all events of a fast event set."""
    found = {name: float(values.sum(dtype=np.float64)) for name, values in read_conditions(output).items()}
    return {"energy_fraction": found[FAST_ENERGY] / found[ENERGY]} | {name: int(found[name]) for name in FATE_CONDITIONS}


def _processor() -> str:
    """Name of the processor: seconds mean little without it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
