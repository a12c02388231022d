"""Streams, threads and batch: measured on the machine at hand once, remembered, never allowed to change a bit of the result."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from minicarlo import __version__
from minicarlo.engines import CompiledGenerator, compile_surrogate, machine, usable_cores
from minicarlo.errors import InvalidConfig, MinicarloError, UnsupportedPrecision
from minicarlo.events import ENERGY
from minicarlo.files import write_json
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate

BATCHES = (8, 16, 32, 64)
DEFAULT_BATCH = 32
WORTH_MEASURING = 50_000
"""Events from which a few seconds of measurement pay."""

LARGEST_DEVIATION = 0.5
"""Change of layer energies against FP32 beyond which a reduced precision is taken for broken, not for coarse."""

_PROBE = 64  # events whose bits are compared
_LARGEST = 4096
_SECONDS = 0.3


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


def choose_settings(
    surrogate: Surrogate,
    precision: str,
    *,
    streams: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    events: int | None = None,
) -> Settings:
    """What is given as it is, the rest as remembered or measured (from 50,000 events, or when `events` is None), or the default.

    Raises InvalidConfig for a number that is not between 1 and 4096.
    """
    given = {"streams": streams, "threads": threads, "batch": batch}
    for name, value in given.items():
        if value is not None and not 1 <= value <= _LARGEST:
            raise InvalidConfig(f"{name} must be between 1 and {_LARGEST}, not {value}.")
    chosen = {name: value for name, value in given.items() if value is not None}
    if streams is not None or threads is not None:
        free = max(1, usable_cores() // (streams or threads or 1))
        chosen.setdefault("threads", free)
        chosen.setdefault("streams", free)
        return replace(remembered(surrogate, precision) or default_settings(), **chosen)
    settings = remembered(surrogate, precision)
    if settings is None and batch is None and (events is None or events >= WORTH_MEASURING):
        settings = measure(surrogate, precision)
    return replace(settings or default_settings(), **chosen)


def measure(surrogate: Surrogate, precision: str) -> Settings:
    """The fastest setting of a short search (about five seconds); it is remembered for this surrogate, precision and machine."""
    cores = usable_cores()
    rates: dict[Settings, float] = {}

    def rate(settings: Settings) -> float:
        if settings not in rates:
            compiled = _compile(surrogate, precision, settings)
            rates[settings] = throughput(surrogate, compiled, settings.batch, _SECONDS)
        return rates[settings]

    best = max((Settings(cores, 1, batch) for batch in BATCHES), key=rate)
    shapes = {(1, cores), (max(1, cores // 2), min(2, cores)), (cores, 1)}
    best = max([best, *(Settings(streams, threads, best.batch) for streams, threads in sorted(shapes))], key=rate)
    _remember(_key(surrogate, precision), {"settings": asdict(best), "events_per_second": rates[best]})
    return best


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


def deviation(surrogate: Surrogate, compiled: CompiledGenerator) -> float:
    """Mean absolute change of the layer energies of 64 events against FP32 on the same latents, relative to their mean.

    Rounding changes it by per cents, int8 throughout a sensitive network by some 20. Runtimes have kernels that compute
    something else altogether for certain shapes on certain processors (oneDNN on AMX: convolutions in bf16 and int8 with few
    input channels), and they do not say so.
    """
    latent, energy = probe(surrogate, _PROBE)
    true = _compile(surrogate, "fp32", CANONICAL).run(latent, energy).sum((2, 3), dtype=np.float64)
    made = _run(compiled, latent, energy).sum((2, 3), dtype=np.float64)
    return float(np.abs(made - true).mean() / max(np.abs(true).mean(), 1e-12))


def compile_reproducible(surrogate: Surrogate, precision: str, settings: Settings) -> tuple[CompiledGenerator, Settings]:
    """`surrogate` compiled with `settings`, or with batches of 8 on one thread per stream if those alone give the reference bits.

    The bits of 64 events are compared once and the outcome remembered. So is whether a reduced precision computes about what FP32
    does; if not, UnsupportedPrecision is raised.
    """
    compiled = _compile(surrogate, precision, settings)
    key = f"{_key(surrogate, precision)} agrees"
    if precision != "fp32" and _recall().get(key) is not True:
        change = deviation(surrogate, compiled)
        if change > LARGEST_DEVIATION:
            raise UnsupportedPrecision(
                f"Surrogate {surrogate.path} in {precision} computes wrong values on this processor "
                f"({machine()['processor']}): showers change by {change:.0%} against FP32. Choose fp32, or tune it here."
            )
        _remember(key, True)
    if settings == CANONICAL:
        return compiled, settings
    key = f"{_key(surrogate, precision)} bits {settings.streams} {settings.threads} {settings.batch}"
    same = _recall().get(key)
    if not isinstance(same, bool):
        latent, energy = probe(surrogate, _PROBE)
        same = np.array_equal(_run(compiled, latent, energy), _compile(surrogate, precision, CANONICAL).run(latent, energy))
        _remember(key, same)
    if same:
        return compiled, settings
    settings = replace(CANONICAL, streams=settings.streams)
    return _compile(surrogate, precision, settings), settings


def _run(compiled: CompiledGenerator, latent: NDArray[np.float32], energy: NDArray[np.float32]) -> NDArray[np.float32]:
    step = compiled.batch or len(latent)
    starts = range(0, len(latent), step)
    return np.concatenate([s for _, s in compiled.map((i, latent[i : i + step], energy[i : i + step]) for i in starts)])


def _compile(surrogate: Surrogate, precision: str, settings: Settings) -> CompiledGenerator:
    return compile_surrogate(surrogate, precision, batch=settings.batch, streams=settings.streams, threads=settings.threads)


def remembered(surrogate: Surrogate, precision: str) -> Settings | None:
    """What an earlier measurement on this machine found, or None."""
    found = _recall().get(_key(surrogate, precision))
    try:
        values = {name: int(found["settings"][name]) for name in ("streams", "threads", "batch")}  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None
    return Settings(**values) if all(1 <= value <= _LARGEST for value in values.values()) else None


def _key(surrogate: Surrogate, precision: str) -> str:
    identity = json.dumps([surrogate.hash, precision, machine(), __version__], sort_keys=True)
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
