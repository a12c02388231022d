"""Verdicts are right: false alarms at their level, planted defects found and named. benchmarks/calibration.py does it in full."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, kstest

from minicarlo.events import EventSet, read_events
from minicarlo.fidelity import DIFFERS, Measured, compare, measure
from minicarlo.fidelity.comparison import OBSERVABLES_ALPHA
from minicarlo.fidelity.duplicates import duplicates
from planted import (
    DEFECTS,
    LAYER,
    lose_low_cells,
    narrow_resolution,
    repeat_events,
    scale_energy,
    scale_layer,
    shift_sideways,
    shuffle_layers,
)

PERMUTATIONS = 99
EVENTS = 1000


def showers(name: str, count: int) -> EventSet:
    shared = os.environ.get("MINICARLO_SHARED")
    if not shared:
        pytest.skip("MINICARLO_SHARED does not say where the Geant4 showers are")
    return read_events(Path(shared) / "data" / name, stop=count)


@pytest.fixture(scope="module")
def reference() -> Measured:
    return measure(showers("validation.h5", 3000))


@pytest.fixture(scope="module")
def candidate() -> EventSet:
    return showers("test.h5", EVENTS)


def test_false_alarms_come_at_their_level(reference: Measured) -> None:
    """Forty random splits; their smallest p-values are uniform, so that any level is kept, this one too."""
    p_values = []
    for split in range(40):
        rows = np.random.default_rng([21, split]).permutation(len(reference))[:300]
        card = compare(reference[rows[:150]], reference[rows[150:]], seed=split, permutations=PERMUTATIONS, bootstrap=10)
        # what has its own level is no part of the family
        p_values.append(min(score.p_value for name, score in card.observables.items() if name != "duplicates"))
    # of 99 permutations two may be as extreme: p = 0.01 and 0.02 are below 0.03
    level = (math.ceil(OBSERVABLES_ALPHA * (1 + PERMUTATIONS)) - 1) / (1 + PERMUTATIONS)
    assert np.sum(np.array(p_values) < OBSERVABLES_ALPHA) <= binom.ppf(0.999, 40, level)
    assert kstest(p_values, "uniform").pvalue > 0.001


# Larger than in benchmarks/calibration.py, so that a thousand events suffice.
LARGE: dict[str, Callable[[EventSet, np.random.Generator], EventSet]] = {
    "energy scale": lambda events, _: scale_energy(events, 1.03),
    "resolution": lambda events, _: narrow_resolution(events, 0.75),
    "layer": lambda events, _: scale_layer(events, 1.15),
    "shift": lambda events, _: shift_sideways(events, 1.0),
    "duplicates": lambda events, random: repeat_events(events, random, 0.05),
    "low cells": lambda events, random: lose_low_cells(events, random, 0.25),
    "correlations": lambda events, random: shuffle_layers(events, random),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defects_are_found_and_named(reference: Measured, candidate: EventSet, name: str) -> None:
    defect = DEFECTS[name]
    planted = measure(LARGE[name](candidate, np.random.default_rng(1)))
    card = compare(reference[:EVENTS], planted, permutations=PERMUTATIONS, bootstrap=20)
    assert card.verdict == DIFFERS
    found = defect.names & set(card.differing)
    assert found, card.differing
    if defect.layer is not None:
        assert any(card.observables[observable].worst_layer == LAYER for observable in found)
    if name in WORDS:
        observable, words = WORDS[name]
        difference = card.observables[observable].difference
        assert difference is not None and re.search(words, difference.words), difference


WORDS = {
    "energy scale": ("linearity", r"^response [23]\.\d+ ± .* % higher at all energies$"),
    "resolution": ("resolution", r"^resolution [12]\d.* ± .* % lower at all energies$"),
    "layer": ("layer_fraction", r"^layer 8: mean 1\d.* ± .* % higher$"),
    "shift": ("centre_x", r"^mean (0\.9|1\.0)\d* ± .* mm higher$"),
}
"""What they are said to be: 3 % of the energy, 25 % of the resolution, 15 % of a layer, 1 mm."""


def test_repeated_showers_are_counted_and_others_are_not(reference: Measured, candidate: EventSet) -> None:
    ours = measure(candidate)
    other = duplicates(reference[:EVENTS], ours, seed=1)
    assert other.verdict != DIFFERS and other.deviation is not None and other.deviation.value == 0
    planted = measure(repeat_events(candidate, np.random.default_rng(2), 0.1))
    found = duplicates(reference[:EVENTS], planted, seed=1)
    assert found.verdict == DIFFERS and found.deviation is not None
    # a hundred copies of as many showers: a hundred pairs, less those of showers that were copied and lost
    assert found.deviation.value == pytest.approx(0.1, abs=0.02)
    assert found.visible_at is not None and found.visible_at <= EVENTS
    assert found.difference is not None and found.difference.words.endswith("% of the showers repeat another")


def test_showers_that_nearly_repeat_are_found(reference: Measured, candidate: EventSet) -> None:
    """A copy with other energies, one per cent higher, is no copy to a checksum."""
    rows = np.arange(EVENTS)
    rows[:100] = rows[100:200]
    copies = candidate[rows]
    copies.samples[:100] *= np.float32(1.01)
    assert duplicates(reference[:EVENTS], measure(copies), seed=1).verdict == DIFFERS


def test_duplicates_of_the_reference_are_no_defect_of_the_candidate(reference: Measured, candidate: EventSet) -> None:
    repeated = measure(repeat_events(candidate, np.random.default_rng(3), 0.1))
    assert duplicates(repeated, reference[:EVENTS], seed=1).verdict != DIFFERS


def test_duplicates_raise_false_alarms_at_their_level(reference: Measured) -> None:
    p_values = []
    for split in range(60):
        rows = np.random.default_rng([22, split]).permutation(len(reference))[:2000]
        p_values.append(duplicates(reference[rows[:1000]], reference[rows[1000:]], seed=split).p_value)
    # p-values of counts are above the uniform distribution
    for level in (0.05, 0.2, 0.5):
        assert np.sum(np.array(p_values) <= level) <= binom.ppf(0.999, 60, level), level
