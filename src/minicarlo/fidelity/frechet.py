"""Frechet and kernel physics distance (FPD, KPD) of high-level features, as JetNet defines them, in NumPy.

Kansal et al., arXiv:2211.10295; `jetnet.evaluation.fpd` and `.kpd` 0.2.5. With `replace=True` the arguments mean what they
mean there. JetNet draws its batches with replacement, which below its 50,000 recommended events leaves the bias of the
sample's own size in the result; `replace=False` draws each batch without, so that the extrapolation to infinite size is
unbiased (up to terms in 1/N^2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Float = NDArray[np.float64]


def frechet_distance(first: Float, second: Float) -> float:
    """|mu1 - mu2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the Gaussians with mean and covariance of two (N, K) samples."""
    gap = first.mean(axis=0) - second.mean(axis=0)
    one, two = np.atleast_2d(np.cov(first, rowvar=False)), np.atleast_2d(np.cov(second, rowvar=False))
    values, vectors = linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(linalg.eigvalsh(root @ two @ root), 0, None)).sum()  # trace of (C1 C2)^(1/2)
    return float(gap @ gap + np.trace(one) + np.trace(two) - 2 * shared)


def fpd(
    reference: Float,
    candidate: Float,
    *,
    min_samples: int = 20_000,
    max_samples: int = 50_000,
    num_batches: int = 20,
    num_points: int = 10,
    replace: bool = True,
    seed: int = 42,
) -> tuple[float, float]:
    """FPD and the error of its fit: Frechet distances of batches, linear in 1/N, extrapolated to 1/N = 0, not below zero."""
    one, two = _normalise(reference, candidate)
    sizes = (1 / np.linspace(1 / min_samples, 1 / max_samples, num_points)).astype(np.int64)
    random = np.random.default_rng(seed)
    distances = [
        np.mean(
            [
                frechet_distance(one[random.choice(len(one), size, replace)], two[random.choice(len(two), size, replace)])
                for _ in range(num_batches)
            ]
        )
        for size in sizes
    ]
    return _intercept(1 / sizes, np.array(distances))


def kpd(
    reference: Float,
    candidate: Float,
    *,
    num_batches: int = 10,
    batch_size: int = 5_000,
    replace: bool = True,
    seed: int = 42,
) -> tuple[float, float]:
    """KPD, the median over batches of the unbiased MMD^2 with kernel (x.y / K + 1)^4, and half the 16 to 84 % range."""
    one, two = _normalise(reference, candidate)
    found = []
    for batch in range(num_batches):
        random = np.random.default_rng(seed + batch * 1000)
        found.append(_mmd(one[random.choice(len(one), batch_size, replace)], two[random.choice(len(two), batch_size, replace)]))
    low, high = np.percentile(found, [16.275, 83.725])
    return float(np.median(found)), float(high - low) / 2


def _normalise(reference: Float, candidate: Float) -> tuple[Float, Float]:
    largest = np.max(np.abs(reference), axis=0)
    largest[largest == 0] = 1
    return reference / largest, candidate / largest


def _mmd(first: Float, second: Float) -> float:
    n, m = len(first), len(second)
    return _off_diagonal(first) / (n * (n - 1)) + _off_diagonal(second) / (m * (m - 1)) - 2 * float(_kernel(first, second).mean())


def _kernel(first: Float, second: Float) -> Float:
    kernel = first @ second.T
    kernel /= first.shape[1]
    kernel += 1
    kernel *= kernel
    kernel *= kernel
    return kernel


def _off_diagonal(sample: Float) -> float:
    kernel = _kernel(sample, sample)
    return float(kernel.sum() - np.trace(kernel))


def _intercept(x: Float, y: Float) -> tuple[float, float]:
    """Least squares y = a + b x with a, b >= 0; a and its standard error from the scatter, as `curve_fit` gives."""
    design = np.stack([np.ones_like(x), x], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
    if a < 0:
        a, b = 0.0, float(x @ y / (x @ x))
    elif b < 0:
        a, b = float(y.mean()), 0.0
    scatter = np.sum((y - a - b * x) ** 2) / max(len(x) - 2, 1)
    return float(a), float(np.sqrt(scatter * np.linalg.inv(design.T @ design)[0, 0]))
