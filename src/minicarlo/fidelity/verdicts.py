"""What may be said of an observable: whether it differs, and how many events it takes to say so.

Distances are compared on their quadratic scale Q (`Resampled.quadratic`). Without a difference, Q of sets of n and m events
is distributed as (1/n + 1/m) times something that depends on neither: a sum of squared Gaussians, taken as a chi^2_k with
scale a from the mean and variance of the permutations, k = 2 mean^2 / variance and a = variance / (2 mean) (Satterthwaite). A
difference Q_d shifts the Gaussians: Q / a is then a non-central chi^2_k with non-centrality Q_d / a. The test compares Q^(1/3)
with c standard deviations above its mean, where c comes from the quantile of the largest score of the whole family (Westfall
and Young), in which the largest score of a kind of distance, and then of an observable, counts as far as it lies above what
chance gives it. With lambda the
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
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import chndtrinc, ndtr

from minicarlo.fidelity.distances import Float
from minicarlo.fidelity.resampling import Resampled, moments_of_others
from minicarlo.fidelity.scorecard import Headline

Key = TypeVar("Key", bound=Hashable)

POWER = 0.9
FEWEST = 50
"""Events on either side below which nothing is compared, and which no estimate goes below."""

_ONE_SIDED = 1.2816  # 90 % of a Gaussian lie above its mean less so many standard deviations
_SKEWEST = 2.0  # an exponential distribution; a few hundred permutations know no more
_STRAIGHT = 1e-3
_THRESHOLD = 4.0  # standard errors that a difference among some hundred columns must be beyond chance
_LEAST = 0.05  # of an estimated difference: it is thought to be possible, whatever the replicas say
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
    """All columns of all observables, tested together at level `alpha`. `events`: 2 n m / (n + m).

    `parts`: observable to kind of distance to its columns. Kinds count alike within an observable and observables within the
    family, whatever their number of columns (`Balance`).
    """

    parts: Mapping[str, Mapping[str, Resampled]]
    events: float
    alpha: float

    def __post_init__(self) -> None:
        self.columns: dict[str, dict[str, Float]] = {}
        """Scores of every column of every kind, on the scale of the family."""
        scores = {name: {kind: part.scores() for kind, part in kinds.items()} for name, kinds in self.parts.items()}
        every = {
            name: {kind: np.append(value.max(), null.max(axis=1)) for kind, (value, null) in kinds.items()}
            for name, kinds in scores.items()
        }
        inner = self._balance_kinds(every)
        largest = {
            name: np.max([balance(every[name][kind]) for kind, balance in kinds.items()], axis=0) for name, kinds in inner.items()
        }
        outer = balances(largest, dict.fromkeys(largest, ""))
        for name, kinds in scores.items():
            self.columns[name] = {kind: outer[name][0](inner[name][kind][0](value)) for kind, (value, _) in kinds.items()}
        self._largest = np.max([outer[name](found)[1:] for name, found in largest.items()], axis=0)
        self.p_values = {
            name: self.p_value(max(column.max() for column in kinds.values())) for name, kinds in self.columns.items()
        }
        self.critical = self._critical()

    def _balance_kinds(self, largest: Mapping[str, Mapping[str, Float]]) -> dict[str, dict[str, Balance]]:
        """A balance for the largest scores of every observable's every kind."""
        flat = {(name, kind): found for name, kinds in largest.items() for kind, found in kinds.items()}
        alike = {(name, kind): (kind, len(self.parts[name][kind].value) > 1) for name, kind in flat}
        found = balances(flat, alike)
        return {name: {kind: found[name, kind] for kind in kinds} for name, kinds in largest.items()}

    def _critical(self) -> dict[str, dict[str, float]]:
        """The score of a column of every kind above which it differs, from the permutations alone."""
        null = {
            name: {kind: part.null_scores().max(axis=1) for kind, part in kinds.items()} for name, kinds in self.parts.items()
        }
        # by all others for every permutation, and by all permutations for what stands first
        inner = self._balance_kinds(null)
        whole = self._balance_kinds(
            {name: {kind: np.append(0, one) for kind, one in kinds.items()} for name, kinds in null.items()}
        )
        largest, seen = {}, {}
        for name, kinds in null.items():
            largest[name] = np.max([inner[name][kind](found) for kind, found in kinds.items()], axis=0)
            seen[name] = np.append(0, np.max([whole[name][kind][0](found) for kind, found in kinds.items()], axis=0))
        outer = balances(largest, dict.fromkeys(largest, ""))
        all_outer = balances(seen, dict.fromkeys(seen, ""))
        critical = critical_score(np.max([outer[name](found) for name, found in largest.items()], axis=0), self.alpha)
        return {
            name: {kind: float(balance[0].inverse(all_outer[name][0].inverse(critical))) for kind, balance in kinds.items()}
            for name, kinds in whole.items()
        }

    def p_value(self, score: float) -> float:
        """Chance that anything in the family is as extreme as this score of a column (`columns`)."""
        return float((1 + np.count_nonzero(self._largest >= score)) / (1 + len(self._largest)))

    def differs(self, name: str) -> bool:
        """Whether the observable differs at level `alpha`."""
        return self.p_values[name] < self.alpha

    def needed(self, name: str, kind: str, tolerance: float) -> Float:
        """Events on either side at which a difference of `tolerance` in a column of an observable's kind is found, (C,)."""
        part = self.parts[name][kind]
        error = _ERROR_OF_NULL * part.null.mean(axis=0)
        return np.asarray(
            self.events * found_difference(part, self.critical[name][kind], error) / part.quadratic(np.array([tolerance]))
        )

    def visible_at(self, name: str) -> float:
        """Events on either side at which the estimated difference is found with `POWER`, not below `FEWEST`.

        The estimate is known to within its error only, and of many columns the largest is large by luck, too: what counts is the
        mean power over the differences that the basic bootstrap thinks possible, twice the estimate less a replica.
        """
        estimate = math.sqrt(self._strongest(name) / self.events)
        replicas = 1 / np.sqrt(self.visible_replicas(name))
        possible = np.maximum(2 * estimate - replicas, _LEAST * estimate) if len(replicas) else np.array([estimate])

        def missed(events: float) -> float:
            return float(np.mean(ndtr((_THRESHOLD + _ONE_SIDED) * possible * math.sqrt(events) - _THRESHOLD))) - POWER

        events = 1 / estimate**2
        return max(FEWEST, float(brentq(missed, events / 100, events / _LEAST**2, rtol=1e-4)))

    def visible_replicas(self, name: str) -> Float:
        """Events at which the difference of every bootstrap replica is found, (B,); it has the sample's noise and its own."""
        parts = {kind: part for kind, part in self.parts[name].items() if len(part.replicas)}
        strength = [self._strength(name, kind, part.replicas, 2).max(axis=1) for kind, part in parts.items()]
        return np.asarray(self.events / np.max(strength, axis=0)) if strength else np.empty(0)

    def _strongest(self, name: str) -> float:
        return max(float(self._strength(name, kind, part.value[None], 1).max()) for kind, part in self.parts[name].items())

    def _strength(self, name: str, kind: str, distances: Float, noise: int) -> Float:
        """Estimated difference over that which is found at these sizes, quadratic; at least a tiny number."""
        part = self.parts[name][kind]
        excess = part.quadratic(distances) - noise * part.quadratic(part.null).mean(axis=0)
        found = found_difference(part, self.critical[name][kind], part.error)
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


