"""The scores of generated showers, all of them: cells, patches, features, the summary, and what a critic finds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minicarlo.generators.base import Generator
from minicarlo.generators.shower2d import from_root, to_root
from minicarlo.training.config import Training
from minicarlo.training.critic import CriticScores, ShowerCritic
from minicarlo.training.features import ShowerFeatures, ShowerSummary
from minicarlo.training.scores import energy_score, ranked_probability_score, squared_bias
from minicarlo.training.showers import Showers

__all__ = ["ShowerScores"]

PROJECTIONS = 64
SUMMARISED = 8_000  # Monte Carlo showers that the summary's means, spreads and correlations are taken from
RAREST = 1e-3  # mean of a cell in the root scale, below which cells count no more than it


class ShowerScores:
    """Scores two generated showers per Monte Carlo shower and, if there is a critic, trains it by one step each time.

    Arguments:
        generator: whose showers they are; its `features` are the condition.
        showers: of the Monte Carlo.
        cell_mev: unit of cell energies in MeV, in which they are of order one.
        settings: says whether there is a critic, and its learning rate.
    """

    def __init__(
        self, generator: Generator, showers: Showers, cell_mev: float, settings: Training, device: torch.device, bf16: bool
    ) -> None:
        self.condition, self.cell_mev, self.device = generator.features, cell_mev, device
        self.features = ShowerFeatures(showers.detector, generator.threshold_mev / cell_mev)
        self.features.weights, self.features.zones = self.features.weights.to(device), self.features.zones.to(device)
        self.summary = self.summarise(showers)
        self.rarity = RAREST / (self.mean_roots(showers) + RAREST)
        self.compare = torch.compile(self.scores) if settings.compile else self.scores
        self.critic: CriticScores | None = None
        if settings.critic:
            size = self.summary.whitening.matrix.shape[0]
            conditions = generator.features(showers.incident_energy[:1]).shape[1] + showers.layer_energies.shape[1]
            critic = ShowerCritic(generator.sample_shape, size, conditions, self.features.threshold)
            self.critic = CriticScores(critic, settings.critic_learning_rate, device, bf16)

    @torch.no_grad()
    def summarise(self, showers: Showers) -> ShowerSummary:
        parts = []
        energies = showers.energy[:SUMMARISED].split(500), showers.layer_energies[:SUMMARISED].split(500)
        for energy, layers in zip(*energies, strict=True):
            parts.append(self.features.sums(energy.to(self.device) / self.cell_mev, layers.to(self.device) / self.cell_mev))
        sums = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return ShowerSummary(sums, self.condition(showers.incident_energy[:SUMMARISED]).to(self.device))

    @torch.no_grad()
    def mean_roots(self, showers: Showers) -> Tensor:
        """(cells,) means in the root scale."""
        parts = showers.energy[:SUMMARISED].split(500)
        sums = torch.stack([to_root(part.to(self.device) / self.cell_mev).sum(0) for part in parts]).sum(0)
        return sums.flatten() / min(SUMMARISED, len(showers))

    def __call__(self, cells: Tensor, batch: Showers) -> dict[str, Tensor]:
        """Scores by group.

        Arguments:
            cells: two generated samples (2 N, *sample_shape) in MeV, one after the other, before the readout threshold.
            batch: N Monte Carlo showers, of the same conditions.
        """
        condition = self.condition(batch.incident_energy)
        size = self.summary.whitening.matrix.shape[0]
        directions = nn.functional.normalize(torch.randn(size, PROJECTIONS, device=self.device), dim=0)
        losses, roots, white = self.compare(cells, batch.energy, batch.layer_energies, condition, directions)
        if self.critic is not None:
            layers = to_root(batch.layer_energies / self.cell_mev)
            losses |= self.critic(roots, white.clamp(-8, 8), torch.cat([condition, layers / (1 + layers)], dim=1).repeat(3, 1))
        return losses

    def scores(
        self, cells: Tensor, truth: Tensor, layer_energies: Tensor, condition: Tensor, directions: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses by group, and cells in the root scale and white summaries of all showers (3 N, ...)."""
        n = len(truth)
        energy = torch.cat([cells, truth]) / self.cell_mev
        roots = to_root(energy)
        cells_of = roots.flatten(1).split(n)
        losses = {"cells": ranked_probability_score(*cells_of)}
        losses["rare cells"] = ranked_probability_score(*(each * self.rarity for each in cells_of))
        losses["patches"] = energy_score(*self.features.patches(roots).split(n))
        sums = self.features.sums(energy, layer_energies.repeat(3, 1) / self.cell_mev)
        for name, values in (sums | self.features.spectra(roots)).items():
            losses[name] = ranked_probability_score(*values.split(n))
        rings = torch.cat([from_root(sums["rings"]), sums["hits in rings"].square()], dim=1)
        standard, white = self.summary(sums, condition.repeat(3, 1))
        looked_at = torch.cat([standard, white], dim=1)
        for name, values in {"rings": rings, "summary": looked_at, "spreads": looked_at.abs()}.items():
            losses[f"bias of {name}"] = squared_bias(values[: 2 * n].unflatten(0, (2, n)), values[2 * n :])
        losses["summary"] = ranked_probability_score(*standard.split(n))
        losses["white summary"] = energy_score(*white.split(n))
        losses["summary projections"] = ranked_probability_score(*(white @ directions).split(n))
        return losses, roots, white

    def state_dict(self) -> dict[str, Any]:
        return {} if self.critic is None else self.critic.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a critic, if there is one here and there."""
        if self.critic is not None and state:
            self.critic.load_state_dict(state)
