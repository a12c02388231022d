"""What an engine gives to the rest of the package."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import UnsupportedPrecision
from minicarlo.surrogate import Surrogate

PrecisionReport = dict[str, str]
"""Layer name to the number format it runs in: fp32, bf16, fp16 or int8, or w8 or w4 (fp32 with smaller weights)."""

Array = NDArray[np.float32]
Key = TypeVar("Key", bound=Hashable)


class Inference(ABC):
    """One inference with memory of its own: fill `latent` and `incident_energy`, call, read `samples`.

    Nothing is allocated between calls, and nothing but the runtime runs: for whoever needs one shower at a time, soon. The
    runtime keeps the addresses of the three arrays, so that they can be written into but not replaced.
    """

    def __init__(self, batch: int, latent_size: int, sample_shape: tuple[int, ...]) -> None:
        self._latent = np.zeros((batch, latent_size), np.float32)
        self._incident_energy = np.ones((batch, 1), np.float32)
        self._samples = np.zeros((batch, *sample_shape), np.float32)

    @property
    def latent(self) -> Array:
        """(batch, L) float32, unit normal."""
        return self._latent

    @property
    def incident_energy(self) -> Array:
        """(batch, 1) float32, MeV."""
        return self._incident_energy

    @property
    def samples(self) -> Array:
        """(batch, *sample_shape) float32; every call writes into it again."""
        return self._samples

    @abstractmethod
    def __call__(self) -> Array:
        """Compute `samples` and return it."""


class CompiledGenerator(ABC):
    """A surrogate ready to run: latents and energies in, samples out.

    `batch` is the number of events in one inference (None: any), `streams` how many inferences run at once, `threads` how many
    threads each stream has.
    """

    batch: int | None
    streams: int
    threads: int
    sample_shape: tuple[int, ...]

    @abstractmethod
    def inference(self) -> Inference:
        """An inference of `batch` events, or of one where the generator takes any number."""

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

    def layer_seconds(self, latent: Array, incident_energy: Array, rounds: int = 15) -> dict[str, float]:
        """Seconds of each layer in one inference of (batch, L) latents: the least of `rounds`, by the runtime's own clock.

        With a layer count what the runtime fused into it and the reorders and conversions before and after it. Empty where the
        runtime does not tell; OpenVINO's generator must have been compiled to be profiled.
        """
        return {}

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


@dataclass(frozen=True)
class Offer:
    """What an engine offers on one device of this machine: number formats, or the reason why there are none."""

    engine: str
    version: str | None
    device: str
    hardware: str | None
    formats: tuple[str, ...]
    reason: str | None = None


class Engine(ABC):
    """A runtime: what it offers here, and surrogates compiled by it."""

    name: str
    compiles_quickly = True
    """Whether trying a dozen settings is a matter of seconds."""

    @abstractmethod
    def offers(self) -> list[Offer]:
        """One entry for each device this engine can use, the usual one first; those that are not here have a reason."""

    @abstractmethod
    def compile(
        self, surrogate: Surrogate, precision: str, *, device: str, batch: int | None, streams: int, threads: int
    ) -> CompiledGenerator:
        """See `minicarlo.engines.compile_surrogate`; `device` offers `precision` here."""


def missing_package(extra: str) -> str:
    """Why an engine is not offered whose package is missing."""
    return f"it is not installed; install it with: pip install 'minicarlo[{extra}]'"


def usable_cores() -> int:
    """Processors this process may use: affinity mask and control-group quota, whichever is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(cores, cpu_quota())))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that the control groups of this process allow, its own and all above, of version 1 or 2; infinite without."""
    quota = math.inf
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in ["0::/", *lines]:  # in a container the file system begins at its own group, whatever the membership says
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        top = root if number == "0" else root / controllers
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group == top or top in group.parents:
                quota = min(quota, _group_quota(group))
    return quota


def _group_quota(group: Path) -> float:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            allowed, period = " ".join((group / name).read_text() for name in files).split()
            return int(allowed) / int(period) if int(allowed) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):  # none, "max", or not this version
            continue
    return math.inf
