"""What an engine gives to the rest of the package."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import UnsupportedPrecision

PrecisionReport = dict[str, str]
"""Layer name to the number format it runs in: fp32, bf16, fp16 or int8."""

Array = NDArray[np.float32]
Key = TypeVar("Key", bound=Hashable)


class CompiledGenerator(ABC):
    """A surrogate ready to run: latents and energies in, samples out.

    `batch` is the number of events in one inference (None: any), `streams` how many inferences run at once, `threads` how many
    threads each stream has.
    """

    batch: int | None
    streams: int
    threads: int

    @abstractmethod
    def run(self, latent: Array, incident_energy: Array) -> Array:
        """Samples (N, *sample_shape) for latents (N, L) and energies (N,) or (N, 1) in MeV, one inference after another."""

    @abstractmethod
    def map(self, batches: Iterable[tuple[Key, Array, Array]]) -> Iterator[tuple[Key, Array]]:
        """(key, samples) for each (key, latent, energy), in the order given, up to `streams` inferences at once.

        `batches` is read a little ahead; the arrays given out belong to the caller.
        """

    @abstractmethod
    def precision_report(self) -> PrecisionReport:
        """The format each layer with multiply-accumulates runs in, as the runtime itself reports it."""

    @abstractmethod
    def layer_seconds(self, latent: Array, incident_energy: Array, rounds: int = 15) -> dict[str, float]:
        """Seconds of each layer in one inference of (batch, L) latents: the least of `rounds`, by the runtime's own clock.

        With a layer count what the runtime fused into it and the reorders and conversions before and after it. The generator
        must have been compiled to be profiled.
        """

    def assert_precision(self, expected: str | PrecisionReport) -> None:
        """Raise UnsupportedPrecision unless the layers run in `expected`: one format for all, or one for each named layer."""
        ran = self.precision_report()
        wanted = dict.fromkeys(ran, expected) if isinstance(expected, str) else expected
        wrong = {name: ran.get(name, "nothing") for name, form in wanted.items() if ran.get(name) != form}
        if wrong or not ran:
            listed = ", ".join(f"{name} in {form} (not {wanted[name]})" for name, form in list(wrong.items())[:5])
            raise UnsupportedPrecision(
                f"The runtime does not compute in the formats asked for: {listed or 'it reports no layer'}. "
                "Choose another precision or tune the surrogate on this machine."
            )


def usable_cores() -> int:
    """Processors this process may use: affinity mask and control-group quota, whichever is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)
