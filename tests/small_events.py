"""Small event sets for the tests."""

from __future__ import annotations

import numpy as np

from minicarlo.events import EventSet


def make_events(count: int = 5, seed: int = 0) -> EventSet:
    """Random sparse showers in clic-ecal with 1-100 GeV and a second condition."""
    random = np.random.default_rng(seed)
    shape = (count, 25, 25, 25)
    showers = np.where(random.random(shape) < 0.03, random.exponential(1.0, shape), 0)
    conditions = {"incident_energy": random.uniform(1e3, 1e5, count), "theta": random.uniform(-1, 1, count)}
    return EventSet(conditions, showers, "clic-ecal", {"generator": "a test", "seed": seed, "seconds": 1.5})
