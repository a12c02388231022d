"""A calorimeter generator made for fast low-precision inference: layers as channels, matrix products and 2D convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minicarlo.generators.base import Generator

__all__ = ["Edge", "READERS", "Shower2D", "Spectra", "TRACE", "UNIT_MAPS", "from_root", "to_root"]

LATENT_SPARE = 15  # latents of the layer energies beyond one per layer
LATENT_SHAPE = 136
LATENT_NOISE = 16
NOISE_CYCLES = 4.0  # spread of the noise projection in periods, per unit of latent: many periods make the residue uniform
FIRST_LINKS = (0.2, 0.0, 2.5, 0.05, 0.02)  # of `link` before training
MEAN_OF_SKEWED = 0.8
READERS = {  # by layer those that read it behind a ReLU
    "energies.dense1": ["energies.dense2"],
    "energies.dense2": ["energies.dense3"],
    "energies.dense3": ["energies.dense4"],
    "shape.layer1": ["shape.layer2"],
    "shape.dense1": ["shape.dense2"],
    "shape.conv1": ["shape.conv2"],
    "shape.conv2": ["shape.conv3"],
    "shape.conv3": ["shape.conv4"],
    "shape.conv4": ["shape.conv5"],
    "shape.conv5": ["shape.location", "shape.tail", "shape.spread"],
}
UNIT_MAPS = {  # by layer what is added to its units
    "shape.conv2": "shape.place13",
    "shape.conv5": "shape.place",
}
LARGE = 1.0  # cells over this energy, in the cells' unit, take up what a layer's cells lack of its energy
LEAST_CORRECTION, LARGEST_CORRECTION = -0.7, 2.0  # of such cells' energy
TRACE, LEAST_OF_TRACE = 1e-4, 0.6  # of cells that nothing hits, see `Shower2D.trace`; its 64th power is still a number
NOTHING = 1e-20  # beside every sum of traces
LITTLE = 0.1  # energy of a layer in units of cells
PIECES, PIECE = 32, 0.03  # of the maps of layer energies, and the length of one in the root scale
FIRST_ANSWER = 0.3  # of `answer` before training


class Shower2D(Generator):
    """One-shot conditional generator of showers on any grid, (z, x, y) or (z, phi, r).

    The shower is factorised as in CaloFlow (Krause and Shih, arXiv:2106.05285) into layer energies given the incident energy,
    and the shape of each layer given those energies:

    1. `energies`: a multilayer perceptron from latents and incident energy to the layer energies;
    2. `shape`: a dense layer and 2D convolutions with the layers as channels; it gives each cell three numbers, the
       location and two scales of that cell's own fluctuation, and each layer a gain and a shift of all its cells, so that a
       layer with more energy than others has more cells and larger ones;
    3. each cell draws its fluctuation from a uniform number that is a fixed pseudo-random function of 16 latents (the
       distance to the nearest integer of a random projection: uniform and continuous), so that thousands of cells need no
       latents of their own; neighbours share in them (`link`): what hits one sensor often hits the next, so that a cell
       fluctuates a little with the next ones of its row, its column and its diagonal, and with the one behind it; where
       cells are rarely hit, one whose neighbour was struck may get a part of that;
    4. each layer is given its energy of step 1, mostly by scaling its large cells, and cells under the readout threshold are
       set to zero. Cells that nothing hits hold a trace, so little that it counts only where no cell of a layer is hit: the
       one that came nearest to it then takes the layer's energy.

    A charged particle that crosses a sensor leaves at least a certain energy, so that spectra of cells and of weakly hit
    layers have an edge there: fewer cells below it, many just above. `Edge` makes one for cells, where the Monte Carlo has it;
    of layers, in which one can see particles counted, `Spectra` make peaks and gaps.

    Everything of weight is a matrix product or a convolution with ReLU between, at 64 channels, which is what the int8 and bf16
    units of processors and GPUs are made for; the rest stays in float32.

    Arguments:
        low_mev, high_mev: incident energies the generator is trained for.
        channels: width of the convolutions.
        threshold_mev: readout threshold of the detector in MeV, applied by `forward`.
        noise_seed: seed of the fixed noise projection.
        sample_shape: cells of the detector along its axes.
        layer_units: layer energies are learned as sqrt(layer_units E_layer / E_incident), which should be of order one.
        cell_mev: the unit of cell energies in MeV, in which most are of order 0.1 to 10.

    References:
        Factorised shower generation: CaloFlow, C. Krause and D. Shih, https://arxiv.org/abs/2106.05285
    """

    def __init__(
        self,
        low_mev: float = 1e3,
        high_mev: float = 1e5,
        channels: int = 64,
        threshold_mev: float = 0.05,
        noise_seed: int = 20260,
        sample_shape: tuple[int, int, int] = (25, 25, 25),
        layer_units: float = 1000.0,
        cell_mev: float = 1.0,
    ) -> None:
        super().__init__(low_mev, high_mev, threshold_mev)
        self.bf16 = False  # training sets it: convolutions then compute in bf16, everything else in float32
        self.sample_shape, self.layer_units, self.cell_mev = sample_shape, layer_units, cell_mev
        self.energies = LayerEnergies(sample_shape[0])
        self.shape = LayerShapes(sample_shape, channels)
        self.latent_sizes = (self.energies.latent_size, LATENT_SHAPE, LATENT_NOISE)
        self.latent_size = sum(self.latent_sizes)
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
            (N, *sample_shape) cell energies in MeV.
        """
        z_energies, z_shape, z_noise = latent.split(self.latent_sizes, dim=1)
        layer_energies = self.layer_energies(z_energies, incident_energy)
        cells = self.cells(z_shape, z_noise, layer_energies, incident_energy)
        return self.over_threshold(cells)

    def layer_energies(self, z_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, layers) energies of the layers in MeV."""
        root = torch.relu(self.energies(z_energies, self.features(incident_energy)))
        energy = root.square() * (incident_energy / (self.layer_units * self.cell_mev))
        result: Tensor = self.energies.spectra(energy) * self.cell_mev
        return result

    def layer_roots(self, layer_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, layers) layer energies in MeV in the scale in which they are learned, of order one."""
        return torch.sqrt(layer_energies * (self.layer_units / incident_energy))

    def cells(self, z_shape: Tensor, z_noise: Tensor, layer_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, *sample_shape) cell energies in MeV before the readout threshold; each layer sums to its energy."""
        raw = self.raw_cells(z_shape, z_noise, layer_energies, incident_energy)
        return self.with_layer_energies(raw, layer_energies)

    def with_layer_energies(self, raw: Tensor, layer_energies: Tensor) -> Tensor:
        """(N, *sample_shape) cell energies in MeV that sum to `layer_energies`, of cells in units of `cell_mev` that do not.

        Cells over `LARGE` are scaled by one factor and smaller ones less, in proportion to their energy; what that cannot
        do within bounds is left to a scaling of all.
        """
        large = raw.clamp(max=LARGE)
        wanted = layer_energies / self.cell_mev
        total, movable = raw.sum(dim=(2, 3)), (raw * large).sum(dim=(2, 3))
        correction = ((wanted - total) / (movable + 1e-6)).clamp(LEAST_CORRECTION, LARGEST_CORRECTION)
        scale = layer_energies / (total + correction * movable + NOTHING)
        return raw * (scale[:, :, None, None] + (scale * correction)[:, :, None, None] * large)

    def raw_cells(self, z_shape: Tensor, z_noise: Tensor, layer_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """(N, *sample_shape) cell energies in units of `cell_mev`, before the layers are given their energies."""
        return self.raw_cells_of(self.maps(z_shape, layer_energies, incident_energy), z_noise, layer_energies, incident_energy)

    def maps(self, z_shape: Tensor, layer_energies: Tensor, incident_energy: Tensor) -> tuple[Tensor, ...]:
        """Location, tail and spread of each cell (N, *sample_shape), gain and shift of each layer (N, layers)."""
        root = self.layer_roots(layer_energies, incident_energy)
        inputs = torch.cat([z_shape, self.features(incident_energy), root], dim=1)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            maps: tuple[Tensor, ...] = self.shape(inputs)
        return maps

    def raw_cells_of(self, maps: tuple[Tensor, ...], z_noise: Tensor, layer_energies: Tensor, incident_energy: Tensor) -> Tensor:
        """What `raw_cells` makes of `maps`."""
        location, tail, spread, gain, shift = maps
        uniform, skewed, next_row, next_column, next_on_diagonal, next_layer = self.noise(z_noise)
        link, given, lost, diagonal, behind = self.shape.link
        tail = tail.abs()
        fluctuation = skewed + link * (next_row + next_column - 2 * MEAN_OF_SKEWED)
        fluctuation = fluctuation + diagonal * (next_on_diagonal - MEAN_OF_SKEWED) + behind * (next_layer - MEAN_OF_SKEWED)
        cells = location + tail * fluctuation + spread.abs() * (uniform - 0.5)
        struck = torch.relu(location + tail * next_row) + torch.relu(location + tail * next_column)
        struck = struck + self.shape.across * torch.relu(location + tail * next_on_diagonal)
        cells = torch.maximum(cells, given * struck - lost * uniform)
        root = cells * (1 + gain)[:, :, None, None] + shift[:, :, None, None]
        at = self.features(incident_energy)[:, :1, None, None]
        wanted = layer_energies / self.cell_mev
        total = self.hits(root, at).sum(dim=(2, 3))
        lack = (wanted - total) / (wanted + total + LITTLE)
        root = root + (self.shape.answer * lack)[:, :, None, None]
        return self.hits(root, at) + self.trace(root)

    def hits(self, root: Tensor, at: Tensor) -> Tensor:
        """Energies of the cells that are hit, in units of cells, of roots of which not all are positive; `at` as of `Edge`."""
        return from_root(self.shape.edge(torch.relu(root), at))

    def trace(self, root: Tensor) -> Tensor:
        """What a cell holds at least, in units of cells: the larger, the nearer it is to being hit, at a root of zero.

        Of two cells that are 0.07 apart one has a hundred times what the other has, so that of a layer's cells nearly all of the
        layer's energy goes to one.
        """
        trace = (1 + root).clamp(LEAST_OF_TRACE, 1.0)
        for _ in range(6):
            trace = trace * trace
        return TRACE * trace

    def noise(self, z_noise: Tensor) -> tuple[Tensor, ...]:
        """Each (N, *sample_shape), a fixed continuous function of 16 latents: independent uniform numbers in [0, 1], the same
        numbers nearly exponential, and the latter of the next cells along both axes, on the diagonal and in the next layer
        (beyond the last cell of a row comes the first of the next one)."""
        phase = z_noise @ self.projection
        uniform = 2 * (phase - torch.round(phase)).abs()
        skewed = 4 - 4 * torch.sqrt(torch.sqrt(1.000001 - uniform))  # without a logarithm
        layers, _, width = self.sample_shape
        steps = (layers * width, layers, layers * width + layers, 1)
        shared = (torch.roll(skewed, -step, dims=1) for step in steps)
        return tuple(self.in_layers(values) for values in (uniform, skewed, *shared))

    def in_layers(self, values: Tensor) -> Tensor:
        """(N, cells) with the layers last, as convolutions keep them in memory, to (N, *sample_shape)."""
        layers, height, width = self.sample_shape
        return values.view(-1, height, width, layers).permute(0, 3, 1, 2)


def to_root(energy: Tensor) -> Tensor:
    """Cell energy in its unit to the scale in which cells are learned: linear under 0.1, a square root above 1."""
    return torch.sqrt(energy + 0.0625) - 0.25


def from_root(root: Tensor) -> Tensor:
    """Inverse of `to_root`, for root >= 0."""
    return root * (root + 0.5)


class Edge(nn.Module):
    """A spectrum's edge: maps x >= 0 steeply up to a place, and beyond it at a slope of one. Without an edge it changes nothing.

    Numbers spread evenly over x are `contrast` + 1 times rarer below the place than above it. The contrast is learned on from
    where `put` sets it, and how it changes with the incident energy (`tilt`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.contrast = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.tilt = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.place: Tensor
        self.register_buffer("place", torch.zeros(()))

    @torch.no_grad()
    def put(self, place: float, contrast: float) -> None:
        """Set where it is, in the numbers that come out, and how much rarer these are below it."""
        self.place.fill_(place)
        self.contrast.fill_(contrast)
        self.requires_grad_(contrast > 0)

    def forward(self, x: Tensor, at: Tensor | float = 0.0) -> Tensor:
        """`at` says where in the range of incident energies an event is, from -1 to 1; it is broadcast against `x`."""
        contrast = self.contrast + self.tilt * at
        height = self.place * contrast / (1 + contrast)
        return x + torch.minimum(contrast * x, height)


class Spectra(nn.Module):
    """Monotone maps of the energies of layers, a line in pieces for each: where one is flat the spectrum has a peak, and a gap
    where it is steep. Energies are in units of cells; beyond the last of the pieces the slope is one.

    A perceptron alone makes smooth spectra; with these it has only to say how many particles there are, as it were.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        ends = from_root(torch.arange(PIECES + 1) * PIECE)
        self.slopes = nn.Parameter(torch.ones(layers, PIECES))
        self.starts: Tensor
        self.widths: Tensor
        self.register_buffer("starts", ends[:-1])
        self.register_buffer("widths", ends.diff())
        self.last = float(ends[-1])

    @torch.no_grad()
    def put(self, place: float, contrast: float) -> None:
        """Begin with an edge in all layers, as `Edge` has it."""
        edge = Edge()
        edge.put(place, contrast)
        ends = torch.cat([self.starts, self.starts.new_tensor([self.last])])
        self.slopes.copy_((edge(ends).diff() / self.widths).expand_as(self.slopes))

    def forward(self, energy: Tensor) -> Tensor:
        """(N, layers) to (N, layers)."""
        parts = torch.minimum(torch.relu(energy[:, :, None] - self.starts), self.widths)
        return (parts * self.slopes).sum(dim=2) + torch.relu(energy - self.last)


class LayerEnergies(nn.Module):
    """From latents and 4 energy features to roots of layer energies: a Gaussian model and a perceptron that corrects it.

    `mean`, `spread` and `noise` alone are a Gaussian with the mean and spread that the layers have at an energy, and one
    correlation matrix; `fit_gaussian` sets them from Monte Carlo showers. The perceptron adds what is not Gaussian.
    """

    def __init__(self, layers: int, width: int = 256) -> None:
        super().__init__()
        self.latent_size = layers + LATENT_SPARE
        self.mean = nn.Linear(4, layers)
        self.spread = nn.Linear(4, layers)
        self.noise = nn.Linear(self.latent_size, layers, bias=False)
        self.dense1 = nn.Linear(self.latent_size + 4, width)
        self.dense2 = nn.Linear(width, width)
        self.dense3 = nn.Linear(width, width)
        self.dense4 = nn.Linear(width, layers)
        self.spectra = Spectra(layers)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        x = torch.relu(self.dense1(torch.cat([latent, features], dim=1)))
        x = torch.relu(self.dense2(x))
        x = torch.relu(self.dense3(x))
        y: Tensor = self.mean(features) + self.spread(features) * self.noise(latent) + self.dense4(x)
        return y

    @torch.no_grad()
    def fit_gaussian(self, root: Tensor, features: Tensor) -> None:
        """Set the Gaussian part from roots (N, layers) at energies with `features` (N, 4), and mute the perceptron."""
        root, features = root.double(), features.double()  # so that the fit does not depend on the order of sums
        columns = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        mean = torch.linalg.lstsq(columns, root).solution
        residual = root - columns @ mean
        spread = torch.linalg.lstsq(columns, residual.abs()).solution * math.sqrt(math.pi / 2)
        correlation = torch.corrcoef((residual / (columns @ spread).clamp_min(1e-3)).T).nan_to_num()
        correlation.fill_diagonal_(1.0)  # also of a layer that never sees energy
        for layer, solution in ((self.mean, mean), (self.spread, spread)):
            layer.weight.copy_(solution[:-1].T)
            layer.bias.copy_(solution[-1])
        nn.init.zeros_(self.noise.weight)
        layers = root.shape[1]
        self.noise.weight[:, :layers] = torch.linalg.cholesky(correlation + 1e-4 * torch.eye(layers).to(correlation))
        nn.init.zeros_(self.dense4.weight)
        nn.init.zeros_(self.dense4.bias)


class LayerShapes(nn.Module):
    """Decoder from 136 latents, 4 energy features and the layers' shares to location, tail and spread of each cell, and to the
    gain (less one) and the shift of each layer.

    Each stage doubles the grid by nearest-neighbour upsampling and trims it with a valid 2x2 convolution (7, 13, 25 cells a
    side), so that the centre of an odd grid stays on the centre of a cell; of an even one the last row is cut off. `place13`,
    `place`, `profile` and `link` are learned maps: what depends on the position alone need not be made by the convolutions.
    Nor need what each layer's energy alone does to it, which convolutions that all layers share have no way for.
    """

    def __init__(self, sample_shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        layers, *self.fine = sample_shape
        self.middle = [side // 2 + 1 for side in self.fine]
        self.coarse = [side // 2 + 1 for side in self.middle]
        self.channels = channels
        self.dense1 = nn.Linear(LATENT_SHAPE + 4 + layers, 256)
        self.dense2 = nn.Linear(256, channels * math.prod(self.coarse))
        self.layer1 = nn.Linear(4 + layers, 128)
        self.layer2 = nn.Linear(128, 2 * layers)
        nn.init.zeros_(self.layer2.weight)
        nn.init.zeros_(self.layer2.bias)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 2)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv4 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5 = nn.Conv2d(channels, channels, 2)
        self.location = nn.Conv2d(channels, layers, 1)
        self.tail = nn.Conv2d(channels, layers, 1)
        self.spread = nn.Conv2d(channels, layers, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.place13 = nn.Parameter(torch.zeros(1, channels, *self.middle))
        self.place = nn.Parameter(torch.zeros(1, channels, *self.fine))
        self.profile = nn.Parameter(torch.zeros(3, *sample_shape))
        self.link = nn.Parameter(torch.tensor(FIRST_LINKS)[:, None, None, None].repeat(1, *sample_shape))
        self.across = nn.Parameter(torch.tensor(0.3))  # of a neighbour on the diagonal that was struck, beside the others
        self.answer = nn.Parameter(torch.full((layers,), FIRST_ANSWER))  # of a layer's cells to the energy that they lack
        self.edge = Edge()  # in the root scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        gain, shift = self.layer2(torch.relu(self.layer1(x[:, LATENT_SHAPE:]))).split(self.profile.shape[1], dim=1)
        x = torch.relu(self.dense1(x))
        x = torch.relu(self.dense2(x)).view(-1, self.channels, *self.coarse)
        x = torch.relu(self.conv1(x))
        x = torch.relu(trimmed(self.conv2(self.upsample(x)), self.middle) + self.place13)
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.conv4(x))
        x = torch.relu(trimmed(self.conv5(self.upsample(x)), self.fine) + self.place)
        place = self.profile
        return self.location(x) + place[0], self.tail(x) + place[1], self.spread(x) + place[2], gain, shift


def trimmed(x: Tensor, sides: list[int]) -> Tensor:
    """The first `sides` rows and columns of (N, C, height, width)."""
    height, width = sides
    return x if [*x.shape[2:]] == sides else x[:, :, :height, :width]
