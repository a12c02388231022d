"""From a simulator to an event set on disk: seeds, workers, shards."""

from __future__ import annotations

import math
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo import __version__
from minicarlo.cluster import Where, complete, connect
from minicarlo.detectors import CLIC_ECAL, Detector, find_detector, is_built_in
from minicarlo.errors import ClusterError, InvalidCondition, InvalidConfig, OutputError
from minicarlo.events import ENERGY, EventSet, events_info, read_conditions, write_events
from minicarlo.files import check_writable
from minicarlo.sampling import AngleDistribution, EnergyDistribution, event_seed
from minicarlo.shards import Shard, claim, claim_hidden, is_file, join, parts, shards
from minicarlo.simulators.acceptance import FAST_ENERGY, FATE_CONDITIONS, Acceptance, accounts
from minicarlo.simulators.base import Attributes, Batch, Setup
from minicarlo.simulators.incidence import incidence
from minicarlo.simulators.registry import get_simulator
from minicarlo.simulators.shards import buffer, check_same_origin
from minicarlo.simulators.sources import Beam, ParticleList, Source, read_particles
from minicarlo.simulators.tasks import TASK_EVENTS, Task, cut
from minicarlo.simulators.workers import Workers

SHARD_SIZE = 1000
"""Events of a shard: a minute or two of Geant4, which is what a kill can cost at most."""

_worker = threading.local()  # of a thread of a cluster's worker: its order, and the run with a parameterisation of its own

