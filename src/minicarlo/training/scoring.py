"""Training of `shower2d` by proper scoring rules: layer energies first, then shapes given the Monte Carlo's layer energies."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minicarlo.generators.shower2d import LATENT_NOISE, LATENT_SHAPE, Shower2D
from minicarlo.training.config import Training
from minicarlo.training.scores import (
    Balance,
    ShowerFeatures,
    Standardisation,
    Whitening,
    energy_score,
    layer_energy_features,
    ranked_probability_score,
    score_showers,
    warm_up_and_cosine,
)
from minicarlo.training.showers import Showers

__all__ = ["ScoringRecipe", "layer_units"]

PROJECTIONS = 64


class ScoringRecipe:
    """Two phases of one training: `energy_steps` of the layer-energy network, then `steps` of the shape network.

    Each group of features is weighted as `Balance` says.
    """

    def __init__(self, generator: Shower2D, showers: Showers, settings: Training, device: torch.device, bf16: bool) -> None:
        self.generator = generator.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator.bf16 = bf16
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.average.bf16 = False
        self.showers, self.settings, self.device = showers, settings, device
        self.cell_mev = cell_unit(showers, generator.threshold_mev)
        self.features = ShowerFeatures(showers.detector, generator.threshold_mev / self.cell_mev)
        self.features.weights = self.features.weights.to(device)
        self.optimisers = {
            "energies": torch.optim.Adam(generator.energies.parameters(), lr=settings.learning_rate),
            "shape": torch.optim.Adam(generator.shape.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98)),
        }
        with torch.no_grad():
            root = generator.layer_roots(showers.layer_energies, showers.incident_energy)
            condition = generator.features(showers.incident_energy)
            self.standardisation = Standardisation(layer_energy_features(root), condition)
            self.whitening = Whitening(root, condition)
        self.balance = Balance()
        self.compare, self.make_cells = score_showers, self.generator.cells
        if settings.compile:
            self.compare, self.make_cells = torch.compile(score_showers), torch.compile(self.generator.cells)
        self.total_steps = settings.energy_steps + settings.steps
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Start from Gaussian layer energies, and from cells that fire about as often as the Monte Carlo's do."""
        incident = self.showers.incident_energy.to(self.device)
        root = self.generator.layer_roots(self.showers.layer_energies.to(self.device), incident)
        self.generator.energies.fit_gaussian(root, self.generator.features(incident))
        energy = self.showers.energy[:2000] / self.cell_mev
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
        total = self.balance(losses)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(getattr(self.generator, phase).parameters(), 1.0)
        optimiser.step()
        self.update_average(step - first)
        return {f"{phase}/{name}": float(loss.detach()) for name, loss in losses.items()}

    def energy_losses(self, step: int) -> dict[str, Tensor]:
        index = torch.randint(0, len(self.showers), (self.settings.energy_batch,))
        incident = self.showers.incident_energy[index].to(self.device)
        truth = self.generator.layer_roots(self.showers.layer_energies[index].to(self.device), incident)
        directions = nn.functional.normalize(torch.randn(truth.shape[1], PROJECTIONS, device=self.device), dim=0)
        pairs = []
        for _ in range(2):
            latent = torch.randn(self.settings.energy_batch, self.generator.energies.latent_size, device=self.device)
            pairs.append(self.generator.layer_roots(self.generator.layer_energies(latent, incident) + 1e-9, incident))
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
        truth, denominators = batch.energy / self.cell_mev, batch.layer_energies / self.cell_mev
        return self.compare(self.features, cells / self.cell_mev, truth, denominators)

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
            "running": self.balance.running,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.balance.running = dict(state["running"])


def layer_units(showers: Showers) -> float:
    """The power of ten in which layer energies over incident energies are of order one: `Shower2D`'s `layer_units`."""
    response = float((showers.layer_energies.sum(1) / showers.incident_energy[:, 0]).mean())
    return power_of_ten(showers.layer_energies.shape[1] / response)


def cell_unit(showers: Showers, threshold_mev: float) -> float:
    """The power of ten in MeV in which half of the cells that fire hold less than about a quarter, as silicon's do in MeV."""
    energy = showers.energy[:1000]
    return power_of_ten(4 * float(energy[energy > threshold_mev].median()))


def power_of_ten(value: float) -> float:
    return float(10.0 ** round(math.log10(value)))


def tensors(module: nn.Module) -> Iterator[Tensor]:
    return iter(module.parameters())
