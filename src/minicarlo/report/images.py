"""Pictures of matrices: average showers, their ratios, and correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm

from minicarlo.fidelity.scorecard import Correlations, Scorecard
from minicarlo.report.figure import FULL, Array, Picture, Table, divide, drawing, number, plain

_ACROSS = 4
_AXES = {"z": "layer", "x": "x [cells]", "y": "y [cells]", "r": "ring", "p": "sector"}
_SHORT = {
    "response": "response",
    "occupancy": "occupancy",
    "centre_x": "⟨x⟩",
    "centre_y": "⟨y⟩",
    "centre_z": "⟨z⟩",
    "width_x": "σ(x)",
    "width_y": "σ(y)",
    "width_z": "σ(z)",
    "lateral_mean": "⟨r⟩",
}


def average_showers(name: str, cards: Mapping[str, Scorecard], reference: str, *, title: str) -> Picture:
    """Average shower in a projection in MeV per cell, every sample on one logarithmic scale."""
    panels = {reference: _image(next(iter(cards.values())).images[name].reference)}
    panels |= {label: _image(card.images[name].candidate) for label, card in cards.items()}
    top = max(float(image.max()) for image in panels.values())
    norm = LogNorm(vmin=max(top * 1e-5, 1e-12), vmax=max(top, 1e-7), clip=True)
    sums = tuple((label, number(float(image.sum())), number(float(image.max()))) for label, image in panels.items())
    table = Table(("sample", "sum [MeV]", "largest [MeV]"), sums)
    alt = f"{title}, average of all showers: {', '.join(panels)}"
    return _grid(name, panels, norm, "viridis", "mean energy per cell [MeV]", alt, table)


def shower_ratios(name: str, cards: Mapping[str, Scorecard], reference: str, *, title: str) -> Picture:
    """Average shower of every candidate over the reference's, on a scale from half to double."""
    panels = {}
    rows = []
    for label, card in cards.items():
        ours, theirs = _image(card.images[name].reference), _image(card.images[name].candidate)
        panels[label] = divide(theirs, ours)
        rows.append((label, *(_within(panels[label], ours, limit) for limit in (0.02, 0.1, 0.5))))
    header = ("sample", *(f"energy in cells within {limit}" for limit in ("2 %", "10 %", "50 %")))
    alt = f"{title}, ratio of average showers to {reference}: {', '.join(panels)}"
    norm = LogNorm(0.5, 2, clip=True)
    return _grid(name, panels, norm, "PuOr", f"ratio to {plain(reference, 14)}", alt, Table(header, tuple(rows)))


def correlation_matrices(found: Correlations, label: str, reference: str) -> Picture:
    """Pearson matrices of the reference, of a candidate, and their difference."""
    ours, theirs = _image(found.reference), _image(found.candidate)
    difference = theirs - ours
    reach = max(0.05, math.ceil(20 * float(np.nanmax(np.abs(difference)))) / 20)
    with drawing(FULL, 4.2, "constrained") as figure:
        row = figure.subplots(1, 3, sharex=True, sharey=True)
        titles = (plain(reference), plain(label), "difference")
        for axes, matrix, title, limit in zip(row, (ours, theirs, difference), titles, (1, 1, reach), strict=True):
            drawn = axes.imshow(matrix, norm=TwoSlopeNorm(0, -limit, limit), cmap="RdBu_r", interpolation="nearest")
            axes.set_title(title)
            _quantities(axes, found.names)
            if axes is not row[0]:
                figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
        upper = np.triu_indices(len(found.names), 1)
        largest = sorted(zip(*upper, strict=True), key=lambda pair: -abs(difference[pair]))[:40]
        rows = tuple(
            (found.names[i], found.names[j], *(f"{matrix[i, j]:+.3f}".replace("-", "−") for matrix in (ours, theirs, difference)))
            for i, j in largest
        )
        worst = f"; the largest difference is {rows[0][4]}, of {rows[0][0]} with {rows[0][1]}" if rows else ""
        header = ("quantity", "with", reference, label, "difference")
        return Picture(figure, f"Correlations of {reference} and {label}{worst}", Table(header, rows))


def _quantities(axes: Axes, names: list[str]) -> None:
    """Ticks: every quantity of the shower, every fifth layer."""
    ticks = {}
    for place, name in enumerate(names):
        layer = name.removeprefix("layer_fraction_")
        if layer == name:
            ticks[place] = _SHORT.get(name, plain(name, 12))
        elif layer.isdecimal() and int(layer) % 5 == 0:
            ticks[place] = f"layer {layer}"
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=90, fontsize=6.5)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=6.5)
    axes.minorticks_off()
    axes.tick_params(which="both", direction="out", top=False, right=False, length=2)


def _grid(name: str, panels: Mapping[str, Array], norm: LogNorm, colours: str, label: str, alt: str, table: Table) -> Picture:
    """Panels side by side, four in a row, with one scale of colours."""
    across_letter, up_letter = (name[0], name[1:]) if name.startswith("z") else (name[1:], name[0])
    across = min(_ACROSS, max(len(panels), 3))
    down = math.ceil(len(panels) / across)
    with drawing(FULL, 2.75 * down + 0.3, "constrained") as figure:
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, image) in zip(grid.flat, panels.items(), strict=False):
            drawn = axes.imshow(image, origin="lower", norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
            axes.set_title(plain(title, 26))
            axes.set_xlabel(_AXES.get(across_letter, plain(across_letter)))
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.minorticks_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(_AXES.get(up_letter, plain(up_letter)))
        bar = figure.colorbar(drawn, ax=list(grid[:, : len(panels)].flat), label=label, pad=0.01)
        if norm.vmax == 2:
            bar.set_ticks([0.5, 0.7, 1, 1.4, 2], labels=["0.5", "0.7", "1", "1.4", "2"])
            bar.ax.minorticks_off()
        return Picture(figure, alt, table)


def _image(rows: list[list[float | None]]) -> Array:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _within(ratio: Array, energy: Array, limit: float) -> str:
    """The share of the energy that lies in cells whose ratio is within a limit of one."""
    close = np.abs(np.nan_to_num(ratio, nan=np.inf) - 1) <= limit
    return f"{100 * energy[close].sum() / max(float(energy.sum()), 1e-300):.1f} %"
