"""What "no loss" means for any network: how far a candidate's outputs are from the reference's on the same inputs.

Every figure is a function of means over events, so that a bootstrap over events is one matrix product; resampling draws the same
events from both (a paired bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, ch. 8). Each output is compared by
itself and the worst one counts.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from minicarlo.engines.network import Arrays
from minicarlo.errors import TuningError
from minicarlo.precision.criterion import Comparison, Summary, bootstrap_weights, compared

Array = NDArray[np.float64]
UserFunction = Callable[[Arrays, Arrays, Arrays], Any]
"""(reference outputs, candidate outputs, inputs), each name to (N, ...), to N losses of events or one number; 0 is no loss."""

_ELEMENTS = 64
"""Outputs of at most so many elements are compared element by element by `wasserstein`, larger ones with all values together."""
_GRID = 256


@dataclass(frozen=True)
class Loss(ABC):
    """A criterion for outputs as they are; one subclass per figure."""

    confidence: float = 0.95
    replicas: int = 300
    seed: int = 0
    name: ClassVar[str]
    description: ClassVar[str]

    def reduce(self, outputs: Arrays, inputs: Arrays) -> Summary:
        """See Criterion: outputs and inputs themselves."""
        return Summary(inputs, outputs)

    def compare_summaries(self, reference: Summary, candidate: Summary) -> Comparison:
        """See Criterion."""
        weights = bootstrap_weights(len(reference), self.replicas, self.seed)
        families = {}
        for output, true in reference.rows.items():
            with np.errstate(all="ignore"):  # what is not finite never passes
                terms = self.terms(_flat(true), _flat(candidate.rows[output]))
                families[output] = self.figure(weights @ terms)
        return compared(np.max(list(families.values()), axis=0), families, self.confidence)

    def floor(self, first: Summary, second: Summary) -> float | None:
        """See Criterion: none, because events are compared one by one."""
        return None

    @abstractmethod
    def terms(self, reference: Array, candidate: Array) -> Array:
        """(N, k) numbers of each event from outputs (N, elements)."""

    def figure(self, means: Array) -> Array:
        """(replicas + 1,) figures from means of the terms (replicas + 1, k)."""
        return means[:, 0]


@dataclass(frozen=True)
class RelativeL2(Loss):
    """Square root of the summed squares of the changes over those of the reference."""

    name = "relative-l2"
    description = "size of the change over the size of the reference, in the L2 norm over all events"

    def terms(self, reference: Array, candidate: Array) -> Array:
        """See Loss."""
        return np.stack([((candidate - reference) ** 2).sum(1), (reference**2).sum(1)], 1)

    def figure(self, means: Array) -> Array:
        """See Loss."""
        return np.sqrt(_ratio(means[:, 0], means[:, 1]))


@dataclass(frozen=True)
class MaxError(Loss):
    """Mean over events of the largest change of an element, in units of the largest element of the reference."""

    name = "max-error"
    description = "largest change of an element of an event, over the largest element of the reference, mean over events"

    def terms(self, reference: Array, candidate: Array) -> Array:
        """See Loss."""
        return _ratio(np.abs(candidate - reference).max(1), np.abs(reference).max())[:, None]


@dataclass(frozen=True)
class Cosine(Loss):
    """Mean over events of one minus the cosine of the angle between the two outputs."""

    name = "cosine"
    description = "one minus the cosine between the two outputs of an event, mean over events"

    def terms(self, reference: Array, candidate: Array) -> Array:
        """See Loss."""
        norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1)
        same = np.all(reference == candidate, axis=1)
        return np.where(
            same, 0.0, 1 - np.divide((reference * candidate).sum(1), norms, out=np.zeros_like(norms), where=norms > 0)
        )[:, None]


@dataclass(frozen=True)
class Wasserstein(Loss):
    """First Wasserstein distance between the distributions over events, in standard deviations of the reference.

    W1 is the integral of the distance between the two distribution functions, taken on a grid: quantiles of the reference, and
    equal steps from the lowest to the highest value of both.
    Outputs of few elements: mean over elements of each one's distance; others: all elements together.
    """

    name = "wasserstein"
    description = "Wasserstein distance between the distributions of an output's values, in standard deviations"

    def terms(self, reference: Array, candidate: Array) -> Array:
        """See Loss."""
        count, elements = reference.shape
        if not np.all(np.isfinite(candidate)):
            return np.full((count, 1), np.nan)
        columns = np.arange(elements).reshape((-1, 1) if elements <= _ELEMENTS else (1, -1))
        parts = []
        for column in columns:
            true, made = (values[:, column] for values in (reference, candidate))
            spread = np.std(true) or np.abs(true).max() or 1.0
            ends = (min(true.min(), made.min()), max(true.max(), made.max()))
            number = _GRID // (1 if len(columns) == 1 else 4)
            edges = np.unique(np.concatenate([np.quantile(true, np.linspace(0, 1, number)), np.linspace(*ends, number)]))
            middles = (edges[1:] + edges[:-1]) / 2
            below = (_below(made, middles) - _below(true, middles)) / true.shape[1]
            parts.append(below * np.diff(edges) / (spread * len(columns)))
        return np.concatenate(parts, 1)

    def figure(self, means: Array) -> Array:
        """See Loss."""
        total: Array = np.abs(means).sum(1)
        return total

    def floor(self, first: Summary, second: Summary) -> float:
        """See Criterion."""
        length = min(len(first), len(second))
        return self.compare_summaries(first[:length], second[:length]).value


@dataclass(frozen=True)
class Accuracy(Loss):
    """Share of decisions that change: where the largest entry along axis 1 (the classes) is another one."""

    name = "accuracy"
    description = "share of top-1 decisions that change (classes along axis 1)"

    def compare_summaries(self, reference: Summary, candidate: Summary) -> Comparison:
        """See Criterion. With one decision an event the interval is that of Clopper and Pearson: zero of N is not certainty."""
        changed = {output: self._changed(output, true, candidate.rows[output]) for output, true in reference.rows.items()}
        if any(each.shape[1] > 1 for each in changed.values()):
            weights = bootstrap_weights(len(reference), self.replicas, self.seed)
            families = {output: weights @ each.mean(1) for output, each in changed.items()}
            return compared(np.max(list(families.values()), axis=0), families, self.confidence)
        count, tail = len(reference), (1 - self.confidence) / 2
        numbers = {output: int(each.sum()) for output, each in changed.items()}
        most = max(numbers.values())
        low = float(beta.ppf(tail, most, count - most + 1)) if most else 0.0
        high = float(beta.ppf(1 - tail, most + 1, count - most)) if most < count else 1.0
        return Comparison(most / count, low, high, {output: number / count for output, number in numbers.items()})

    def _changed(self, output: str, reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.bool_]:
        if reference.ndim < 2 or reference.shape[1] < 2:
            raise TuningError(
                f"The criterion accuracy needs classes along axis 1; output {output!r:.80} has the shape {reference.shape[1:]} "
                "per event. Choose relative-l2, or give a function of your own."
            )
        broken = ~np.isfinite(candidate).all(1)
        changed: NDArray[np.bool_] = (reference.argmax(1) != candidate.argmax(1)) | broken
        return changed.reshape(len(reference), -1)

    def terms(self, reference: Array, candidate: Array) -> Array:
        """Not used: decisions need the shape of the output."""
        raise NotImplementedError


@dataclass(frozen=True)
class UserLoss:
    """The user's own function. One that gives a number for all events is called again for each bootstrap replica."""

    function: UserFunction
    name: str
    confidence: float = 0.95
    seed: int = 0
    replicas: int = 100
    description: str = field(default="a function of the user's own", init=False)

    def reduce(self, outputs: Arrays, inputs: Arrays) -> Summary:
        """See Criterion."""
        return Summary(inputs, outputs)

    def floor(self, first: Summary, second: Summary) -> float | None:
        """See Criterion."""
        return None

    def compare_summaries(self, reference: Summary, candidate: Summary) -> Comparison:
        """See Criterion."""
        count = len(reference)
        losses = self._called(reference, candidate)
        if losses.ndim:
            figure = bootstrap_weights(count, 300, self.seed) @ losses
        else:
            random = np.random.default_rng([self.seed, count])
            drawn = [random.integers(count, size=count) for _ in range(self.replicas)]
            figure = np.array([losses, *(self._called(reference[part], candidate[part]) for part in drawn)])
        return compared(figure, {self.name: figure}, self.confidence)

    def _called(self, reference: Summary, candidate: Summary) -> Array:
        made = np.asarray(self.function(reference.rows, candidate.rows, reference.inputs), np.float64)
        if made.shape not in ((), (len(reference),)):
            raise TuningError(
                f"The criterion {self.name} gave an array of shape {made.shape} for {len(reference)} events; "
                "one loss for each event, or one number, is right."
            )
        return made


