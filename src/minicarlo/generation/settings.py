"""Streams, threads and batch: measured on the machine at hand once, remembered, never allowed to change a bit of the result."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from numpy.typing import NDArray

from minicarlo import __version__
from minicarlo.engines import (
    CompiledGenerator,
    compile_surrogate,
    find_offer,
    get_engine,
    machine,
    read_model,
    usable_cores,
)
from minicarlo.engines.openvino import OpenVinoGenerator
from minicarlo.engines.runtime import available
from minicarlo.errors import InvalidConfig, MinicarloError, UnsupportedPrecision
from minicarlo.events import ENERGY
from minicarlo.files import write_json
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate

Objective = Literal["throughput", "latency"]
"""Most events per second, or one event soonest."""

BATCHES = (4, 8, 16, 32, 64, 128)
DEVICE_BATCHES = (64, 256, 1024)
"""Batches that are tried on graphics processors."""

DEFAULT_BATCH = 32
WORTH_MEASURING = 50_000
"""Events from which a few seconds of measurement pay."""

LARGEST_DEVIATION = 0.5
"""Change of layer energies against FP32 beyond which a reduced precision is taken for broken, not for coarse."""

MOST_CELLS = 0.2
"""The same of the number of cells hit."""

ROUNDING = {"f32": 0.003, "bf16": 0.05, "f16": 0.05}
"""Relative difference (L2) between int8 kernels and the same arithmetic in float32 beyond which these are wrong, by what the
other layers compute in. Right kernels are seen to make 2e-7 in float32; sums that saturate for want of VNNI, 0.02."""

_PROBE = 64  # events whose bits are compared
_LARGEST = 4096
_SECONDS = 0.1  # of a window
_ROUNDS, _MOST_ROUNDS = 3, 12
_OUT = 0.08  # what a candidate may be behind the best and stay in the race
_SURE = 0.015  # what two candidates may be apart without it being worth another round
_MEDIAN = 1.25  # the error of a median over that of a mean


@dataclass(frozen=True)
class Settings:
    """`streams` inferences at once of `batch` events each, with `threads` threads each."""

    streams: int
    threads: int
    batch: int


CANONICAL = Settings(streams=1, threads=1, batch=8)
"""The setting whose bits every other must reproduce."""


def default_settings() -> Settings:
    """One stream per usable core, 32 events per inference."""
    return Settings(streams=usable_cores(), threads=1, batch=DEFAULT_BATCH)


def available_precisions(surrogate: Surrogate, engine: str) -> list[str]:
    """Those of the surrogate that the engine offers here."""
    return [name for name in surrogate.precisions if name in find_offer(engine).formats]


def usual_precision(surrogate: Surrogate, engine: str = "openvino") -> str:
    """Tuned, if the surrogate is and the engine takes it and computes it right on this processor; else fp32."""
    if "tuned" not in available_precisions(surrogate, engine):
        return "fp32"
    try:
        compile_checked(surrogate, "tuned", CANONICAL, engine)
    except UnsupportedPrecision:
        return "fp32"
    return "tuned"


def choose_settings(
    surrogate: Surrogate,
    precision: str,
    *,
    streams: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    events: int | None = None,
    engine: str = "openvino",
    objective: Objective = "throughput",
) -> Settings:
    """What is given as it is, the rest as remembered or measured (from 50,000 events, or when `events` is None), or the default.

    For the objective "latency" it is one stream of one event, and the number of threads is measured.
    Raises InvalidConfig for a number that is not between 1 and 4096.
    """
    given = {"streams": streams, "threads": threads, "batch": batch}
    for name, value in given.items():
        if value is not None and not 1 <= value <= _LARGEST:
            raise InvalidConfig(f"{name} must be between 1 and {_LARGEST}, not {value}.")
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = remembered(surrogate, precision, engine, objective)
    default = default_settings() if objective == "throughput" else Settings(1, usable_cores(), 1)
    if streams is not None or threads is not None:
        free = max(1, usable_cores() // (streams or threads or 1))
        chosen.setdefault("threads", free)
        chosen.setdefault("streams", free if objective == "throughput" else 1)
        return replace(settings or default, **chosen)
    if (
        settings is None
        and (batch is None or objective == "latency")
        and (events is None or events >= WORTH_MEASURING)
        and _quick(engine)
    ):
        settings = measure(surrogate, precision, engine, objective)
    return replace(settings or default, **chosen)


def _quick(engine: str) -> bool:
    return get_engine(engine.partition(":")[0]).compiles_quickly


def measure(surrogate: Surrogate, precision: str, engine: str = "openvino", objective: Objective = "throughput") -> Settings:
    """The best setting of a short search; it is remembered for this surrogate, precision, engine and machine.

    It takes five to twenty seconds, as noise demands. First the batch with a stream on each core, then streams and threads for
    the two best batches; for latency the threads of one stream.
    """
    cores = usable_cores()
    compiled: dict[Settings, CompiledGenerator] = {}

    def rate(settings: Settings) -> float:
        if settings not in compiled:
            compiled[settings] = _compile(surrogate, precision, settings, engine)
        if objective == "latency":
            return 1 / latency(surrogate, compiled[settings], _SECONDS)
        return throughput(surrogate, compiled[settings], settings.batch, _SECONDS)

    if objective == "latency":
        found = race((Settings(1, threads, 1) for threads in {1, 2, max(1, cores // 2), cores} if threads <= cores), rate)
    else:
        batches = BATCHES if find_offer(engine).device == "cpu" else DEVICE_BATCHES
        first = race((Settings(cores, 1, batch) for batch in batches), rate)
        best = sorted(first, key=first.__getitem__)[-2:]
        shapes = {(cores, 1), (1, cores), (max(1, cores // 2), min(2, cores))}
        found = race((Settings(*shape, settings.batch) for settings in best for shape in sorted(shapes)), rate)
    alike = [settings for settings in found if found[settings] >= max(found.values()) * (1 - _SURE)]
    winner = max(alike, key=lambda settings: (settings.batch, found[settings]))  # fewer batches are less to keep account of
    _remember(_key(surrogate, precision, engine, objective), {"settings": asdict(winner), "events_per_second": found[winner]})
    return winner


def race(candidates: Iterable[Settings], rate: Callable[[Settings], float]) -> dict[Settings, float]:
    """Rates of those candidates that stay in the race: all run in turns, and after each round those far behind are out.

    Within a round the machine is as fast for all, so that candidates are compared by the medians of their rates over the mean of
    their round. The race goes on until these are known well enough, or for `_MOST_ROUNDS`.
    """
    logs: dict[Settings, list[float]] = {settings: [] for settings in candidates}
    for number in range(1, _MOST_ROUNDS + 1):
        for settings, measured in logs.items():
            measured.append(math.log(rate(settings)))
        table = np.array(list(logs.values()))
        relative = table - table.mean(axis=0)
        scores = np.median(relative, axis=1)
        rates = dict(zip(logs, np.exp(scores + table.mean()).tolist(), strict=True))
        noise = math.sqrt(((relative - scores[:, None]) ** 2).sum() / (len(logs) * max(1, number - 1)))
        error = _MEDIAN * noise * math.sqrt(2 / number)
        allowed = max(_SURE, 3 * error) if number >= _ROUNDS else _OUT
        behind = dict(zip(logs, scores.max() - scores, strict=True))
        logs = {settings: measured for settings, measured in logs.items() if behind[settings] <= min(_OUT, allowed)}
        if len(logs) == 1 or (number >= _ROUNDS and error <= _SURE):
            break
    return {settings: rates[settings] for settings in logs}


def latency(surrogate: Surrogate, compiled: CompiledGenerator, seconds: float) -> float:
    """Median seconds of one inference of the compiled batch, in memory of its own, over `seconds`."""
    inference = compiled.inference()
    inference.latent[:], energy = probe(surrogate, len(inference.latent))
    inference.incident_energy[:] = energy[:, None]
    inference()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        inference()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def throughput(surrogate: Surrogate, compiled: CompiledGenerator, batch: int, seconds: float) -> float:
    """Events per second of `compiled` over `seconds` of a continuous run, after one batch per stream to warm up."""
    latent, energy = probe(surrogate, batch)
    for _ in compiled.map((number, latent, energy) for number in range(2 * compiled.streams)):
        pass
    start = time.perf_counter()

    def until_time_is_up() -> Any:  # noqa: ANN401
        number = 0
        while number < 2 * compiled.streams or time.perf_counter() - start < seconds:
            yield number, latent, energy
            number += 1

    done = sum(len(samples) for _, samples in compiled.map(until_time_is_up()))
    return done / (time.perf_counter() - start)


def probe(surrogate: Surrogate, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latents (count, L) and energies (count,) over the trained range, always the same."""
    allowed = surrogate.manifest.conditions[ENERGY]
    kind = "log" if allowed.low < allowed.high else "fixed"
    energy = EnergyDistribution(allowed.low, allowed.high, kind).sample(0, 0, count)  # type: ignore[arg-type]
    return normal_latents(0, 0, count, surrogate.manifest.latent_size), energy


