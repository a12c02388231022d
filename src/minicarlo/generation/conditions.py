"""Where the incident energies of a run come from: a distribution, an event set, a CSV file, or an array."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicarlo.errors import InvalidCondition
from minicarlo.events import ENERGY, EventSet, read_conditions
from minicarlo.sampling import EnergyDistribution
from minicarlo.surrogate import Surrogate

_LARGEST_CSV = 2**30


@dataclass(frozen=True)
class Energies:
    """Incident energies of the events of a run: `values` (N,) MeV, or drawn from `distribution` when that is None."""

    distribution: EnergyDistribution | None = None
    values: NDArray[np.float32] | None = None

    def at(self, seed: int, start: int, count: int) -> NDArray[np.float32]:
        """Energies in MeV of events start .. start + count - 1, shape (count,)."""
        if self.values is not None:
            return self.values[start : start + count]
        assert self.distribution is not None
        return self.distribution.sample(seed, start, count)

    @cached_property
    def description(self) -> str:
        """The distribution, or the number and digest of the values: what a request is recognised by."""
        if self.values is not None:
            digest = hashlib.sha256(np.ascontiguousarray(self.values, "<f4").tobytes()).hexdigest()
            return f"{len(self.values)} given energies, sha256 {digest}"
        return str(self.distribution)


def resolve_energies(
    surrogate: Surrogate,
    n: int | None,
    energy: str | EnergyDistribution | None,
    conditions: Path | str | EventSet | ArrayLike | None,
) -> tuple[Energies, int]:
    """The energies of a run and its number of events, checked against the range of `surrogate`.

    With neither `energy` nor `conditions`, energies are uniform in the logarithm over the trained range. Raises
    InvalidCondition, InvalidEventSet.
    """
    if n is not None and n < 1:
        raise InvalidCondition(f"The number of events must be at least 1, not {n}.")
    if conditions is not None:
        if energy is not None:
            raise InvalidCondition("Give either an energy distribution or conditions, not both.")
        values = _given(conditions)
        if not len(values):
            raise InvalidCondition("The conditions hold no event.")
        if n is not None and n > len(values):
            raise InvalidCondition(
                f"{n} events are asked for, but the conditions hold only {len(values)}. Ask for at most that many."
            )
        values = values[: n or len(values)]
        surrogate.check_conditions({ENERGY: values})
        return Energies(values=values), len(values)
    if n is None:
        raise InvalidCondition("The number of events is missing; give it, or conditions for every event.")
    allowed = surrogate.manifest.conditions[ENERGY]
    if energy is None:
        kind = "log" if allowed.low < allowed.high else "fixed"
        return Energies(EnergyDistribution(allowed.low, allowed.high, kind)), n  # type: ignore[arg-type]
    distribution = energy if isinstance(energy, EnergyDistribution) else EnergyDistribution.parse(energy)
    if not (allowed.low * (1 - 1e-6) <= distribution.low_mev and distribution.high_mev <= allowed.high * (1 + 1e-6)):
        raise InvalidCondition(
            f"Energy {distribution} is outside the range {allowed.low:g} to {allowed.high:g} MeV that surrogate "
            f"{surrogate.manifest.name} was trained for; it does not extrapolate. Choose energies inside the range."
        )
    return Energies(distribution), n


def _given(conditions: Path | str | EventSet | ArrayLike) -> NDArray[np.float32]:
    if isinstance(conditions, EventSet):
        return conditions.incident_energy
    if isinstance(conditions, Path | str):
        path = Path(conditions)
        return _read_csv(path) if path.suffix.lower() in (".csv", ".txt") else read_conditions(path)[ENERGY]
    values = np.asarray(conditions, np.float32)
    if values.ndim != 1:
        raise InvalidCondition(f"Conditions of shape {values.shape} are wrong; one energy in MeV per event, (N,), is right.")
    return values


def _read_csv(path: Path) -> NDArray[np.float32]:
    """Column `incident_energy` (or `incident_energy [MeV]`) of a comma-separated file with a header line."""
    try:
        if path.stat().st_size > _LARGEST_CSV:
            raise InvalidCondition(f"Conditions {path} are larger than {_LARGEST_CSV} bytes. Give an event set (HDF5) instead.")
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream)
            header = [name.split("[")[0].strip() for name in next(rows, [])]
            if ENERGY not in header:
                raise InvalidCondition(
                    f"Conditions {path} have no column {ENERGY} (MeV); line 1 has {', '.join(header)[:200] or 'nothing'}. "
                    "Name the column in the first line."
                )
            column, values = header.index(ENERGY), []
            for row in rows:
                if not row:
                    continue
                try:
                    values.append(float(row[column]))
                except (ValueError, IndexError) as error:
                    raise InvalidCondition(
                        f"Conditions {path}, line {rows.line_num}, column {ENERGY}: a number in MeV is right."
                    ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidCondition(
            f"Conditions {path} cannot be read as a CSV file ({error}). Give a CSV file or an event set."
        ) from error
    return np.asarray(values, np.float64).astype(np.float32)
