"""Accuracy-driven precision: which layer may compute in which format, found by measuring."""

from __future__ import annotations

from minicarlo.precision.criterion import CRITERIA, Comparison, Criterion, get_criterion
from minicarlo.precision.plan import FORMATS, Layer, Plan, int8_share
from minicarlo.precision.quantization import PlannedModel, Quantizer, compile_planned
from minicarlo.precision.result import TuneResult
from minicarlo.precision.strategies import STRATEGIES, Strategy, Trial
from minicarlo.precision.subject import Subject
from minicarlo.precision.surrogates import Calibration, SurrogateSubject, surrogate_quantizer
from minicarlo.precision.tuning import tune

__all__ = [
    "CRITERIA",
    "FORMATS",
    "STRATEGIES",
    "Calibration",
    "Comparison",
    "Criterion",
    "Layer",
    "Plan",
    "PlannedModel",
    "Quantizer",
    "Strategy",
    "Subject",
    "SurrogateSubject",
    "Trial",
    "TuneResult",
    "compile_planned",
    "get_criterion",
    "int8_share",
    "surrogate_quantizer",
    "tune",
]
