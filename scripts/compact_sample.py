"""Make the sample that the package ships: round cell energies so that they compress, and write one file.

    minicarlo simulate -n 2000 --energy 1GeV:100GeV:log --seed 20261123 --jobs 2 -o runs/sample
    python scripts/compact_sample.py runs/sample src/minicarlo/shipped/samples/clic-ecal.h5

Cells keep 11 bits of mantissa (relative error below 2^-12, far under the resolution of any calorimeter); cells under a
thousandth of the readout threshold become zero.
"""

from __future__ import annotations

import sys

import numpy as np

from minicarlo.detectors import get_detector
from minicarlo.events import EventSet, read_events, write_events

MANTISSA_BITS = 11


def round_mantissa(values: np.ndarray, bits: int = MANTISSA_BITS) -> np.ndarray:
    """float32 values rounded to the nearest number with `bits` explicit mantissa bits."""
    mantissa, exponent = np.frexp(values)
    scale = np.float32(2.0 ** (bits + 1))
    return np.ldexp(np.round(mantissa * scale) / scale, exponent).astype(np.float32)


def main(source: str, target: str) -> None:
    events = read_events(source)
    threshold = get_detector(events.detector).readout_threshold_mev
    samples = round_mantissa(np.where(events.samples < threshold / 1000, 0, events.samples))
    attributes = events.attributes | {"cell_energy_rounding": f"{MANTISSA_BITS} mantissa bits (relative error below 2^-12)"}
    write_events(target, EventSet(events.conditions, samples, events.detector, attributes))


if __name__ == "__main__":
    main(*sys.argv[1:])
