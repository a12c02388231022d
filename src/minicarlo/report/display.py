"""The display of single showers: generated ones beside their nearest Monte Carlo neighbours, to turn and to cut.

The page gets numbers only: a cell is its flat index and its energy as thousandths of a decade above the readout threshold
(0.12 % at most from the truth), both as base64 of little-endian integers. What a browser without scripts or paper shows is a
picture of the first pair, drawn here in the same projection.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from minicarlo.detectors import Detector, get_detector
from minicarlo.errors import IncompatibleEventSets
from minicarlo.events import EventSet, events_info, read_events
from minicarlo.fidelity.neighbours import Closeness, Neighbourhood, ShowerFeatures, closeness, shower_features
from minicarlo.report.figure import Array, drawing, number, plain

_PAIRS = 10  # of each candidate, evenly spaced in energy; the closest and the farthest come on top
_CODES_PER_DECADE = 1000
_MOST_CELLS = 4000
_MOST_JUDGED = 5000  # showers of a candidate, and of the reference, whose distances are compared
_COLORS = 64
_TURN, _TILT = 0.6, 0.35  # rad, the first view; as in display.js
_FURTHEST_ARC = 0.2  # rad that a straight edge may stand for; as in display.js


@dataclass(frozen=True)
class Row:
    """A candidate's row of the table of distances."""

    label: str
    cells: tuple[str, ...]
    words: str
    good: bool


@dataclass(frozen=True)
class Display:
    """What the template shows: labels of the candidates, the data block (safe inside `<script>`), picture and words."""

    labels: tuple[str, ...]
    reference: str
    data: Markup
    picture: str
    alt: str
    closeness: tuple[Row, ...]


@dataclass(frozen=True)
class Shower:
    """One shower as the page gets it: `cells` flat indices above threshold in rising order, `codes` their energies."""

    event: int
    incident_mev: float
    visible_mev: float
    above_threshold: int
    cells: NDArray[np.int64]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """A generated shower, its nearest neighbour, their distance, and why it was chosen."""

    generated: Shower
    neighbour: Shower
    distance: float
    reason: int  # 0 evenly spaced in energy, 1 closest of all, 2 farthest of all; as in display.js


def make_display(
    reference: EventSet | Path | str, candidates: Mapping[str, EventSet | Path | str], *, name: str
) -> Display | None:
    """The display of `candidates` (label to event set) beside `reference`, which the page calls `name`.

    None when no candidate has a shower near the reference in incident energy. Raises IncompatibleEventSets for different
    detectors, and as `read_events` does.
    """
    detector = _detector(reference)
    neighbourhood = Neighbourhood(shower_features(reference))
    among_themselves = neighbourhood.among_themselves(_MOST_JUDGED)
    found: dict[str, tuple[list[Pair], Closeness]] = {}
    for label, events in candidates.items():
        if _detector(events) != detector:
            raise IncompatibleEventSets(f"Candidate {label:.80} is not of detector {detector.name}, as the reference is.")
        features = shower_features(events, most=_MOST_JUDGED)
        nearest, distance = neighbourhood.nearest(features)
        pairs = [
            Pair(_shower(events, row, detector), _shower(reference, int(nearest[row]), detector), float(distance[row]), reason)
            for row, reason in _chosen(features, distance)
        ]
        if pairs:
            found[label] = pairs, closeness(distance, among_themselves)
    if not found:
        return None
    first_label, (first_pairs, _) = next(iter(found.items()))
    first = first_pairs[_first(first_pairs)]
    return Display(
        labels=tuple(found),
        reference=name,
        data=_data(detector, list(found.values())),
        picture=_picture(detector, first, first_label, name),
        alt=f"A shower of {first_label} beside its nearest {name} neighbour, cells coloured by energy.",
        closeness=tuple(_row(label, close) for label, (_, close) in found.items()),
    )


def _detector(events: EventSet | Path | str) -> Detector:
    return get_detector(events.detector if isinstance(events, EventSet) else events_info(events)["detector"])


def _chosen(features: ShowerFeatures, distance: Array) -> list[tuple[int, int]]:
    """Rows and reasons: evenly spaced in rank of energy, the closest and the farthest; only those that have a neighbour."""
    known = np.flatnonzero(np.isfinite(distance))
    if not known.size:
        return []
    by_energy = known[np.argsort(features.energy[known], kind="stable")]
    spaced = np.unique(np.linspace(0, len(by_energy) - 1, _PAIRS).round().astype(np.int64))
    closest, farthest = known[np.argmin(distance[known])], known[np.argmax(distance[known])]
    return [*((int(row), 0) for row in by_energy[spaced]), (int(closest), 1), (int(farthest), 2)]