LOSSES: dict[str, type[Loss]] = {each.name: each for each in (RelativeL2, MaxError, Cosine, Wasserstein, Accuracy)}


def get_loss(name: str | UserFunction, *, confidence: float, seed: int) -> Loss | UserLoss:
    """The criterion of that name, or one from a function, or from "module:function". Raises TuningError.

    A module is imported, from the working directory too: give only code that you would run.
    """
    if not 0.5 <= confidence < 1:
        raise TuningError(f"The confidence must be at least 0.5 and below 1, not {confidence:g}; 0.95 is usual.")
    if not isinstance(name, str):
        module = getattr(name, "__module__", "")
        return UserLoss(name, f"{module}:{getattr(name, '__qualname__', type(name).__name__)}", confidence, seed)
    if ":" in name:
        return UserLoss(_imported(name), name, confidence, seed)
    if name not in LOSSES:
        raise TuningError(
            f"Criterion {name!r:.40} is unknown for a network that is no surrogate; choose among {', '.join(LOSSES)}, "
            "or name a function of your own as module:function."
        )
    return LOSSES[name](confidence=confidence, seed=seed)


def source_of(criterion: Loss | UserLoss) -> str:
    """What tells one criterion from another: its name, and the text of a user's function where there is one."""
    if isinstance(criterion, UserLoss):
        try:
            return criterion.name + inspect.getsource(criterion.function)
        except (OSError, TypeError):
            return criterion.name
    return criterion.name


def _imported(name: str) -> UserFunction:
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise TuningError(f"Criterion {name!r:.80} cannot be imported: {error}. It must be module:function.") from error
    if not callable(found):
        raise TuningError(f"Criterion {name!r:.80} is a {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


def _flat(values: NDArray[Any]) -> Array:
    return values.reshape(len(values), -1).astype(np.float64)


def _ratio(above: Array, below: Array | float) -> Array:
    """Quotient; where there is nothing below, zero if there is nothing above and one if there is something."""
    below = np.broadcast_to(below, above.shape)
    result: Array = np.divide(above, below, out=(above > 0).astype(np.float64), where=below > 0)
    return np.where(np.isfinite(above), result, np.nan)


def _below(values: Array, points: Array) -> Array:
    """(N, points) numbers of the values of each event that are at most each point."""
    place = np.searchsorted(points, values) + np.arange(len(values))[:, None] * (len(points) + 1)
    counts = np.bincount(place.ravel(), minlength=len(values) * (len(points) + 1)).reshape(len(values), -1)
    return np.cumsum(counts, 1)[:, :-1].astype(np.float64)