_OF_A_SHARD = ("first_event", "processor", "seconds", "seconds_per_event", "milliseconds_per_gev", "fast_energy_fraction")


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
        """What an event set should record about these showers: all that decides them, `generator` among it."""
        ...

    def complete(self, results: Iterator[tuple[Task, Batch]], seed: int) -> Iterator[tuple[Task, Batch]]:
        """The same results in the same order with the showers of stopped particles in their samples and in their seconds.

        The shower of particle i of a run (`Task.row` is that of the first) must depend on `seed` and i alone.
        """
        ...

    def fingerprint(self) -> str:
        """Digest of the bits of some showers: machines on which it is the same make the same showers."""
        ...

    def on_one_core(self) -> Parameterisation:
        """The same for a thread of a cluster's worker, which has one core. It can be pickled."""
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

    def origin(self, provenance: Attributes) -> Attributes:
        """What made the events, `provenance` being the simulator's: the same for all that may share a folder."""
        if self.parameterisation is None:
            return provenance
        found = self.parameterisation.attributes()
        return provenance | found | {"generator": f"{provenance['generator']} with {found['generator']}"}

    def event_set(
        self,
        shard: Shard,
        samples: NDArray[np.float32],
        seconds: float,
        origin: Attributes,
        fates: Sequence[NDArray[np.int8]],
    ) -> EventSet:
        """The events of a shard with everything worth knowing about them.

        `seconds` is the processor time they took, `fates` are those of their particles, task by task.
        """
        particles, counts = self.source.particles(self.seed, shard.start, len(shard))
        conditions = self.source.conditions(particles, counts)
        attributes = origin | {
            "simulator": self.simulator,
            "production_cut_mm": self.setup.cut_mm,
            **self.source.attributes(),
            "seed": self.seed,
            "first_event": shard.start,
            "processor": _processor(),
            "seconds": seconds,
            "seconds_per_event": seconds / len(shard),
            "milliseconds_per_gev": 1e6 * seconds / _sum(conditions[ENERGY]),
        }
        if self.parameterisation is not None:
            fast = accounts(particles.energies, counts, np.concatenate(fates))
            conditions |= fast
            attributes["fast_energy_fraction"] = _sum(fast[FAST_ENERGY]) / _sum(conditions[ENERGY])
        return EventSet(conditions, samples, self.setup.detector.name, attributes)

    def tasks(self, shard: Shard, most: int) -> Iterator[Task]:
        """The tasks of a shard, of at most `most` events."""
        return cut(self.source, self.setup, self.seed, shard.start, shard.stop, most)

    def write(
        self,
        shard: Shard,
        results: Iterator[tuple[Task, Batch]],
        workers: Workers,
        counter: _Counter,
        finished: Sequence[Shard],
    ) -> float:
        """Write a shard from its results, and return the seconds they took. All of `finished` must be of the same origin."""
        spent, filled = 0.0, 0
        fates: list[NDArray[np.int8]] = []
        with buffer(shard, self.setup.detector.shape) as samples:
            while filled < len(shard):
                task, made = next(results)
                for other in finished if not filled else ():
                    check_same_origin(other, self.origin(workers.provenance))
                samples[filled : filled + len(task.primaries)] = made.samples
                if made.fates is not None:
                    fates.append(made.fates)
                elif self.parameterisation is not None:
                    raise InvalidConfig(
                        f"Simulator {self.simulator} cannot stop particles for a surrogate: leave the surrogate out."
                    )
                filled += len(task.primaries)
                spent += made.seconds
                counter.add(len(task.primaries))
            write_events(shard.path, self.event_set(shard, samples, spent, self.origin(workers.provenance), fates))
        return spent


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
    cluster: str | None = None,
    overwrite: bool = False,
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
    other a folder of shards of `shard_size` events. An interrupted run of the same request goes on in either; what else is there
    is refused, or replaced with `overwrite`. The simulation runs in `jobs` processes of its own, or on the workers of a Dask
    `cluster` (`minicarlo.cluster`). `progress` is called with (events done, n).

    Raises InvalidCondition, InvalidConfig, UnknownDetector, MissingExtra and OutputError before anything is simulated,
    SimulationError when a process dies; with `cluster` ClusterError.
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
    output = Path(output)
    place = None if cluster is None else Where.parse(cluster)
    if place is not None and jobs > 1:
        raise InvalidConfig("On a cluster, the workers take the place of jobs: leave out their number.")
    environment = engine.prepare(run.setup) if place is None else {}
    if is_file(output):
        check_writable(output)
        if output.exists() and not overwrite:
            raise OutputError(f"Cannot write {output}: there is a file of that name. Choose another name, or --overwrite it.")
    every = parts(output, n, shard_size) if is_file(output) else shards(output, n, shard_size)
    started = time.perf_counter()
    with ExitStack() as stack:
        record = None
        if not is_file(output):
            record = stack.enter_context(claim(output, run.request(), overwrite=overwrite))
        elif len(every) > 1 or place is not None:
            record = stack.enter_context(claim_hidden(output, run.request(), overwrite=overwrite))
        else:
            every = [Shard(output, 0, n)]
        finished = [shard for shard in every if record is not None and record.has(shard)]
        missing = [shard for shard in every if shard not in finished]
        new = sum(map(len, missing))
        jobs = min(jobs, max(new, 1))
        most = min(TASK_EVENTS, math.ceil(max(new, 1) / (4 * jobs)))
        counter = _Counter(progress, n - new, n)
        counter.add(0)
        seconds = 0.0
        if missing and place is None:
            check_writable(missing[0].path)
            workers = stack.enter_context(Workers(engine, run.setup, environment, jobs))
            results = workers.run(task for shard in missing for task in run.tasks(shard, most))
            if parameterisation is not None:
                results = parameterisation.complete(results, seed)
            for shard in missing:
                seconds += run.write(shard, results, workers, counter, finished[:1])
                if record is not None:
                    record.add(shard)
        elif missing and record is not None and cluster is not None:
            client = stack.enter_context(connect(cluster))
            for shard in complete(client, record, _Order(run), missing, accept=_SameOrigin(finished)):
                seconds += float(events_info(shard.path)["attributes"]["seconds"])
                counter.add(len(shard))
            jobs, most = max(1, sum(client.nthreads().values())), TASK_EVENTS
        if is_file(output) and record is not None:
            join(every, output, _of_all(every))
    elapsed = time.perf_counter() - started
    return SimulateResult(
        events=n,
        seconds=elapsed,
        events_per_second=new / elapsed,
        seconds_per_event=seconds / max(new, 1),
        path=output,
        files=[output] if is_file(output) else [shard.path for shard in every],
        precision="fp64",
        streams=jobs,
        batch=most,
        seed=seed,
        resumed=n - new,
        fast=_totals(output) if parameterisation is not None else None,
    )


