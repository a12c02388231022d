"""Counter-based random numbers: what event i of a seed gets never depends on how the work is cut up.

Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) keyed by (seed, stream) jumps straight
to any block of 64 events. NumPy may change its normal sampler in a minor release, so "same bits" holds for one NumPy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from minicarlo.errors import InvalidCondition

BLOCK = 64
"""Events that share one draw from the generator."""

_LATENTS, _ENERGIES, _THETA, _PHI = 1, 2, 3, 4  # stream identifiers
_UNITS = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}
_DEGREES = {"deg": 1.0, "rad": 180 / math.pi, "mrad": 0.18 / math.pi}
_SEED_RANGE = 2**31 - 2


def normal_latents(seed: int, start: int, count: int, size: int) -> NDArray[np.float32]:
    """Unit-normal latents of events start .. start + count - 1 of `seed`, shape (count, size) float32.

    Event i is the same bits whatever `start` and `count` are. Raises InvalidCondition for a seed outside [0, 2^64) or a
    negative start, count or size.
    """
    _check(seed, start, count)
    if size < 0:
        raise InvalidCondition(f"The latent size must not be negative, not {size}.")
    result = np.empty((count, size), np.float32)
    for block, rows, target in _blocks(start, count):
        draws = _generator(seed, _LATENTS, block).standard_normal((BLOCK, size), dtype=np.float32)
        result[target] = draws[rows]
    return result


@dataclass(frozen=True)
class EnergyDistribution:
    """Incident energies in MeV: one energy, or uniform in the energy or in its logarithm between two."""

    low_mev: float
    high_mev: float
    kind: Literal["fixed", "uniform", "log"]

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "uniform", "log"):
            raise InvalidCondition(f"Energy distribution {self.kind!r} is unknown: choose log or uniform.")
        if not (0 < self.low_mev <= self.high_mev < 1e15):
            raise InvalidCondition(
                f"Energies {self.low_mev:g} MeV to {self.high_mev:g} MeV are no range: the first must be above zero "
                "and below the second."
            )
        if (self.kind == "fixed") != (self.low_mev == self.high_mev):
            raise InvalidCondition(
                f"Energies {self.low_mev:g} MeV to {self.high_mev:g} MeV do not fit a {self.kind} distribution: give "
                "one energy (10GeV) or two that differ (1GeV:100GeV)."
            )

    @classmethod
    def parse(cls, text: str) -> EnergyDistribution:
        """Read "10GeV", "1GeV:100GeV" (uniform in the logarithm), "1GeV:100GeV:log" or "500MeV:2GeV:uniform".

        Raises InvalidCondition.
        """
        parts = [part.strip() for part in str(text).split(":")]
        if len(parts) == 1:
            energy = _parse_energy(parts[0], text)
            return cls(energy, energy, "fixed")
        if len(parts) == 2:
            parts.append("log")
        if len(parts) != 3 or parts[2] not in ("log", "uniform"):
            raise _malformed(text)
        low, high = _parse_energy(parts[0], text), _parse_energy(parts[1], text)
        return cls(low, high, "log" if parts[2] == "log" else "uniform")

    def __str__(self) -> str:
        if self.kind == "fixed":
            return _format_energy(self.low_mev)
        return f"{_format_energy(self.low_mev)}:{_format_energy(self.high_mev)}:{self.kind}"

    def sample(self, seed: int, start: int, count: int) -> NDArray[np.float32]:
        """Energies in MeV of events start .. start + count - 1 of `seed`, shape (count,) float32, all inside the range.

        Raises InvalidCondition for a seed outside [0, 2^64) or a negative start or count.
        """
        _check(seed, start, count)
        if self.kind == "fixed":
            return np.full(count, self.low_mev, np.float32)
        uniform = _uniform(seed, _ENERGIES, start, count)
        if self.kind == "log":
            low, high = math.log(self.low_mev), math.log(self.high_mev)
            energies = np.exp(low + (high - low) * uniform)
        else:
            energies = self.low_mev + (self.high_mev - self.low_mev) * uniform
        return np.clip(energies.astype(np.float32), _inside(self.low_mev, math.inf), _inside(self.high_mev, 0.0))


@dataclass(frozen=True)
class AngleDistribution:
    """Angles in degrees: one, or uniform in the angle or in its cosine between two."""

    low_deg: float
    high_deg: float
    kind: Literal["fixed", "uniform", "cos"]

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "uniform", "cos"):
            raise InvalidCondition(f"Angle distribution {self.kind!r} is unknown: choose uniform or cos.")
        if not -360 <= self.low_deg <= self.high_deg <= 360 or (self.kind == "fixed") != (self.low_deg == self.high_deg):
            raise InvalidCondition(
                f"Angles {self.low_deg:g} to {self.high_deg:g} degrees are no {self.kind} distribution: give one angle (30deg) "
                "or two that differ, the smaller first (0deg:30deg), within one turn."
            )
        if self.kind == "cos" and not 0 <= self.low_deg <= self.high_deg <= 180:
            raise InvalidCondition("Angles uniform in the cosine must lie between 0deg and 180deg.")

    @classmethod
    def parse(cls, text: str) -> AngleDistribution:
        """Read "30deg", "0deg:30deg" (uniform in the angle) or "0deg:30deg:cos" (uniform in its cosine).

        Raises InvalidCondition.
        """
        parts = [part.strip() for part in str(text).split(":")]
        angles = [_quantity(part, _DEGREES) for part in parts[:2]]
        kind = parts[2] if len(parts) == 3 else "uniform"
        if None in angles or len(parts) > 3 or kind not in ("uniform", "cos"):
            raise InvalidCondition(
                f"Angle {str(text)!r:.80} is not understood: write one angle with its unit (30deg), or a range and how it is "
                "filled (0deg:30deg:uniform, 0deg:30deg:cos). Units are deg, rad, mrad."
            )
        low, high = angles[0] or 0.0, angles[-1] or 0.0
        return cls(low, high, "fixed" if len(parts) == 1 else "cos" if kind == "cos" else "uniform")

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.low_deg!r}deg".replace(".0deg", "deg")
        return f"{self.low_deg!r}deg:{self.high_deg!r}deg:{self.kind}".replace(".0deg", "deg")

    def sample(self, which: Literal["theta", "phi"], seed: int, start: int, count: int) -> NDArray[np.float32]:
        """Angles in radians of events start .. start + count - 1 of `seed`, shape (count,) float32.

        Theta and phi are independent. Raises InvalidCondition for a seed outside [0, 2^64) or a negative start or count.
        """
        _check(seed, start, count)
        low, high = math.radians(self.low_deg), math.radians(self.high_deg)
        if self.kind == "fixed":
            return np.full(count, low, np.float32)
        uniform = _uniform(seed, _THETA if which == "theta" else _PHI, start, count)
        if self.kind == "cos":
            angles = np.arccos(math.cos(low) + (math.cos(high) - math.cos(low)) * uniform)
        else:
            angles = low + (high - low) * uniform
        return angles.astype(np.float32)


def event_seed(seed: int, index: int) -> int:
    """Seed in [1, 2^31 - 2] for a sequential generator (Geant4's) that simulates event `index` of `seed`.

    An affine walk through all 2^31 - 2 values whose start and step depend on `seed`: events of one run share none.
    Raises InvalidCondition for a seed outside [0, 2^64) or a negative index.
    """
    _check(seed, index, 0)
    offset, step = (int(word) for word in np.random.SeedSequence(seed).generate_state(2, np.uint64))
    step = step % _SEED_RANGE | 1
    while math.gcd(step, _SEED_RANGE) != 1:
        step += 2
    return 1 + (offset + index * step) % _SEED_RANGE


def _blocks(start: int, count: int) -> list[tuple[int, slice, slice]]:
    """(block, rows of the block, rows of the result) of every block that events start .. start + count - 1 touch."""
    end = start + count
    return [
        (
            block,
            slice(max(start - block * BLOCK, 0), min(end - block * BLOCK, BLOCK)),
            slice(max(block * BLOCK - start, 0), min((block + 1) * BLOCK, end) - start),
        )
        for block in range(start // BLOCK, -(-end // BLOCK) if count else start // BLOCK)
    ]


def _uniform(seed: int, stream: int, start: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) of events start .. start + count - 1, shape (count,)."""
    result = np.empty(count)
    for block, rows, target in _blocks(start, count):
        result[target] = _generator(seed, stream, block).random(BLOCK)[rows]
    return result


def _generator(seed: int, stream: int, block: int) -> np.random.Generator:
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, block, 0], np.uint64)))


