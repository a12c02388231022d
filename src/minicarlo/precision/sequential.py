"""Judge a plan on as few events as its verdict needs: growing stages, with the error of early verdicts bounded.

The criterion is compared with the tolerance after 256, 512, 1,024, ... of the events. On all of them the upper end of its
interval (confidence 1 - a) decides; at each of the k stages before that, a plan has

- passed, if the upper end at the level a / k is within the tolerance (Bonferroni: all early stages together err with
  probability a at most). What passes is confirmed on all held-out events at the nominal level, so that stopping early never
  makes a wrong acceptance likelier than that one test does;
- failed, if the value is above the tolerance even when as much is taken off as noise can have put on. A mean of absolute changes
  is too large on few events, by all its value at worst, when all change is noise; a bootstrap replica has the noise twice, and
  thus its root two times: the bias is at most 1 / (sqrt(2) - 1) times what replicas lie above the value, and that many times the
  reach of the interval above the value is taken off;
- failed, if it would fail on all events though everything seen were noise, which falls with the root of their number.

The interval at another level is that of a normal distribution with the same reach.

References:
    Group sequential tests: C. Jennison, B. W. Turnbull, Group Sequential Methods with Applications to Clinical Trials, ch. 7
    Stopping for futility: K. K. G. Lan, R. Simon, M. Halperin, Stochastically curtailed tests, Commun. Stat. C 1 (1982) 207
"""

from __future__ import annotations

import math

from scipy import stats

from minicarlo.precision.criterion import Comparison

FIRST = 256
"""Events of the first stage."""

_BIAS = 1 / (math.sqrt(2) - 1)


def stages(events: int) -> tuple[int, ...]:
    """How many events have been seen at the end of each stage: doubling, the last stage all of them."""
    counts = []
    count = FIRST
    while 2 * count <= events:
        counts.append(count)
        count *= 2
    return (*counts, events)


def verdict(found: Comparison, tolerance: float, *, confidence: float, seen: int, events: int) -> bool | None:
    """Whether a plan passes by what the criterion `found` on the first `seen` of its `events`; None while that is open.

    `confidence` is that of the interval in `found`.
    """
    if seen == events or not math.isfinite(found.value):
        return found.high <= tolerance
    early = len(stages(events)) - 1
    nominal, level = (float(stats.norm.ppf(1 - tail / 2)) for tail in (1 - confidence, (1 - confidence) / early))
    reach = found.high - found.value
    if found.value - reach * _BIAS > tolerance or found.value * math.sqrt(seen / events) > tolerance:
        return False
    return True if found.value + reach * level / nominal <= tolerance else None
