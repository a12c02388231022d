"""Many events from a surrogate: the same bits for any batch and number of streams, in shards that a killed run finds again."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicarlo import __version__
from minicarlo.cluster import Where, complete, connect
from minicarlo.detectors import get_detector
from minicarlo.engines import CompiledGenerator, find_offer, machine, usable_cores
from minicarlo.errors import ClusterError, InvalidConfig, MinicarloError, OutputError, UnsupportedPrecision
from minicarlo.events import ENERGY, EventSet, events_info
from minicarlo.files import check_writable
from minicarlo.generation.conditions import Energies, resolve_energies
from minicarlo.generation.settings import Settings, choose_settings, compile_reproducible, fingerprint, usual_precision
from minicarlo.generation.writer import EventFile, check_samples
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.shards import Run, Shard, claim, claim_hidden, is_file, join, parts, shards
from minicarlo.surrogate import Surrogate

SHARD_SIZE = 10_000
ROUNDING = "cell_energy_rounding"
_worker = threading.local()  # of a thread of a cluster's worker: its order and compiled generator

Progress = Callable[[int, int], None]
Array = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True)
class GenerateResult:
    """What was generated and how fast; `seconds` covers generation and writing, not compilation.

    `resumed` events were found complete from an earlier run and are not counted in `events_per_second`, which is None when
    nothing was left to do.
    """

    events: int
    seconds: float
    events_per_second: float | None
    path: Path
    files: list[Path]
    precision: str
    streams: int
    threads: int
    batch: int
    seed: int
    resumed: int = 0
    precision_report: dict[str, str] = field(default_factory=dict)


@overload
def generate(
    surrogate: Surrogate | str | Path,
    n: int | None = None,
    energy: str | EnergyDistribution | None = None,
    *,
    conditions: Path | str | EventSet | ArrayLike | None = None,
    seed: int = 1,
    output: None = None,
    streams: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    precision: str | None = None,
    engine: str = "openvino",
    shard_size: int = SHARD_SIZE,
    mantissa_bits: int | None = None,
    overwrite: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> EventSet: ...


@overload
def generate(
    surrogate: Surrogate | str | Path,
    n: int | None = None,
    energy: str | EnergyDistribution | None = None,
    *,
    conditions: Path | str | EventSet | ArrayLike | None = None,
    seed: int = 1,
    output: Path | str,
    streams: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    precision: str | None = None,
    engine: str = "openvino",
    shard_size: int = SHARD_SIZE,
    mantissa_bits: int | None = None,
    overwrite: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> GenerateResult: ...


def generate(
    surrogate: Surrogate | str | Path,
    n: int | None = None,
    energy: str | EnergyDistribution | None = None,
    *,
    conditions: Path | str | EventSet | ArrayLike | None = None,
    seed: int = 1,
    output: Path | str | None = None,
    streams: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    precision: str | None = None,
    engine: str = "openvino",
    shard_size: int = SHARD_SIZE,
    mantissa_bits: int | None = None,
    overwrite: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> EventSet | GenerateResult:
    """Generate events: into memory (an EventSet) without `output`, else into files (a GenerateResult).

    Arguments:
        surrogate: loaded, or a path or the name of a shipped one.
        n: number of events; may be left out with `conditions`.
        energy: "10GeV", "1GeV:100GeV:log", "1GeV:100GeV:uniform"; by default log over the trained range.
        conditions: incident energies event by event: an event set (object or path), a CSV file with the column `incident_energy`
            (MeV), or an array (N,) in MeV.
        seed: event i of a seed is the same bits whatever the other settings are, on one machine.
        output: a path ending in .h5 or .hdf5 becomes one file; any other a folder of shards of `shard_size` events. After a kill,
            a second call with the same request completes either. What else is there is refused, or replaced with `overwrite`.
        streams, threads, batch: inferences at once, threads of each, events of each; measured and remembered when left out.
            A batch whose bits differ from those of a batch of 8 (some processors, batch 1) is replaced by 8.
        precision: "fp32", "bf16" or "tuned"; by default tuned when the surrogate has it and the engine takes it
            and computes it right on this processor.
        engine: the runtime, with a device or without: "openvino", "onnxruntime:cuda" (`minicarlo engines`); its bits are its own.
        mantissa_bits: round the energies in files to so many bits of mantissa (1 to 22): smaller files, a relative error up to
            2^-(bits + 1), declared in the attribute `cell_energy_rounding`. By default they are exact.
        cluster: make the shards on the workers of a Dask cluster: "local", "local:4", "ssh:host,host", "slurm:20", "htcondor:20",
            "tcp://host:port" or "tls://host:port" (`minicarlo.cluster`); one event at a time in each thread of a worker.
        progress: called with (events done, events in all).

    Raises InvalidCondition, InvalidSurrogate, UnsupportedEngine, UnsupportedPrecision, InvalidConfig, OutputError; with `cluster`
    also ClusterError and MissingExtra.
    """
    if not isinstance(surrogate, Surrogate):
        surrogate = Surrogate.load(surrogate)
    precision = precision or usual_precision(surrogate, engine)
    if precision not in surrogate.precisions:
        known = "fp32, bf16 or tuned" if precision != "tuned" else "fp32 or bf16, or run `minicarlo tune` first"
        raise UnsupportedPrecision(f"Surrogate {surrogate.path} has no precision {precision!r:.40}. Choose {known}.")
    if not 1 <= shard_size <= 10_000_000:
        raise InvalidConfig(f"The shard size must be between 1 and 10,000,000 events, not {shard_size}.")
    if mantissa_bits is not None and not (1 <= mantissa_bits <= 22 and output is not None):
        raise InvalidConfig(
            f"Energies in files are rounded to 1 to 22 bits of mantissa, not {mantissa_bits}; in memory they are exact."
        )
    energies, count = resolve_energies(surrogate, n, energy, conditions)
    normal_latents(seed, 0, 0, 1)  # refuses an impossible seed
    if cluster is not None:
        Where.parse(cluster)
        if output is None or streams is not None or threads is not None:
            raise InvalidConfig(
                "On a cluster, events go to an output, and the cluster's workers take the place of streams and threads."
            )
        streams = threads = 1
    settings = choose_settings(surrogate, precision, streams=streams, threads=threads, batch=batch, events=count, engine=engine)
    run = _Run(surrogate, precision, engine, energies, count, seed, settings, progress, cluster, mantissa_bits)
    if output is None:
        return run.in_memory()
    output = Path(output)
    return (run.into_file if is_file(output) else run.into_folder)(output, shard_size, overwrite)


class _Run:
    """One request being carried out."""

    def __init__(
        self,
        surrogate: Surrogate,
        precision: str,
        engine: str,
        energies: Energies,
        count: int,
        seed: int,
        settings: Settings,
        progress: Progress | None,
        cluster: str | None,
        mantissa_bits: int | None,
    ) -> None:
        self.surrogate, self.precision, self.engine, self.energies = surrogate, precision, engine, energies
        self.count, self.seed, self.settings, self.progress = count, seed, settings, progress
        self.cluster, self.mantissa_bits = cluster, mantissa_bits
        self.detector = get_detector(surrogate.manifest.detector)
        self.done = 0

    def in_memory(self) -> EventSet:
        compiled = self.compile()
        samples = np.empty((self.count, *self.detector.shape), np.float32)
        energies = np.empty(self.count, np.float32)
        for start, part, energy in self.batches(compiled, [range(self.count)]):
            check_samples(part, start)
            samples[start : start + len(part)] = part
            energies[start : start + len(part)] = energy
        return EventSet({ENERGY: energies}, samples, self.detector.name, self.attributes(0))

    def into_file(self, path: Path, shard_size: int, overwrite: bool) -> GenerateResult:
        """One file: at once if it is no larger than a shard, else joined from hidden shards that a killed run finds again."""
        check_writable(path)
        if path.exists() and not overwrite and self.is_there(path):
            self.advance(self.count)
            return self.result(None, path, [path], 0.0, self.count)
        pieces = parts(path, self.count, shard_size)
        if len(pieces) > 1 or self.cluster is not None:
            with claim_hidden(path, self.request(shard_size), overwrite=overwrite) as run:
                result = self.complete(run, pieces, path)
                join(pieces, path)
            return replace(result, path=path, files=[path])
        compiled = self.compile()
        started = time.perf_counter()
        self.write(compiled, Shard(path, 0, self.count))
        return self.result(compiled, path, [path], time.perf_counter() - started, 0)

    def into_folder(self, folder: Path, shard_size: int, overwrite: bool) -> GenerateResult:
        with claim(folder, self.request(shard_size), overwrite=overwrite) as run:
            return self.complete(run, shards(folder, self.count, shard_size), folder)

    def complete(self, run: Run, pieces: list[Shard], path: Path) -> GenerateResult:
        """Write the shards that are missing."""
        compiled = self.compile()
        started = time.perf_counter()
        with ThreadPoolExecutor(usable_cores()) as pool:
            missing = [shard for shard, there in zip(pieces, pool.map(run.has, pieces), strict=True) if not there]
        resumed = self.count - sum(map(len, missing))
        self.advance(resumed)
        if self.cluster is not None and missing:
            self.settings = self.complete_on(self.cluster, compiled, run, missing)
        else:
            self.write_all(compiled, run, missing)
        result = self.result(compiled, path, [shard.path for shard in pieces], time.perf_counter() - started, resumed)
        if resumed < self.count:
            run.last = {
                "events": self.count - resumed,
                "seconds": result.seconds,
                "events_per_second": result.events_per_second,
                "streams": result.streams,
                "threads": result.threads,
                "batch": result.batch,
                "precision_report": result.precision_report,
                "machine": machine(),
            }
            run.write()
        return result

    def complete_on(self, cluster: str, compiled: CompiledGenerator, run: Run, missing: list[Shard]) -> Settings:
        """Have the workers of a cluster write the missing shards; return what they ran with."""
        with connect(cluster, usable_cores()) as client:
            for shard in complete(client, run, _Order(self, compiled), missing):
                self.advance(len(shard))
            return replace(self.settings, streams=max(1, sum(client.nthreads().values())))

    def is_there(self, path: Path) -> bool:
        """Whether `path` is what this request gives. Raises OutputError when it is something else."""
        try:
            info = events_info(path)
        except MinicarloError as error:
            raise OutputError(
                f"Cannot write {path}: there is a file of that name that is no event set. Choose another name, or --overwrite it."
            ) from error
        wanted = {ROUNDING: None} | self.attributes(0) | {"events": self.count}
        found = info["attributes"] | {"events": info["count"]}
        if differs := next((name for name, value in wanted.items() if found.get(name) != value), None):
            raise OutputError(
                f"Cannot write {path}: it holds other events ({differs}: {found.get(differs)!r:.100} there, "
                f"{wanted[differs]!r:.100} now). Choose another name, or --overwrite it."
            )
        return True

    def compile(self) -> CompiledGenerator:
        compiled, self.settings = compile_reproducible(self.surrogate, self.precision, self.settings, self.engine)
        return compiled

    def batches(self, compiled: CompiledGenerator, parts: Iterable[range]) -> Generator[tuple[int, Array, Array], None, None]:
        """(first event, samples, energies) by batches, each of one part, in order; latents are made in a thread of their own."""
        size, step = self.surrogate.manifest.latent_size, self.settings.batch

        def blocks() -> Iterator[tuple[int, Array, Array]]:
            block = step * max(1, 512 // step)  # Philox blocks are drawn whole: ask for many events at a time
            for begin, end in ((begin, part.stop) for part in parts for begin in part[::block]):
                number = min(block, end - begin)
                yield begin, normal_latents(self.seed, begin, number, size), self.energies.at(self.seed, begin, number)

        energy_of: dict[int, Array] = {}

        def inputs() -> Iterator[tuple[int, Array, Array]]:
            for begin, latent, energy in _ahead(blocks(), 2):
                for offset in range(0, len(latent), step):
                    energy_of[begin + offset] = energy[offset : offset + step]
                    yield begin + offset, latent[offset : offset + step], energy[offset : offset + step]

        for start, samples in compiled.map(inputs()):
            self.advance(len(samples))
            yield start, samples, energy_of.pop(start)

    def file(self, shard: Shard, workers: int | None = None) -> EventFile:
        attributes = self.attributes(shard.start)
        return EventFile(shard.path, len(shard), self.detector, attributes, shard.start, workers, self.mantissa_bits)

    def write(self, compiled: CompiledGenerator, shard: Shard, workers: int | None = None) -> None:
        with self.file(shard, workers) as file:
            for _, samples, energy in self.batches(compiled, [range(shard.start, shard.stop)]):
                file.append(samples, energy)

    def write_all(self, compiled: CompiledGenerator, run: Run, missing: Sequence[Shard]) -> None:
        """Write shards; while one is brought to disk and recorded, the next one is computed."""

        def end(file: EventFile, shard: Shard) -> None:
            file.close()
            run.add(shard)

        before: Future[None] | None = None
        made = self.batches(compiled, [range(shard.start, shard.stop) for shard in missing])
        with ThreadPoolExecutor(1, "end of shard") as behind, closing(made):
            for shard in missing:
                file = self.file(shard).open()
                try:
                    reached = shard.start
                    while reached < shard.stop:
                        _, samples, energy = next(made)
                        file.append(samples, energy)
                        reached += len(samples)
                        if before is not None and (before.done() or reached == shard.stop):
                            before = before.result()
                except BaseException as error:
                    file.close(error)
                    raise
                before = behind.submit(end, file, shard)
            if before is not None:
                before.result()

    def advance(self, events: int) -> None:
        self.done += events
        if self.progress is not None:
            self.progress(self.done, self.count)

    def attributes(self, first: int) -> dict[str, Any]:
        """Provenance: everything that decides the bits, nothing that does not."""
        manifest = self.surrogate.manifest
        return {
            "generator": f"minicarlo {__version__}, surrogate {manifest.name} ({manifest.generator})",
            "surrogate_hash": self.surrogate.hash,
            "precision": self.precision,
            "engine": self.engine,
            "energy_distribution": self.energies.description,
            "readout_threshold_mev": manifest.readout_threshold_mev,
            "seed": self.seed if self.seed < 2**63 else str(self.seed),
            "first_event": first,
            **self.storage(),
        }

    def storage(self) -> dict[str, str]:
        """What declares rounded energies."""
        bits = self.mantissa_bits
        return {} if bits is None else {ROUNDING: f"{bits} mantissa bits (relative error below 2^-{bits + 1})"}

    def request(self, shard_size: int) -> dict[str, Any]:
        """What a second run must share with the first to complete it."""
        return {
            "surrogate": self.surrogate.manifest.name,
            "surrogate_hash": self.surrogate.hash,
            "precision": self.precision,
            "engine": self.engine,
            "events": self.count,
            "energy": self.energies.description,
            "seed": self.seed,
            "shard_size": shard_size,
            "software": _software(self.engine),
            **self.storage(),
        }

    def result(
        self, compiled: CompiledGenerator | None, path: Path, files: list[Path], seconds: float, resumed: int
    ) -> GenerateResult:
        made = self.count - resumed
        return GenerateResult(
            events=self.count,
            seconds=seconds,
            events_per_second=made / seconds if made else None,
            path=path,
            files=files,
            precision=self.precision,
            streams=self.settings.streams,
            threads=self.settings.threads,
            batch=self.settings.batch,
            seed=self.seed,
            resumed=resumed,
            precision_report=compiled.precision_report() if compiled else {},
        )


class _Order:
    """A run as a worker of a cluster carries it out: one stream of one thread for each task."""

    def __init__(self, run: _Run, compiled: CompiledGenerator) -> None:
        self.run = copy(run)
        self.run.progress = None
        self.software, self.processor = _software(run.engine), machine()["processor"]
        self.fingerprint = fingerprint(run.surrogate, compiled)

    def check(self) -> None:
        """Compile once per thread, and compare versions and the bits of some events. Raises ClusterError."""
        if getattr(_worker, "order", None) is self:
            return
        if (found := _software(self.run.engine)) != self.software:
            raise ClusterError(
                f"Worker {socket.gethostname()} has {found}, but {self.software} is asking: install the same versions."
            )
        compiled = self.run.compile()
        if fingerprint(self.run.surrogate, compiled) != self.fingerprint:
            raise ClusterError(
                f"Worker {socket.gethostname()} ({machine()['processor']}) computes other bits than the machine that asks "
                f"({self.processor}): one run needs processors of one kind. Give the others runs of their own, with other seeds."
            )
        _worker.order, _worker.compiled = self, compiled

    def make(self, shard: Shard) -> None:
        """Write a shard, compressing in one thread."""
        self.run.write(_worker.compiled, shard, workers=1)


def _software(engine: str) -> dict[str, str]:
    offer = find_offer(engine)
    return {"minicarlo": __version__, offer.engine: str(offer.version), "numpy": np.__version__}


def _ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """`items`, made up to `depth` ahead in a thread."""
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(value: tuple[Item] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                return ready.put(value, timeout=0.1)

    def work() -> None:
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # for the reader's thread
            put(error)

    thread = threading.Thread(target=work, name="latents", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value[0]
    finally:
        stopped.set()
        thread.join()
