"""Plot of a tuned network's layers: what each alone costs in each format and moves most, its share of the work, its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from minicarlo.report.figure import FULL, REFERENCE_LINE, Picture, Table, drawing, number, plain
from minicarlo.report.inputs import TunedLayer
from minicarlo.report.names import FAMILIES, FORMAT_COLORS, OTHER_FORMAT

_BAR, _BETWEEN = 0.115, 0.11  # inches, of a bar and between layers
_BOTTOM, _TOP = 0.5, 0.55
_NAMES, _BADGES, _FAMILY, _GAP = 1.6, 0.5, 1.5, 0.25
_STRIPE, _SHARE, _WORDS = "#F4F5F7", "#8A919C", "#4A4F57"


def picture(layers: Sequence[TunedLayer], tolerance: float | None, criterion: str) -> Picture:
    """Bars of the harm (logarithmic) with the tolerance, of the share of multiply-accumulates and of the time, layer by layer."""
    formats = [form for form in FORMAT_COLORS if any(form in layer.harm for layer in layers)]
    formats += sorted({form for layer in layers for form in layer.harm} - set(formats))
    timed = [form for form in dict.fromkeys((*formats, "fp32")) if any(form in layer.seconds for layer in layers)]
    pitch = _BAR * max(len(formats), len(timed), 2) + _BETWEEN
    with drawing(FULL, pitch * len(layers) + _BOTTOM + _TOP) as figure:
        panels = _panels(figure, len(layers), with_family=any(layer.moves for layer in layers), with_time=bool(timed))
        _names(panels[0], layers)
        _harm(panels[0], layers, formats, tolerance)
        panels[0].set_xlabel(f"{plain(criterion, 40)}, this layer alone")
        _bars(panels[1], layers, lambda layer: {"": 100 * (layer.mac_share or 0.0)}, [""])
        panels[1].set_xlabel("multiply-adds [%]")
        if timed:
            _bars(panels[2], layers, lambda layer: {form: 1e6 * value for form, value in layer.seconds.items()}, timed)
            panels[2].set_xlabel("time [µs]")
        shown = list(dict.fromkeys((*formats, *timed)))
        patches = [Patch(color=FORMAT_COLORS.get(form, OTHER_FORMAT), label=plain(form)) for form in shown]
        figure.legend(handles=patches, loc="upper right", ncols=len(patches) or 1, borderaxespad=0.2)
        return Picture(figure, _words(layers), _table(layers, formats, timed, criterion))


def _panels(figure: Figure, count: int, *, with_family: bool, with_time: bool) -> list[Axes]:
    """Panels side by side that share the layers, on a faint stripe behind every other layer."""
    width, height = (float(each) for each in figure.get_size_inches())
    family = _FAMILY if with_family else 0.0
    left, room = _NAMES + _BADGES, width - _NAMES - _BADGES - family - 3 * _GAP
    widths = [0.56 * room, 0.17 * room, 0.27 * room] if with_time else [0.76 * room, 0.24 * room]
    starts = [left, left + widths[0] + family + _GAP, left + sum(widths[:2]) + family + 2 * _GAP]
    inner = (height - _BOTTOM - _TOP) / height
    behind = figure.add_axes((0, _BOTTOM / height, 1, inner))
    behind.set_axis_off()
    for row in range(0, count, 2):
        behind.axhspan(row - 0.5, row + 0.5, color=_STRIPE, linewidth=0)
    panels = [
        figure.add_axes((start / width, _BOTTOM / height, inches / width, inner))
        for start, inches in zip(starts, widths, strict=False)
    ]
    for axes in (behind, *panels):
        axes.set_ylim(count - 0.5, -0.5)
    for axes in panels:
        axes.patch.set_alpha(0)
        axes.set_yticks([])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", top=False, which="both")
        axes.spines[["top", "right", "left"]].set_visible(False)
    return panels


def _names(axes: Axes, layers: Sequence[TunedLayer]) -> None:
    """Left of the bars: the layer, and its format on a badge."""
    inches = float(axes.get_position().width) * FULL

    def write(row: float, place: float, words: str, **style: Any) -> None:  # noqa: ANN401
        axes.text(place / inches, row, words, transform=axes.get_yaxis_transform(), va="center", **style)

    for row, layer in enumerate(layers):
        color = FORMAT_COLORS.get(layer.form, OTHER_FORMAT)
        badge = {"boxstyle": "round,pad=0.25,rounding_size=0.4", "linewidth": 0, "facecolor": color}
        ink = "black" if layer.form in ("bf16", "fp32") else "white"
        write(row, -_BADGES / 2, plain(layer.form, 6), ha="center", fontsize=7.5, color=ink, bbox=badge)
        write(row, -_BADGES - 0.05, plain(layer.name, 24), ha="right", fontsize=8.5)
    write(-0.75, -_BADGES / 2, "chosen", ha="center", fontsize=8, color=_WORDS)


def _harm(axes: Axes, layers: Sequence[TunedLayer], formats: Sequence[str], tolerance: float | None) -> None:
    finite = [value for layer in layers for value in layer.harm.values() if value]
    low = min([*finite, tolerance or 1.0]) / 2
    high = max([*finite, tolerance or 0.0, 2 * low]) * 1.5
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _bars(axes, layers, lambda layer: {form: value for form, value in layer.harm.items() if value}, formats, start=low)

    def write(row: float, at: float, words: str, size: float = 8) -> None:
        axes.annotate(
            words, (at, row), (6, 0), textcoords="offset points", va="center", fontsize=size, color=_WORDS, annotation_clip=False
        )

    for row, layer in enumerate(layers):
        for place, form in zip(_places(formats), formats, strict=True):
            if form in layer.harm and layer.harm[form] is None:
                write(row + place, low, "does not run", 6.5)
        if (moved := _most_moved(layer)) is not None:
            write(row, high, plain(moved, 24))
    if any(layer.moves for layer in layers):
        write(-0.75, high, "moves most")
    if tolerance is not None:
        axes.axvline(tolerance, color=REFERENCE_LINE, linestyle="--", linewidth=1, zorder=3)
        axes.text(tolerance, -0.75, "tolerance", ha="center", va="center", fontsize=8, color=_WORDS)


def _most_moved(layer: TunedLayer) -> str | None:
    """What the format that costs most moves most, in a reader's words."""
    costs = {form: cost for form, cost in layer.harm.items() if cost and form in layer.moves}
    if not costs:
        return None
    family = layer.moves[max(costs, key=costs.__getitem__)]
    return FAMILIES.get(family, family)


