"""Monte Carlo showers in memory, in the batches a training step wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minicarlo.detectors import Detector, get_detector
from minicarlo.errors import IncompatibleEventSets
from minicarlo.events import ENERGY, EventSet, read_events

__all__ = ["Showers", "load_showers", "turned"]


@dataclass
class Showers:
    """Showers and conditions, all in MeV.

    `energy` (N, *detector.shape), `incident_energy` (N, 1), `layer_energies` (N, layers). `particle` is whose showers they are,
    if all event sets say the same.
    """

    energy: Tensor
    incident_energy: Tensor
    layer_energies: Tensor
    detector: Detector
    particle: str | None = None

    def __len__(self) -> int:
        return len(self.energy)

    def draw(self, count: int, seed: int, step: int) -> Showers:
        """A random batch that depends on `seed` and `step` only, turned by a random symmetry of the grid."""
        random = np.random.default_rng((seed, step))
        index = torch.from_numpy(random.integers(0, len(self), count)).to(self.energy.device)
        energy = turned(self.energy[index], self.detector, random)
        return Showers(energy.contiguous(), self.incident_energy[index], self.layer_energies[index], self.detector)

    def to(self, device: torch.device) -> Showers:
        energy, layer_energies = self.energy.to(device), self.layer_energies.to(device)
        return Showers(energy, self.incident_energy.to(device), layer_energies, self.detector, self.particle)

    def kept_on(self, device: torch.device) -> Showers:
        """Themselves, moved to a GPU's memory if they take less than half of what is free there."""
        if device.type != "cuda" or 2 * self.energy.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return self.to(device)


def turned(energy: Tensor, detector: Detector, random: np.random.Generator) -> Tensor:
    """Showers of normal incidence (N, *detector.shape), all turned or mirrored by one random symmetry of the detector's grid."""
    symmetry = int(random.integers(0, 8))
    _, first, second = detector.shape
    if detector.grid == "cylindrical":
        energy = energy.roll(int(random.integers(0, first)), 2)
        return energy.flip(2) if symmetry >= 4 else energy
    if first == second and detector.cell_size[1] == detector.cell_size[2]:
        energy = torch.rot90(energy, symmetry % 4, (2, 3))
        return energy.flip(2) if symmetry >= 4 else energy
    return energy.flip([axis for axis, bit in ((2, 1), (3, 2)) if symmetry & bit])


def load_showers(paths: Sequence[Path], detector: str | None = None, count: int | None = None) -> Showers:
    """Read event sets of one detector into one block of memory, the first `count` events only if given.

    Raises:
        InvalidEventSet: a file is not a sound event set.
        IncompatibleEventSets: a file holds another detector's showers, or showers at an angle.
    """
    parts: list[EventSet] = []
    for path in paths:
        events = read_events(path, stop=count)
        detector = detector or events.detector
        if events.detector != detector:
            raise IncompatibleEventSets(
                f"{path}: holds showers of detector '{events.detector}', '{detector}' was expected. Train on one detector."
            )
        inclined = [name for name, values in events.conditions.items() if name != ENERGY and values.any()]
        if inclined:
            raise IncompatibleEventSets(
                f"{path}: condition {inclined[0]!r} varies; generators are trained on {ENERGY} alone. "
                "Give showers of normal incidence."
            )
        parts.append(events)
    energy = torch.from_numpy(np.concatenate([part.samples for part in parts]))
    incident = torch.from_numpy(np.concatenate([part.incident_energy for part in parts])).reshape(-1, 1)
    particles = {part.attributes.get("particle") for part in parts}
    particle = str(particles.pop()) if len(particles) == 1 and None not in particles else None
    return Showers(energy, incident, energy.sum((2, 3)), get_detector(parts[0].detector), particle)
