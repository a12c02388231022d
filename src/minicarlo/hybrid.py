"""A surrogate inside a Monte Carlo: it makes the showers it was trained for, the Monte Carlo tracks everything else.

Particles are stopped where they enter the front face (`minicarlo.simulators.Acceptance`), queued over many events, and turned
into showers in batches. Particle i of a run gets latents i of its seed: an event depends on neither batch nor processes, and
single particles get the showers that `minicarlo.generate` makes for the same seed and energies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicarlo import __version__
from minicarlo.detectors import get_detector
from minicarlo.engines import CompiledGenerator, machine
from minicarlo.errors import InvalidCondition, InvalidConfig, UnsupportedPrecision
from minicarlo.events import ENERGY
from minicarlo.generation.settings import Settings, choose_settings, compile_reproducible, fingerprint, usual_precision
from minicarlo.generation.writer import check_samples
from minicarlo.sampling import AngleDistribution, EnergyDistribution, normal_latents
from minicarlo.simulators import Acceptance, Batch
from minicarlo.simulators.acceptance import whole_cells
from minicarlo.simulators.base import Attributes
from minicarlo.simulators.tasks import Task
from minicarlo.surrogate import Surrogate

OFFSET = 0.05
"""Largest distance of an entry from where the surrogate was trained, in cells, while nothing else is asked for."""

ANGLE = "0.25deg"
"""Largest angle to the normal while nothing else is asked for."""

_GROUP_PARTICLES = 512  # showers that are made at a time
_GROUP_BYTES, _GROUP_SECONDS = 2**26, 1.0  # what waits for that: its memory, and how often progress is seen
Array = NDArray[np.float32]


class SurrogateShowers:
    """Showers of a surrogate for the particles that it was trained for.

    Arguments:
        surrogate: loaded, or a path or the name of a shipped one.
        precision: "fp32", "bf16" or "tuned"; by default tuned when the surrogate has it.
        particles: kinds of particles whose showers it makes; by default those it was trained on, if it says so.
        above: kinetic energy ("5GeV") from which it does; by default the least it was trained for.
        offset: largest distance, in x and in y, of the entry from the centre of a cell (cylindrical: from the axis), in cells.
        angle: largest angle to the normal.
        batch: events of one inference; chosen if not given, never seen in the result.

    Raises InvalidSurrogate, InvalidCondition, InvalidConfig, UnsupportedPrecision.
    """

    def __init__(
        self,
        surrogate: Surrogate | str | Path,
        *,
        precision: str | None = None,
        particles: tuple[str, ...] | None = None,
        above: str | None = None,
        offset: float = OFFSET,
        angle: str = ANGLE,
        batch: int | None = None,
    ) -> None:
        if not isinstance(surrogate, Surrogate):
            surrogate = Surrogate.load(surrogate)
        self._surrogate, self._batch = surrogate, batch
        self._streams: int | None = None
        self._precision = precision or usual_precision(surrogate)
        if self._precision not in surrogate.precisions:
            raise UnsupportedPrecision(
                f"Surrogate {surrogate.path} has no precision {precision!r:.40}. Choose {', '.join(surrogate.precisions)}."
            )
        self.detector = get_detector(surrogate.manifest.detector)
        self.acceptance = Acceptance(
            particles or _trained_particles(surrogate), *_energies(surrogate, above), _steepest(angle), offset
        )
        if not 0 <= offset <= 0.5:
            raise InvalidConfig(
                f"The offset must be between 0 and 0.5 cells, not {offset}: half a cell away the next one is nearer."
            )

    def request(self) -> dict[str, Any]:
        """See Parameterisation. Another runtime may give other bits."""
        return self.attributes() | {"openvino": machine()["openvino"], "numpy": np.__version__}

    def attributes(self) -> Attributes:
        """See Parameterisation."""
        manifest, accepted = self._surrogate.manifest, self.acceptance
        return {
            "generator": f"minicarlo {__version__}, surrogate {manifest.name} ({manifest.generator})",
            "surrogate_hash": self._surrogate.hash,
            "precision": self._precision,
            "threshold": f"{manifest.readout_threshold_mev:g} MeV in each shower of the surrogate, none in what was tracked",
            "fast_particles_accepted": ", ".join(accepted.particles),
            "fast_low_mev": accepted.low_mev,
            "fast_high_mev": accepted.high_mev,
            "fast_angle_rad": accepted.theta,
            "fast_offset_cells": accepted.offset,
        }

    def complete(self, results: Iterator[tuple[Task, Batch]], seed: int) -> Iterator[tuple[Task, Batch]]:
        """See Parameterisation. Tasks wait until they hold showers for several inferences, but not for long."""
        compiled, settings = self._compiled
        for group in _groups(results):
            start = time.process_time()
            self._deposit(compiled, settings.batch, group, seed)
            spent = (time.process_time() - start) / sum(len(task.primaries) for task, _ in group)
            for task, batch in group:
                yield task, replace(batch, seconds=batch.seconds + spent * len(task.primaries))

    def fingerprint(self) -> str:
        """See Parameterisation."""
        return fingerprint(self._surrogate, self._compiled[0])

    def on_one_core(self) -> SurrogateShowers:
        """See Parameterisation."""
        single = copy(self)
        single._streams = 1
        vars(single).pop("_compiled", None)
        return single

    @cached_property
    def _compiled(self) -> tuple[CompiledGenerator, Settings]:
        streams = self._streams
        settings = choose_settings(
            self._surrogate, self._precision, streams=streams, threads=streams, batch=self._batch, events=0
        )
        return compile_reproducible(self._surrogate, self._precision, settings)

    def _deposit(self, compiled: CompiledGenerator, size: int, group: list[tuple[Task, Batch]], seed: int) -> None:
        """Make the showers of all particles of `group` that were stopped, `size` at a time, and add them where they entered."""
        queue: list[_Particle] = []
        for task, batch in group:
            queue += self._queued(task, batch, seed)
        pieces = (
            (
                start,
                np.stack([particle.latent for particle in queue[start : start + size]]),
                np.array([particle.energy for particle in queue[start : start + size]], np.float32),
            )
            for start in range(0, len(queue), size)
        )
        for start, showers in compiled.map(pieces):
            check_samples(showers, queue[start].event)
            for particle, shower in zip(queue[start : start + size], showers, strict=True):
                add_shifted(particle.sample, shower, particle.shift)

    def _queued(self, task: Task, batch: Batch, seed: int) -> list[_Particle]:
        stopped = batch.stopped
        if stopped is None or not len(stopped.rows):
            return []
        counts = task.primaries.counts
        events = np.repeat(np.arange(len(counts)), counts)[stopped.rows]
        latents = normal_latents(seed, task.row, len(task.primaries.particles), self._surrogate.manifest.latent_size)
        return [
            _Particle(task.first + event, batch.samples[event], latents[row], energy, whole_cells(self.detector, x, y))
            for event, row, energy, x, y in zip(
                *(column.tolist() for column in (events, stopped.rows, stopped.energies, stopped.x, stopped.y)), strict=True
            )
        ]


@dataclass(frozen=True)
class _Particle:
    """A particle that waits for its shower: its event, the sample of that, latents (L,), energy in MeV, shift in cells."""

    event: int
    sample: Array
    latent: Array
    energy: float
    shift: tuple[int, int]


def add_shifted(sample: Array, shower: Array, shift: tuple[int, int]) -> None:
    """Add `shower`, moved by whole cells along the two transverse axes, to `sample` (z, x, y); what leaves the grid is lost."""
    there, here = [slice(None)], [slice(None)]
    for wanted, size in zip(shift, sample.shape[1:], strict=True):
        cells = min(max(wanted, -size), size)
        there.append(slice(max(cells, 0), size + min(cells, 0)))
        here.append(slice(max(-cells, 0), size - max(cells, 0)))
    sample[tuple(there)] += shower[tuple(here)]


def _groups(results: Iterator[tuple[Task, Batch]]) -> Iterator[list[tuple[Task, Batch]]]:
    """Results in order, as many together as fill some inferences, or all the memory or time that they may take."""
    group: list[tuple[Task, Batch]] = []
    particles, size, begun = 0, 0, time.monotonic()
    for task, batch in results:
        group.append((task, batch))
        particles += 0 if batch.stopped is None else len(batch.stopped.rows)
        size += batch.samples.nbytes
        if particles >= _GROUP_PARTICLES or size >= _GROUP_BYTES or time.monotonic() - begun >= _GROUP_SECONDS:
            yield group
            group, particles, size, begun = [], 0, 0, time.monotonic()
    if group:
        yield group


def _trained_particles(surrogate: Surrogate) -> tuple[str, ...]:
    found = surrogate.manifest.training.get("particle")
    if not isinstance(found, str):
        raise InvalidConfig(
            f"Surrogate {surrogate.path} does not say whose showers it was trained on (training, particle). Name the particles, "
            "for example e-."
        )
    return (found,)


def _energies(surrogate: Surrogate, above: str | None) -> tuple[float, float]:
    trained = surrogate.manifest.conditions[ENERGY]
    if above is None:
        return trained.low, trained.high
    threshold = EnergyDistribution.parse(above)
    if threshold.kind != "fixed" or not trained.low * (1 - 1e-6) <= threshold.low_mev <= trained.high:
        raise InvalidCondition(
            f"The threshold {above} must be one energy between {trained.low:g} and {trained.high:g} MeV, the range that "
            f"surrogate {surrogate.manifest.name} was trained for."
        )
    return threshold.low_mev, trained.high


def _steepest(angle: str) -> float:
    found = AngleDistribution.parse(angle)
    if found.kind != "fixed" or not 0 <= found.low_deg < 90:
        raise InvalidCondition(f"The largest angle must be one between 0deg and 90deg, not {angle}.")
    return math.radians(found.low_deg)
