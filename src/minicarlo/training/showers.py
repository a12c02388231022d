"""Monte Carlo showers in memory, in the batches a training step wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minicarlo.errors import IncompatibleEventSets
from minicarlo.events import EventSet, read_events

__all__ = ["Showers", "load_showers"]


@dataclass
class Showers:
    """Showers and conditions: `energy` (N, 25, 25, 25), `incident_energy` (N, 1), `layer_energies` (N, 25), all in MeV."""

    energy: Tensor
    incident_energy: Tensor
    layer_energies: Tensor

    def __len__(self) -> int:
        return len(self.energy)

    def draw(self, count: int, seed: int, step: int) -> Showers:
        """A random batch that depends on `seed` and `step` only, turned by a random symmetry of the square cell grid."""
        random = np.random.default_rng((seed, step))
        index = torch.from_numpy(random.integers(0, len(self), count))
        energy = self.energy[index]
        symmetry = int(random.integers(0, 8))
        energy = torch.rot90(energy, symmetry % 4, (2, 3))
        if symmetry >= 4:
            energy = energy.flip(2)
        return Showers(energy.contiguous(), self.incident_energy[index], self.layer_energies[index])

    def to(self, device: torch.device) -> Showers:
        return Showers(self.energy.to(device), self.incident_energy.to(device), self.layer_energies.to(device))


def load_showers(paths: Sequence[Path], detector: str, count: int | None = None) -> Showers:
    """Read event sets into one block of memory, the first `count` events only if given.

    Raises:
        InvalidEventSet: a file is not a sound event set.
        IncompatibleEventSets: a file holds another detector's showers.
    """
    parts: list[EventSet] = []
    for path in paths:
        events = read_events(path, stop=count)
        if events.detector != detector:
            raise IncompatibleEventSets(
                f"{path}: holds showers of detector '{events.detector}', the configuration asks for '{detector}'."
            )
        parts.append(events)
    energy = torch.from_numpy(np.concatenate([part.samples for part in parts]))
    incident = torch.from_numpy(np.concatenate([part.incident_energy for part in parts])).reshape(-1, 1)
    return Showers(energy, incident, energy.sum((2, 3)))
