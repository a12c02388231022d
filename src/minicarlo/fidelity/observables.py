"""What is measured on a shower: energies, profiles, centres, widths, occupancy, the cells above threshold.

One pass over the events, in chunks. Cells at or below the readout threshold are dropped first, in every set alike; what is
left of a shower is sparse, and every observable is a sum over it in float64. Coordinates: z along the shower from the front
face, x and y from the incident axis; a cell counts at its middle (`Detector.transverse`). Moments of a layer or a shower
without energy are zero, as in CaloChallenge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from minicarlo.detectors import Detector, get_detector
from minicarlo.errors import InvalidConfig, InvalidEventSet
from minicarlo.events import PHI, THETA, EventSet, events_info, iterate_events

Array = NDArray[np.float32]
Counts = NDArray[np.int64]
Float = NDArray[np.float64]
Images = dict[int, dict[str, Float]]

STRATA_PER_DECADE = 10
SECTORS = 8
CHUNK = 500
"""Events measured at once, fewer if they have more cells than `clic-ecal`."""

_LEAST_MEV = 1e-6
_MOST_CELLS = 8_000_000  # of a chunk: 32 MB


@dataclass
class Measured:
    """The observables of N events and what else the scorecard needs of them.

    `energy` (N,) MeV and `angles` (N,) rad by the condition's name, where there are any: of the incident particles;
    `values`: (N,) or (N, layers) per observable; `rings` (N, R) MeV in rings around the axis; `along` energy along the two
    transverse axes of the grid, (N, cells) MeV by the axis' name; `cells` the energies of all cells above threshold, those of
    event i from `offsets[i]` to `offsets[i + 1]`, and `voxels` their places in the flattened sample; `below_cells` and
    `below_energy`, (N,), cells that have energy but not more than the threshold, and their energy in MeV; `images` summed energy
    per stratum of incident energy and projection, named by the initials of two axes; `empty` events without any cell above
    threshold.
    """

    detector: Detector
    threshold_mev: float
    energy: Array
    values: dict[str, Array]
    rings: Array
    along: dict[str, Array]
    cells: Array
    voxels: NDArray[np.int32]
    offsets: Counts
    below_cells: Counts
    below_energy: Array
    images: Images
    empty: int
    angles: dict[str, Array] = field(default_factory=dict)

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
            voxels=self.voxels[cell],
            offsets=offsets,
            below_cells=self.below_cells[picked],
            below_energy=self.below_energy[picked],
            images={},
            empty=int((counts == 0).sum()),
            angles={name: values[picked] for name, values in self.angles.items()},
        )

    @property
    def strata(self) -> Counts:
        """Number of the incident energy's tenth of a decade: events of one stratum have nearly equal energies. (N,)"""
        return strata_of(self.energy)

    @property
    def unlit(self) -> Counts:
        """Cells of every event that are not above threshold: the first entry of the spectrum of cells. (N,)"""
        return self.detector.voxels - np.diff(self.offsets)


def strata_of(energy: Array) -> Counts:
    """floor(10 log10(E / MeV))."""
    return np.floor(STRATA_PER_DECADE * np.log10(energy.astype(np.float64)) + 1e-6).astype(np.int64)


def observables(events: EventSet | Path | str, threshold_mev: float | None = None) -> dict[str, Array]:
    """Observables of every event: name to (N,), or (N, layers) for those named `layer_...` and (N, sectors) for `azimuth`.

    Their units, definitions and sources are `DEFINITIONS`. `threshold_mev`: default the detector's readout threshold. Raises as
    `measure` does.
    """
    return measure(events, threshold_mev).values


