"""From a simulator to an event set on disk: seeds, workers, shards."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import CLIC_ECAL, Detector, find_detector, is_built_in
from minicarlo.errors import InvalidCondition, InvalidConfig
from minicarlo.events import ENERGY, PHI, THETA, EventSet, write_events
from minicarlo.files import check_writable
from minicarlo.sampling import AngleDistribution, EnergyDistribution, event_seed
from minicarlo.simulators.base import Attributes, Primaries, Setup
from minicarlo.simulators.incidence import incidence
from minicarlo.simulators.registry import get_simulator
from minicarlo.simulators.shards import Shard, buffer, check_same_origin, claim, is_file, shards
from minicarlo.simulators.workers import Task, Workers

SHARD_SIZE = 1000
"""Events of a shard: a minute or two of Geant4, which is what a kill can cost at most."""

_TASK_EVENTS, _TASK_MEV = 32, 50e3  # a quarter of a second of Geant4: how often progress is seen


@dataclass(frozen=True)
class SimulateResult:
    """What was simulated and how long it took.

    `seconds` is the wall clock of this call. `events_per_second` counts the events that it made, without those that an
    interrupted run had left (`resumed`). `seconds_per_event` is the processor time of one event, `streams` the number of
    processes, `batch` the most events they take at a time.
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


@dataclass(frozen=True)
class _Run:
    """What is asked for, apart from where it goes and how many processes work on it."""

    simulator: str
    setup: Setup
    distribution: EnergyDistribution
    theta: AngleDistribution
    phi: AngleDistribution
    seed: int
    events: int
    shard_size: int

    @property
    def inclined(self) -> bool:
        """Whether any particle enters at another than a right angle."""
        return self.theta.high_deg > 0

    def request(self) -> dict[str, Any]:
        """The fields that two calls must share to contribute to the same folder."""
        detector = self.setup.detector
        angles = {"theta": str(self.theta), "phi": str(self.phi)} if self.inclined else {}
        geometry = {} if is_built_in(detector) else {"geometry": detector.to_description()}
        return {
            "verb": "simulate",
            "simulator": self.simulator,
            "detector": detector.name,
            "particle": self.setup.particle,
            "physics": self.setup.physics,
            "cut_mm": self.setup.cut_mm,
            "energy": str(self.distribution),
            "seed": self.seed,
            "events": self.events,
            "shard_size": self.shard_size,
            **angles,
            **geometry,
        }

    def primaries(self, start: int, count: int) -> Primaries:
        """What enters in events start .. start + count - 1."""
        return Primaries(
            self.distribution.sample(self.seed, start, count),
            self.theta.sample("theta", self.seed, start, count),
            self.phi.sample("phi", self.seed, start, count),
            np.array([event_seed(self.seed, start + index) for index in range(count)], np.int64),
        )

    def tasks(self, shard: Shard, most: int) -> Iterator[Task]:
        """Cut a shard into tasks of at most `most` events and, beyond one event, _TASK_MEV."""
        energies = self.distribution.sample(self.seed, shard.start, len(shard))
        begin = 0
        while begin < len(shard):
            end = begin + 1
            while end < min(begin + most, len(shard)) and energies[begin : end + 1].sum() <= _TASK_MEV:
                end += 1
            yield Task(shard.start + begin, self.primaries(shard.start + begin, end - begin))
            begin = end

    def event_set(self, shard: Shard, samples: NDArray[np.float32], seconds: float, provenance: Attributes) -> EventSet:
        """The events of a shard with everything worth knowing about them; `seconds` is the processor time they took."""
        primaries = self.primaries(shard.start, len(shard))
        conditions = {ENERGY: primaries.energies}
        angles = {}
        if self.inclined:
            conditions |= {THETA: primaries.theta, PHI: primaries.phi}
            angles = {"theta_distribution": str(self.theta), "phi_distribution": str(self.phi)}
        attributes = provenance | {
            "simulator": self.simulator,
            "particle": self.setup.particle,
            "production_cut_mm": self.setup.cut_mm,
            "energy_distribution": f"{self.distribution} (kinetic)",
            **angles,
            "seed": self.seed,
            "first_event": shard.start,
            "processor": _processor(),
            "seconds": seconds,
            "seconds_per_event": seconds / len(shard),
            "milliseconds_per_gev": 1e6 * seconds / float(primaries.energies.sum(dtype=np.float64)),
        }
        return EventSet(conditions, samples, self.setup.detector.name, attributes)


def simulate(
    n: int,
    energy: str | EnergyDistribution,
    *,
    output: Path | str,
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
    progress: Callable[[int, int], None] | None = None,
) -> SimulateResult:
    """Simulate `n` events with a reference Monte Carlo and write them as an event set.

    `energy` is the distribution of the incident kinetic energy ("1GeV:100GeV:log", "10GeV"), `cut_mm` the production cut.
    `detector` is the name of a built-in one, a TOML file or a Detector. `theta` ("30deg", "0deg:30deg") and `phi` are the
    angles of the incident direction to the normal of the front face and around it; unless theta is zero they are recorded as
    conditions in rad.
    Event i of `seed` is the same for any `n`, `jobs` and `shard_size`. An `output` that ends in .h5 becomes one file; any
    other a folder of shards of `shard_size` events, where an interrupted run of the same request goes on. The simulation
    runs in `jobs` processes of its own. `progress` is called with (events done, n).

    Raises InvalidCondition, InvalidConfig, UnknownDetector, MissingExtra and OutputError before anything is simulated,
    SimulationError when a process dies.
    """
    if n < 1:
        raise InvalidCondition(f"The number of events must be at least 1, not {n}.")
    for name, value in (("jobs", jobs), ("shard size", shard_size)):
        if value < 1:
            raise InvalidConfig(f"The {name} must be at least 1, not {value}.")
    distribution = energy if isinstance(energy, EnergyDistribution) else EnergyDistribution.parse(energy)
    event_seed(seed, n)  # refuses an impossible seed
    engine = get_simulator(simulator)
    setup = Setup(find_detector(detector), particle, physics, cut_mm)
    run = _Run(engine.name, setup, distribution, *incidence(theta, phi), seed, n, shard_size)
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
        most = min(_TASK_EVENTS, math.ceil(max(new, 1) / (4 * jobs)))
        seconds, done = 0.0, n - new
        if progress is not None:
            progress(done, n)
        if missing:
            check_writable(missing[0].path)
            workers = stack.enter_context(Workers(engine, run.setup, environment, jobs))
            results = workers.run(task for shard in missing for task in run.tasks(shard, most))
            for shard in missing:
                with buffer(shard, run.setup.detector.shape) as samples:
                    spent, filled = 0.0, 0
                    while filled < len(shard):
                        task, made = next(results)
                        if finished:
                            check_same_origin(finished.pop(), workers.provenance)
                        samples[filled : filled + len(task.primaries)] = made.samples
                        filled += len(task.primaries)
                        done += len(task.primaries)
                        spent += made.seconds
                        if progress is not None:
                            progress(done, n)
                    write_events(shard.path, run.event_set(shard, samples, spent, workers.provenance))
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
    )


def _processor() -> str:
    """Name of the processor: seconds mean little without it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
