"""Events in bulk from a surrogate, and how fast that goes."""

from __future__ import annotations

from minicarlo.generation.bench import bench, sweep
from minicarlo.generation.bulk import GenerateResult, generate
from minicarlo.generation.settings import Settings, choose_settings, default_settings
from minicarlo.generation.single import PreparedGenerator, load

__all__ = [
    "GenerateResult",
    "PreparedGenerator",
    "Settings",
    "bench",
    "choose_settings",
    "default_settings",
    "generate",
    "load",
    "sweep",
]
