"""Critics: they look for features by which generated showers can be told from the Monte Carlo's, so that these can be scored.

A score is least at the true distribution whatever the features are that it compares; which features it compares decides what
it sees. Here they are the last hidden layer of a classifier that is trained beside the generator: what can be told
apart is what is scored next. Unlike the losses of a GAN these have their minimum at the true distribution for every critic,
so that nothing has to be balanced.

References:
    Energy distances in learned features: M. Bellemare et al., The Cramer distance, arXiv:1705.10743. Here they are conditional:
    two samples of the generator against the one event of the Monte Carlo that has the same condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from minicarlo.training.scores import energy_score, ranked_probability_score

__all__ = ["CriticScores", "LayerCritic", "ShowerCritic"]

FEATURES = 128
CHANNELS = (48, 64)
SHARPNESS = 60.0  # of the readout threshold as the critic sees it, in the root scale


class CriticScores:
    """Scores of a critic's features; each call trains the critic by one step.

    Arguments:
        critic: takes tensors of (N, ...) and gives features (N, K), the last of which is the logit of being the Monte Carlo's.
        learning_rate: Adam's.
        bf16: whether the critic computes in bf16 where autocast says so.
    """

    def __init__(self, critic: nn.Module, learning_rate: float, device: torch.device, bf16: bool) -> None:
        self.critic, self.device, self.bf16 = critic.to(device), device, bf16
        self.optimiser = torch.optim.Adam(critic.parameters(), lr=learning_rate, betas=(0.5, 0.99))

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Scores of inputs (3 N, ...): two generated samples, one after the other, and the truth."""
        n = len(inputs[0]) // 3
        logit = self.features(*(each.detach() for each in inputs))[:, -1]
        loss = functional.softplus(logit[: 2 * n]).mean() + functional.softplus(-logit[2 * n :]).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.critic.requires_grad_(False)
        features = self.features(*inputs)
        self.critic.requires_grad_(True)
        parts = (features / (features[2 * n :].detach().std(0) + 1e-3)).split(n)
        return {"critic": energy_score(*parts), "critic features": ranked_probability_score(*parts)}

    def features(self, *inputs: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            result: Tensor = self.critic(*inputs)
        return result.float()

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])


class ShowerCritic(nn.Module):
    """A critic of showers that sees their cells, their summary and their condition.

    Layers are channels: once their cells in the root scale, once which of them fired. Weights are spectrally normalised
    (T. Miyato et al., arXiv:1802.05957), which keeps the features smooth.

    Arguments:
        sample_shape: cells of the detector along its axes.
        summary_size: numbers that summarise a shower (`ShowerSummary`).
        condition_size: numbers that it is generated from: features of the incident energy and the layers' roots.
        threshold: readout threshold in the root scale.
    """

    def __init__(self, sample_shape: tuple[int, int, int], summary_size: int, condition_size: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        layers, *fine = sample_shape
        wide, narrow = CHANNELS
        half = [(side + 1) // 2 for side in fine]
        quarter = [(side + 1) // 2 for side in half]
        self.conv1 = spectral_norm(nn.Conv2d(2 * layers, wide, 3, padding=1, stride=2))
        self.conv2 = spectral_norm(nn.Conv2d(wide, narrow, 3, padding=1, stride=2))
        self.condition = nn.Linear(condition_size, wide)
        self.place = nn.Parameter(torch.zeros(1, wide, *half))
        self.cells = spectral_norm(nn.Linear(narrow * quarter[0] * quarter[1], 256))
        self.summary1 = spectral_norm(nn.Linear(summary_size + condition_size, 256))
        self.summary2 = spectral_norm(nn.Linear(256, 256))
        self.joint = spectral_norm(nn.Linear(512, FEATURES))
        self.logit = nn.Linear(FEATURES, 1)

    def forward(self, root: Tensor, summary: Tensor, condition: Tensor) -> Tensor:
        """Features and logit (N, 129) of showers (N, *sample_shape) in the root scale."""
        fired = torch.sigmoid((root - self.threshold) * SHARPNESS)
        x = torch.cat([root * fired, fired], dim=1).contiguous(memory_format=torch.channels_last)
        x = rectified(self.conv1(x) + self.place + self.condition(condition)[:, :, None, None])
        x = rectified(self.conv2(x))
        cells = rectified(self.cells(x.flatten(1)))
        y = rectified(self.summary1(torch.cat([summary, condition], dim=1)))
        y = rectified(self.summary2(y))
        features = rectified(self.joint(torch.cat([cells, y], dim=1)))
        return torch.cat([features, self.logit(features)], dim=1)


class LayerCritic(nn.Module):
    """A critic of layer energies: a perceptron. `size` numbers describe them and their condition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense1 = spectral_norm(nn.Linear(size, 256))
        self.dense2 = spectral_norm(nn.Linear(256, 256))
        self.dense3 = spectral_norm(nn.Linear(256, FEATURES))
        self.logit = nn.Linear(FEATURES, 1)

    def forward(self, layers: Tensor) -> Tensor:
        """Features and logit (N, 129) of layer energies (N, size)."""
        features = rectified(self.dense3(rectified(self.dense2(rectified(self.dense1(layers))))))
        return torch.cat([features, self.logit(features)], dim=1)


def rectified(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)