class _Counter:
    """Counts events for `progress`."""

    def __init__(self, progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
        self._progress, self._done, self._total = progress, done, total

    def add(self, events: int) -> None:
        self._done += events
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Order:
    """A run as a worker of a cluster carries it out: a process of the simulator per task, with the worker's own data sets."""

    def __init__(self, run: _Run) -> None:
        self._version, self._processor = __version__, _processor()
        self._run, self._request, self._fingerprint = run, {}, ""
        if run.parameterisation is not None:
            self._run = replace(run, parameterisation=run.parameterisation.on_one_core())
            self._request, self._fingerprint = run.parameterisation.request(), run.parameterisation.fingerprint()

    def check(self) -> None:
        """Compare versions and, once per thread, the bits of showers; the simulator's version stands in its shards.

        Raises ClusterError.
        """
        if getattr(_worker, "order", None) is self:
            return
        if __version__ != self._version:
            raise ClusterError(
                f"Worker {socket.gethostname()} has minicarlo {__version__}, but {self._version} is asking: install the same one."
            )
        run = self._run
        if run.parameterisation is not None:
            own = run.parameterisation.on_one_core()
            for name, value in own.request().items():
                if value != self._request[name]:
                    raise ClusterError(
                        f"Worker {socket.gethostname()} has {name} {value}, but {self._request[name]} is asking: "
                        "install the same versions."
                    )
            if own.fingerprint() != self._fingerprint:
                raise ClusterError(
                    f"Worker {socket.gethostname()} ({_processor()}) computes other bits than the machine that asks "
                    f"({self._processor}): the fast path of one run needs processors of one kind. Give the others runs of their "
                    "own, with other seeds."
                )
            run = replace(run, parameterisation=own)
        _worker.order, _worker.run = self, run

    def make(self, shard: Shard) -> None:
        """Simulate a shard."""
        run: _Run = _worker.run
        setup = replace(run.setup, detector=find_detector(run.setup.detector))
        engine = get_simulator(run.simulator)
        with Workers(engine, setup, engine.prepare(setup), 1) as workers:
            results = workers.run(run.tasks(shard, TASK_EVENTS))
            if run.parameterisation is not None:
                results = run.parameterisation.complete(results, run.seed)
            run.write(shard, results, workers, _Counter(None, 0, len(shard)), [])


class _SameOrigin:
    """Refuses a shard whose simulator or data are not those of the first. Raises OutputError."""

    def __init__(self, finished: Sequence[Shard]) -> None:
        self._first = finished[0] if finished else None

    def __call__(self, shard: Shard) -> None:
        found = events_info(shard.path)["attributes"]
        self._first = self._first or shard
        check_same_origin(self._first, {name: value for name, value in found.items() if name not in _OF_A_SHARD})


def _of_all(every: Sequence[Shard]) -> dict[str, NDArray[Any]]:
    """Attributes of one file that are sums or means over its shards."""
    found = [events_info(shard.path)["attributes"] for shard in every]
    energies = [_sum(read_conditions(shard.path)[ENERGY]) for shard in every]
    seconds = sum(float(attributes["seconds"]) for attributes in found)
    values = {
        "seconds": seconds,
        "seconds_per_event": seconds / every[-1].stop,
        "milliseconds_per_gev": 1e6 * seconds / sum(energies),
    }
    if "fast_energy_fraction" in found[0]:
        shares = [attributes["fast_energy_fraction"] for attributes in found]
        values["fast_energy_fraction"] = float(np.average(shares, weights=energies))
    return {name: np.asarray(value) for name, value in values.items()}


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
    found = {name: _sum(values) for name, values in read_conditions(output).items()}
    return {"energy_fraction": found[FAST_ENERGY] / found[ENERGY]} | {name: int(found[name]) for name in FATE_CONDITIONS}


def _sum(values: NDArray[np.float32]) -> float:
    return float(values.sum(dtype=np.float64))


def _processor() -> str:
    """Name of the processor: seconds mean little without it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
