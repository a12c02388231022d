"""One shower at a time, soon: for a simulation that asks for a shower, waits for it, and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minicarlo.engines.base import Array, PrecisionReport
from minicarlo.errors import InvalidCondition
from minicarlo.events import ENERGY
from minicarlo.generation.settings import choose_settings, compile_checked, usual_precision
from minicarlo.surrogate import Surrogate


class PreparedGenerator:
    """A surrogate with memory of its own for its inputs and its result: fill, call, read.

    A call checks the energies and computes; nothing is allocated, and beside the runtime no Python runs that would depend on the
    network's size. Not to be called from two threads at once: prepare one for each.

    Attributes:
        precision: what it computes in; `precision_report` has the format of every layer.
        threads: how many threads compute.
    """

    def __init__(self, surrogate: Surrogate, precision: str, engine: str, batch: int, threads: int | None) -> None:
        settings = choose_settings(surrogate, precision, engine=engine, objective="latency", threads=threads, batch=batch)
        compiled = compile_checked(surrogate, precision, replace(settings, streams=1), engine)
        self.precision, self.threads = precision, compiled.threads
        self.precision_report: PrecisionReport = compiled.precision_report()
        self._inference = compiled.inference()
        self._name, allowed = surrogate.manifest.name, surrogate.manifest.conditions[ENERGY]
        self._low, self._high = allowed.low * (1 - 1e-6), allowed.high * (1 + 1e-6)
        self.incident_energy[:] = allowed.low
        self._single = batch == 1

    @property
    def latent(self) -> Array:
        """(batch, L) float32, to be filled with unit normals."""
        return self._inference.latent

    @property
    def incident_energy(self) -> Array:
        """(batch, 1) float32, to be filled, in MeV."""
        return self._inference.incident_energy

    @property
    def samples(self) -> Array:
        """(batch, *sample_shape) float32, MeV; every call writes into it again."""
        return self._inference.samples

    def __call__(self) -> Array:
        """Compute `samples` from `latent` and `incident_energy`, and return it.

        Raises InvalidCondition for an energy that the surrogate was not trained for.
        """
        energy = self._inference.incident_energy
        low, high = (energy.item(),) * 2 if self._single else (energy.min(), energy.max())
        if not self._low <= low <= high <= self._high:
            raise InvalidCondition(
                f"An incident energy lies outside the range {self._low:g} to {self._high:g} MeV that surrogate {self._name} was "
                f"trained for ({low:g} to {high:g} MeV); it does not extrapolate. Choose energies inside the range."
            )
        return self._inference()


def load(
    surrogate: Surrogate | str | Path,
    precision: str | None = None,
    *,
    engine: str = "openvino",
    batch: int = 1,
    threads: int | None = None,
) -> PreparedGenerator:
    """Prepare a surrogate for one shower (or `batch` of them) at a time, with the least delay.

    Arguments:
        surrogate: loaded, or a path or the name of a shipped one.
        precision: "fp32", "bf16" or "tuned"; by default tuned when the surrogate has it and the engine takes it
            and computes it right on this processor.
        engine: "openvino", "onnxruntime", "pytorch", with a device or without.
        batch: showers per call.
        threads: threads that compute; measured and remembered when left out.

    Example:
        >>> import numpy as np
        >>> import minicarlo
        >>> shower, random = minicarlo.load("clic-ecal", threads=1), np.random.default_rng(1)
        >>> shower.incident_energy[:] = 10_000  # MeV
        >>> _ = random.standard_normal(out=shower.latent, dtype=np.float32)
        >>> shower().shape
        (1, 25, 25, 25)

    The showers are those of `generate` up to rounding: some processors sum a single event in another order than many.
    Raises InvalidSurrogate, UnsupportedEngine, UnsupportedPrecision, InvalidConfig.
    """
    if not isinstance(surrogate, Surrogate):
        surrogate = Surrogate.load(surrogate)
    return PreparedGenerator(surrogate, precision or usual_precision(surrogate, engine), engine, batch, threads)
