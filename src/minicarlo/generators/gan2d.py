"""CERN's two-dimensional convolutional generator with three branches, the network whose INT8 version was published."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from minicarlo.generators.base import Generator
from minicarlo.generators.gan3d import ENERGY_UNITS, IMAGE_UNIT_MEV, LEAK

__all__ = ["Gan2D"]

DROPPED = 0.2
VIEWS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2))
"""From (batch, z, x, y) to each branch's axes: its channels are z, x and y, its planes (x, y), (z, y) and (z, x)."""

BACK = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 3, 1))


class Gan2D(Generator):
    """The generator: a small cube, three branches of 2D convolutions that look at it from three sides, and one that joins them.

    The cube is made of 200 latents multiplied by the energy. 2.05 million weights, 1.16 billion multiply-accumulates per shower.

    Arguments:
        low_mev, high_mev: incident energies in MeV the generator is trained for; the condition is scaled by the higher.
        threshold_mev: readout threshold in MeV, applied by `forward`.

    References:
        F. Rehm et al., Reduced precision strategies for deep learning: a high energy physics generative adversarial network use
        case, ICPRAM 2021, https://arxiv.org/abs/2103.10142; the network: F. Rehm et al., Physics validation of novel
        convolutional 2D architectures for speeding up high energy physics simulations, https://arxiv.org/abs/2105.08960.
        Layer list: https://github.com/svalleco/3Dgan, branch frehm/Conv2D, Conv2D/Models_m4_1_ReLU.py
    """

    latent_size = 200
    sample_shape = (25, 25, 25)

    def __init__(self, low_mev: float = 1e3, high_mev: float = 1e5, threshold_mev: float = 0.05) -> None:
        super().__init__(low_mev, high_mev, threshold_mev)
        self.dense = nn.Linear(self.latent_size, 5 * 5 * 5)
        self.branches = nn.ModuleList(Branch() for _ in VIEWS)
        self.join = nn.Conv2d(75, 25, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
                fan_in = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
                nn.init.uniform_(layer.weight, -math.sqrt(6 / fan_in), math.sqrt(6 / fan_in))
                nn.init.zeros_(layer.bias)

    def forward(self, latent: Tensor, incident_energy: Tensor) -> Tensor:
        """Generate showers: latent (N, 200), incident_energy (N, 1) in MeV, result (N, 25, 25, 25) in MeV, (z, x, y)."""
        return self.over_threshold(self.image(latent, incident_energy) * IMAGE_UNIT_MEV)

    def image(self, latent: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, 25, 25, 25) cell energies in units of 2 MeV, (z, x, y), before the readout threshold."""
        cube = self.dense(latent * (incident_energy * (ENERGY_UNITS / self.high_mev))).view(-1, 5, 5, 5)
        seen = [branch(cube.permute(view)).permute(back) for branch, view, back in zip(self.branches, VIEWS, BACK, strict=True)]
        return torch.relu(self.join(torch.cat(seen, dim=1)))


class Branch(nn.Module):
    """From (N, 5, 5, 5) to (N, 25, 25, 25), the first axis after the batch being the channels.

    Every layer is followed by LeakyReLU, batch norm and dropout. Even kernels are padded as Keras does, with the larger part
    behind; the second transposed convolution cuts its odd cell in front instead, which no training can tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(5, 32, 5, padding=2)
        self.up1 = nn.ConvTranspose2d(32, 64, 5, stride=3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.up2 = nn.ConvTranspose2d(64, 64, 5, stride=2, padding=2, output_padding=1)
        self.conv3 = nn.Conv2d(64, 64, 8)
        self.conv4 = nn.Conv2d(64, 64, 5)
        self.conv5 = nn.Conv2d(64, 32, 4)
        self.conv6 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv7 = nn.Conv2d(32, 25, 2)
        widths = (32, 64, 64, 64, 64, 64, 32, 32, 25)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width in widths)
        self.dropout = nn.Dropout(DROPPED)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.conv1, self.up1, self.conv2, self.up2, self.conv3, self.conv4, self.conv5, self.conv6, self.conv7)
        for layer, norm in zip(layers, self.norms, strict=True):
            if layer in (self.conv3, self.conv5):  # 30 x 30 and 26 x 26 stay what they are
                before, behind = (layer.kernel_size[0] - 1) // 2, layer.kernel_size[0] // 2
                x = functional.pad(x, (before, behind, before, behind))
            x = self.dropout(norm(functional.leaky_relu(layer(x), LEAK)))
        return x
