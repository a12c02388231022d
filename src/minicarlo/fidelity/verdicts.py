"""What may be said of an observable: whether it differs, and how many events it takes to say so.

Distances are compared on their quadratic scale Q (`Resampled.quadratic`). Without a difference, Q of sets of n and m events
is distributed as (1/n + 1/m) times something that depends on neither: a sum of squared Gaussians, taken as a chi^2_k with
scale a from the mean and variance of the permutations, k = 2 mean^2 / variance and a = variance / (2 mean) (Satterthwaite). A
difference Q_d shifts the Gaussians: Q / a is then a non-central chi^2_k with non-centrality Q_d / a. The test compares Q^(1/3)
with c standard deviations above its mean, where c comes from the quantile of the largest score of the whole family (Westfall
and Young), in which the largest score of an observable counts in standard deviations above its own mean. With lambda the
non-centrality that exceeds this with `POWER`, the difference found with that power is

    Q_90 = a lambda,

in proportion to 1/n + 1/m. A difference Q_d is therefore found with this power by N events on either side where

    N = (2 n m / (n + m)) Q_90 / Q_d.

Distances that are sums or maxima of |difference| (power 1/2) gain less from noise than that once they exceed it: two Gaussians
moved apart by d have the Wasserstein distance |d + e|, e the error of d. For them Q_90 is at least d^2 where the mean of a
folded Gaussian |d + g|, with g as wide as the mean of the permutations says, lies 1.28 e above what the test asks for. e is the
bootstrap error, or, of a difference that is only supposed, 0.8 times the mean of the permutations (as for two Gaussians).

`visible_at` puts in the estimate Q_d = Q - mean of the permutations, `needed` the tolerance. An observable has several
columns (distances, layers, bins of energy); the first that shows it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chndtrinc, ndtr

from minicarlo.fidelity.distances import Float
from minicarlo.fidelity.resampling import Resampled
from minicarlo.fidelity.scorecard import Headline

POWER = 0.9
FEWEST = 50
"""Events on either side below which nothing is compared, and which no estimate goes below."""

_ONE_SIDED = 1.2816  # 90 % of a Gaussian lie above its mean less so many standard deviations
_ERROR_OF_NULL = 0.8  # standard error of the mean over the mean Wasserstein distance of two samples of a Gaussian

WASSERSTEIN = "wasserstein"
TOLERANCES: dict[str, float] = {
    WASSERSTEIN: 0.1,
    "linearity": 0.01,
    "resolution": 0.1,
    "longitudinal_profile": 0.02,
    "lateral_profile": 0.02,
    "correlation": 0.05,
}
"""Differences that should be found: in any observable a Wasserstein distance, in standard deviations; deviations of others."""


@dataclass
class Family:
    """All columns of all observables, tested together at level `alpha`. `events`: 2 n m / (n + m)."""

    parts: Mapping[str, Sequence[Resampled]]
    events: float
    alpha: float

    def __post_init__(self) -> None:
        scores = {name: joined_scores(parts) for name, parts in self.parts.items()}
        self._level = {name: level_of(np.vstack([value, null])) for name, (value, null) in scores.items()}
        balanced: dict[str, tuple[Float, Float]] = {}
        for name, (value, null) in scores.items():
            mean, spread = self._level[name]
            balanced[name] = (value - mean) / spread, (null - mean) / spread
        self.p_values = family_p_values(balanced)
        self._largest = np.max([null.max(axis=1) for _, null in balanced.values()], axis=0)
        critical = critical_score(self._largest, self.alpha)
        levels = {name: level_of(null) for name, (_, null) in scores.items()}
        self.critical = {name: mean + spread * critical for name, (mean, spread) in levels.items()}

    def p_value(self, name: str, score: float) -> float:
        """Chance that anything in the family is as extreme as this score of a column of an observable."""
        mean, spread = self._level[name]
        return float((1 + np.count_nonzero(self._largest >= (score - mean) / spread)) / (1 + len(self._largest)))

    def differs(self, name: str) -> bool:
        """Whether the observable differs at level `alpha`."""
        return self.p_values[name] < self.alpha

    def needed(self, name: str, part: Resampled, tolerance: float) -> Float:
        """Events on either side at which a difference of `tolerance` in a column of an observable's part is found, (C,)."""
        error = _ERROR_OF_NULL * part.null.mean(axis=0)
        return np.asarray(
            self.events * found_difference(part, self.critical[name], error) / part.quadratic(np.array([tolerance]))
        )

    def visible_at(self, name: str) -> float:
        """Events on either side at which the estimated difference is found, not below `FEWEST`; infinite without one."""
        return max(FEWEST, self.events / self.strength(name))

    def strength(self, name: str) -> float:
        """The estimated difference over that which is found at these sizes, on the quadratic scale."""
        return max(float(self._strength(name, part, part.value[None], 1).max()) for part in self.parts[name])

    def visible_replicas(self, name: str) -> Float:
        """`visible_at` of every bootstrap replica, whose distances have the noise of the sample and their own, (B,)."""
        strength = [self._strength(name, part, part.replicas, 2).max(axis=1) for part in self.parts[name] if len(part.replicas)]
        return np.asarray(np.maximum(self.events / np.max(strength, axis=0), FEWEST))

    def _strength(self, name: str, part: Resampled, distances: Float, noise: int) -> Float:
        """Estimated difference over that which is found at these sizes; at least a tiny number."""
        excess = part.quadratic(distances) - noise * part.quadratic(part.null).mean(axis=0)
        found = found_difference(part, self.critical[name], part.error)
        return np.asarray(np.maximum(np.divide(excess, found, out=np.zeros_like(excess), where=np.isfinite(found)), 1e-9))


