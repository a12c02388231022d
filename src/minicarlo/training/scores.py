"""Proper scoring rules: losses whose minimum is the true conditional distribution, without a discriminator.

For two generated samples x, x' and one Monte Carlo sample y under the same condition, the fair energy score
`(|x - y| + |x' - y|) / 2 - |x - x'| / 2` has its least expectation when x follows the distribution of y
(Gneiting and Raftery, J. Am. Stat. Assoc. 102 (2007) 359, eqs. 20 to 22). Applied to single numbers it is the continuous ranked
probability score; applied to sums, moments and patches of a shower it makes the generator learn how cells go together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "FAR",
    "TAIL",
    "Balance",
    "Standardisation",
    "Whitening",
    "energy_score",
    "layer_energy_features",
    "ranked_probability_score",
    "squared_bias",
    "tails",
    "warm_up_and_cosine",
]

BIAS_WEIGHT = 20.0  # of biases, beside some thirty groups that weigh about one each
TAIL, FAR = 3.0, 6.0  # in units of `Standardisation`, where a normal number's spread is 1.9; one in nine is beyond the first

GROUP_WEIGHTS = {
    "cells": 2.0,
    "rare cells": 1.0,
    "spectra of layers": 1.0,
    "spectra of rings": 1.0,
    "patches": 1.0,
    "hits": 0.5,
    "hits in layers": 0.5,
    "moments": 0.5,
    "moments of layers": 1.0,
    "ring shares": 0.5,
    "pairs": 1.0,
    "sectors": 0.5,
    "sector shares": 0.5,
    "hits in sectors": 0.5,
    "frames": 0.5,
    "hits in frames": 0.5,
    "total": 2.0,
    "features": 1.0,
    "white vector": 1.0,
    "white projections": 0.5,
    "white": 0.5,
    "tails": 1.0,
    "far tails": 1.0,
    "white tails": 0.5,
    "weak": 1.0,
    "weak vector": 1.0,
    "weak projections": 0.5,
    "hit": 1.0,
    "hit vector": 1.0,
    "summary": 1.0,
    "summary projections": 1.0,
    "white summary": 1.0,
    "critic": 2.0,
    "critic features": 1.0,
}


def ranked_probability_score(first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """Mean fair continuous ranked probability score of two samples (N, K) against the truth (N, K)."""
    return ((first - truth).abs() + (second - truth).abs() - (first - second).abs()).mean() / 2


def energy_score(first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """Mean fair energy score over the last axis of (N, ..., K) tensors."""
    near = distance(first, truth) + distance(second, truth)
    return (near - distance(first, second)).mean() / 2


def squared_bias(generated: Tensor, truth: Tensor) -> Tensor:
    """Squared difference of means, in squared standard deviations; unbiased, as the product of what two halves of events have.

    Arguments:
        generated: (2, N, K), two samples.
        truth: (N, K).
    """
    difference = (generated.mean(0) - truth) / (truth.std(0) + 0.1)
    first, second = difference.split([len(truth) // 2, len(truth) - len(truth) // 2])
    result: Tensor = (first.mean(0) * second.mean(0)).mean()
    return result


def tails(standard: Tensor, beyond: float) -> Tensor:
    """What standardised numbers have beyond a number on either side: scored alone, rare events weigh more, and the score remains
    proper (threshold-weighted: T. Gneiting and R. Ranjan, J. Bus. Econ. Stat. 29 (2011) 411)."""
    return standard - standard.clamp(-beyond, beyond)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt((a - b).square().sum(-1) + 1e-8)


def layer_energy_features(root: Tensor) -> Tensor:
    """What physicists look at in layer energies.

    Arguments:
        root: (N, layers) layer energies in the scale in which they are learned (`Shower2D.layer_roots`).

    Returns:
        (N, 2 + 3 layers): total, centre of energy in layers, roots, roots of the running sums, energies.
    """
    energy = root.square()
    running = energy.cumsum(1)
    total = running[:, -1:]
    layer = torch.arange(energy.shape[1], dtype=energy.dtype, device=energy.device)
    centre = (energy * layer).sum(1, keepdim=True) / (total + 1)
    return torch.cat([total, centre, root, torch.sqrt(running + 1e-3), energy], dim=1)


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
    """Standardised numbers without correlation.

    Without it the scores see the few directions in which all numbers move together, and miss the correlations of the others.
    Directions with less than `least` of a standardised number's variance are not blown up further: a layer may never see
    energy.

    Arguments:
        values, features: as of `Standardisation`.
    """

    def __init__(self, values: Tensor, features: Tensor, least: float = 1e-4) -> None:
        self.standardisation = Standardisation(values, features)
        variances, vectors = torch.linalg.eigh(torch.cov(self.standardisation(values, features).double().T))
        self.matrix = (vectors / torch.sqrt(variances.clamp_min(least))).float()

    def __call__(self, values: Tensor, features: Tensor) -> Tensor:
        result: Tensor = self.standardisation(values, features) @ self.matrix.to(values)
        return result


def with_constant(features: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(features[:, :1]), features], dim=1)


class Balance:
    """Adds up groups of losses, each divided by its own running mean, so that no group's unit or size decides its weight.

    `GROUP_WEIGHTS` states the exceptions. Biases, squared differences of means, vanish in the end and count `bias_weight` times
    as they are. `running` is the state: a number per group, on the losses' device.
    """

    def __init__(self, bias_weight: float = BIAS_WEIGHT) -> None:
        self.bias_weight = bias_weight
        self.running: dict[str, Tensor] = {}

    def __call__(self, losses: dict[str, Tensor]) -> Tensor:
        total = torch.zeros_like(next(iter(losses.values())))
        for name, loss in losses.items():
            if name.startswith("bias"):
                total = total + self.bias_weight * loss if self.bias_weight else total
                continue
            value = loss.detach().clamp_min(1e-6)
            self.running[name] = value if name not in self.running else 0.99 * self.running[name] + 0.01 * value
            total = total + loss * (GROUP_WEIGHTS.get(name, 0.3) / self.running[name])
        return total


def warm_up_and_cosine(step: int, length: int) -> float:
    """Learning-rate factor: linear over the first 300 steps, then a cosine to 1 % at the end."""
    progress = step / max(1, length)
    return min(1.0, (step + 1) / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