def fingerprint(surrogate: Surrogate, compiled: CompiledGenerator) -> str:
    """Digest of the bits of 64 events: machines on which it is the same compute the same showers."""
    return hashlib.sha256(compiled.run(*probe(surrogate, _PROBE)).tobytes()).hexdigest()


def deviation(surrogate: Surrogate, compiled: CompiledGenerator) -> float:
    """Mean absolute change of the layer energies of 64 events against FP32 on the same latents, relative to their mean.

    Rounding changes it by per cents, int8 throughout a sensitive network by some 20. Runtimes have kernels that compute
    something else altogether for certain shapes on certain processors (oneDNN on AMX: convolutions in bf16 and int8 with few
    input channels), and they do not say so.
    """
    return changes(surrogate, compiled)[0]


def changes(surrogate: Surrogate, compiled: CompiledGenerator, *, whole: bool = False) -> tuple[float, float]:
    """`deviation`, and the relative change of the number of cells hit in these events: layers may be right and showers not.

    With `whole` it is compared with FP32 that OpenVINO computes to the end.
    """
    latent, energy = probe(surrogate, _PROBE)
    reference = OpenVinoGenerator(*read_model(surrogate), batch=CANONICAL.batch, whole=whole)
    cells = [reference.run(latent, energy), _run(compiled, latent, energy)]
    true, made = (each.sum((2, 3), dtype=np.float64) for each in cells)
    hit, found = (int(np.count_nonzero(each)) for each in cells)
    return float(np.abs(made - true).mean() / max(np.abs(true).mean(), 1e-12)), abs(found - hit) / max(hit, 1)


