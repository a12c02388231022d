"""Looks at the generator while it trains: a few numbers for the log and a plot against the validation showers."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minicarlo.files import atomic_path
from minicarlo.generators.base import Generator
from minicarlo.training.showers import Showers

__all__ = ["Monitor"]

matplotlib.use("agg")


class Monitor:
    """Compares the generator with fixed validation showers, at their energies and with the same latents every time."""

    def __init__(self, run: Path, validation: Showers, device: torch.device) -> None:
        self.folder = run / "plots"
        self.folder.mkdir(exist_ok=True)
        self.validation, self.device = validation, device
        self.lateral = 3 if validation.detector.grid == "cylindrical" else 2  # the axis of the lateral profile: r or x
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def generate(self, generator: Generator) -> Tensor:
        random = torch.Generator().manual_seed(7)
        latent = torch.randn(len(self.validation), generator.latent_size, generator=random)
        parts = zip(latent.split(100), self.validation.incident_energy.split(100), strict=True)
        return torch.cat([generator(z.to(self.device), e.to(self.device)).cpu() for z, e in parts])

    def check(self, generator: Generator, step: int) -> dict[str, float]:
        """Relative errors of response, resolution, profiles and occupancy; writes `plots/step-NNNNNN.png`."""
        made = self.generate(generator).numpy()
        true = self.validation.energy.numpy()
        true = np.where(true > generator.threshold_mev, true, 0)
        incident = self.validation.incident_energy.numpy()[:, 0]
        response = [(x.sum((1, 2, 3)) / incident) for x in (true, made)]
        longitudinal = [x.mean((0, 2, 3)) for x in (true, made)]
        lateral = [x.mean((0, 1, 5 - self.lateral)) for x in (true, made)]
        hits = [(x > 0).sum((1, 2, 3)) for x in (true, made)]
        result = {
            "response": float(response[1].mean() / response[0].mean() - 1),
            "resolution": float(response[1].std() / response[0].std() - 1),
            "longitudinal profile": relative_error(*longitudinal),
            "lateral profile": relative_error(*lateral),
            "hits": float(hits[1].mean() / hits[0].mean() - 1),
            "spread of hits": float(hits[1].std() / hits[0].std() - 1),
        }
        self.plot(step, response, longitudinal, lateral, hits, [true, made])
        return result

    def plot(self, step: int, response: list, longitudinal: list, lateral: list, hits: list, showers: list) -> None:  # type: ignore[type-arg]
        figure = Figure(figsize=(13, 7), layout="constrained")
        axes = figure.subplots(2, 3).flatten()
        names, colours = ("Monte Carlo", f"generator, step {step}"), ("0.35", "#D55E00")
        cells_of_event = showers[0][0].size
        for axis, profiles in zip(axes, (longitudinal, lateral), strict=False):
            for values, name, colour in zip(profiles, names, colours, strict=True):
                axis.step(np.arange(len(values)), values * cells_of_event / len(values), where="mid", color=colour, label=name)
        histogram(axes[2], response, np.linspace(0, 2 * float(np.mean(response[0])), 60), colours)
        histogram(axes[3], hits, np.linspace(0, 1.3 * float(np.max(hits[0])), 60), colours)
        cells = [np.log10(x[x > 0]) for x in showers]
        histogram(axes[4], cells, np.linspace(float(cells[0].min()), float(cells[0].max()) + 0.2, 60), colours)
        top = [x.max((1, 2, 3)) for x in showers]
        histogram(axes[5], top, np.linspace(0, 1.2 * float(np.max(top[0])), 60), colours)
        labels = (
            "layer",
            f"cell along {self.validation.detector.axes[self.lateral - 1]}",
            "visible / incident energy",
            "cells hit",
            "log10(cell energy / MeV)",
            "largest cell / MeV",
        )
        for axis, label, log in zip(axes, labels, (False, True, False, True, True, True), strict=True):
            axis.set_xlabel(label)
            if log:
                axis.set_yscale("log")
        axes[0].set_ylabel("mean energy / MeV")
        axes[1].set_ylabel("mean energy / MeV")
        axes[0].legend(frameon=False)
        with atomic_path(self.folder / f"step-{step:06d}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=80)


def relative_error(true: np.ndarray, made: np.ndarray) -> float:
    """Mean absolute difference of two profiles where there is energy, relative to the true one."""
    busy = true > 0.01 * true.max()
    return float(np.abs(made[busy] / true[busy] - 1).mean())


def histogram(axis: matplotlib.axes.Axes, values: list, edges: np.ndarray, colours: tuple[str, str]) -> None:  # type: ignore[type-arg]
    for value, colour in zip(values, colours, strict=True):
        axis.hist(value, bins=list(edges), histtype="step", color=colour)
