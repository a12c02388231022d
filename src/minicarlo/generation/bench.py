"""How fast a surrogate is: rates and latencies from one interleaved run, so that ratios survive a busy machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import CompiledGenerator, compile_model, compile_surrogate, find_offer, machine, read_ir, usable_cores
from minicarlo.errors import InvalidCondition, InvalidConfig, UnknownDetector
from minicarlo.events import ENERGY, events_info, read_conditions
from minicarlo.generation.conditions import resolve_energies
from minicarlo.generation.settings import (
    Objective,
    Settings,
    available_precisions,
    choose_settings,
    default_settings,
    deviation,
    latency,
)
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate, sample_path

Progress = Callable[[int, int], None]
Array = NDArray[np.float32]

_WINDOW = 0.25  # seconds, about
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25
_LATENCY_SHARE = 0.2  # of a window, for each precision


class ReducedModel(Protocol):
    """A model in reduced precision: OpenVINO IR, and the inference precision of the layers that it does not quantise."""

    @property
    def xml(self) -> bytes: ...
    @property
    def weights(self) -> bytes: ...
    @property
    def inference_precision(self) -> Literal["f32", "bf16", "f16"]: ...


@dataclass
class _Subject:
    """One configuration under test, and what each round measured."""

    precision: str
    streams: int
    threads: int
    batch: int
    compiled: CompiledGenerator
    inputs: list[tuple[Array, Array]]
    rates: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        start = time.perf_counter()

        def until_time_is_up() -> Iterator[tuple[int, Array, Array]]:
            for number in itertools.count():
                if number >= 2 * self.streams and time.perf_counter() - start >= seconds:
                    return
                yield number, *self.inputs[number % len(self.inputs)]

        done = sum(len(samples) for _, samples in self.compiled.map(until_time_is_up()))
        self.rates.append(done / (time.perf_counter() - start))


def bench(
    surrogate: Surrogate | str | Path,
    against: Path | str | None = None,
    *,
    seconds: float = 20.0,
    energy: str | EnergyDistribution | None = None,
    streams: int | None = None,
    batch: int | None = None,
    seed: int = 1,
    engine: str = "openvino",
    int8: ReducedModel | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure showers per second and latency of every precision, on one stream and on many, in turns.

    Arguments:
        surrogate: loaded, or a path or the name of a shipped one.
        against: an event set that records what its simulation cost (attributes `seconds_per_event`, or `seconds`); energies are
            then its own. By default the sample shipped for the detector, if there is one.
        seconds: time for the measurement itself; compilation and, the first time, the search for the batch come on top.
        energy: energies to generate at, when not those of `against`.
        streams: how many "many" are (default: the usable cores); batch: events per inference (default: measured).
        engine: "openvino", "onnxruntime", "pytorch", ... (`minicarlo engines`), with a device or without.
        int8: a model with every layer in INT8 to be measured as well, in OpenVINO, such as `minicarlo.precision.Quantizer` makes.
        progress: called with (rounds done, rounds).

    Returns the keys `machine`, `runs` [{engine, precision, streams, threads, batch, events_per_second, spread, deviation,
    milliseconds_batch_1, threads_batch_1, formats}], `speedup` {tuned_over_fp32, bf16_over_fp32, int8_over_fp32, streams,
    over_simulator}, `speedup_spread`, `rounds`, `simulator`. `deviation` is the relative change of layer energies against
    OpenVINO's FP32; `milliseconds_batch_1` that of one shower in memory of its own, as `minicarlo.load` gives it. Rates are
    medians over rounds, spreads half the central 68 %. Ratios are medians of the ratios within a round; precisions are compared
    on many streams; `streams` is many over one for the best precision; `over_simulator` compares one core with one core.

    Raises InvalidSurrogate, InvalidCondition, InvalidEventSet, InvalidConfig, UnsupportedEngine.
    """
    if not isinstance(surrogate, Surrogate):
        surrogate = Surrogate.load(surrogate)
    if not 0.01 <= seconds <= 86_400:
        raise InvalidConfig(f"The time for the measurement must be between 0.01 s and a day, not {seconds:g} s.")
    simulator, energies = _simulator(surrogate, against)
    if energies is None or energy is not None:
        energies = resolve_energies(surrogate, 4096, energy, None)[0].at(seed, 0, 4096)

    many = streams or usable_cores()
    subjects, singles, changes = [], {}, {}
    offer = find_offer(engine)
    for precision in (*available_precisions(surrogate, engine), *(["int8"] if int8 and offer.engine == "openvino" else [])):

        def compiled(batch: int, streams: int, threads: int = 1, precision: str = precision) -> CompiledGenerator:
            if precision == "int8" and int8 is not None:
                model = read_ir(int8.xml, int8.weights)
                return compile_model(model, int8.inference_precision, batch=batch, streams=streams, threads=threads)
            return compile_surrogate(surrogate, precision, engine=engine, batch=batch, streams=streams, threads=threads)

        settings, single = default_settings(), Settings(1, usable_cores(), 1)
        if precision != "int8":
            settings = settings if batch else choose_settings(surrogate, precision, engine=engine)
            single = choose_settings(surrogate, precision, engine=engine, objective="latency")
        size = batch or settings.batch
        for count in sorted({1, many}):
            subjects.append(_Subject(precision, count, 1, size, compiled(size, count), _inputs(surrogate, energies, seed, size)))
        singles[precision] = compiled(1, 1, single.threads)
        changes[precision] = deviation(surrogate, compiled(size, 1))

    rounds = int(np.clip(seconds / (_WINDOW * (len(subjects) + _LATENCY_SHARE * len(singles))), _FEWEST_ROUNDS, _MOST_ROUNDS))
    window = seconds / rounds / (len(subjects) + _LATENCY_SHARE * len(singles))
    latencies: dict[str, list[float]] = {precision: [] for precision in singles}
    for subject in subjects:
        subject.measure(window / 4)  # warms up
        subject.rates.clear()
    for number in range(rounds):
        for subject in subjects[number % len(subjects) :] + subjects[: number % len(subjects)]:
            subject.measure(window)
        for precision, generator in singles.items():
            latencies[precision].append(latency(surrogate, generator, window * _LATENCY_SHARE))
        if progress is not None:
            progress(number + 1, rounds)

    speedup, spread = _ratios(subjects, many, simulator)
    return {
        "machine": machine(),
        "runs": [
            {
                "engine": engine,
                "precision": s.precision,
                "streams": s.streams,
                "threads": s.threads,
                "batch": s.batch,
                "events_per_second": float(np.median(s.rates)),
                "spread": _half_width(s.rates),
                "deviation": changes[s.precision],
                "milliseconds_batch_1": 1e3 * float(np.median(latencies[s.precision])),
                "threads_batch_1": singles[s.precision].threads,
                "formats": _formats(s.compiled),
            }
            for s in subjects
        ],
        "speedup": speedup,
        "speedup_spread": spread,
        "rounds": rounds,
        "seconds_per_window": window,
        "simulator": simulator,
    }


