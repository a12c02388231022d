"""A calorimeter generator made for fast low-precision inference: layers as channels, matrix products and 2D convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minicarlo.generators.base import Generator

__all__ = ["Shower2D", "from_root", "to_root"]

LATENT_ENERGIES = 40
LATENT_SHAPE = 136
LATENT_NOISE = 16
NOISE_CYCLES = 4.0  # spread of the noise projection in periods, per unit of latent: many periods make the residue uniform
STEEPNESS, LEAST_HIT = 4.0, 0.05  # a cell that fires at all rises fast to 0.03 MeV: few particles leave less in silicon
MEV_PER_VISIBLE_UNIT = 1000.0  # layer energies are learned as sqrt(1000 E_layer / E_incident), which is of order one


class Shower2D(Generator):
    """One-shot conditional generator of showers on a (25, 25, 25) grid (z, x, y).

    The shower is factorised as in CaloFlow (Krause and Shih, arXiv:2106.05285) into layer energies given the incident energy,
    and the shape of each layer given those energies:

    1. `energies`: a multilayer perceptron from latents and incident energy to the 25 layer energies;
    2. `shape`: a dense layer and 2D convolutions with the 25 layers as channels; it gives each cell three numbers, the
       location and two scales of that cell's own fluctuation;
    3. each cell draws its fluctuation from a uniform number that is a fixed pseudo-random function of 16 latents (the
       distance to the nearest integer of a random projection: uniform and continuous), so that 15,625 nearly independent
       cells need no 15,625 latents;
    4. each layer is scaled to its energy of step 1, and cells under the readout threshold are set to zero.

    Everything of weight is a matrix product or a convolution with ReLU between, at 64 channels, which is what the int8 and bf16
    units of processors and GPUs are made for; the rest stays in float32.

    Arguments:
        low_mev, high_mev: incident energies the generator is trained for.
        channels: width of the convolutions.
        threshold_mev: readout threshold of the detector in MeV, applied by `forward`.
        noise_seed: seed of the fixed noise projection.

    References:
        Factorised shower generation: CaloFlow, C. Krause and D. Shih, https://arxiv.org/abs/2106.05285
    """

    latent_size = LATENT_ENERGIES + LATENT_SHAPE + LATENT_NOISE

    def __init__(
        self,
        low_mev: float = 1e3,
        high_mev: float = 1e5,
        channels: int = 64,
        threshold_mev: float = 0.05,
        noise_seed: int = 20260,
    ) -> None:
        super().__init__(low_mev, high_mev, threshold_mev)
        self.bf16 = False  # training sets it: convolutions then compute in bf16, everything else in float32
        self.energies = LayerEnergies()
        self.shape = LayerShapes(channels)
        generator = torch.Generator().manual_seed(noise_seed)
        projection = NOISE_CYCLES * torch.randn(LATENT_NOISE, math.prod(self.sample_shape), generator=generator)
        self.projection: Tensor
        self.register_buffer("projection", projection)

    def forward(self, latent: Tensor, incident_energy: Tensor) -> Tensor:
        """Generate showers.

        Arguments:
            latent: (N, latent_size) unit normals.
            incident_energy: (N, 1) in MeV.

        Returns:
            (N, 25, 25, 25) cell energies in MeV, (z, x, y).
        """
        z_energies, z_shape, z_noise = latent.split((LATENT_ENERGIES, LATENT_SHAPE, LATENT_NOISE), dim=1)
        layer_energies = self.layer_energies(z_energies, incident_energy)
        cells = self.cells(z_shape, z_noise, layer_energies, incident_energy)
        return self.over_threshold(cells)

    def features(self, incident_energy: Tensor) -> Tensor:
        """(N, 4) functions of the incident energy, each of order one."""
        t = 2 * torch.log(incident_energy / self.low_mev) / math.log(self.high_mev / self.low_mev) - 1
        return torch.cat([t, t * t, t * t * t, torch.sqrt(self.low_mev / incident_energy)], dim=1)

    def layer_energies(self, z_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, 25) energies of the layers in MeV."""
        root = self.energies(z_energies, self.features(incident_energy))
        return torch.relu(root).square() * (incident_energy / MEV_PER_VISIBLE_UNIT)

    def cells(self, z_shape: Tensor, z_noise: Tensor, layer_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, 25, 25, 25) cell energies in MeV before the readout threshold; each layer sums to its energy."""
        raw = self.raw_cells(z_shape, z_noise, layer_energies, incident_energy)
        total = raw.sum(dim=(2, 3), keepdim=True)
        return raw * (layer_energies[:, :, None, None] / (total + 1e-6))

    def raw_cells(self, z_shape: Tensor, z_noise: Tensor, layer_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, 25, 25, 25) cell energies in MeV before the layers are scaled to their energies."""
        root = torch.sqrt(layer_energies * (MEV_PER_VISIBLE_UNIT / incident_energy))
        inputs = torch.cat([z_shape, self.features(incident_energy), root], dim=1)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            location, tail, spread = self.shape(inputs)
        uniform = self.uniform_noise(z_noise)
        skewed = 4 - 4 * torch.sqrt(torch.sqrt(1.000001 - uniform))  # close to exponential, without a logarithm
        root = torch.relu(location + tail.abs() * skewed + spread.abs() * (uniform - 0.5))
        return from_root(root + (STEEPNESS * root).clamp(max=LEAST_HIT))

    def uniform_noise(self, z_noise: Tensor) -> Tensor:
        """(N, 25, 25, 25) uniform numbers in [0, 1], one per cell, a fixed continuous function of 16 latents."""
        phase = z_noise @ self.projection
        uniform = 2 * (phase - torch.round(phase)).abs()
        depth, height, width = self.sample_shape
        return uniform.view(-1, height, width, depth).permute(0, 3, 1, 2)  # layers last, as convolutions keep them in memory


