"""Classifier two-sample tests: can a classifier tell the candidate from the reference?

Each is trained on three fifths of the events, stopped and calibrated on one and tested on the last; in several trainings the
fifths change places. A method is one function (`Train`). Those of `neural` need PyTorch, imported when one is asked for.
"""

from __future__ import annotations

from minicarlo.fidelity.classifiers.inputs import Inputs, Parts, Train, split
from minicarlo.fidelity.classifiers.methods import (
    CLASSIFIERS_ALPHA,
    DEFAULT,
    FEWEST,
    METHODS,
    check_classifiers,
    classifier_score,
    classify,
)
from minicarlo.fidelity.classifiers.separation import Classification, Divergence, Separation, divergence, separation

__all__ = [
    "CLASSIFIERS_ALPHA",
    "DEFAULT",
    "FEWEST",
    "METHODS",
    "Classification",
    "Divergence",
    "Inputs",
    "Parts",
    "Separation",
    "Train",
    "check_classifiers",
    "classifier_score",
    "classify",
    "divergence",
    "separation",
    "split",
]
