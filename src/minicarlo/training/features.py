"""What is compared of generated and Monte Carlo showers: groups of features, and the shower's summary."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from minicarlo.detectors import Detector
from minicarlo.generators.shower2d import to_root
from minicarlo.training.scores import Whitening

__all__ = ["ShowerFeatures", "ShowerSummary"]

PATCH = 5  # cells a side
SECTORS = 8
PAIRS = ((0, 1), (1, 0)), ((1, 1), (1, -1)), ((0, 2), (2, 0))  # of cells of a layer, by how far they are from one another
ZONES = (2.2, 5.5, math.inf)  # radii in cells, outer ones, in which pairs are counted
MOMENTS = 6  # of layers: x, y, xx, yy, xy, r
THRESHOLD_WIDTH = 0.03  # of the smoothed hit count, in the root scale of `to_root`
SPECTRUM_BINS, SPECTRUM_RATIO = 8, 1.5  # of cells above the threshold; edges grow by this ratio in the root scale


class ShowerFeatures:
    """Groups of features of a batch of showers, each to be scored by itself.

    Arguments:
        detector: whose cells they are.
        threshold: readout threshold; all energies are in one unit, in which those of cells are of order one.
    """

    def __init__(self, detector: Detector, threshold: float) -> None:
        first, second = detector.shape[1:]
        pitch = detector.cell_size[2] if detector.grid == "cylindrical" else min(detector.cell_size[1:])
        x, y = (torch.from_numpy(axis / pitch).float().view(first, second) for axis in detector.transverse())
        radius = torch.sqrt(x * x + y * y)
        rings = [((radius >= low) & (radius < high)).float() for low, high in pairwise(ring_edges(radius))]
        if detector.grid == "cylindrical":
            frames = [(torch.arange(first) == sector).float()[:, None].expand(first, second) for sector in range(first)]
        else:
            frame = torch.maximum(x.abs(), y.abs()).round(decimals=3)
            frames = [(frame == distance).float() for distance in frame.unique()]
        octant = torch.floor(torch.atan2(y, x) * (SECTORS / (2 * math.pi)) + 1e-4).remainder(SECTORS)  # cells on edges: the next
        sectors = [((octant == sector) & (radius > 0)).float() for sector in range(SECTORS)]
        columns = [*rings, *frames, *sectors, x, y, x * x, y * y, x * y, radius]
        self.frame_count = len(frames)
        self.ring_count = len(rings)
        self.weights = torch.stack([column.flatten() for column in columns], 1)  # (cells of a layer, features)
        zones = [((radius >= low) & (radius < high)).float() for low, high in pairwise((0.0, *ZONES))]
        self.zones = torch.stack([zone.flatten() for zone in zones], 1)  # (cells of a layer, zones)
        self.threshold = float(to_root(torch.tensor(threshold)))
        self.of_nothing = 1 / (1 + math.exp(self.threshold / THRESHOLD_WIDTH))  # what the smoothed count has of an empty cell
        self.padding = [side for length in reversed(detector.shape) for side in (0, -length % PATCH)]

    def in_patches(self, values: Tensor) -> Tensor:
        """(N, Z, 5, X, 5, Y, 5): the grid in patches of 5x5x5 cells, with empty cells at the end where it does not divide."""
        if any(self.padding):
            values = nn.functional.pad(values, self.padding)
        return values.reshape(len(values), *(part for side in values.shape[1:] for part in (side // PATCH, PATCH)))

    def patches(self, root: Tensor) -> Tensor:
        """(N, P, 125) patches of 5x5x5 cells in the root scale."""
        return self.in_patches(root).permute(0, 1, 3, 5, 2, 4, 6).reshape(len(root), -1, PATCH**3)

    def sums(self, energy: Tensor, layer_energies: Tensor) -> dict[str, Tensor]:
        """Features that are sums over cells; each (N, K).

        Arguments:
            energy: (N, z, x, y) or (N, z, phi, r).
            layer_energies: (N, z), the true ones, as denominators that do not fluctuate with the sample.
        """
        patches = self.in_patches(energy)
        flat = energy.flatten(2)
        fired = torch.sigmoid((to_root(energy) - self.threshold) * (1 / THRESHOLD_WIDTH))
        fired = (fired - self.of_nothing) / (1 - self.of_nothing)
        hits = fired.flatten(2)
        parts = (self.ring_count, self.frame_count, SECTORS)
        ring_hits, frame_hits, sector_hits = (hits @ self.weights[:, : sum(parts)]).split(parts, dim=2)  # (N, z, rings ...)
        ring_energies, frame_energies, sector_energies, moments = (flat @ self.weights).split((*parts, MOMENTS), dim=2)
        total = layer_energies.sum(1)[:, None] + 0.3
        return {
            "columns": to_root(energy.sum(1)).flatten(1),
            "slabs": to_root(patches.sum(2)).flatten(1),
            "blocks": to_root(patches.sum((4, 6))).flatten(1),
            "rings": to_root(ring_energies).flatten(1),
            "frames": to_root(frame_energies.sum(1)),
            "hits in frames": torch.sqrt(frame_hits.sum(1) + 0.1),
            "sectors": to_root(sector_energies).flatten(1),
            "sector shares": sector_energies.sum(1) / total,
            "hits in sectors": torch.sqrt(sector_hits.sum(1) + 0.1),
            "hits in rings": torch.sqrt(ring_hits + 0.1).flatten(1),
            "hits in layers": torch.sqrt(ring_hits.sum(2) + 0.1),
            "hits": torch.sqrt(ring_hits.sum((1, 2)) + 0.1)[:, None],
            "moments of layers": (moments / (layer_energies[..., None] + 0.3)).flatten(1),
            "moments": moments.sum(1) / total,
            "ring shares": ring_energies.sum(1) / total,
            "largest in layers": to_root(flat.amax(2)),
            "pairs": torch.sqrt(self.pairs(fired) + 0.1),
        }

    def pairs(self, fired: Tensor) -> Tensor:
        """(N, K) pairs of cells that are both hit, by their distance, zone of the first cell, and layer; also of adjacent layers.

        Arguments:
            fired: (N, z, x, y), 1 where a cell is hit.
        """
        first, second = fired.shape[2:]
        padded = nn.functional.pad(fired, (2, 2, 0, 2))
        found = []
        for offsets in PAIRS:
            others = [padded[:, :, down : down + first, 2 + right : 2 + right + second] for down, right in offsets]
            found.append((fired * torch.stack(others).sum(0)).flatten(2) @ self.zones)
        behind = nn.functional.pad((fired[:, 1:] * fired[:, :-1]).flatten(2) @ self.zones, (0, 0, 0, 1))
        return torch.stack([*found, behind], dim=1).flatten(1)

    def spectra(self, root: Tensor) -> dict[str, Tensor]:
        """How many cells there are above each energy, in layers and in rings, of showers (N, z, x, y) in the root scale.

        A count rises from one edge to the next, so that the cells in between pull it and no other.
        """
        layers, rings = [], []
        for number in range(SPECTRUM_BINS):
            low = self.threshold * SPECTRUM_RATIO**number
            above = ((root - low) * (1 / (low * (SPECTRUM_RATIO - 1)))).clamp(0, 1)
            layers.append(above.sum((2, 3)))
            rings.append(above.sum(1).flatten(1) @ self.weights[:, : self.ring_count])
        groups = {"spectra of layers": layers, "spectra of rings": rings}
        return {name: torch.sqrt(torch.cat(counts, dim=1) + 0.1) for name, counts in groups.items()}


SUMMARY = (
    "rings",
    "hits in rings",
    "hits in frames",
    "hits in sectors",
    "hits in layers",
    "hits",
    "moments of layers",
    "moments",
    "ring shares",
    "sector shares",
    "pairs",
    "largest in layers",
)


class ShowerSummary:
    """What physicists look at in a shower's shape, as one vector, standardised at each incident energy and without correlation.

    Arguments:
        sums: of Monte Carlo showers, as `ShowerFeatures.sums` gives them.
        condition: (N, F) functions of the incident energy.
    """

    def __init__(self, sums: dict[str, Tensor], condition: Tensor) -> None:
        self.whitening = Whitening(joined(sums), condition, least=0.02)

    def __call__(self, sums: dict[str, Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """Both (N, K): standardised, and white."""
        values = self.whitening.standardisation(joined(sums), condition).clamp(-10, 10)
        return values, values @ self.whitening.matrix.to(values)


def joined(sums: dict[str, Tensor]) -> Tensor:
    return torch.cat([sums[name] for name in SUMMARY], dim=1)


def ring_edges(radius: Tensor) -> list[float]:
    """Edges in radius, in cells, of about seven rings around the axis: narrow in the core, and none of them empty."""
    wanted = [0.0, 0.5, 1.2, 2.2, 3.5, 5.5, 8.5]
    filled = [low for low, high in pairwise([*wanted, math.inf]) if bool(((radius >= low) & (radius < high)).any())]
    return [*filled, math.inf]