def found_difference(part: Resampled, critical: float, error: Float) -> Float:
    """Q_90 of every column, (C,): the quadratic distance, beyond chance, found with `POWER`; infinite for a constant column.

    `error` (C,): of a difference, in the unit of the distance.
    """
    null = part.quadratic(part.null)
    mean, variance = null.mean(axis=0), null.var(axis=0)
    root = null ** (1 / 3)
    threshold = (root.mean(axis=0) + critical * root.std(axis=0)) ** 3
    usable = variance > 1e-24 * np.maximum(mean, 1e-300) ** 2
    found = np.full(mean.shape, np.inf)
    a = variance[usable] / (2 * mean[usable])
    found[usable] = a * chndtrinc(threshold[usable] / a, mean[usable] / a, 1 - POWER)
    if part.power < 1:
        seen = unfold(threshold**part.power + _ONE_SIDED * error, part.null.mean(axis=0))
        found[usable] = np.maximum(found, part.quadratic(seen))[usable]
    return found


def unfold(distance: Float, chance: Float) -> Float:
    """The d for which |d + g| has the mean `distance`, g Gaussian and the mean of |g| `chance`; zero if there is none."""
    width = np.maximum(chance, 1e-300) * math.sqrt(math.pi / 2)
    low, high = np.zeros_like(distance), distance.copy()
    for _ in range(50):
        x = (low + high) / 2 / width
        mean = width * (math.sqrt(2 / math.pi) * np.exp(-x * x / 2) + x * (2 * ndtr(x) - 1))
        low, high = np.where(mean < distance, x * width, low), np.where(mean < distance, high, x * width)
    return np.asarray(low)


def critical_score(largest: Float, alpha: float) -> float:
    """The score above which p < alpha, from the largest scores of the permutations (P,)."""
    allowed = math.ceil(alpha * (1 + len(largest))) - 2  # so many permutations may score as high
    return float(np.sort(largest)[::-1][max(allowed, 0)])


def family_p_values(scores: Mapping[str, tuple[Float, Float]]) -> dict[str, float]:
    """Permutation p-value of each member, adjusted for the number of members (Westfall and Young, single-step max-T).

    `scores`: name to scores of the value (C,) and of the permutations (P, C). The largest column stands for the member. The
    chance that any member of two samples of one population falls below p is p.
    """
    largest = np.max([null.max(axis=1) for _, null in scores.values()], axis=0)
    return {
        name: float((1 + np.count_nonzero(largest >= value.max())) / (1 + len(largest))) for name, (value, _) in scores.items()
    }


def level_of(scores: Float) -> tuple[float, float]:
    """Mean and standard deviation of the largest of an observable's scores (B, C).

    In these units one column is as far from chance as the largest of a thousand; in their own, a thousand would hide the one.
    """
    largest = scores.max(axis=1)
    return float(largest.mean()), float(largest.std()) or 1.0


def joined_scores(parts: Sequence[Resampled]) -> tuple[Float, Float]:
    """Scores of all columns of several distances."""
    both = [part.scores() for part in parts]
    return np.concatenate([value for value, _ in both]), np.concatenate([null for _, null in both], axis=1)


def headline(family: Family) -> Headline | None:
    """The fewest events at which any observable that differs shows it; None when none does.

    Its interval is the basic bootstrap's on a logarithmic scale: replicas scatter around the estimate, and choose among
    observables, as the estimate does around the truth.
    """
    differing = [name for name in family.parts if family.differs(name)]
    if not differing:
        return None
    observable = max(differing, key=family.strength)
    events = family.visible_at(observable)
    replicas = np.min([family.visible_replicas(name) for name in differing], axis=0)
    low, high = (events**2 / np.quantile(replicas, share) for share in (0.84, 0.16))
    low, high = max(min(low, events), FEWEST), max(high, events)
    worth = f"{_rounded(events)} Monte Carlo events ({_rounded(low)} to {_rounded(high)})"
    if events <= FEWEST:
        worth = f"fewer than {FEWEST} Monte Carlo events"
    words = f"the error is worth {worth}: so many show it in {observable}"
    return Headline(events=math.ceil(events), observable=observable, low=math.ceil(low), high=math.ceil(high), words=words)


def _rounded(events: float) -> str:
    """Two digits are plenty."""
    digits = max(0, math.floor(math.log10(max(events, 1))) - 1)
    return f"{round(events, -digits):,.0f}"
