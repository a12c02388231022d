"""Small neural generators in place of an expensive Monte Carlo: simulate, train, tune, generate, validate, report."""

from __future__ import annotations

__version__ = "0.1.0"