def _first(pairs: list[Pair]) -> int:
    """The one to show first: in the middle of those that are evenly spaced."""
    return sum(pair.reason == 0 for pair in pairs) // 2


def _shower(events: EventSet | Path | str, row: int, detector: Detector) -> Shower:
    one = events[row : row + 1] if isinstance(events, EventSet) else read_events(events, start=row, stop=row + 1)
    energies = one.samples.reshape(-1).astype(np.float64)
    hit = np.flatnonzero(energies > detector.readout_threshold_mev)
    cells = np.sort(hit[np.argsort(-energies[hit], kind="stable")[:_MOST_CELLS]])
    codes = np.round(_CODES_PER_DECADE * np.log10(energies[cells] / detector.readout_threshold_mev)).astype(np.int64)
    return Shower(row, float(one.incident_energy[0]), float(energies[hit].sum()), len(hit), cells, codes)


def _row(label: str, close: Closeness) -> Row:
    if close.copies:
        words = f"{close.copies:,} near copies"
    elif close.too_close:
        words = "too close, without copies: fluctuates too little"
    else:
        words = "no sign of copies"
    found = f"{close.found:,} ({number(close.expected)} expected)"
    return Row(
        label,
        (f"{close.events:,}", number(close.median), number(close.scale), found),
        words,
        not (close.copies or close.too_close),
    )


# ------------------------------------------------------------------ the data block


def _data(detector: Detector, found: list[tuple[list[Pair], Closeness]]) -> Markup:
    """JSON of numbers and base64, in which no character could end the block. A shower that several pairs share is there once."""
    showers: list[dict[str, Any]] = []
    places: dict[tuple[int, int], int] = {}

    def place(source: int, shower: Shower) -> int:
        if (source, shower.event) not in places:
            places[source, shower.event] = len(showers)
            showers.append(_packed(shower, detector))
        return places[source, shower.event]

    candidates = [
        {
            "scale": _digits(close.scale),
            "pairs": [
                [place(source, pair.generated), place(-1, pair.neighbour), _digits(pair.distance), pair.reason] for pair in pairs
            ],
        }
        for source, (pairs, close) in enumerate(found)
    ]
    top = max(
        int(shower.codes.max(initial=1)) for pairs, _ in found for pair in pairs for shower in (pair.generated, pair.neighbour)
    )
    data = {
        "grid": detector.grid,
        "shape": detector.shape,
        "cell": detector.cell_size,
        "threshold": detector.readout_threshold_mev,
        "codesPerDecade": _CODES_PER_DECADE,
        "top": top,
        "first": _first(found[0][0]),
        "colors": (np.array(_colormap()(np.linspace(0, 1, _COLORS)))[:, :3] * 255).round().astype(int).tolist(),
        "showers": showers,
        "candidates": candidates,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _packed(shower: Shower, detector: Detector) -> dict[str, Any]:
    index = "<u2" if detector.voxels <= 2**16 else "<u4"
    return {
        "event": shower.event,
        "incident": _digits(shower.incident_mev),
        "visible": _digits(shower.visible_mev),
        "count": shower.above_threshold,
        "cells": base64.b64encode(shower.cells.astype(index).tobytes()).decode(),
        "codes": base64.b64encode(shower.codes.astype("<u2").tobytes()).decode(),
    }


def _digits(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _colormap() -> matplotlib.colors.Colormap:
    """Weak cells light, strong cells dark, as on paper; rising in lightness for every kind of colour vision."""
    return matplotlib.colors.ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.04, 1, 256)))


# ------------------------------------------------------------------ the picture for paper


