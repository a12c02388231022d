"""Energy that processors report (RAPL, Linux's powercap): joules since some time, of all sockets together."""

from __future__ import annotations

import time
from pathlib import Path

from minicarlo.errors import TuningError

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules that all sockets have used, as a number that only grows. Raises TuningError where none reports them.

    The counters of Linux wrap around, some every few minutes; they are to be read more often than that.

    References:
        https://docs.kernel.org/power/powercap/powercap.html
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        sockets = sorted(path for path in folder.glob("*:*") if path.name.count(":") == 1 and (path / "energy_uj").is_file())
        try:
            self._ranges = {path / "energy_uj": _read(path / "max_energy_range_uj") for path in sockets}
            self._last = {path: _read(path) for path in self._ranges}
        except OSError as error:
            raise TuningError(
                f"The energy that this machine reports cannot be read ({error.strerror}: {error.filename}). Ask for the right to "
                "read it, or choose the objective throughput."
            ) from error
        if not sockets:
            raise TuningError("This machine reports no energy (Linux's powercap is empty); choose the objective throughput.")
        self._total = 0

    def __call__(self) -> float:
        """Joules since it was made."""
        for path, before in self._last.items():
            now = _read(path)
            self._total += (now - before) % (self._ranges[path] + 1)
            self._last[path] = now
        return self._total / 1e6


def settled(meter: EnergyMeter) -> float:
    """The meter's reading, once it has moved: counters are renewed about every millisecond."""
    first = meter()
    end = time.monotonic() + 0.1
    while (now := meter()) == first and time.monotonic() < end:
        pass
    return now


def _read(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
