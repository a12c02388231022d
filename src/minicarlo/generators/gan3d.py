"""CERN's three-dimensional convolutional GAN for a 25x25x25 calorimeter, as published."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from minicarlo.generators.base import Generator

__all__ = ["Discriminator3D", "Gan3D"]

LEAK = 0.3  # Keras' default slope of LeakyReLU, which the published network uses
ENERGY_UNITS = 5.0  # the published network sees E / 100 GeV for energies up to 500 GeV: its condition ends at 5
IMAGE_UNIT_MEV = 2.0  # cell energies are learned in units of 2 MeV, of the size that 100 E / GeV had for energies up to 500 GeV


class Gan3D(Generator):
    """The generator: 200 latents multiplied by the energy, a dense layer and four 3D convolutions.

    Axes within the network are (x, y, z), as published; the output is turned to (z, x, y).

    Arguments:
        low_mev, high_mev: incident energies in MeV the generator is trained for; the condition is scaled by the higher.
        threshold_mev: readout threshold in MeV, applied by `forward`.

    References:
        G. R. Khattak et al., Fast simulation of a high granularity calorimeter by generative adversarial networks,
        Eur. Phys. J. C 82 (2022) 386; S. Vallecorsa, F. Carminati, G. Khattak, 3D convolutional GAN for fast simulation,
        EPJ Web Conf. 214 (2019) 02010. Layer list: https://github.com/svalleco/3Dgan, keras/EcalEnergyGan.py
    """

    latent_size = 200
    sample_shape = (25, 25, 25)

    def __init__(self, low_mev: float = 1e3, high_mev: float = 1e5, threshold_mev: float = 0.05) -> None:
        super().__init__(low_mev, high_mev, threshold_mev)
        self.dense = nn.Linear(self.latent_size, 64 * 7 * 7)
        self.conv1 = nn.Conv3d(8, 64, (6, 6, 8))
        self.norm1 = nn.BatchNorm3d(64, eps=1e-3)
        self.conv2 = nn.Conv3d(64, 6, (6, 5, 8))
        self.norm2 = nn.BatchNorm3d(6, eps=1e-3)
        self.conv3 = nn.Conv3d(6, 6, (3, 3, 8))
        self.conv4 = nn.Conv3d(6, 1, (2, 2, 2), bias=False)
        for layer in (self.conv1, self.conv2, self.conv3):
            fan_in = layer.weight[0].numel()
            nn.init.uniform_(layer.weight, -math.sqrt(6 / fan_in), math.sqrt(6 / fan_in))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.xavier_normal_(self.conv4.weight)

    def forward(self, latent: Tensor, incident_energy: Tensor) -> Tensor:
        """Generate showers: latent (N, 200), incident_energy (N, 1) in MeV, result (N, 25, 25, 25) in MeV, (z, x, y)."""
        return self.over_threshold(self.image(latent, incident_energy) * IMAGE_UNIT_MEV)

    def image(self, latent: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, 25, 25, 25) cell energies in units of 2 MeV, (z, x, y), before the readout threshold."""
        x = self.dense(latent * (incident_energy * (ENERGY_UNITS / self.high_mev)))
        x = x.view(-1, 7, 7, 8, 8).permute(0, 4, 1, 2, 3)
        x = self.conv1(functional.pad(x, (3, 4, 2, 3, 2, 3)))
        x = upsample(self.norm1(functional.leaky_relu(x, LEAK)), (2.0, 2.0, 2.0))
        x = self.conv2(functional.pad(x, (0, 0, 2, 2, 2, 2)))
        x = upsample(self.norm2(functional.leaky_relu(x, LEAK)), (2.0, 2.0, 3.0))
        x = functional.leaky_relu(self.conv3(functional.pad(x, (3, 3, 0, 0, 1, 1))), LEAK)
        return torch.relu(self.conv4(x))[:, 0].permute(0, 3, 1, 2)


class Discriminator3D(nn.Module):
    """The discriminator: four 3D convolutions and three outputs.

    `forward` takes (N, 25, 25, 25) images (z, x, y) in units of 2 MeV and gives the logit of being real (N,), the regressed
    energy (N,) in units of a fifth of the highest, and the sum of the cells (N,), which is computed and not learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv3d(32, 8, 5, padding=2)
        self.conv3 = nn.Conv3d(8, 8, 5, padding=2)
        self.conv4 = nn.Conv3d(8, 8, 5, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm3d(8, eps=1e-3) for _ in range(3))
        self.dropout = nn.Dropout(0.2)
        self.generation = nn.Linear(8 * 11 * 11 * 11, 1)
        self.auxiliary = nn.Linear(8 * 11 * 11 * 11, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = image.permute(0, 2, 3, 1)[:, None]
        x = self.dropout(functional.leaky_relu(self.conv1(x), LEAK))
        for conv, norm in zip((self.conv2, self.conv3, self.conv4), self.norms, strict=True):
            x = self.dropout(norm(functional.leaky_relu(conv(x), LEAK)))
        x = functional.avg_pool3d(x, 2).flatten(1)
        return self.generation(x)[:, 0], self.auxiliary(x)[:, 0], image.sum((1, 2, 3))


def upsample(x: Tensor, factors: tuple[float, float, float]) -> Tensor:
    return functional.interpolate(x, scale_factor=factors, mode="nearest")
