"""Proper scoring rules: losses whose minimum is the true conditional distribution, without a discriminator.

For two generated samples x, x' and one Monte Carlo sample y under the same condition, the fair energy score
`(|x - y| + |x' - y|) / 2 - |x - x'| / 2` has its least expectation when x follows the distribution of y
(Gneiting and Raftery, J. Am. Stat. Assoc. 102 (2007) 359, eqs. 20 to 22). Applied to single numbers it is the continuous ranked
probability score; applied to sums, moments and patches of a shower it makes the generator learn how cells go together.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from minicarlo.detectors import Detector
from minicarlo.generators.shower2d import to_root

__all__ = [
    "Balance",
    "ShowerFeatures",
    "Standardisation",
    "Whitening",
    "energy_score",
    "layer_energy_features",
    "ranked_probability_score",
    "score_showers",
    "warm_up_and_cosine",
]

GROUP_WEIGHTS = {
    "cells": 2.0,
    "patches": 1.0,
    "hits": 0.5,
    "hits in layers": 0.5,
    "moments": 0.5,
    "ring shares": 0.5,
    "frames": 0.5,
    "hits in frames": 0.5,
    "total": 2.0,
    "features": 1.0,
    "white vector": 1.0,
    "white projections": 0.5,
    "white": 0.5,
}
PATCH = 5  # cells a side
THRESHOLD_WIDTH = 0.03  # of the smoothed hit count, in the root scale of `to_root`


def ranked_probability_score(first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """Mean fair continuous ranked probability score of two samples (N, K) against the truth (N, K)."""
    return ((first - truth).abs() + (second - truth).abs() - (first - second).abs()).mean() / 2


def energy_score(first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """Mean fair energy score over the last axis of (N, ..., K) tensors."""
    near = distance(first, truth) + distance(second, truth)
    return (near - distance(first, second)).mean() / 2


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt((a - b).square().sum(-1) + 1e-8)


def layer_energy_features(root: Tensor) -> Tensor:
    """What physicists look at in layer energies.

    Arguments:
        root: (N, layers) layer energies in the scale in which they are learned (`Shower2D.layer_roots`).

    Returns:
        (N, 2 + 2 layers): total, centre of energy in layers, roots, roots of the running sums.
    """
    energy = root.square()
    running = energy.cumsum(1)
    total = running[:, -1:]
    layer = torch.arange(energy.shape[1], dtype=energy.dtype, device=energy.device)
    centre = (energy * layer).sum(1, keepdim=True) / (total + 1)
    return torch.cat([total, centre, root, torch.sqrt(running + 1e-3)], dim=1)


class Standardisation:
    """Quantities with the mean and the spread that they have at an incident energy taken out, so that all energies count alike.

    Arguments:
        values: (N, K) of the Monte Carlo.
        features: (N, F) functions of the incident energy, of which mean and logarithm of the spread are linear functions.
    """

    def __init__(self, values: Tensor, features: Tensor) -> None:
        columns, values = with_constant(features).double(), values.double()  # so that it does not depend on the order of sums
        mean = torch.linalg.lstsq(columns, values).solution
        residual = (values - columns @ mean).abs()
        self.mean = mean.float()
        self.log_spread = torch.linalg.lstsq(columns, torch.log(residual + 1e-3)).solution.float()

    def __call__(self, values: Tensor, features: Tensor) -> Tensor:
        columns = with_constant(features)
        result: Tensor = (values - columns @ self.mean.to(values)) / torch.exp(columns @ self.log_spread.to(values))
        return result


class Whitening:
    """Layer energies as standardised numbers without correlation.

    Without it the scores see the few directions in which all layers move together, and miss the correlations of the others.
    """

    def __init__(self, root: Tensor, features: Tensor) -> None:
        self.standardisation = Standardisation(root, features)
        values, vectors = torch.linalg.eigh(torch.cov(self.standardisation(root, features).double().T))
        self.matrix = (vectors / torch.sqrt(values.clamp_min(1e-4))).float()  # a layer may never see energy

    def __call__(self, root: Tensor, features: Tensor) -> Tensor:
        result: Tensor = self.standardisation(root, features) @ self.matrix.to(root)
        return result


def with_constant(features: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(features[:, :1]), features], dim=1)


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
        columns = [*rings, *frames, x, y, x * x, y * y, radius]
        self.frame_count = len(frames)
        self.ring_count = len(rings)
        self.weights = torch.stack([column.flatten() for column in columns], 1)  # (cells of a layer, rings + frames + 5 moments)
        self.threshold = float(to_root(torch.tensor(threshold)))
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
        hits = torch.sigmoid((to_root(energy) - self.threshold) * (1 / THRESHOLD_WIDTH)).flatten(2)
        parts = (self.ring_count, self.frame_count)
        ring_hits, frame_hits = (hits @ self.weights[:, : sum(parts)]).split(parts, dim=2)  # (N, z, rings or frames)
        ring_energies, frame_energies, moments = (flat @ self.weights).split((*parts, 5), dim=2)
        total = layer_energies.sum(1)[:, None] + 0.3
        return {
            "columns": to_root(energy.sum(1)).flatten(1),
            "slabs": to_root(patches.sum(2)).flatten(1),
            "blocks": to_root(patches.sum((4, 6))).flatten(1),
            "rings": to_root(ring_energies).flatten(1),
            "frames": to_root(frame_energies.sum(1)),
            "hits in frames": torch.sqrt(frame_hits.sum(1) + 0.1),
            "hits in rings": torch.sqrt(ring_hits + 0.1).flatten(1),
            "hits in layers": torch.sqrt(ring_hits.sum(2) + 0.1),
            "hits": torch.sqrt(ring_hits.sum((1, 2)) + 0.1)[:, None],
            "moments of layers": (moments / (layer_energies[..., None] + 0.3)).flatten(1),
            "moments": moments.sum(1) / total,
            "ring shares": ring_energies.sum(1) / total,
        }


def ring_edges(radius: Tensor) -> list[float]:
    """Edges in radius, in cells, of about seven rings around the axis: narrow in the core, and none of them empty."""
    wanted = [0.0, 0.5, 1.2, 2.2, 3.5, 5.5, 8.5]
    filled = [low for low, high in pairwise([*wanted, math.inf]) if bool(((radius >= low) & (radius < high)).any())]
    return [*filled, math.inf]


def score_showers(features: ShowerFeatures, cells: Tensor, truth: Tensor, layer_energies: Tensor) -> dict[str, Tensor]:
    """Scores of two generated samples (2 N, ...), one after the other, against the truth (N, ...), all in the features' unit."""
    n = len(truth)
    energy = torch.cat([cells, truth])
    roots = to_root(energy)
    losses = {"cells": ranked_probability_score(*roots.flatten(1).split(n))}
    losses["patches"] = energy_score(*features.patches(roots).split(n))
    for name, values in features.sums(energy, layer_energies.repeat(3, 1)).items():
        losses[name] = ranked_probability_score(*values.split(n))
    return losses


class Balance:
    """Adds up groups of losses, each divided by its own running mean, so that no group's unit or size decides its weight.

    `GROUP_WEIGHTS` states the exceptions. `running` is the state.
    """

    def __init__(self) -> None:
        self.running: dict[str, float] = {}

    def __call__(self, losses: dict[str, Tensor]) -> Tensor:
        total = torch.zeros_like(next(iter(losses.values())))
        for name, loss in losses.items():
            value = max(float(loss.detach()), 1e-6)
            self.running[name] = value if name not in self.running else 0.99 * self.running[name] + 0.01 * value
            total = total + loss * (GROUP_WEIGHTS.get(name, 0.3) / max(self.running[name], 1e-6))
        return total


def warm_up_and_cosine(step: int, length: int) -> float:
    """Learning-rate factor: linear over the first 300 steps, then a cosine to 1 % at the end."""
    progress = step / max(1, length)
    return min(1.0, (step + 1) / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
