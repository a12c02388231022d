"""Classifiers in PyTorch: CaloChallenge's on high-level features and on cells, and a convolutional one.

Matrix products are done in bf16 where the processor does that natively (four times as fast), except that of the first layer with
what is not the energy of a cell, and that of the last: what a score is and what it depends on most is not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from minicarlo.detectors import Detector
from minicarlo.fidelity.classifiers.inputs import Float, Inputs, Labels, Parts, Progress
from minicarlo.fidelity.classifiers.separation import separation

Load = Callable[[Labels], tuple[Tensor, ...]]
"""The network's arguments for these events."""

DNN_WIDTH, DNN_EPOCHS, DNN_BATCH, DNN_RATE = 2048, 50, 1000, 2e-4
CNN_WIDTHS, CNN_EPOCHS, CNN_BATCH, CNN_RATE, CNN_DECAY = (64, 64, 128), 20, 64, 1e-3, 1e-2

_STEPS = 20  # of an epoch, at least: with few events batches are smaller
_SCORED_AT_ONCE = 500


class Dnn(nn.Module):
    """CaloChallenge's classifier: an input layer and two hidden ones of `width`, LeakyReLU, one output.

    Arguments are `features` (N, features) and, with `cells`, energies (N, cells); the first layer sees both side by side.
    """

    def __init__(self, features: int, cells: int = 0, width: int = DNN_WIDTH) -> None:
        super().__init__()
        self.features = nn.Linear(features, width)
        self.cells = nn.Linear(cells, width, bias=False) if cells else None
        self.hidden = nn.Sequential(
            nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU()
        )
        self.output = nn.Linear(width, 1)
        bound = (features + cells) ** -0.5  # as of one layer
        for weights in (self.features.weight, self.features.bias, *([] if self.cells is None else [self.cells.weight])):
            nn.init.uniform_(weights, -bound, bound)

    def forward(self, features: Tensor, cells: Tensor | None = None) -> Tensor:
        """Logits (N,)."""
        first = self.features(features)
        with _bf16():
            if self.cells is not None:
                first = first + self.cells(cells)
            hidden = self.hidden(first)
        logits: Tensor = self.output(hidden.float())
        return logits[:, 0]


