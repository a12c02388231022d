"""What is measured on a shower: energies, profiles, centres, widths, occupancy, the cells above threshold.

One pass over the events, in chunks. Cells at or below the readout threshold are dropped first, in every set alike; what is
left of a shower is sparse, and every observable is a sum over it in float64. Coordinates: z along the shower from the front
face, x and y from the centre of the window, which is the incident axis. Moments of a layer or a shower without energy are
zero, as in CaloChallenge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from minicarlo.detectors import Detector, get_detector
from minicarlo.errors import InvalidEventSet
from minicarlo.events import EventSet, events_info, iterate_events

Array = NDArray[np.float32]
Counts = NDArray[np.int64]

STRATA_PER_DECADE = 10
SECTORS = 8
CHUNK = 500


@dataclass
class Measured:
    """The observables of N events and what else the scorecard needs of them.

    `values`: (N,) or (N, layers) per observable; `rings` (N, R) MeV in rings around the axis; `along` energy along x and y,
    (N, cells) MeV; `cells` the energies of all cells above threshold, those of event i from `offsets[i]` to `offsets[i + 1]`;
    `images` summed energy per stratum of incident energy and projection; `empty` events without any cell above threshold.
    """

    detector: Detector
    threshold_mev: float
    energy: Array
    values: dict[str, Array]
    rings: Array
    along: dict[str, Array]
    cells: Array
    offsets: Counts
    images: dict[int, dict[str, NDArray[np.float64]]]
    empty: int

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, rows: slice | ArrayLike) -> Measured:
        """The events of a slice, an index array or a mask, which may repeat; without `images`, which are sums."""
        picked = np.arange(len(self))[rows if isinstance(rows, slice) else np.atleast_1d(np.asarray(rows))]
        counts = np.diff(self.offsets)[picked]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        cell = np.arange(offsets[-1]) + np.repeat(self.offsets[picked] - offsets[:-1], counts)
        return Measured(
            detector=self.detector,
            threshold_mev=self.threshold_mev,
            energy=self.energy[picked],
            values={name: values[picked] for name, values in self.values.items()},
            rings=self.rings[picked],
            along={name: values[picked] for name, values in self.along.items()},
            cells=self.cells[cell],
            offsets=offsets,
            images={},
            empty=int((counts == 0).sum()),
        )

    @property
    def strata(self) -> Counts:
        """Number of the incident energy's tenth of a decade: events of one stratum have nearly equal energies. (N,)"""
        return strata_of(self.energy)


def strata_of(energy: Array) -> Counts:
    """floor(10 log10(E / MeV))."""
    return np.floor(STRATA_PER_DECADE * np.log10(energy.astype(np.float64)) + 1e-6).astype(np.int64)


def observables(events: EventSet | Path | str, threshold_mev: float | None = None) -> dict[str, Array]:
    """Observables of every event: name to (N,), or (N, layers) for those named `layer_...` and (N, 8) for `azimuth`.

    `UNITS` holds their units; definitions in docs/fidelity.md. `threshold_mev`: default the detector's readout threshold.
    Raises InvalidEventSet for NaN or negative cells.
    """
    return measure(events, threshold_mev).values


