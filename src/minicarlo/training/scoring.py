"""Training of `shower2d` by proper scoring rules: layer energies first, then shapes given the Monte Carlo's layer energies."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minicarlo.generators.shower2d import LATENT_ENERGIES, LATENT_NOISE, LATENT_SHAPE, MEV_PER_VISIBLE_UNIT, Shower2D
from minicarlo.training.config import Training
from minicarlo.training.scores import (
    ShowerFeatures,
    Standardisation,
    Whitening,
    energy_score,
    layer_energy_features,
    ranked_probability_score,
)
from minicarlo.training.showers import Showers

__all__ = ["ScoringRecipe"]

PROJECTIONS = 64
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


class ScoringRecipe:
    """Two phases of one training: `energy_steps` of the layer-energy network, then `steps` of the shape network.

    Each group of features enters with its loss divided by that loss's running mean, so that no group's unit or size decides its
    weight; `GROUP_WEIGHTS` states the exceptions.
    """

    def __init__(self, generator: Shower2D, showers: Showers, settings: Training, device: torch.device, bf16: bool) -> None:
        self.generator = generator.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator.bf16 = bf16
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.average.bf16 = False
        self.showers, self.settings, self.device = showers, settings, device
        self.features = ShowerFeatures(generator.sample_shape, generator.threshold_mev)
        self.features.weights = self.features.weights.to(device)
        self.optimisers = {
            "energies": torch.optim.Adam(generator.energies.parameters(), lr=settings.learning_rate),
            "shape": torch.optim.Adam(generator.shape.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98)),
        }
        with torch.no_grad():
            root = torch.sqrt(showers.layer_energies * (MEV_PER_VISIBLE_UNIT / showers.incident_energy))
            condition = generator.features(showers.incident_energy)
            self.standardisation = Standardisation(layer_energy_features(root), condition)
            self.whitening = Whitening(root, condition)
        self.running: dict[str, float] = {}
        self.compare, self.make_cells = compare, self.generator.cells
        if settings.compile:
            self.compare, self.make_cells = torch.compile(compare), torch.compile(self.generator.cells)
        self.total_steps = settings.energy_steps + settings.steps
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Start from Gaussian layer energies, and from cells that fire about as often as the Monte Carlo's do."""
        incident = self.showers.incident_energy.to(self.device)
        root = torch.sqrt(self.showers.layer_energies.to(self.device) * (MEV_PER_VISIBLE_UNIT / incident))
        self.generator.energies.fit_gaussian(root, self.generator.features(incident))
        energy = self.showers.energy[:2000]
        self.generator.shape.profile[0].copy_(0.2 * torch.sqrt(energy.mean(0) + 1e-3) - 0.6)
        self.generator.shape.profile[1].fill_(0.3)
        self.average.load_state_dict(self.generator.state_dict())

    def step(self, step: int) -> dict[str, float]:
        """One optimisation step; returns the losses by name."""
        phase = "energies" if step < self.settings.energy_steps else "shape"
        first = 0 if phase == "energies" else self.settings.energy_steps
        length = self.settings.energy_steps if phase == "energies" else self.settings.steps
        optimiser = self.optimisers[phase]
        for group in optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * warm_up_and_cosine(step - first, length)
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        losses = self.energy_losses(step) if phase == "energies" else self.shape_losses(step)
        total = self.weighted(losses)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(getattr(self.generator, phase).parameters(), 1.0)
        optimiser.step()
        self.update_average(step - first)
        return {f"{phase}/{name}": float(loss.detach()) for name, loss in losses.items()}

    def energy_losses(self, step: int) -> dict[str, Tensor]:
        index = torch.randint(0, len(self.showers), (self.settings.energy_batch,))
        incident = self.showers.incident_energy[index].to(self.device)
        truth = torch.sqrt(self.showers.layer_energies[index].to(self.device) * (MEV_PER_VISIBLE_UNIT / incident))
        directions = nn.functional.normalize(torch.randn(25, PROJECTIONS, device=self.device), dim=0)
        pairs = []
        for _ in range(2):
            latent = torch.randn(self.settings.energy_batch, LATENT_ENERGIES, device=self.device)
            layer_energies = self.generator.layer_energies(latent, incident)
            pairs.append(torch.sqrt(layer_energies * (MEV_PER_VISIBLE_UNIT / incident) + 1e-12))
        condition = self.generator.features(incident)
        features = [self.standardisation(layer_energy_features(root), condition) for root in (*pairs, truth)]
        white = [self.whitening(root, condition) for root in (*pairs, truth)]
        return {
            "total": ranked_probability_score(*(f[:, :1] for f in features)),
            "features": ranked_probability_score(*features),
            "white vector": energy_score(*white),
            "white projections": ranked_probability_score(*(w @ directions for w in white)),
            "white": ranked_probability_score(*white),
        }

    def shape_losses(self, step: int) -> dict[str, Tensor]:
        batch = self.showers.draw(self.settings.batch, self.settings.seed, step).to(self.device)
        n = len(batch)
        z_shape = torch.randn(2 * n, LATENT_SHAPE, device=self.device)
        z_noise = torch.randn(2 * n, LATENT_NOISE, device=self.device)
        layers, incident = batch.layer_energies.repeat(2, 1), batch.incident_energy.repeat(2, 1)
        cells = self.make_cells(z_shape, z_noise, layers, incident).contiguous()
        return self.compare(self.features, cells, batch.energy, batch.layer_energies)

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.device)
        for name, loss in losses.items():
            value = max(float(loss.detach()), 1e-6)
            self.running[name] = value if name not in self.running else 0.99 * self.running[name] + 0.01 * value
            total = total + loss * (GROUP_WEIGHTS.get(name, 0.3) / max(self.running[name], 1e-6))
        return total

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        for kept, new in zip(tensors(self.average), tensors(self.generator), strict=True):
            kept.lerp_(new, 1 - decay)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take up the weights of an earlier run."""
        self.generator.load_state_dict(weights)
        self.average.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "running": self.running,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.running = dict(state["running"])


def compare(features: ShowerFeatures, cells: Tensor, truth: Tensor, layer_energies: Tensor) -> dict[str, Tensor]:
    """Scores of two generated samples (2 N, 25, 25, 25), one after the other, against the truth (N, 25, 25, 25)."""
    n = len(truth)
    energy = torch.cat([cells, truth])
    roots = features.cells(energy)
    losses = {"cells": ranked_probability_score(*roots.split(n))}
    losses["patches"] = energy_score(*features.patches(roots).split(n))
    for name, values in features.sums(energy, layer_energies.repeat(3, 1)).items():
        losses[name] = ranked_probability_score(*values.split(n))
    return losses


def tensors(module: nn.Module) -> Iterator[Tensor]:
    return iter(module.parameters())


def warm_up_and_cosine(step: int, length: int) -> float:
    """Learning-rate factor: linear over the first 300 steps, then a cosine to 1 % at the end."""
    progress = step / max(1, length)
    return min(1.0, (step + 1) / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