def _bars(
    axes: Axes,
    layers: Sequence[TunedLayer],
    values: Callable[[TunedLayer], Mapping[str, float]],
    formats: Sequence[str],
    start: float = 0.0,
) -> None:
    """A bar per layer and format, in the format's colour."""
    for place, form in zip(_places(formats), formats, strict=True):
        rows = [(row, values(layer)[form]) for row, layer in enumerate(layers) if form in values(layer)]
        if rows:
            at, length = np.array(rows).T
            color = FORMAT_COLORS.get(form, OTHER_FORMAT) if form else _SHARE
            axes.barh(at + place, length - start, _height(formats), left=start, color=color, zorder=2)
    if not start:
        axes.set_xlim(0, None)


def _height(formats: Sequence[str]) -> float:
    return 0.66 / max(len(formats), 2)


def _places(formats: Sequence[str]) -> list[float]:
    """Of the bars of a layer, relative to its middle."""
    return [(index - (len(formats) - 1) / 2) * _height(formats) for index in range(len(formats))]


def _words(layers: Sequence[TunedLayer]) -> str:
    worst = [(value, layer, form) for layer in layers for form, value in layer.harm.items() if value]
    if not worst:
        return "No layer alone costs anything in a lower format"
    value, layer, form = max(worst, key=lambda each: each[0])
    moved = f", most of all in the {FAMILIES.get(layer.moves[form], layer.moves[form])}" if form in layer.moves else ""
    return f"Cost of one layer alone in lower precision: {layer.name} costs most, {number(value)} in {form}{moved}"


def _table(layers: Sequence[TunedLayer], formats: Sequence[str], timed: Sequence[str], criterion: str) -> Table:
    header = (
        *("layer", "format", "share of multiply-adds"),
        *(f"{criterion} in {form}" for form in formats),
        *(f"{form} moves" for form in formats),
        *(f"µs in {form}" for form in timed),
    )
    rows = tuple(
        (
            layer.name,
            layer.form,
            number(layer.mac_share),
            *(number(layer.harm.get(form)) for form in formats),
            *(FAMILIES.get(moved, moved) if (moved := layer.moves.get(form)) else "–" for form in formats),
            *(number(1e6 * layer.seconds[form]) if form in layer.seconds else "–" for form in timed),
        )
        for layer in layers
    )
    return Table(header, rows)