def compile_reproducible(
    surrogate: Surrogate, precision: str, settings: Settings, engine: str = "openvino"
) -> tuple[CompiledGenerator, Settings]:
    """`surrogate` compiled with `settings`, or with batches of 8 on one thread per stream if those alone give the reference bits.

    The bits of 64 events are compared once and the outcome remembered. So is whether a reduced precision, or another engine,
    computes about what OpenVINO's FP32 does; if not, UnsupportedPrecision is raised.
    """
    compiled = compile_checked(surrogate, precision, settings, engine)
    if settings == CANONICAL:
        return compiled, settings
    key = f"{_key(surrogate, precision, engine)} bits {settings.streams} {settings.threads} {settings.batch}"
    same = _recall().get(key)
    if not isinstance(same, bool):
        latent, energy = probe(surrogate, _PROBE)
        same = np.array_equal(
            _run(compiled, latent, energy), _compile(surrogate, precision, CANONICAL, engine).run(latent, energy)
        )
        _remember(key, same)
    if same:
        return compiled, settings
    settings = replace(CANONICAL, streams=settings.streams)
    return _compile(surrogate, precision, settings, engine), settings


def compile_checked(surrogate: Surrogate, precision: str, settings: Settings, engine: str = "openvino") -> CompiledGenerator:
    """`surrogate` compiled with `settings`, having once been seen to compute about what OpenVINO alone does in FP32.

    Raises UnsupportedPrecision if it does not.
    """
    compiled = _compile(surrogate, precision, settings, engine)
    key = f"{_key(surrogate, precision, engine)} is right"
    if _recall().get(key) is not True:
        energies, cells = changes(surrogate, compiled, whole=True)
        if not (energies <= LARGEST_DEVIATION and cells <= MOST_CELLS):  # so that what is no number is refused
            what = f"layer energies change by {energies:.0%} and the number of cells hit by {cells:.0%} against FP32"
            raise _wrong(surrogate, precision, engine, what)
        if precision == "tuned" and find_offer(engine).engine == "openvino" and find_offer(engine).device == "cpu":
            check_kernels(surrogate, compiled, engine)
        _remember(key, True)
    return compiled