def sweep(
    surrogate: Surrogate | str | Path,
    *,
    seconds: float = 20.0,
    batches: Sequence[int] = (1, 4, 16, 64),
    most_streams: int | None = None,
    energy: str | EnergyDistribution | None = None,
    seed: int = 1,
    engine: str = "openvino",
    objective: Objective = "throughput",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure showers per second of FP32, and of the tuned model if there is one, against batch, streams and threads, in turns.

    `most_streams`: the largest number of streams (default: twice the usable cores); the others are powers of two. Streams have as
    many threads as powers of two leave cores for. For the objective "latency" it is one event alone, against threads, and its
    rate is one over its time. What the search for settings finds (`choose_settings`) is measured with them. Returns one entry
    {precision, streams, threads, batch, events_per_second, spread, chosen} for each. Raises InvalidSurrogate, InvalidCondition,
    InvalidConfig, UnsupportedEngine.
    """
    if not isinstance(surrogate, Surrogate):
        surrogate = Surrogate.load(surrogate)
    if not 0.01 <= seconds <= 86_400 or min(batches, default=0) < 1:
        raise InvalidConfig(f"A sweep takes 0.01 s to a day and batches of one or more, not {seconds:g} s and {list(batches)}.")
    energies = resolve_energies(surrogate, 4096, energy, None)[0].at(seed, 0, 4096)
    cores = usable_cores()
    most = most_streams or 2 * cores
    counts = sorted({2**power for power in range(most.bit_length())} | {most})
    shapes = [(s, 2**power) for s in counts for power in range(cores.bit_length()) if power == 0 or s * 2**power <= cores]
    subjects: list[_Subject] = []
    chosen: dict[str, Settings] = {}
    for precision in (name for name in ("fp32", "tuned") if name in available_precisions(surrogate, engine)):
        chosen[precision] = choose_settings(surrogate, precision, engine=engine, objective=objective)
        grid = [Settings(*shape, batch) for batch in batches for shape in shapes]
        if objective == "latency":
            grid = [Settings(1, threads, 1) for streams, threads in shapes if streams == 1]
        for each in dict.fromkeys([*grid, chosen[precision]]):
            compiled = compile_surrogate(
                surrogate, precision, engine=engine, batch=each.batch, streams=each.streams, threads=each.threads
            )
            inputs = _inputs(surrogate, energies, seed, each.batch)
            subjects.append(_Subject(precision, each.streams, each.threads, each.batch, compiled, inputs))
    for number in range(_FEWEST_ROUNDS):
        for subject in subjects:
            window = seconds / _FEWEST_ROUNDS / len(subjects)
            if objective == "latency":
                subject.rates.append(1 / latency(surrogate, subject.compiled, window))
            else:
                subject.measure(window)
        if progress is not None:
            progress(number + 1, _FEWEST_ROUNDS)
    return [
        {
            "precision": s.precision,
            "streams": s.streams,
            "threads": s.threads,
            "batch": s.batch,
            "events_per_second": float(np.median(s.rates)),
            "spread": _half_width(s.rates),
            "chosen": Settings(s.streams, s.threads, s.batch) == chosen[s.precision],
        }
        for s in subjects
    ]


def _simulator(surrogate: Surrogate, against: Path | str | None) -> tuple[dict[str, Any] | None, Array | None]:
    """What the simulation of an event set cost, and its energies."""
    if against is None:
        try:
            against = sample_path(surrogate.manifest.detector)
        except UnknownDetector:
            return None, None
    info = events_info(against)
    attributes = info["attributes"]
    cost = attributes.get("seconds_per_event")
    if cost is None and attributes.get("seconds") is not None and info["count"]:
        cost = float(attributes["seconds"]) / info["count"]
    energies = read_conditions(against)[ENERGY]
    allowed = surrogate.manifest.conditions[ENERGY]
    inside = energies[(energies >= allowed.low) & (energies <= allowed.high)]
    if not len(inside):
        raise InvalidCondition(
            f"No energy of event set {against} is inside the range {allowed.low:g} to {allowed.high:g} MeV of surrogate "
            f"{surrogate.manifest.name}. Give an event set that shares its range."
        )
    simulator = {
        "path": str(against),
        "name": str(attributes.get("generator", "unknown")),
        "seconds_per_event": None if cost is None else float(cost),
        "mean_energy_mev": float(energies.mean()),
        "note": "cost as the event set records it, of one core, perhaps of another machine",
    }
    return simulator, inside


def _inputs(surrogate: Surrogate, energies: Array, seed: int, batch: int) -> list[tuple[Array, Array]]:
    """A few different batches of latents and energies, so that no run sees one input alone."""
    count = max(4, min(16, 512 // batch))
    latent = normal_latents(seed, 0, count * batch, surrogate.manifest.latent_size)
    energy = np.resize(energies, count * batch)
    return [(latent[i : i + batch], energy[i : i + batch]) for i in range(0, count * batch, batch)]


def _ratios(
    subjects: list[_Subject], many: int, simulator: dict[str, Any] | None
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    rates = {(s.precision, s.streams): np.array(s.rates) for s in subjects}
    best = "tuned" if ("tuned", 1) in rates else "fp32"
    samples: dict[str, NDArray[np.float64] | None] = {
        f"{precision}_over_fp32": rates[precision, many] / rates["fp32", many] if (precision, many) in rates else None
        for precision in ("tuned", "bf16", "int8")
    }
    samples["streams"] = rates[best, many] / rates[best, 1]
    cost = simulator and simulator["seconds_per_event"]
    samples["over_simulator"] = rates[best, 1] * cost if cost else None
    medians = {name: None if values is None else float(np.median(values)) for name, values in samples.items()}
    return medians, {name: None if values is None else _half_width(values) for name, values in samples.items()}


def _half_width(values: list[float] | NDArray[np.float64]) -> float:
    low, high = np.percentile(values, [16, 84])
    return float(high - low) / 2


def _formats(compiled: CompiledGenerator) -> dict[str, int]:
    """How many layers run in each format."""
    ran = list(compiled.precision_report().values())
    return {form: ran.count(form) for form in sorted(set(ran))}