def _check(seed: int, start: int, count: int) -> None:
    if not 0 <= seed < 2**64:
        raise InvalidCondition(f"The seed must be between 0 and 2^64 - 1, not {seed}.")
    if start < 0 or count < 0:
        raise InvalidCondition(f"Event numbers and counts must not be negative, not {start} and {count}.")
    if start + count >= 2**63:
        raise InvalidCondition(f"Event numbers must be below 2^63, not {start + count}.")


def _inside(bound: float, towards: float) -> np.float32:
    """The float32 nearest to `bound` that does not lie beyond it, seen from the inside of the range."""
    rounded = np.float32(bound)
    beyond = float(rounded) < bound if towards > bound else float(rounded) > bound
    return np.nextafter(rounded, np.float32(towards)) if beyond else rounded


def _parse_energy(part: str, text: str) -> float:
    energy = _quantity(part, _UNITS)
    if energy is None or part.startswith("-"):
        raise _malformed(text)
    return energy


def _quantity(text: str, units: dict[str, float]) -> float | None:
    """A number with one of `units` (upper or lower case), times the unit's factor; None if it is not that."""
    found = re.fullmatch(r"(-?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?))\s*(\w+)", text)
    factors = {name.lower(): factor for name, factor in units.items()}
    if not found or found.group(2).lower() not in factors:
        return None
    return float(found.group(1)) * factors[found.group(2).lower()]


def _malformed(text: str) -> InvalidCondition:
    return InvalidCondition(
        f"Energy {str(text)!r:.80} is not understood: write one energy with its unit (10GeV), or a range and how it is "
        "filled (1GeV:100GeV:log, 500MeV:2GeV:uniform). Units are eV, keV, MeV, GeV, TeV."
    )


def _format_energy(mev: float) -> str:
    """Shortest text with a unit that reads back as exactly the same number."""
    texts = []
    for unit, factor in _UNITS.items():
        number = mev / factor
        for digits in (f"{number:g}", repr(number)):
            if float(digits) * factor == mev:
                texts.append(f"{digits}{unit}")
                break
    return min(texts, key=lambda text: ("e" in text[:-2], len(text)))
