"""Small neural generators in place of an expensive Monte Carlo: simulate, train, tune, generate, validate, report.

The verbs of the command line are functions here: `simulate`, `train`, `optimise`, `tune`, `generate`, `validate`, `bench`,
`export`, `info`; two share their name with the package they live in, `minicarlo.report.report` and `minicarlo.demo.demo`. `load`
is for one shower at a time. Each is imported when it is first used, so that generating needs neither PyTorch nor Geant4.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = {
    "simulate": "minicarlo.simulators",
    "train": "minicarlo.training.loop",
    "optimise": "minicarlo.precision.rewriting",
    "tune": "minicarlo.precision",
    "generate": "minicarlo.generation",
    "load": "minicarlo.generation",
    "validate": "minicarlo.fidelity",
    "bench": "minicarlo.generation",
    "export": "minicarlo.generation.par04",
    "info": "minicarlo.surrogate",
}

__all__ = ["__version__", *_FUNCTIONS]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'minicarlo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