def check_kernels(surrogate: Surrogate, compiled: CompiledGenerator, engine: str = "openvino") -> None:
    """Raise UnsupportedPrecision when the int8 kernels of a tuned model compute something else here than its numbers say."""
    assert surrogate.tuned is not None
    model, precision = read_model(surrogate, "tuned")
    latent, energy = probe(surrogate, _PROBE)
    true = OpenVinoGenerator(model, precision, batch=CANONICAL.batch, emulate=True).run(latent, energy)
    difference = float(np.linalg.norm(_run(compiled, latent, energy) - true)) / max(float(np.linalg.norm(true)), 1e-12)
    if not difference <= ROUNDING[available(precision)]:
        raise _wrong(surrogate, "tuned", engine, f"int8 kernels differ by {difference:.1%} from the same arithmetic in float32")


def _wrong(surrogate: Surrogate, precision: str, engine: str, what: str) -> UnsupportedPrecision:
    return UnsupportedPrecision(
        f"Surrogate {surrogate.path} in {precision} computes wrong values on this processor ({machine()['processor']}) with "
        f"{engine}: {what}. Choose fp32, or tune it here."
    )


def _run(compiled: CompiledGenerator, latent: NDArray[np.float32], energy: NDArray[np.float32]) -> NDArray[np.float32]:
    step = compiled.batch or len(latent)
    starts = range(0, len(latent), step)
    return np.concatenate([s for _, s in compiled.map((i, latent[i : i + step], energy[i : i + step]) for i in starts)])


def _compile(surrogate: Surrogate, precision: str, settings: Settings, engine: str = "openvino") -> CompiledGenerator:
    shape = {"batch": settings.batch, "streams": settings.streams, "threads": settings.threads}
    return compile_surrogate(surrogate, precision, engine=engine, **shape)


def remembered(
    surrogate: Surrogate, precision: str, engine: str = "openvino", objective: Objective = "throughput"
) -> Settings | None:
    """What an earlier measurement on this machine found, or None."""
    found = _recall().get(_key(surrogate, precision, engine, objective))
    try:
        values = {name: int(found["settings"][name]) for name in ("streams", "threads", "batch")}  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None
    return Settings(**values) if all(1 <= value <= _LARGEST for value in values.values()) else None


def _key(surrogate: Surrogate, precision: str, engine: str, objective: Objective = "throughput") -> str:
    offer = find_offer(engine)
    runtime = [offer.engine, offer.version, offer.device, offer.hardware]
    identity = json.dumps([surrogate.hash, precision, objective, runtime, machine(), __version__], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def _memory() -> Path:
    return Path(platformdirs.user_cache_dir("minicarlo")) / "settings.json"


def _recall() -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(_memory().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _remember(key: str, value: Any) -> None:  # noqa: ANN401
    with suppress(OSError, MinicarloError):
        _memory().parent.mkdir(parents=True, exist_ok=True)
        write_json(_memory(), _recall() | {key: value})
