"""Do showers repeat one another? Generators that collapse, and random numbers used twice, make them.

Repeats leave every distribution as it is, so no histogram shows them. Here the distances of showers to the nearest other shower
of their own set (`neighbours`) are compared, the candidate's with the reference's, as many showers in both: of the closest 1 %
of all these pairs, half should be the candidate's.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from minicarlo.fidelity.neighbours import CLOSENESS_ALPHA, Neighbourhood, closeness, features_of
from minicarlo.fidelity.observables import Measured
from minicarlo.fidelity.scorecard import DIFFERS, INDISTINGUISHABLE, NOT_ENOUGH, Difference, ObservableScore, Score

TOLERANCE = 0.01
"""Share of repeated showers that should be found."""
LARGEST = 10_000
"""Showers of either set that are searched."""

_POWER = 0.9


def duplicates(ours: Measured, theirs: Measured, *, seed: int) -> ObservableScore:
    """Whether more of the candidate's showers than of the reference's repeat another; the deviation is their share.

    The chance of a false alarm is `CLOSENESS_ALPHA`.
    """
    size = min(len(ours), len(theirs), LARGEST)
    random = np.random.default_rng([seed, 16])
    reference, candidate = (
        Neighbourhood(features_of(measured[np.sort(random.permutation(len(measured))[:size])])).pairs()
        for measured in (ours, theirs)
    )
    found, back = closeness(candidate, reference), closeness(reference, candidate)
    closest = found.found + back.found
    density = closest / size
    share, error = found.copies / size, math.sqrt(found.copies) / size
    needed = _events_for(0.5 + TOLERANCE / (2 * density), density) if closest else None
    enough = needed is not None and needed <= size
    words = f"{100 * share:.2g} ± {100 * error:.1g} % of the showers repeat another"
    if found.too_close and not found.copies:
        part = 100 * found.found / closest
        words = f"none repeats another, but showers are more alike: {part:.0f} % of the closest pairs, not 50 %"
    return ObservableScore(
        verdict=DIFFERS if found.too_close else INDISTINGUISHABLE if enough else NOT_ENOUGH,
        p_value=found.p_value,
        deviation=Score(value=share, error=error, floor=back.copies / size),
        difference=Difference(
            value=100 * share,
            error=100 * error,
            unit="%",
            words=words,
        ),
        visible_at=_events_for(found.found / closest, density) if found.too_close else None,
        needed=needed,
    )


def _events_for(share: float, density: float) -> int:
    """Events on either side at which `share` of the closest pairs being the candidate's is found with 90 % power.

    `density`: closest pairs per event of a side. Normal approximation of the binomial distribution of their number.
    """
    share = min(share, 1.0)
    sigmas: float = norm.isf(CLOSENESS_ALPHA) / 2 + norm.isf(1 - _POWER) * math.sqrt(share * (1 - share))
    return math.ceil((1 + (sigmas / (share - 0.5)) ** 2) / density)
