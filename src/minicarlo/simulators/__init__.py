"""Reference Monte Carlo simulations: a file per simulator, each run in processes of its own."""

from __future__ import annotations

from minicarlo.simulators.base import Batch, Primaries, Session, Setup, Simulator, Track
from minicarlo.simulators.drawing import draw
from minicarlo.simulators.registry import get_simulator
from minicarlo.simulators.run import SimulateResult, simulate

__all__ = ["Batch", "Primaries", "Session", "Setup", "SimulateResult", "Simulator", "Track", "draw", "get_simulator", "simulate"]
