"""A GAN that is no calorimeter's: handwritten digits of 8 x 8 pixels (scikit-learn's), by transposed convolutions.

    python benchmarks/digits_gan.py FOLDER

writes FOLDER/digits.onnx, a generator of latents (N, 64) and classes one-hot (N, 10), and trains it first: about two minutes on
two cores. Needs PyTorch.

References:
    Layout: A. Radford et al., https://arxiv.org/abs/1511.06434; loss: I. Gulrajani et al., https://arxiv.org/abs/1704.00028
    Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998)
"""

from __future__ import annotations

import argparse
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from minicarlo.sampling import normal_latents

LATENT, CLASSES, STEPS, BATCH = 64, 10, 1500, 128


class Generator(nn.Module):
    """Latents and classes to pictures (N, 1, 8, 8) between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT + CLASSES, 128 * 2 * 2)
        self.up1 = nn.ConvTranspose2d(128, 128, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(128, 64, 4, 2, 1)
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, latent: Tensor, digit: Tensor) -> Tensor:
        x = torch.relu(self.dense(torch.cat([latent, digit], 1))).view(-1, 128, 2, 2)
        x = torch.relu(self.up2(torch.relu(self.up1(x))))
        return torch.sigmoid(self.last(torch.relu(self.conv(x))))


class Critic(nn.Module):
    """Pictures and classes to a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1 + CLASSES, 64, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten()
        )
        self.out = nn.Linear(512, 1)

    def forward(self, picture: Tensor, digit: Tensor) -> Tensor:
        maps = digit[:, :, None, None].expand(-1, -1, 8, 8)
        return self.out(self.layers(torch.cat([picture, maps], 1)))


def trained(steps: int = STEPS) -> Generator:
    """A generator after `steps` steps, the critic taking three for each."""
    torch.manual_seed(0)
    digits = load_digits()
    pictures = torch.from_numpy(digits.images / 16).float()[:, None]
    classes = torch.eye(CLASSES)[torch.from_numpy(digits.target)]
    generator, critic = Generator(), Critic()
    optimisers = [torch.optim.Adam(each.parameters(), 3e-4, betas=(0.5, 0.9)) for each in (generator, critic)]
    for _ in range(steps):
        for _ in range(3):
            index = torch.randint(len(pictures), (BATCH,))
            real, digit = pictures[index], classes[index]
            fake = generator(torch.randn(BATCH, LATENT), digit).detach()
            mixed = torch.lerp(real, fake, torch.rand(BATCH, 1, 1, 1)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(mixed, digit).sum(), mixed, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = critic(fake, digit).mean() - critic(real, digit).mean() + 10 * penalty
            optimisers[1].zero_grad()
            loss.backward()
            optimisers[1].step()
        optimisers[0].zero_grad()
        (-critic(generator(torch.randn(BATCH, LATENT), digit), digit).mean()).backward()
        optimisers[0].step()
    return generator.eval()


def inputs(first: int, last: int) -> dict[str, NDArray[np.float32]]:
    """Latents and classes of events `first` to `last`, always the same."""
    digit = np.eye(CLASSES, dtype=np.float32)[np.arange(first, last) % CLASSES]
    return {"latent": normal_latents(7, first, last - first, LATENT), "digit": digit}


def make(path: Path) -> Path:
    """The generator as ONNX, trained if it is not there."""
    if not path.exists():
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                trained(),
                (torch.zeros(2, LATENT), torch.zeros(2, CLASSES)),
                buffer,  # type: ignore[arg-type]
                input_names=["latent", "digit"],
                output_names=["picture"],
                dynamic_axes={name: {0: "batch"} for name in ("latent", "digit", "picture")},
                opset_version=17,
                dynamo=False,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args().folder / "digits.onnx"))
