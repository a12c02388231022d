"""How much faster a candidate is than the reference: both in turn, many short windows, the median of the ratios."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicarlo.engines import CompiledGenerator

Array = NDArray[np.float32]
Pass = Callable[[], object]
"""Runs the same events once."""


@dataclass(frozen=True)
class Speedup:
    """Ratio of the candidate's speed to the reference's: median over windows, and the half width of the central half of them."""

    value: float
    spread: float


def interleaved(
    reference: Pass,
    candidate: Pass,
    *,
    seconds: float = 1.0,
    windows: int = 7,
    meter: Callable[[], float] = time.perf_counter,
) -> Speedup:
    """Time two passes over the same events, one after the other in each window, for about `seconds` in all.

    What else the machine does then slows both alike. The order within a window alternates. Passes that take long have fewer
    windows, five at least. Another `meter` than a clock measures what else a pass uses, such as energy.
    """
    pair = (reference, candidate)
    for each in pair:
        _spent(each, 1, time.perf_counter)
    once = [max(_spent(each, 1, time.perf_counter), 1e-6) for each in pair]
    windows = min(windows, max(5, round(seconds / sum(once))))
    repeats = [max(1, round(seconds / (2 * windows) / each)) for each in once]
    ratios = []
    for window in range(windows):
        order = (0, 1) if window % 2 == 0 else (1, 0)
        spent = {which: _spent(pair[which], repeats[which], meter) / repeats[which] for which in order}
        ratios.append(spent[0] / spent[1])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Speedup(float(middle), float(high - low) / 2)


def measure_speedup(
    reference: CompiledGenerator,
    candidate: CompiledGenerator,
    latent: Array,
    incident_energy: Array,
    *,
    seconds: float = 1.0,
    windows: int = 7,
) -> Speedup:
    """`interleaved` for two generators of showers."""

    def over(generator: CompiledGenerator) -> Pass:
        step = generator.batch or len(latent)
        batches = [(i, latent[i : i + step], incident_energy[i : i + step]) for i in range(0, len(latent), step)]

        def run() -> None:
            for _ in generator.map(batches):
                pass

        return run

    return interleaved(over(reference), over(candidate), seconds=seconds, windows=windows)


def _spent(run: Pass, repeats: int, meter: Callable[[], float]) -> float:
    start = meter()
    for _ in range(repeats):
        run()
    return max(meter() - start, 1e-12)
