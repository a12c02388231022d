"""How long a search may go on."""

from __future__ import annotations

import math
import time


class OutOfBudget(Exception):
    """The time is up in the middle of a strategy's measurements."""


class Budget:
    """Trials and seconds that may still be spent."""

    def __init__(self, trials: int, seconds: float | None) -> None:
        self.trials, self.used = trials, 0
        self.start = time.monotonic()
        self._end = math.inf if seconds is None else self.start + seconds

    @property
    def out_of_time(self) -> bool:
        """Whether the seconds are spent."""
        return time.monotonic() >= self._end

    @property
    def seconds_left(self) -> float | None:
        """What is left of the seconds; None without a limit."""
        return None if math.isinf(self._end) else max(self._end - time.monotonic(), 0.0)

    @property
    def spent(self) -> bool:
        """Whether trials or seconds are spent."""
        return self.used >= self.trials or self.out_of_time
