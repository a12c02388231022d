"""What every generator network has."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Generator"]


class Generator(nn.Module):
    """A network from unit-normal latents and incident energies to showers.

    `forward(latent, incident_energy)` takes (N, latent_size) and (N, 1) in MeV and gives (N, *sample_shape) in MeV, with the
    readout threshold applied. It is exported as it stands: nothing is left to do outside the graph.
    """

    latent_size: int
    sample_shape: tuple[int, int, int]

    def __init__(self, low_mev: float, high_mev: float, threshold_mev: float) -> None:
        super().__init__()
        self.low_mev, self.high_mev, self.threshold_mev = low_mev, high_mev, threshold_mev

    def features(self, incident_energy: Tensor) -> Tensor:
        """(N, 4) functions of incident energies (N, 1), each of order one."""
        t = 2 * torch.log(incident_energy / self.low_mev) / math.log(self.high_mev / self.low_mev) - 1
        return torch.cat([t, t * t, t * t * t, torch.sqrt(self.low_mev / incident_energy)], dim=1)

    def over_threshold(self, energy: Tensor) -> Tensor:
        """`energy` with the cells at or under the readout threshold set to zero."""
        return energy * (energy > self.threshold_mev).to(torch.float32)