def _picture(detector: Detector, pair: Pair, label: str, reference: str) -> str:
    """The pair as a PNG data address."""
    low = detector.readout_threshold_mev
    top = max(int(shower.codes.max(initial=1)) for shower in (pair.generated, pair.neighbour))
    norm = LogNorm(low, low * 10 ** (top / _CODES_PER_DECADE))
    with drawing(10.4, 4.2, "constrained") as figure:
        left, right = figure.subplots(1, 2)
        for axes, shower, name in ((left, pair.generated, label), (right, pair.neighbour, reference)):
            _draw(axes, detector, shower, norm)
            axes.set_title(
                f"{plain(name)}, event {shower.event:,}: {_energy(shower.incident_mev)}, {_energy(shower.visible_mev)} visible"
            )
        mappable = matplotlib.cm.ScalarMappable(norm, _colormap())
        figure.colorbar(mappable, ax=[left, right], label="cell energy [MeV]", shrink=0.8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _energy(mev: float) -> str:
    return f"{number(mev)} MeV" if mev < 1000 else f"{number(mev / 1000)} GeV"


def _draw(axes: Axes, detector: Detector, shower: Shower, norm: LogNorm) -> None:
    """Cells as prisms, shrunk the more the weaker they are, from back to front, inside the outline of the detector."""
    layer, cell = np.divmod(shower.cells, detector.shape[1] * detector.shape[2])
    corners = _corners(detector)[cell]  # (M, Q, 4, 2)
    energy = detector.readout_threshold_mev * 10 ** (shower.codes / _CODES_PER_DECADE)
    size = 0.4 + 0.6 * np.asarray(norm(energy))
    centre = corners.mean(axis=(1, 2), keepdims=True)
    corners = centre + size[:, None, None, None] * (corners - centre)
    dz = detector.cell_size[0]
    near, far = ((layer + 0.5 + sign * size / 2) * dz for sign in (-1, 1))
    caps = [
        _project(np.concatenate([corners, np.broadcast_to(z[:, None, None, None], (*corners.shape[:3], 1))], -1))
        for z in (near, far)
    ]
    rolled = [np.roll(cap, -1, axis=2) for cap in caps]
    sides = np.stack([caps[0], rolled[0], rolled[1], caps[1]], axis=3)  # (M, Q, 4 sides, 4 corners, 3)
    faces = np.concatenate([caps[0][:, :, None, ::-1], caps[1][:, :, None], sides], axis=2)
    normal = np.cross(faces[..., 2, :] - faces[..., 0, :], faces[..., 3, :] - faces[..., 1, :])
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    light = np.array([-0.35, 0.75, -0.55])
    brightness = 0.72 + 0.28 * np.clip(normal @ light, 0, 1)
    color = np.broadcast_to(_colormap()(norm(energy))[:, None, None, :3], (*brightness.shape, 3)) * brightness[..., None]
    visible = normal[..., 2] < 0
    faces, color = faces[visible], color[visible]
    order = np.argsort(-faces[..., 2].mean(axis=1), kind="stable")
    axes.add_collection(
        LineCollection([_project(line)[:, :2] for line in _outline(detector)], colors="#9aa1ab", linewidths=0.7, zorder=0)
    )
    axes.add_collection(PolyCollection(list(faces[order][..., :2]), facecolors=color[order], linewidths=0))
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_axis_off()


def _project(points: Array) -> Array:
    """(..., 3) points (x, y, z) in mm to (right, up, away from the viewer); the shower runs to the right."""
    x, y, z = np.moveaxis(points, -1, 0)
    right, away = z * math.cos(_TURN) + x * math.sin(_TURN), x * math.cos(_TURN) - z * math.sin(_TURN)
    up, depth = y * math.cos(_TILT) + away * math.sin(_TILT), away * math.cos(_TILT) - y * math.sin(_TILT)
    return np.stack([right, up, depth], axis=-1)


def _corners(detector: Detector) -> Array:
    """Corners (x, y) in mm of the quadrilaterals of the n1 * n2 cells of a layer, counter-clockwise: (n1 * n2, Q, 4, 2)."""
    (_, n1, n2), (_, first, second) = detector.shape, detector.cell_size
    i, j = (index.ravel()[:, None] for index in np.meshgrid(np.arange(n1), np.arange(n2), indexing="ij"))
    if detector.grid == "cartesian":
        x, y = (i - n1 / 2) * first, (j - n2 / 2) * second
        ring = [(x, y), (x + first, y), (x + first, y + second), (x, y + second)]
    else:
        parts = math.ceil(first / _FURTHEST_ARC)
        start = (i + np.arange(parts) / parts) * first
        end, inner = start + first / parts, j * second
        outer = inner + second
        ring = [(r * np.cos(phi), r * np.sin(phi)) for r, phi in ((outer, start), (outer, end), (inner, end), (inner, start))]
    return np.stack([np.stack(np.broadcast_arrays(*point), axis=-1) for point in ring], axis=-2)


def _outline(detector: Detector) -> list[Array]:
    """Lines (K, 3) around the detector: both ends, and four along the shower."""
    (layers, n1, n2), (dz, first, second) = detector.shape, detector.cell_size
    if detector.grid == "cartesian":
        x, y = n1 * first / 2, n2 * second / 2
        end = np.array([(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)])
        marks = end[:4]
    else:
        phi = np.linspace(0, math.tau, 65)
        end = n2 * second * np.stack([np.cos(phi), np.sin(phi)], axis=-1)
        marks = end[8:64:16]
    depths = np.array([0.0, layers * dz])
    ends = [np.column_stack([end, np.full(len(end), z)]) for z in depths]
    return ends + [np.column_stack([np.tile(mark, (2, 1)), depths]) for mark in marks]
