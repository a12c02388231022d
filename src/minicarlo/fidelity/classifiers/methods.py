"""Train, test and score a classifier by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from minicarlo.errors import InvalidConfig, MissingExtra
from minicarlo.fidelity.classifiers import quick
from minicarlo.fidelity.classifiers.inputs import FIFTHS, Float, Inputs, Labels, Progress, Train, split
from minicarlo.fidelity.classifiers.separation import Classification, Fold, divergence, separation
from minicarlo.fidelity.observables import Measured
from minicarlo.fidelity.scorecard import DIFFERS, INDISTINGUISHABLE, NOT_ENOUGH, ClassifierScore, ClassifierSeed, Verdict

FEWEST = 250
"""Events needed on either side."""
TOLERANCE = 0.1
"""An area this much above 1/2 must be found with 90 % power, else there are too few events to speak of no difference."""
CLASSIFIERS_ALPHA = 0.02
"""Chance of a false alarm of any classifier; each of k has a k-th of it."""


@dataclass(frozen=True)
class Method:
    """How to get a method's function, and how often it is trained by default."""

    load: Callable[[], Train]
    seeds: int


def _neural(name: str) -> Train:
    try:
        from minicarlo.fidelity.classifiers import neural
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise MissingExtra(
            "The classifiers dnn-high, low and cnn need PyTorch, which is not installed. Install it with "
            "pip install 'minicarlo[train]', or choose from high, trees."
        ) from None
    methods: dict[str, Train] = {"dnn-high": neural.dnn_high, "low": neural.dnn_low, "cnn": neural.cnn}
    return methods[name]


METHODS: dict[str, Method] = {
    "high": Method(lambda: quick.network, 3),
    "trees": Method(lambda: quick.trees, 3),
    "dnn-high": Method(lambda: _neural("dnn-high"), 1),
    "low": Method(lambda: _neural("low"), 1),
    "cnn": Method(lambda: _neural("cnn"), 1),
}
DEFAULT = ("high", "trees")
"""What `validate` trains unless told otherwise: those that need no PyTorch and take seconds."""


def check_classifiers(names: Iterable[str], seeds: int | None = None) -> None:
    """Raise InvalidConfig for an unknown name or an impossible number of trainings, MissingExtra where PyTorch is needed."""
    for name in names:
        if name not in METHODS:
            raise InvalidConfig(f"Unknown classifier {name!r:.80}: choose from {', '.join(METHODS)}.")
        METHODS[name].load()
    if seeds is not None and not 1 <= seeds <= FIFTHS:
        raise InvalidConfig(f"{seeds} trainings of a classifier are impossible: give 1 to {FIFTHS}.")


def classify(
    method: str,
    reference: Measured,
    candidate: Measured,
    *,
    seed: int = 0,
    seeds: int | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> Classification:
    """Train `method` (a key of METHODS) on both sets and test it on events held out.

    Events of equal incident energy (as when the candidate was generated at the reference's) stay together, or a classifier could
    learn from one of a pair what the other is.

    Arguments:
        seed: of splits, first weights and batches; the same call gives the same numbers on one machine.
        seeds: trainings, 1 to 5, tested on different fifths of the events; default the method's own, 3 or 1.
        epochs: passes over the training events (for trees: trees at most); default the method's own.
        progress: called with (done, total).

    Raises InvalidConfig for an unknown method or impossible number, MissingExtra without PyTorch where that is needed.
    """
    check_classifiers([method], seeds)
    train, count = METHODS[method].load(), seeds or METHODS[method].seeds
    inputs = Inputs.of(reference, candidate)
    labels = np.repeat([0, 1], [len(reference), len(candidate)])
    folds = []
    for fold in range(count):

        def report(done: int, total: int, fold: int = fold) -> None:
            if progress is not None:
                progress(fold * total + done, count * total)

        parts = split(inputs.energy.astype(np.float64), fold, seed)
        stopped, tested = train(inputs, labels, parts, seed=seed * FIFTHS + fold, epochs=epochs, progress=report)
        folds.append(_fold(stopped, labels[parts.stop], tested, labels[parts.test]))
    return Classification(tuple(folds))


def classifier_score(
    method: str,
    reference: Measured,
    candidate: Measured,
    *,
    alpha: float,
    seed: int = 0,
    seeds: int | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> ClassifierScore | None:
    """`classify`, its floor from two halves of the reference, and a verdict at `alpha`; None below `FEWEST` events."""
    if min(len(reference), len(candidate)) < FEWEST:
        return None

    def part(low: int) -> Progress:
        return lambda done, total: progress(low * total + done, 2 * total) if progress is not None else None

    found = classify(method, reference, candidate, seed=seed, seeds=seeds, epochs=epochs, progress=part(0))
    order = np.random.default_rng([seed, 12]).permutation(len(reference))
    first, second = (reference[rows] for rows in np.array_split(order, 2))
    floor = classify(method, first, second, seed=seed, seeds=seeds, epochs=epochs, progress=part(1))
    shown = found.folds[0]
    edges = _edges(np.concatenate([shown.reference_scores, shown.candidate_scores]))
    return ClassifierScore(
        auc=found.auc,
        error=found.error,
        floor=floor.auc,
        p_value=found.p_value,
        verdict=_verdict(found, alpha),
        edges=edges.tolist(),
        reference=np.histogram(shown.reference_scores, edges)[0].tolist(),
        candidate=np.histogram(shown.candidate_scores, edges)[0].tolist(),
        jsd=found.jsd,
        jsd_error=found.jsd_error,
        jsd_floor=floor.jsd,
        seeds=[ClassifierSeed(auc=fold.separation.auc, jsd=fold.divergence.jsd) for fold in found.folds],
        spread=found.spread,
    )


def _fold(stopped: Float, stop_labels: Labels, tested: Float, labels: Labels) -> Fold:
    reference, candidate = tested[labels == 0], tested[labels == 1]
    return Fold(separation(reference, candidate), divergence(tested, labels, stopped, stop_labels), reference, candidate)


def _verdict(found: Classification, alpha: float) -> Verdict:
    if found.p_value < alpha:
        return DIFFERS
    return INDISTINGUISHABLE if (norm.isf(alpha) + norm.isf(0.1)) * found.null_error < TOLERANCE else NOT_ENOUGH


def _edges(scores: Float) -> Float:
    low, high = scores.min(), scores.max()
    return np.linspace(low, high if high > low else low + 1, 41)
