"""Reference Monte Carlo simulations: a file per simulator, each run in processes of its own."""

from __future__ import annotations

from minicarlo.simulators.acceptance import Acceptance
from minicarlo.simulators.base import Batch, Particles, Primaries, Session, Setup, Simulator, Track
from minicarlo.simulators.drawing import draw
from minicarlo.simulators.registry import get_simulator
from minicarlo.simulators.run import Parameterisation, SimulateResult, simulate
from minicarlo.simulators.sources import ParticleList, read_particles

__all__ = [
    "Acceptance",
    "Batch",
    "Parameterisation",
    "ParticleList",
    "Particles",
    "Primaries",
    "Session",
    "Setup",
    "SimulateResult",
    "Simulator",
    "Track",
    "draw",
    "get_simulator",
    "read_particles",
    "simulate",
]
