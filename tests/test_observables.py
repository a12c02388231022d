"""Observables: definitions against loops, symmetries, sub-samples, what a user can do wrong."""

from __future__ import annotations

import numpy as np
import pytest

from minicarlo.fidelity import measure
from small_events import make_events


@pytest.mark.parametrize(
    "rows", [slice(2, 9), slice(None, None, 3), [4, 1, 1, 11], np.arange(12) % 5 == 0, np.zeros(0, int), 3], ids=repr
)
def test_a_sub_sample_is_what_measuring_its_events_gives(rows: object) -> None:
    events = make_events(12)
    events.samples[4] = 0
    events.samples[11, 3] = 0
    part, whole = measure(events)[rows], np.arange(12)[rows]
    assert len(part) == np.size(whole)
    if not len(part):
        assert part.offsets.tolist() == [0] and part.cells.size == 0
        return
    again = measure(events[rows])
    for name in again.values:
        np.testing.assert_array_equal(part.values[name], again.values[name])
    for name in ("energy", "rings", "cells", "offsets", "strata", "empty"):
        np.testing.assert_array_equal(getattr(part, name), getattr(again, name))
    np.testing.assert_array_equal(part.along["x"], again.along["x"])
