"""How close generated events are to the Monte Carlo: observables, distances, classifiers, one scorecard."""

from __future__ import annotations

from minicarlo.fidelity.cern import CernFigure, profile_moments
from minicarlo.fidelity.classifiers import classify
from minicarlo.fidelity.definitions import DEFINITIONS, UNITS
from minicarlo.fidelity.distances import Wasserstein, separation_power
from minicarlo.fidelity.frechet import fpd, kpd
from minicarlo.fidelity.observables import Measured, high_level_features, measure, observables
from minicarlo.fidelity.resampling import Resamples, resample
from minicarlo.fidelity.scorecard import DIFFERS, INDISTINGUISHABLE, NOT_ENOUGH, Scorecard
from minicarlo.fidelity.validation import compare, validate

__all__ = [
    "DEFINITIONS",
    "DIFFERS",
    "INDISTINGUISHABLE",
    "NOT_ENOUGH",
    "UNITS",
    "CernFigure",
    "Measured",
    "Resamples",
    "Scorecard",
    "Wasserstein",
    "classify",
    "compare",
    "fpd",
    "high_level_features",
    "kpd",
    "measure",
    "observables",
    "profile_moments",
    "resample",
    "separation_power",
    "validate",
]