def measure(
    events: EventSet | Path | str,
    threshold_mev: float | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure a whole event set, reading a file in chunks.

    Raises InvalidEventSet for an empty set, NaN or negative cells, incident energies that are not above zero, and energies
    too large for float32; InvalidConfig for an impossible threshold.
    """
    total, detector = _describe(events)
    threshold = detector.readout_threshold_mev if threshold_mev is None else float(threshold_mev)
    if not (np.isfinite(threshold) and threshold >= 0):
        raise InvalidConfig(f"A threshold of {threshold} MeV is impossible: give zero or more.")
    frame = _Frame(detector)
    parts: list[Measured] = []
    done = 0
    for part in _chunks(events, max(1, min(CHUNK, _MOST_CELLS // detector.voxels))):
        parts.append(frame.measure(part, threshold, first=done))
        done += len(part)
        if progress is not None:
            progress(done, total)
    if not parts:
        raise InvalidEventSet("The event set holds no events: there is nothing to measure.")
    return joined(parts)


def shower_quantities(measured: Measured) -> tuple[list[str], Array]:
    """Every observable of the whole shower and every layer's fraction: names and (N, K), whose Pearson matrix is of interest."""
    single = [name for name, values in measured.values.items() if values.ndim == 1]
    fractions = measured.values["layer_fraction"]
    names = [*single, *(f"layer_fraction_{layer}" for layer in range(fractions.shape[1]))]
    return names, np.concatenate([np.stack([measured.values[name] for name in single], axis=1), fractions], axis=1)


def high_level_features(measured: Measured) -> Float:
    """CaloChallenge's high-level array: (N, 2 + 6 layers), on a cylindrical grid (N, 2 + 8 layers).

    [log10 E_inc, log10(E_z + 1e-8), centres / 100 mm, widths / 100 mm, log10(E_vis + 1e-8), sparsity], then on a cylindrical
    grid [centres in r / 100 mm, widths in r / 100 mm]: the columns of `evaluate.py` and `HighLevelFeatures.py`
    (github.com/CaloChallenge/homepage) with x, y for eta, phi. Its first sector begins at phi = -pi, ours at 0, so that its
    centres on a cylindrical grid have the opposite sign; the array has its sign. 1e-8 keeps empty showers finite.
    """
    value = {name: array.astype(np.float64) for name, array in measured.values.items()}
    round_grid = measured.detector.grid == "cylindrical"
    sign = -1 if round_grid else 1
    columns = [
        np.log10(measured.energy.astype(np.float64))[:, None],
        np.log10(value["layer_energy"] + 1e-8),
        *(sign * value[f"layer_centre_{axis}"] / 100 for axis in "xy"),
        *(value[f"layer_width_{axis}"] / 100 for axis in "xy"),
        np.log10(value["visible_energy"] + 1e-8)[:, None],
        value["layer_sparsity"],
    ]
    if round_grid:
        columns += [value["layer_centre_r"] / 100, value["layer_width_r"] / 100]
    return np.concatenate(columns, axis=1)


class _Frame:
    """Coordinates and sums that depend on the detector only."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        layers, first, second = detector.shape
        (x, y), self.radius = detector.transverse(), detector.radii_mm()
        self.z = layer_depths(detector)
        self.basis = np.stack([np.ones_like(x), x, y, self.radius, x * x, y * y, self.radius**2], axis=1)
        if detector.grid == "cylindrical":
            self.ring, self.sector = np.tile(np.arange(second), first), np.repeat(np.arange(first), second)
            self.sectors = first
        else:
            _, self.ring = np.unique(np.floor(self.radius / min(detector.cell_size[1:]) + 0.5), return_inverse=True)
            sector = np.floor(np.arctan2(y, x) / (2 * np.pi / SECTORS) + 0.5).astype(np.int64) % SECTORS
            self.sector, self.sectors = np.where(self.radius > 0, sector, SECTORS), SECTORS  # on the axis: in none of them
        self.rings = int(self.ring.max()) + 1
        self.ring_radius = np.bincount(self.ring, self.radius) / np.bincount(self.ring)
        self.order = np.argsort(self.radius, kind="stable")
        self.first_half = np.arange(layers) < layers // 2

    def measure(self, events: EventSet, threshold: float, first: int = 0) -> Measured:
        """Measure one chunk, which begins with event number `first` of its set."""
        layers, n1, n2 = self.detector.shape
        n, cells = len(events), n1 * n2
        flat = np.ascontiguousarray(events.samples).reshape(-1)
        hit = np.flatnonzero(flat > 0)
        energy = flat[hit]
        lit = energy > threshold
        below, below_energy = hit[~lit] // (layers * cells), energy[~lit]
        hit, energy = hit[lit], energy[lit]
        row, cell = np.divmod(hit, cells)
        starts = np.searchsorted(row, np.arange(n * layers + 1))
        grid = sparse.csr_matrix((energy.astype(np.float64), cell, starts), shape=(n * layers, cells))
        sums = (grid @ self.basis).reshape(n, layers, self.basis.shape[1])
        event, layer = np.divmod(row, layers)
        front = _sums(event, cell, energy, n, cells)
        rings = _sums(event, self.ring[cell], energy, n, self.rings)
        sectors = _sums(event, self.sector[cell], energy, n, self.sectors + 1)[:, : self.sectors]
        layer_energy, total = sums[:, :, 0], sums.sum(axis=1)
        visible = total[:, 0]
        hits = np.diff(starts).reshape(n, layers)
        incident = events.incident_energy.astype(np.float64)
        _check_range(visible, incident, first)

        (layer_x, layer_y, layer_r), (layer_width_x, layer_width_y, layer_width_r) = _moments(sums)
        (centre_x, centre_y, lateral_mean), (width_x, width_y, lateral_spread) = _moments(total)
        centre_z, width_z, skewness_z, kurtosis_z = self._along_z(layer_energy, visible)
        front_energy, back_energy = layer_energy @ self.first_half, layer_energy @ ~self.first_half
        shares = _divide(sectors, sectors.sum(axis=1)[:, None])
        values = {
            "response": visible / incident,
            "visible_energy": visible,
            "occupancy": hits.sum(axis=1),
            "centre_x": centre_x,
            "centre_y": centre_y,
            "centre_z": centre_z,
            "width_x": width_x,
            "width_y": width_y,
            "width_z": width_z,
            "skewness_z": skewness_z,
            "kurtosis_z": kurtosis_z,
            "shower_maximum": np.argmax(layer_energy, axis=1),
            "lateral_mean": lateral_mean,
            "lateral_width": np.sqrt(_divide(total[:, 6], visible)),
            "lateral_spread": lateral_spread,
            "radius_90": self._containment(front, rings, visible, 0.9),
            "front_fraction": _divide(front_energy, visible),
            "front_back_ratio": front_energy / np.maximum(back_energy, max(threshold, _LEAST_MEV)),
            "azimuth": shares,
            "azimuth_spread": shares.std(axis=1) * shares.shape[1],
            "layer_energy": layer_energy,
            "layer_fraction": _divide(layer_energy, visible[:, None]),
            "layer_sparsity": 1 - hits / cells,
            "layer_centre_x": layer_x,
            "layer_centre_y": layer_y,
            "layer_centre_r": layer_r,
            "layer_width_x": layer_width_x,
            "layer_width_y": layer_width_y,
            "layer_width_r": layer_width_r,
        }
        plane = front.reshape(n, n1, n2)
        return Measured(
            detector=self.detector,
            threshold_mev=threshold,
            energy=events.incident_energy.copy(),
            values={name: array.astype(np.float32) for name, array in values.items()},
            rings=rings.astype(np.float32),
            along={
                axis: plane.sum(axis=other).astype(np.float32) for axis, other in zip(self.detector.axes[1:], (2, 1), strict=True)
            },
            cells=energy,
            voxels=(hit % self.detector.voxels).astype(np.int32),
            offsets=starts[::layers].astype(np.int64),
            below_cells=np.bincount(below, minlength=n),
            below_energy=np.bincount(below, below_energy, minlength=n).astype(np.float32),
            images=self._images(strata_of(events.incident_energy), event, layer, cell, energy),
            empty=int((visible == 0).sum()),
            angles={name: events.conditions[name].copy() for name in (THETA, PHI) if name in events.conditions},
        )

    def _along_z(self, layer_energy: Float, visible: Float) -> tuple[Float, Float, Float, Float]:
        """Centre, width, skewness and kurtosis in depth, (N,) each; the last three are zero if all energy is in one layer."""
        centre = _divide(layer_energy @ self.z, visible)
        distance = self.z - centre[:, None]
        second, third, fourth = (_divide((layer_energy * distance**order).sum(axis=1), visible) for order in (2, 3, 4))
        second = np.where(second > 1e-12 * centre**2, second, 0.0)  # rounding leaves less
        return centre, np.sqrt(second), _divide(third, second**1.5), _divide(fourth, second**2)

    def _containment(self, front: Float, rings: Float, visible: Float, share: float) -> Float:
        """Radius around the axis that holds `share` of the visible energy, (N,) mm.

        Linear between the radii of cells; on a cylindrical grid between the edges of its rings.
        """
        if self.detector.grid == "cylindrical":
            radius = (np.arange(self.rings) + 1) * self.detector.cell_size[2]
            inside = np.cumsum(rings, axis=1)
        else:
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

    def _images(self, strata: Counts, event: Counts, layer: Counts, cell: Counts, energy: Array) -> Images:
        """Along z and each transverse axis (rows the transverse axis, columns z), and the transverse plane."""
        layers, n1, n2 = self.detector.shape
        numbers, index = np.unique(strata, return_inverse=True)
        first, second = np.divmod(cell, n2)
        z, a, b = (axis[0] for axis in self.detector.axes)
        pairs = {z + a: (first, layer, n1, layers), z + b: (second, layer, n2, layers), a + b: (first, second, n1, n2)}
        images: Images = {int(number): {} for number in numbers}
        for name, (row, column, rows, columns) in pairs.items():
            summed = _sums(index[event], row * columns + column, energy, len(numbers), rows * columns)
            for number, image in zip(numbers, summed.reshape(-1, rows, columns), strict=True):
                images[int(number)][name] = image
        return images


def ring_radii(detector: Detector) -> Float:
    """Mean radius of the middles of each ring's cells, mm.

    On a cartesian grid a ring holds the cells with k - 1/2 <= r / pitch < k + 1/2, on a cylindrical one those of one r.
    """
    return _Frame(detector).ring_radius


def layer_depths(detector: Detector) -> Float:
    """Depth of each layer's middle, mm from the front face."""
    return np.asarray((np.arange(detector.layers) + 0.5) * detector.cell_size[0], np.float64)


def _divide(first: NDArray[np.floating], second: NDArray[np.floating]) -> Float:
    """first / second, zero where second is zero."""
    shape = np.broadcast_shapes(first.shape, second.shape)
    quotient = np.zeros(shape, np.float64)
    np.divide(first, second, out=quotient, where=second > 0)
    return quotient


def _sums(event: Counts, place: Counts, energy: Array, events: int, places: int) -> Float:
    """Energy per event and place, (events, places)."""
    summed = np.bincount(event * places + place, energy, minlength=events * places)
    return summed.reshape(events, places).astype(np.float64, copy=False)


def _moments(sums: Float) -> tuple[tuple[Float, ...], tuple[Float, ...]]:
    """Centres, and widths sqrt(<q^2> - <q>^2), from sums of (1, x, y, r, x^2, y^2, r^2) in the last axis."""
    mean = [_divide(sums[..., column], sums[..., 0]) for column in range(1, 7)]
    centres, squares = mean[:3], mean[3:]
    variances = [square - centre**2 for centre, square in zip(centres, squares, strict=True)]
    # rounding leaves 1e-13 or so where a layer has one cell; below a nanometre it is zero
    kept = [np.where(one > 1e-12 * square, one, 0.0) for one, square in zip(variances, squares, strict=True)]
    return tuple(centres), tuple(np.sqrt(one) for one in kept)


def _check_range(visible: Float, incident: Float, first: int) -> None:
    largest = float(np.finfo(np.float32).max) / 1e6  # leaves room for ratios
    bad = np.flatnonzero((visible > largest) | (visible > largest * incident))
    if bad.size:
        event = bad[0]
        raise InvalidEventSet(
            f"Event {first + event} has a visible energy of {visible[event]:.3g} MeV at an incident energy of "
            f"{incident[event]:.3g} MeV: finite energies in MeV of one event are right. Repair or remove the event."
        )


def _describe(events: EventSet | Path | str) -> tuple[int, Detector]:
    if isinstance(events, EventSet):
        return len(events), get_detector(events.detector)
    info = events_info(events)
    return int(info["count"]), get_detector(info["detector"])


def _chunks(events: EventSet | Path | str, size: int) -> Iterator[EventSet]:
    if not isinstance(events, EventSet):
        yield from _ahead(iterate_events(events, size))
        return
    for start in range(0, len(events), size):
        part = events[start : start + size]
        part.check()
        yield part


def _ahead(chunks: Iterator[EventSet]) -> Iterator[EventSet]:
    """The same chunks, each read in a thread while the one before is measured."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, chunks, None)
        while (part := waiting.result()) is not None:
            waiting = pool.submit(next, chunks, None)
            yield part


def joined(parts: Sequence[Measured]) -> Measured:
    """One set of what was measured in several."""
    images: Images = {}
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
        voxels=np.concatenate([part.voxels for part in parts]),
        offsets=np.append(np.concatenate(offsets), shifts[-1]),
        below_cells=np.concatenate([part.below_cells for part in parts]),
        below_energy=np.concatenate([part.below_energy for part in parts]),
        images=images,
        empty=sum(part.empty for part in parts),
        angles={name: np.concatenate([part.angles[name] for part in parts]) for name in first.angles},
    )