class Cnn(nn.Module):
    """A residual network over the transverse plane with the layers along z as channels; periodic in phi on cylindrical grids.

    Arguments are images (N, layers, n1, n2) and `features` (N, features), which join after the mean over the plane.
    """

    def __init__(self, detector: Detector, features: int, widths: tuple[int, ...] = CNN_WIDTHS) -> None:
        super().__init__()
        periodic = detector.grid == "cylindrical"
        first, *others = widths
        blocks: list[nn.Module] = [_Convolution(detector.layers, first, 1, periodic), nn.BatchNorm2d(first), nn.ReLU()]
        for before, width in zip(widths, others, strict=False):
            blocks.append(_Residual(before, width, periodic))
        self.body = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(widths[-1] + features, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Logits (N,)."""
        with _bf16():
            found = self.body(images.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(torch.cat([found.float().mean((2, 3)), features], dim=1))
        return logits[:, 0]


class _Convolution(nn.Conv2d):
    """3 x 3 in the plane; beyond its edges are zeros, or, where the first axis is an angle, its other end."""

    def __init__(self, before: int, after: int, stride: int, periodic: bool) -> None:
        super().__init__(before, after, 3, stride, padding=(0 if periodic else 1, 1), bias=False)
        self.periodic = periodic

    def forward(self, images: Tensor) -> Tensor:
        if self.periodic:
            images = functional.pad(images, (0, 0, 1, 1), mode="circular")
        return super().forward(images)


class _Residual(nn.Module):
    """Two convolutions, the first of stride 2, and a short cut (He et al., arXiv:1512.03385)."""

    def __init__(self, before: int, after: int, periodic: bool) -> None:
        super().__init__()
        self.long = nn.Sequential(
            _Convolution(before, after, 2, periodic),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            _Convolution(after, after, 1, periodic),
            nn.BatchNorm2d(after),
        )
        self.short = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.long(images) + self.short(images))


def dnn_high(
    inputs: Inputs, labels: Labels, parts: Parts, *, seed: int, epochs: int | None, progress: Progress, width: int = DNN_WIDTH
) -> tuple[Float, Float]:
    """CaloChallenge's classifier of high-level features, which are not standardised."""
    features = _tensor(inputs.features)

    def load(rows: Labels) -> tuple[Tensor, ...]:
        return (features[rows],)

    fit = _Fit(labels, parts, epochs or DNN_EPOCHS, DNN_BATCH, DNN_RATE)
    return fit.run(lambda: Dnn(features.shape[1], width=width), load, seed, progress)


def dnn_low(
    inputs: Inputs, labels: Labels, parts: Parts, *, seed: int, epochs: int | None, progress: Progress, width: int = DNN_WIDTH
) -> tuple[Float, Float]:
    """CaloChallenge's classifier of [log10 E_inc, cells / E_inc], cells in units of the mean response of the training events.

    There the energy in silicon is divided by the sampling fraction, so that cells / E_inc sum to about one; here as well.
    """
    energy = inputs.energy.astype(np.float64)
    total = np.asarray(inputs.cells.sum(axis=1, dtype=np.float64)).ravel()
    response = float((total / energy)[parts.train].mean()) or 1.0
    scale = 1 / (energy * response)
    logarithm = _tensor(np.log10(energy)[:, None])

    def load(rows: Labels) -> tuple[Tensor, ...]:
        return logarithm[rows], _tensor(inputs.cells[rows].toarray() * scale[rows, None])

    fit = _Fit(labels, parts, epochs or DNN_EPOCHS, DNN_BATCH, DNN_RATE)
    return fit.run(lambda: Dnn(1, inputs.cells.shape[1], width), load, seed, progress)


def cnn(
    inputs: Inputs, labels: Labels, parts: Parts, *, seed: int, epochs: int | None, progress: Progress
) -> tuple[Float, Float]:
    """Residual network on log(1 + E / E_0) of every cell, E_0 being what a tenth of the lit cells does not reach.

    Incident energy and layer energies, log10 and standardised, join the features that the convolutions find.
    """
    trained = inputs.cells[parts.train]
    unit = float(np.quantile(trained.data, 0.1)) if trained.nnz else 1.0
    shape = (-1, *inputs.detector.shape)
    layers = np.repeat(np.arange(inputs.detector.layers), inputs.cells.shape[1] // inputs.detector.layers)
    sums = inputs.cells @ np.eye(inputs.detector.layers)[layers]
    known = np.log10(np.concatenate([inputs.energy[:, None].astype(np.float64), sums + unit], axis=1))
    spread: Float = known[parts.train].std(axis=0)
    features = _tensor((known - known[parts.train].mean(axis=0)) / np.where(spread > 0, spread, 1))

    def load(rows: Labels) -> tuple[Tensor, ...]:
        return _tensor(np.log1p(inputs.cells[rows].toarray() / unit).reshape(shape)), features[rows]

    fit = _Fit(labels, parts, epochs or CNN_EPOCHS, CNN_BATCH, CNN_RATE, decay=CNN_DECAY, one_cycle=True)
    return fit.run(lambda: Cnn(inputs.detector, features.shape[1]), load, seed, progress)


@dataclass(frozen=True)
class _Fit:
    """Training with cross entropy, either set counting half; kept is the epoch that tells the stopping events apart best.

    Adam, with `decay` AdamW, at a constant `rate` or with `one_cycle` up to it and down (Smith, arXiv:1803.09820).
    """

    labels: Labels
    parts: Parts
    epochs: int
    batch: int
    rate: float
    decay: float = 0.0
    one_cycle: bool = False

    def run(self, build: Callable[[], nn.Module], load: Load, seed: int, progress: Progress) -> tuple[Float, Float]:
        """Scores of the stopping and of the test events."""
        random = np.random.default_rng([seed, 15])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**63)))
            network = build()
        targets = _tensor(self.labels)
        weights = _tensor(len(self.parts.train) / (2 * np.bincount(self.labels[self.parts.train], minlength=2)))[self.labels]
        optimiser = torch.optim.AdamW(network.parameters(), self.rate, weight_decay=self.decay, fused=True)
        pieces = max(_STEPS, round(len(self.parts.train) / self.batch))
        steps = self.epochs * pieces
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, total_steps=steps) if self.one_cycle else None
        best, scores = -np.inf, (np.zeros(len(self.parts.stop)), np.zeros(len(self.parts.test)))
        for epoch in range(self.epochs):
            network.train()
            for rows in np.array_split(random.permutation(self.parts.train), pieces):
                logits = network(*load(rows))
                loss = functional.binary_cross_entropy_with_logits(logits, targets[rows], weights[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                if schedule is not None:
                    schedule.step()
            found = _scores(network, load, self.parts.stop)
            kind = self.labels[self.parts.stop]
            auc = separation(found[kind == 0], found[kind == 1]).auc
            if auc > best:
                best, scores = auc, (found, _scores(network, load, self.parts.test))
            progress(epoch + 1, self.epochs)
            if best == 1:
                break
        return scores


@torch.inference_mode()
def _scores(network: nn.Module, load: Load, rows: Labels) -> Float:
    network.eval()
    parts = [network(*load(rows[start : start + _SCORED_AT_ONCE])) for start in range(0, len(rows), _SCORED_AT_ONCE)]
    return torch.cat(parts).double().numpy()


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _bf16() -> torch.autocast:
    native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=native)