def measure(
    events: EventSet | Path | str,
    threshold_mev: float | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure a whole event set, reading a file in chunks. Raises InvalidEventSet."""
    total, detector = _describe(events)
    threshold = detector.readout_threshold_mev if threshold_mev is None else float(threshold_mev)
    frame = _Frame(detector)
    parts: list[Measured] = []
    done = 0
    for part in _chunks(events):
        parts.append(frame.measure(part, threshold))
        done += len(part)
        if progress is not None:
            progress(done, total)
    if not parts:
        raise InvalidEventSet("The event set holds no events: there is nothing to measure.")
    return _join(parts)


def high_level_features(measured: Measured) -> NDArray[np.float64]:
    """CaloChallenge's high-level array, (N, 2 + 6 layers).

    [log10 E_inc, log10(E_z + 1e-8), centres / 100 mm, widths / 100 mm, log10 E_vis, sparsity], the columns of `evaluate.py`
    and `HighLevelFeatures.py` (github.com/CaloChallenge/homepage) with x, y for eta, phi. E_vis gets 1e-8 too, so that empty
    is finite.
    """
    value = {name: array.astype(np.float64) for name, array in measured.values.items()}
    columns = [
        np.log10(measured.energy.astype(np.float64))[:, None],
        np.log10(value["layer_energy"] + 1e-8),
        *(value[f"layer_{name}"] / 100 for name in ("centre_x", "centre_y", "width_x", "width_y")),
        np.log10(value["visible_energy"] + 1e-8)[:, None],
        value["layer_sparsity"],
    ]
    return np.concatenate(columns, axis=1)


class _Frame:
    """Coordinates and sums that depend on the detector only."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        layers, nx, ny = detector.shape
        dz, dx, dy = detector.cell_size
        self.z = (np.arange(layers) + 0.5) * dz
        x, y = np.meshgrid((np.arange(nx) - (nx - 1) / 2) * dx, (np.arange(ny) - (ny - 1) / 2) * dy, indexing="ij")
        x, y = x.ravel(), y.ravel()
        self.radius = np.hypot(x, y)
        ring = np.floor(self.radius / min(dx, dy) + 0.5).astype(np.int64)
        sector = np.floor(np.arctan2(y, x) / (2 * np.pi / SECTORS) + 0.5).astype(np.int64) % SECTORS
        off_axis = self.radius > 0
        self.basis = np.stack([np.ones_like(x), x, y, x * x, y * y], axis=1)
        self.lateral = np.concatenate(
            [
                np.stack([self.radius, self.radius**2], axis=1),
                np.eye(ring.max() + 1)[ring],
                np.eye(SECTORS)[sector] * off_axis[:, None],
            ],
            axis=1,
        )
        self.order = np.argsort(self.radius, kind="stable")
        self.first_half = np.arange(layers) < layers // 2
        self.ring_radius = np.bincount(ring, self.radius) / np.bincount(ring)

    def measure(self, events: EventSet, threshold: float) -> Measured:
        layers, nx, ny = self.detector.shape
        n, cells = len(events), nx * ny
        flat = np.ascontiguousarray(events.samples).reshape(-1)
        hit = np.flatnonzero(flat > threshold)
        energy = flat[hit]
        row, cell = np.divmod(hit, cells)
        starts = np.searchsorted(row, np.arange(n * layers + 1))
        grid = sparse.csr_matrix((energy.astype(np.float64), cell, starts), shape=(n * layers, cells))
        sums = (grid @ self.basis).reshape(n, layers, 5)
        event = row // layers
        front = np.bincount(event * cells + cell, energy, minlength=n * cells).reshape(n, cells).astype(np.float64, copy=False)
        lateral = front @ self.lateral
        rings, sectors = lateral[:, 2:-SECTORS], lateral[:, -SECTORS:]
        layer_energy, visible = sums[:, :, 0], sums[:, :, 0].sum(axis=1)
        hits = np.diff(starts).reshape(n, layers)
        total = sums.sum(axis=1)
        incident = events.incident_energy.astype(np.float64)

        centre_x, centre_y, width_x, width_y = _moments(sums)
        whole_x, whole_y, whole_width_x, whole_width_y = _moments(total)
        centre_z = _divide(layer_energy @ self.z, visible)
        width_z = np.sqrt(np.clip(_divide((layer_energy * (self.z - centre_z[:, None]) ** 2).sum(axis=1), visible), 0, None))
        values = {
            "response": visible / incident,
            "visible_energy": visible,
            "occupancy": hits.sum(axis=1),
            "centre_x": whole_x,
            "centre_y": whole_y,
            "centre_z": centre_z,
            "width_x": whole_width_x,
            "width_y": whole_width_y,
            "width_z": width_z,
            "shower_maximum": np.argmax(layer_energy, axis=1),
            "lateral_mean": _divide(lateral[:, 0], visible),
            "lateral_width": np.sqrt(_divide(lateral[:, 1], visible)),
            "radius_90": self._containment(front, visible, 0.9),
            "front_fraction": _divide(layer_energy @ self.first_half, visible),
            "azimuth": _divide(sectors, sectors.sum(axis=1)[:, None]),
            "layer_energy": layer_energy,
            "layer_fraction": _divide(layer_energy, visible[:, None]),
            "layer_sparsity": 1 - hits / cells,
            "layer_centre_x": centre_x,
            "layer_centre_y": centre_y,
            "layer_width_x": width_x,
            "layer_width_y": width_y,
        }
        along = {"x": front.reshape(n, nx, ny).sum(axis=2), "y": front.reshape(n, nx, ny).sum(axis=1)}
        return Measured(
            detector=self.detector,
            threshold_mev=threshold,
            energy=events.incident_energy.copy(),
            values={name: array.astype(np.float32) for name, array in values.items()},
            rings=rings.astype(np.float32),
            along={name: array.astype(np.float32) for name, array in along.items()},
            cells=energy,
            offsets=starts[::layers].astype(np.int64),
            images=self._images(strata_of(events.incident_energy), event, row % layers, cell, energy),
            empty=int((visible == 0).sum()),
        )

    def _containment(self, front: NDArray[np.float64], visible: NDArray[np.float64], share: float) -> NDArray[np.float64]:
        """Radius around the axis that holds `share` of the visible energy, linear between the radii of cells. (N,) mm"""
        radius = self.radius[self.order]
        inside = np.cumsum(front[:, self.order], axis=1)
        last = np.flatnonzero(np.append(np.diff(radius) > 1e-9, True))  # cells of one radius count together
        radius, inside = radius[last], inside[:, last]
        wanted = share * visible
        step = np.clip((inside < wanted[:, None]).sum(axis=1), 0, len(radius) - 1)
        rows = np.arange(len(front))
        below = np.where(step > 0, inside[rows, step - 1], 0.0)
        start = np.where(step > 0, radius[step - 1], 0.0)
        part = _divide(wanted - below, inside[rows, step] - below)
        return np.where(visible > 0, start + np.clip(part, 0, 1) * (radius[step] - start), 0.0)

    def _images(
        self, strata: Counts, event: Counts, layer: Counts, cell: Counts, energy: Array
    ) -> dict[int, dict[str, NDArray[np.float64]]]:
        layers, nx, ny = self.detector.shape
        numbers, index = np.unique(strata, return_inverse=True)
        x, y = np.divmod(cell, ny)
        pairs = {"zx": (x, layer, nx, layers), "zy": (y, layer, ny, layers), "xy": (x, y, nx, ny)}
        images: dict[int, dict[str, NDArray[np.float64]]] = {int(number): {} for number in numbers}
        for name, (first, second, rows, columns) in pairs.items():
            flat = (index[event] * rows + first) * columns + second
            summed = np.bincount(flat, energy, minlength=len(numbers) * rows * columns).reshape(len(numbers), rows, columns)
            for number, image in zip(numbers, summed, strict=True):
                images[int(number)][name] = image.astype(np.float64, copy=False)
        return images


def ring_radii(detector: Detector) -> NDArray[np.float64]:
    """Mean radius of the cells of each ring, mm; ring k holds cells with k - 1/2 <= r / pitch < k + 1/2."""
    return _Frame(detector).ring_radius


def layer_depths(detector: Detector) -> NDArray[np.float64]:
    """Depth of each layer's middle, mm from the front face."""
    return np.asarray((np.arange(detector.layers) + 0.5) * detector.cell_size[0], np.float64)


def _divide(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """first / second, zero where second is zero."""
    shape = np.broadcast_shapes(first.shape, second.shape)
    quotient = np.zeros(shape, np.float64)
    np.divide(first, second, out=quotient, where=second > 0)
    return quotient


def _moments(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Centres and widths sqrt(<x^2> - <x>^2), clipped at zero, from sums of (1, x, y, x^2, y^2) in the last axis."""
    weight = sums[..., 0]
    x, y, xx, yy = (_divide(sums[..., column], weight) for column in range(1, 5))
    # rounding leaves 1e-13 or so where a layer has one cell; below a nanometre it is zero
    return (
        x,
        y,
        *(
            np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))
            for variance, square in ((xx - x * x, xx), (yy - y * y, yy))
        ),
    )


def _describe(events: EventSet | Path | str) -> tuple[int, Detector]:
    if isinstance(events, EventSet):
        return len(events), get_detector(events.detector)
    info = events_info(events)
    return int(info["count"]), get_detector(info["detector"])


def _chunks(events: EventSet | Path | str) -> Iterator[EventSet]:
    if not isinstance(events, EventSet):
        yield from iterate_events(events, CHUNK)
        return
    for start in range(0, len(events), CHUNK):
        part = events[start : start + CHUNK]
        part.check()
        yield part


def _join(parts: list[Measured]) -> Measured:
    images: dict[int, dict[str, NDArray[np.float64]]] = {}
    for part in parts:
        for number, found in part.images.items():
            known = images.setdefault(number, {name: np.zeros_like(image) for name, image in found.items()})
            for name, image in found.items():
                known[name] += image
    shifts = np.cumsum([0, *(len(part.cells) for part in parts)])
    offsets = [part.offsets[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
    first = parts[0]
    return Measured(
        detector=first.detector,
        threshold_mev=first.threshold_mev,
        energy=np.concatenate([part.energy for part in parts]),
        values={name: np.concatenate([part.values[name] for part in parts]) for name in first.values},
        rings=np.concatenate([part.rings for part in parts]),
        along={name: np.concatenate([part.along[name] for part in parts]) for name in first.along},
        cells=np.concatenate([part.cells for part in parts]),
        offsets=np.append(np.concatenate(offsets), shifts[-1]),
        images=images,
        empty=sum(part.empty for part in parts),
    )


UNITS: dict[str, str] = {
    "response": "",
    "visible_energy": "MeV",
    "occupancy": "cells",
    "cell_energy": "MeV",
    "centre_x": "mm",
    "centre_y": "mm",
    "centre_z": "mm",
    "width_x": "mm",
    "width_y": "mm",
    "width_z": "mm",
    "shower_maximum": "layer",
    "lateral_mean": "mm",
    "lateral_width": "mm",
    "radius_90": "mm",
    "front_fraction": "",
    "azimuth": "",
    "layer_energy": "MeV",
    "layer_fraction": "",
    "layer_sparsity": "",
    "layer_centre_x": "mm",
    "layer_centre_y": "mm",
    "layer_width_x": "mm",
    "layer_width_y": "mm",
}
"""Units of the observables; empty for pure numbers."""
