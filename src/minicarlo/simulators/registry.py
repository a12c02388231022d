"""Simulators by name: ours, and those that other packages register as entry points of `minicarlo.simulators`."""

from __future__ import annotations

from importlib.metadata import entry_points

from minicarlo.errors import InvalidConfig
from minicarlo.simulators.base import Simulator
from minicarlo.simulators.geant4 import Geant4Simulator

GROUP = "minicarlo.simulators"


def get_simulator(name: str) -> Simulator:
    """Return a new simulator called `name`.

    Raises InvalidConfig, which lists the known names.
    """
    if name == Geant4Simulator.name:
        return Geant4Simulator()
    for entry in entry_points(group=GROUP, name=name):
        simulator: Simulator = entry.load()()
        return simulator
    known = sorted({Geant4Simulator.name, *entry_points(group=GROUP).names})
    raise InvalidConfig(f"Unknown simulator {name!r:.80}. Known simulators: {', '.join(known)}.")
