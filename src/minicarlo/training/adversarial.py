"""Training of `gan3d` and `gan2d` as published: adversarial loss, energy regression and total energy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minicarlo.generators.gan2d import Gan2D
from minicarlo.generators.gan3d import ENERGY_UNITS, IMAGE_UNIT_MEV, Discriminator3D, Gan3D
from minicarlo.training.config import Training
from minicarlo.training.int8 import compute_in_int8
from minicarlo.training.scores import Balance, warm_up_and_cosine
from minicarlo.training.shower_scores import ShowerScores
from minicarlo.training.showers import Showers

__all__ = ["AdversarialRecipe"]

WEIGHTS = {"adversarial": 2.0, "energy": 0.1, "total": 0.1}  # of the published training; the last two losses are in per cent
FLIPPED = 0.05  # share of the discriminator's labels that are turned round
GENERATOR_STEPS = 2  # per discriminator step


class AdversarialRecipe:
    """One step trains the discriminator on a real and a generated batch, then the generator twice.

    Before the first such step the generator may have `score_steps` by itself, by proper scoring rules: a start from which the
    published losses need days less.

    As published: RMSprop, flipped labels, losses `2 BCE + 0.1 MAPE(energy) + 0.1 MAPE(total)`, the total of a generated shower
    compared with a polynomial fit of the Monte Carlo's mean visible energy. The energies of generated batches are those of
    Monte Carlo events, so that both batches follow one distribution.

    References:
        https://github.com/svalleco/3Dgan, keras/EcalEnergyTrain.py
    """

    def __init__(self, generator: Gan3D | Gan2D, showers: Showers, settings: Training, device: torch.device, bf16: bool) -> None:
        self.generator, self.discriminator = generator, Discriminator3D()
        for network in (self.generator, self.discriminator):
            # channels last: oneDNN trains the discriminator faster than with channels first
            flat = isinstance(network, Gan2D)
            network.to(device, memory_format=torch.channels_last if flat else torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.showers, self.settings, self.device = showers.kept_on(device), settings, device
        # oneDNN on AMX computes this network's first convolution wrongly in bf16 (8 channels, kernel width 8)
        self.bf16 = bf16 and not (device.type == "cpu" and torch.cpu._is_amx_tile_supported())
        self.optimisers = {
            "generator": torch.optim.RMSprop(self.generator.parameters(), lr=settings.learning_rate, alpha=0.9),
            "discriminator": torch.optim.RMSprop(
                self.discriminator.parameters(), lr=settings.discriminator_learning_rate, alpha=0.9
            ),
            "scores": torch.optim.Adam(self.generator.parameters(), lr=settings.score_learning_rate, betas=(0.9, 0.98)),
        }
        self.balance = Balance(bias_weight=0.0)  # means take more events than these batches have
        self.scores = ShowerScores(generator, self.showers, 1.0, settings, device, self.bf16)
        self.total_steps = settings.score_steps + settings.steps
        if settings.int8:
            compute_in_int8(self.generator)
        self.fit = fit_visible_energy(showers, generator.high_mev).to(device)

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimisation step; returns the losses by name."""
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        if step < self.settings.score_steps:
            return self.score_step(step)
        batch = self.showers.draw(self.settings.batch, self.settings.seed, step).to(self.device)
        losses = {f"discriminator/{name}": value for name, value in self.discriminator_step(batch).items()}
        for part in range(GENERATOR_STEPS):
            other = self.showers.draw(self.settings.batch, self.settings.seed, step * GENERATOR_STEPS + part + 2**31)
            for name, value in self.generator_step(other.incident_energy.to(self.device)).items():
                losses[f"generator/{name}"] = value
        self.update_average(step)
        return losses

    def score_step(self, step: int) -> dict[str, Tensor]:
        """One step of the generator by proper scoring rules, at a rate that falls to 1 % in the end."""
        for group in self.optimisers["scores"].param_groups:
            group["lr"] = self.settings.score_learning_rate * warm_up_and_cosine(step, self.settings.score_steps)
        batch = self.showers.draw(self.settings.batch, self.settings.seed, step).to(self.device)
        cells = self.make(batch.incident_energy.repeat(2, 1)) * IMAGE_UNIT_MEV
        losses = self.scores(cells, batch)
        descend(self.optimisers["scores"], self.balance(losses))
        self.update_average(step)
        return {f"scores/{name}": loss.detach() for name, loss in losses.items()}

    def discriminator_step(self, batch: Showers) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.make(batch.incident_energy)
        energy = self.scaled(batch.incident_energy)
        flips = (torch.rand(2, len(batch), device=self.device) < FLIPPED).float()
        total = torch.zeros((), device=self.device)
        sums: dict[str, Tensor] = {}
        for name, image, label in (("real", batch.energy / IMAGE_UNIT_MEV, 1 - flips[0]), ("fake", fake, flips[1])):
            losses = self.losses(image, label, energy)
            total = total + sum(WEIGHTS[key] * losses[key] for key in ("adversarial", "energy"))
            sums |= {f"{name} {key}": value.detach() for key, value in losses.items()}
        descend(self.optimisers["discriminator"], total)
        return sums

    def generator_step(self, incident_energy: Tensor) -> dict[str, Tensor]:
        ones = torch.ones(len(incident_energy), device=self.device)
        self.discriminator.requires_grad_(False)
        losses = self.losses(self.make(incident_energy), ones, self.scaled(incident_energy))
        descend(self.optimisers["generator"], sum((WEIGHTS[key] * losses[key] for key in WEIGHTS), torch.zeros(())))
        self.discriminator.requires_grad_(True)
        return {key: value.detach() for key, value in losses.items()}

    def make(self, incident_energy: Tensor) -> Tensor:
        latent = torch.randn(len(incident_energy), self.generator.latent_size, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.generator.image(latent, incident_energy).float()

    def losses(self, image: Tensor, label: Tensor, energy: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logit, regressed, _ = self.discriminator(image)
        return {
            "adversarial": functional.binary_cross_entropy_with_logits(logit.float(), label),
            "energy": percentage_error(regressed.float(), energy),
            "total": percentage_error(image.sum((1, 2, 3)), polynomial(self.fit, energy)),
        }

    def scaled(self, incident_energy: Tensor) -> Tensor:
        return incident_energy[:, 0] * (ENERGY_UNITS / self.generator.high_mev)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        decay = min(0.99, (1 + step) / (10 + step))
        new = self.generator.state_dict()
        for name, kept in self.average.state_dict().items():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                kept.copy_(new[name])
            else:
                kept.lerp_(new[name], 1 - decay)

    def start_from(self, state: dict[str, Any]) -> None:
        """Take up the weights of an earlier run, and its critic."""
        self.generator.load_state_dict(state["average"])
        self.average.load_state_dict(state["average"])
        self.scores.load_state_dict(state["scores"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "running": self.balance.running,
            "scores": self.scores.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("generator", "average", "discriminator"):
            module: nn.Module = getattr(self, name)
            module.load_state_dict(state[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.balance.running = dict(state["running"])
        self.scores.load_state_dict(state["scores"])


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def percentage_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean absolute percentage error, in per cent."""
    return 100 * ((value - target).abs() / target.abs().clamp_min(1e-6)).mean()


def fit_visible_energy(showers: Showers, high_mev: float) -> Tensor:
    """Coefficients, lowest first, of visible energy / condition as a cubic in the condition: the mean sampling fraction."""
    energy = showers.incident_energy[:, 0].double() * (ENERGY_UNITS / high_mev)
    fraction = showers.layer_energies.double().sum(1) / IMAGE_UNIT_MEV / energy
    powers = torch.stack([energy**power for power in range(4)], 1)
    coefficients: Tensor = torch.linalg.lstsq(powers, fraction[:, None]).solution
    return coefficients[:, 0].float()


def polynomial(coefficients: Tensor, energy: Tensor) -> Tensor:
    fraction = torch.zeros_like(energy)
    for coefficient in coefficients.flip(0):
        fraction = fraction * energy + coefficient
    result: Tensor = fraction * energy
    return result