def to_root(energy: Tensor) -> Tensor:
    """Cell energy in MeV to the scale in which cells are learned: linear under 0.1 MeV, a square root above 1 MeV."""
    return torch.sqrt(energy + 0.0625) - 0.25


def from_root(root: Tensor) -> Tensor:
    """Inverse of `to_root`, for root >= 0."""
    return root * (root + 0.5)


class LayerEnergies(nn.Module):
    """From 40 latents and 4 energy features to 25 roots of layer energies: a Gaussian model and a perceptron that corrects it.

    `mean`, `spread` and `noise` alone are a Gaussian with the mean and spread that the layers have at an energy, and one
    correlation matrix; `fit_gaussian` sets them from Monte Carlo showers. The perceptron adds what is not Gaussian.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.mean = nn.Linear(4, 25)
        self.spread = nn.Linear(4, 25)
        self.noise = nn.Linear(LATENT_ENERGIES, 25, bias=False)
        self.dense1 = nn.Linear(LATENT_ENERGIES + 4, width)
        self.dense2 = nn.Linear(width, width)
        self.dense3 = nn.Linear(width, width)
        self.dense4 = nn.Linear(width, 25)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        x = torch.relu(self.dense1(torch.cat([latent, features], dim=1)))
        x = torch.relu(self.dense2(x))
        x = torch.relu(self.dense3(x))
        y: Tensor = self.mean(features) + self.spread(features) * self.noise(latent) + self.dense4(x)
        return y

    @torch.no_grad()
    def fit_gaussian(self, root: Tensor, features: Tensor) -> None:
        """Set the Gaussian part from roots of layer energies (N, 25) at energies with `features` (N, 4); mute the perceptron."""
        root, features = root.double(), features.double()  # so that the fit does not depend on the order of sums
        columns = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        mean = torch.linalg.lstsq(columns, root).solution
        residual = root - columns @ mean
        spread = torch.linalg.lstsq(columns, residual.abs()).solution * math.sqrt(math.pi / 2)
        correlation = torch.corrcoef((residual / (columns @ spread).clamp_min(1e-3)).T)
        for layer, solution in ((self.mean, mean), (self.spread, spread)):
            layer.weight.copy_(solution[:-1].T)
            layer.bias.copy_(solution[-1])
        nn.init.zeros_(self.noise.weight)
        self.noise.weight[:, :25] = torch.linalg.cholesky(correlation + 1e-4 * torch.eye(25).to(correlation))
        nn.init.zeros_(self.dense4.weight)
        nn.init.zeros_(self.dense4.bias)


class LayerShapes(nn.Module):
    """Decoder from 136 latents, 4 energy features and 25 layer fractions to location, tail and spread of each cell.

    Each stage doubles the grid by nearest-neighbour upsampling and trims it with a valid 2x2 convolution (7, 13, 25 cells a
    side), so that the centre of the grid stays on the centre of a cell. `place13`, `place` and `profile` are learned maps:
    what depends on the position alone need not be made by the convolutions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dense1 = nn.Linear(LATENT_SHAPE + 4 + 25, 256)
        self.dense2 = nn.Linear(256, channels * 49)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 2)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv4 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5 = nn.Conv2d(channels, channels, 2)
        self.location = nn.Conv2d(channels, 25, 1)
        self.tail = nn.Conv2d(channels, 25, 1)
        self.spread = nn.Conv2d(channels, 25, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.place13 = nn.Parameter(torch.zeros(1, channels, 13, 13))
        self.place = nn.Parameter(torch.zeros(1, channels, 25, 25))
        self.profile = nn.Parameter(torch.zeros(3, 25, 25, 25))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.relu(self.dense1(x))
        x = torch.relu(self.dense2(x)).view(-1, self.channels, 7, 7)
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(self.upsample(x)) + self.place13)
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.conv4(x))
        x = torch.relu(self.conv5(self.upsample(x)) + self.place)
        place = self.profile
        return self.location(x) + place[0], self.tail(x) + place[1], self.spread(x) + place[2]
