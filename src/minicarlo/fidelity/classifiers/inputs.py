"""What a classifier is given, and which events train, stop and test it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from minicarlo.detectors import Detector
from minicarlo.fidelity.observables import Measured, high_level_features

Float = NDArray[np.float64]
Labels = NDArray[np.int64]
Progress = Callable[[int, int], None]

FIFTHS = 5


@dataclass(frozen=True)
class Inputs:
    """N events: high-level features (N, K), cells above threshold (N, voxels) in MeV, incident energy (N,) in MeV; the detector.

    Cells are sparse, eight bytes for each that is lit: 200,000 showers of clic-ecal take 0.8 GB instead of 12.5 GB.
    """

    features: Float
    cells: sparse.csr_matrix
    energy: NDArray[np.float32]
    detector: Detector

    @classmethod
    def of(cls, *sets: Measured) -> Inputs:
        """The events of all sets, one after another."""
        return cls(
            np.concatenate([high_level_features(measured) for measured in sets]),
            sparse.vstack([_cells(measured) for measured in sets], format="csr"),
            np.concatenate([measured.energy for measured in sets]),
            sets[0].detector,
        )


@dataclass(frozen=True)
class Parts:
    """Numbers of the events that train a classifier, that say when to stop and calibrate it, and that test it."""

    train: Labels
    stop: Labels
    test: Labels


class Train(Protocol):
    """A method: trains on `parts.train` and returns the scores of `parts.stop` and of `parts.test`, larger for label 1.

    `epochs`: passes over the training events, default the method's own; `progress` is called with (done, total) of them.
    """

    def __call__(
        self, inputs: Inputs, labels: Labels, parts: Parts, *, seed: int, epochs: int | None, progress: Progress
    ) -> tuple[Float, Float]: ...


def split(groups: Float, fold: int, seed: int) -> Parts:
    """Three fifths to train, one to stop, one to test; the folds 0 to 4 of a seed test on different events.

    Events of one group stay together, unless many events share one.
    """
    random = np.random.default_rng([seed, 11])
    values, index = np.unique(groups, return_inverse=True)
    number = len(values)
    if number < 0.2 * len(groups):
        number, index = len(groups), np.arange(len(groups))
    fifth = (random.permutation(number) * FIFTHS // number)[index]
    test, stop = fifth == fold, fifth == (fold + 1) % FIFTHS
    train, stop, test = (np.flatnonzero(chosen) for chosen in (~(test | stop), stop, test))
    return Parts(train, stop, test)


def _cells(measured: Measured) -> sparse.csr_matrix:
    shape = (len(measured), measured.detector.voxels)
    return sparse.csr_matrix((measured.cells, measured.voxels, measured.offsets), shape=shape)
