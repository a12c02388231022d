"""Training of `shower2d` by proper scoring rules: layer energies first, then shapes given the Monte Carlo's layer energies."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minicarlo.generators.shower2d import LATENT_NOISE, LATENT_SHAPE, READERS, UNIT_MAPS, Shower2D, from_root, to_root
from minicarlo.training.config import Training
from minicarlo.training.critic import CriticScores, LayerCritic
from minicarlo.training.int8 import compute_in_int8
from minicarlo.training.revival import revive
from minicarlo.training.scores import (
    FAR,
    TAIL,
    Balance,
    Standardisation,
    Whitening,
    energy_score,
    layer_energy_features,
    ranked_probability_score,
    tails,
    warm_up_and_cosine,
)
from minicarlo.training.shower_scores import PROJECTIONS, ShowerScores
from minicarlo.training.showers import Showers

__all__ = ["ScoringRecipe", "cell_unit", "layer_units"]

EDGE_SHOWERS = 5_000  # Monte Carlo showers in which the edge of the cells' spectrum is looked for
EDGE_BIN, EDGE_WINDOW = 0.01, 4  # width in the root scale, and bins that are compared on each side of the edge
LEAST_CONTRAST, LARGEST_CONTRAST = 0.3, 6.0
RARELY, GIVEN = 0.15, 1.3  # a cell hit in fewer showers than this share is given so much of a struck neighbour's, to begin with
FASTER, LEAST_SLOPE = 5.0, 0.05  # learning rate of the slopes of the maps of layer energies, and what they keep
WEAK = 0.8  # layer energies in the root scale up to which they are scored by themselves, too
HIT = 0.7, 0.35  # of the threshold in the root scale: where a layer begins to count as hit, and over which length
LOWEST = -5.0  # of a cell's location in the root scale
REVIVE_EVENTS = 2000
REVIVE_EVERY, REVIVE_UNTIL = 500, 0.7  # steps, and the part of a phase in which units that never fire are made anew


class ScoringRecipe:
    """Two phases of one training: `energy_steps` of the layer-energy network, then `steps` of the shape network.

    Each group of features is weighted as `Balance` says.
    """

    def __init__(self, generator: Shower2D, showers: Showers, settings: Training, device: torch.device, bf16: bool) -> None:
        self.generator = generator.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator.bf16 = bf16
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.average.bf16 = False
        self.showers, self.settings, self.device = showers.kept_on(device), settings, device
        slopes = generator.energies.spectra.slopes
        others = [each for each in generator.energies.parameters() if each is not slopes]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [slopes], "faster": FASTER}]
        self.optimisers = {
            "energies": torch.optim.Adam(groups, lr=settings.learning_rate),
            "shape": torch.optim.Adam(generator.shape.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98)),
        }
        showers = self.showers
        with torch.no_grad():
            root = generator.layer_roots(showers.layer_energies, showers.incident_energy)
            condition = generator.features(showers.incident_energy)
            self.standardisation = Standardisation(layer_energy_features(root), condition)
            self.whitening = Whitening(root, condition)
        self.balance = Balance()
        self.scores = ShowerScores(generator, showers, generator.cell_mev, settings, device, bf16)
        self.critic: CriticScores | None = None
        if settings.critic:
            size = 3 * showers.layer_energies.shape[1] + self.generator.features(showers.incident_energy[:1]).shape[1]
            self.critic = CriticScores(LayerCritic(size), settings.critic_learning_rate, device, bf16=False)
        self.make_cells = torch.compile(self.generate) if settings.compile else self.generate
        self.total_steps = settings.energy_steps + settings.steps
        if settings.int8:
            compute_in_int8(self.generator.shape)
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Start from Gaussian layer energies, and from cells that fire about as often as the Monte Carlo's do."""
        incident = self.showers.incident_energy.to(self.device)
        root = self.generator.layer_roots(self.showers.layer_energies.to(self.device), incident)
        self.generator.energies.fit_gaussian(root, self.generator.features(incident))
        self.put_edges()
        energy = self.showers.energy[:2000] / self.generator.cell_mev
        self.generator.shape.profile[0].copy_(0.2 * torch.sqrt(energy.mean(0) + 1e-3) - 0.6)
        self.generator.shape.profile[1].fill_(0.3)
        hit = (energy > self.generator.threshold_mev / self.generator.cell_mev).float()
        self.generator.shape.link[1].copy_(GIVEN * (hit.mean(0) < RARELY))
        self.average.load_state_dict(self.generator.state_dict())

    def put_edges(self) -> None:
        """Put the edges of the spectra of cells and of layers where the Monte Carlo has them."""
        unit = self.generator.cell_mev
        threshold = self.generator.threshold_mev / unit
        place, contrast = spectrum_edge(self.showers.energy[:EDGE_SHOWERS] / unit, threshold)
        self.generator.shape.edge.put(place, contrast)
        place, contrast = spectrum_edge(self.showers.layer_energies / unit, threshold)
        self.generator.energies.spectra.put(float(from_root(torch.tensor(place))), contrast)

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimisation step; returns the losses by name, and, when that was looked at, how many units were made anew."""
        phase = "energies" if step < self.settings.energy_steps else "shape"
        first = 0 if phase == "energies" else self.settings.energy_steps
        length = self.settings.energy_steps if phase == "energies" else self.settings.steps
        optimiser = self.optimisers[phase]
        for group in optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * group.get("faster", 1.0) * warm_up_and_cosine(step - first, length)
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        anew: dict[str, int] = {}
        if (step - first) % REVIVE_EVERY == 0 and step - first < REVIVE_UNTIL * length:
            anew = self.revive(phase)
        losses = self.energy_losses(step) if phase == "energies" else self.shape_losses(step)
        total = self.balance(losses)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(getattr(self.generator, phase).parameters(), 1.0)
        optimiser.step()
        self.hold_edges()
        self.update_average(step - first)
        counts = {f"made anew/{name}": torch.tensor(float(count)) for name, count in anew.items()}
        return counts | {f"{phase}/{name}": loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def revive(self, phase: str) -> dict[str, int]:
        """Make units of a phase's network anew that hardly ever fire; their number by layer."""
        readers = {made: names for made, names in READERS.items() if made.startswith(phase)}
        incident = self.showers.incident_energy[torch.randint(0, len(self.showers), (REVIVE_EVENTS,))].to(self.device)
        latent = torch.randn(REVIVE_EVENTS, self.generator.latent_size, device=self.device)

        def run() -> None:
            for parts in zip(latent.split(200), incident.split(200), strict=True):
                self.generator(*parts)

        return revive((self.generator, self.average), readers, UNIT_MAPS, run)

    def energy_losses(self, step: int) -> dict[str, Tensor]:
        index = torch.randint(0, len(self.showers), (self.settings.energy_batch,), device=self.showers.energy.device)
        incident = self.showers.incident_energy[index].to(self.device)
        true_energies = self.showers.layer_energies[index].to(self.device)
        truth = self.generator.layer_roots(true_energies, incident)
        directions = nn.functional.normalize(torch.randn(truth.shape[1], PROJECTIONS, device=self.device), dim=0)
        pairs, energies = [], []
        for _ in range(2):
            latent = torch.randn(self.settings.energy_batch, self.generator.energies.latent_size, device=self.device)
            energies.append(self.generator.layer_energies(latent, incident))
            pairs.append(self.generator.layer_roots(energies[-1] + 1e-9, incident))
        condition = self.generator.features(incident)
        features = [self.standardisation(layer_energy_features(root), condition) for root in (*pairs, truth)]
        white = [self.whitening(root, condition) for root in (*pairs, truth)]
        weak = [to_root(each / self.generator.cell_mev).clamp(max=WEAK) for each in (*energies, true_energies)]
        threshold = self.scores.features.threshold
        hit = [((each - HIT[0] * threshold) / (HIT[1] * threshold)).clamp(0, 1) for each in weak]
        critic = {} if self.critic is None else self.critic(self.criticised(pairs, truth, white, incident))
        return critic | {
            "weak": ranked_probability_score(*weak),
            "weak vector": energy_score(*weak),
            "weak projections": ranked_probability_score(*(w @ directions for w in weak)),
            "hit": ranked_probability_score(*hit),
            "hit vector": energy_score(*hit),
            "total": ranked_probability_score(*(f[:, :1] for f in features)),
            "features": ranked_probability_score(*features),
            "white vector": energy_score(*white),
            "white projections": ranked_probability_score(*(w @ directions for w in white)),
            "white": ranked_probability_score(*white),
            "tails": ranked_probability_score(*(tails(f, TAIL) for f in features)),
            "far tails": ranked_probability_score(*(tails(f, FAR) for f in features)),
            "white tails": ranked_probability_score(*(tails(w, TAIL) for w in white)),
        }

    def criticised(self, pairs: list[Tensor], truth: Tensor, white: list[Tensor], incident: Tensor) -> Tensor:
        """(3 N, 3 layers + 4) what the critic of layer energies sees of them: white, in the root scale of cells, and relative."""
        root = torch.cat([*pairs, truth])
        energy = root.square() * (incident.repeat(3, 1) / (self.generator.layer_units * self.generator.cell_mev))
        condition = self.generator.features(incident).repeat(3, 1)
        return torch.cat([torch.cat(white).clamp(-10, 10), 4 * to_root(energy).clamp(max=1), root, condition], dim=1)

    def shape_losses(self, step: int) -> dict[str, Tensor]:
        batch = self.showers.draw(self.settings.batch, self.settings.seed, step).to(self.device)
        n = len(batch)
        z_shape = torch.randn(2 * n, LATENT_SHAPE, device=self.device)
        z_noise = torch.randn(2 * n, LATENT_NOISE, device=self.device)
        layers, incident = batch.layer_energies.repeat(2, 1), batch.incident_energy.repeat(2, 1)
        raw, cells, below = self.make_cells(z_shape, z_noise, layers, incident)
        first, second = (raw.sum((2, 3)) / (layers / self.generator.cell_mev + 0.3)).clamp(max=5.0).split(n)
        wanted = layers[:n] / (layers[:n] + 0.3 * self.generator.cell_mev)
        # of two independent samples the product has the squared bias for its expectation
        bias = ((first - wanted) * (second - wanted)).mean()
        return self.scores(cells.contiguous(), batch) | {"bias of layers": bias, "far below": below}

    def generate(self, z_shape: Tensor, z_noise: Tensor, layers: Tensor, incident: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells before and after the layers were given their energies, and how far cells are, in the mean, below where they
        could be hit: what pushes them further makes numbers large that int8 has to hold, too."""
        maps = self.generator.maps(z_shape, layers, incident)
        raw = self.generator.raw_cells_of(maps, z_noise, layers, incident)
        return raw, self.generator.with_layer_energies(raw, layers), torch.relu(LOWEST - maps[0]).mean()

    @torch.no_grad()
    def hold_edges(self) -> None:
        """An edge that is learned away is gone, not turned round, and the maps of layers keep rising."""
        edge = self.generator.shape.edge
        edge.contrast.clamp_(min=0)
        edge.tilt.clamp_(-0.5 * edge.contrast, 0.5 * edge.contrast)
        self.generator.energies.spectra.slopes.clamp_(min=LEAST_SLOPE)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        for kept, new in zip(tensors(self.average), tensors(self.generator), strict=True):
            kept.lerp_(new, 1 - decay)

    def start_from(self, state: dict[str, Any]) -> None:
        """Take up the weights of an earlier run, and its critics."""
        self.generator.load_state_dict(state["average"])
        self.average.load_state_dict(state["average"])
        self.scores.load_state_dict(state["scores"])
        if self.critic is not None and state["critic"]:
            self.critic.load_state_dict(state["critic"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "running": self.balance.running,
            "scores": self.scores.state_dict(),
            "critic": {} if self.critic is None else self.critic.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.balance.running = dict(state["running"])
        self.scores.load_state_dict(state["scores"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])


def layer_units(showers: Showers) -> float:
    """The power of ten in which layer energies over incident energies are of order one: `Shower2D`'s `layer_units`."""
    response = float((showers.layer_energies.sum(1) / showers.incident_energy[:, 0]).mean())
    return power_of_ten(showers.layer_energies.shape[1] / response)


def cell_unit(showers: Showers, threshold_mev: float) -> float:
    """The power of ten in MeV in which half of the cells that fire hold less than about a quarter, as silicon's do in MeV."""
    energy = showers.energy[:1000]
    return power_of_ten(4 * float(energy[energy > threshold_mev].median()))


def spectrum_edge(energies: Tensor, threshold: float) -> tuple[float, float]:
    """Where a spectrum of energies, in units in which most are of order one, rises most steeply, as one of single particles does.

    Returns:
        The place in the scale of `to_root`, and by how much more the spectrum has above it than below, relative to the latter;
        0 and 0 if it nowhere rises steeply.
    """
    root = to_root(energies[energies > threshold])
    first = float(to_root(torch.tensor(threshold)))
    counts = torch.histc(root, int((1.0 - first) / EDGE_BIN), first, 1.0).cpu()
    sums = counts.unfold(0, EDGE_WINDOW, 1).sum(1)
    below, above = sums[:-EDGE_WINDOW], sums[EDGE_WINDOW:]
    contrast = above / (below + 10) - 1
    steepest = int(contrast.argmax())
    if contrast[steepest] < LEAST_CONTRAST:
        return 0.0, 0.0
    return first + (steepest + EDGE_WINDOW) * EDGE_BIN, min(float(contrast[steepest]), LARGEST_CONTRAST)


def power_of_ten(value: float) -> float:
    return float(10.0 ** round(math.log10(value)))


def tensors(module: nn.Module) -> Iterator[Tensor]:
    return iter(module.parameters())