@dataclass(frozen=True)
class Balance:
    """Makes the largest of several scores, without a difference, nearly a standard Gaussian, from its first three moments.

    One column is then as far from chance as the largest of a thousand; in their own units, a thousand would hide the one, and
    in units of the standard deviation alone those with the longest tail all others. The distribution is taken as a shifted
    gamma (Pearson's type III), whose cube root is nearly Gaussian (Wilson and Hilferty). Each of P samples is judged by all
    others: what is far from them must not widen the scale that it is measured on.
    """

    mean: Float
    spread: Float
    skewness: Float

    def __getitem__(self, which: int | slice) -> Balance:
        return Balance(self.mean[which], self.spread[which], self.skewness[which])

    def __call__(self, scores: ArrayLike) -> Float:
        """Scores on the Gaussian's scale."""
        x = (np.asarray(scores) - self.mean) / self.spread
        skewness = np.maximum(self.skewness, _STRAIGHT)
        return np.asarray(6 / skewness * (np.cbrt(skewness * x / 2 + 1) - 1) + skewness / 6)

    def inverse(self, scores: ArrayLike) -> Float:
        """What is mapped to these scores."""
        skewness = np.maximum(self.skewness, _STRAIGHT)
        x = 2 / skewness * ((skewness / 6 * (np.asarray(scores) - skewness / 6) + 1) ** 3 - 1)
        return np.asarray(self.mean + self.spread * x)


def balances(largest: Mapping[Key, Float], alike: Mapping[Key, Hashable]) -> dict[Key, Balance]:
    """A balance for every set of samples (P,); those that are `alike` have one skewness, the median of theirs.

    A few hundred samples know a skewness to 0.2 only, which far out in the tail is much.
    """
    moments = {key: moments_of_others(samples) for key, samples in largest.items()}
    groups: dict[Hashable, list[Float]] = {}
    for key, (_, _, skewness) in moments.items():
        groups.setdefault(alike[key], []).append(skewness)
    shared = {group: np.clip(np.median(found, axis=0), 0, _SKEWEST) for group, found in groups.items()}
    return {
        key: Balance(mean, np.where(spread > 1e-12, spread, 1.0), shared[alike[key]])
        for key, (mean, spread, _) in moments.items()
    }


def headline(family: Family) -> Headline | None:
    """The fewest events at which any observable that differs shows it; None when none does.

    Its interval is the basic bootstrap's on a logarithmic scale: replicas scatter around the estimate as that does around the
    truth.
    """
    differing = [name for name in family.parts if family.differs(name)]
    if not differing:
        return None
    visible = {name: family.visible_at(name) for name in differing}
    observable = min(visible, key=lambda name: visible[name])
    events = visible[observable]
    replicas = family.visible_replicas(observable)
    quantiles = [events * float(np.median(replicas) / np.quantile(replicas, share)) for share in (0.84, 0.16)]
    low, high = max(quantiles[0], FEWEST), max(quantiles[1], FEWEST)
    worth = f"{_rounded(events)} Monte Carlo events ({_rounded(low)} to {_rounded(high)})"
    if events <= FEWEST:
        worth = f"fewer than {FEWEST} Monte Carlo events"
    words = f"the error is worth {worth}: so many show it in {observable}"
    return Headline(events=math.ceil(events), observable=observable, low=math.ceil(low), high=math.ceil(high), words=words)


def _rounded(events: float) -> str:
    """Two digits are plenty."""
    digits = max(0, math.floor(math.log10(max(events, 1))) - 1)
    return f"{round(events, -digits):,.0f}"
