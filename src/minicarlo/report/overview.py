"""The picture of the first screen: how far every observable is from the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from minicarlo.fidelity.scorecard import DIFFERS, Scorecard
from minicarlo.report.figure import FLOOR, MARKERS, PALETTE, REFERENCE_LINE, WIDE, Picture, Table, drawing, number, panel, plain
from minicarlo.report.names import observable_title
from minicarlo.report.scores import distance

_LEAST = 0.1  # what is closer than a tenth of its floor is drawn there


def overview(cards: Mapping[str, Scorecard], reference: str) -> Picture:
    """Distance over floor of every observable, farthest first; filled where the verdict is that it differs."""
    found: dict[str, dict[str, tuple[float, float, bool]]] = {}
    for label, card in cards.items():
        for name, score in card.observables.items():
            apart = distance(score)
            if apart is not None and apart.value is not None and apart.floor:
                error = (apart.error or 0.0) / apart.floor
                found.setdefault(name, {})[label] = (apart.value / apart.floor, error, score.verdict == DIFFERS)
    names = sorted(found, key=lambda name: -max(value for value, _, _ in found[name].values()))
    labels = list(cards)
    with drawing(WIDE[0], max(0.127 * len(names) + 0.75, 2.2)) as figure:
        axes = panel(figure, left=1.55)
        axes.axvspan(_LEAST / 2, 1, color=FLOOR, linewidth=0)
        axes.axvline(1, color=REFERENCE_LINE, linewidth=0.8)
        for row, name in enumerate(names):
            for label, (value, error, differs) in found[name].items():
                index = labels.index(label)
                y = row + 0.5 * (index - (len(labels) - 1) / 2) / max(len(labels), 2)
                style: dict[str, Any] = {"color": PALETTE[index], "markerfacecolor": PALETTE[index] if differs else "white"}
                reach = [[min(error, value - _LEAST / 2) if value > _LEAST / 2 else 0.0], [error]]
                axes.errorbar([max(value, _LEAST)], [y], xerr=reach, fmt=MARKERS[index], markersize=3.6, linewidth=0.9, **style)
        for index, label in enumerate(labels):
            axes.plot([], [], MARKERS[index], color=PALETTE[index], label=plain(label, 18))
        axes.plot([], [], "o", color=REFERENCE_LINE, markerfacecolor="white", label="open: no difference found")
        axes.set_xscale("log")
        farthest = max((value + error for row in found.values() for value, error, _ in row.values()), default=1.0)
        nearest = min((value for row in found.values() for value, _, _ in row.values()), default=1.0)
        axes.set_xlim(max(_LEAST / 2, 0.5 * min(nearest, 1.0)), max(3.0, 1.6 * farthest))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())  # where less than two decades are seen it would write over the others
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), [plain(observable_title(name), 24) for name in names], fontsize=7.5)
        axes.tick_params(axis="y", which="both", length=0)
        axes.set_xlabel(f"distance from {plain(reference, 14)} / floor")
        axes.legend(loc="lower right", fontsize=8)
        rows = [
            (observable_title(name), label, number(value), number(error), "differs" if differs else "no difference found")
            for name in names
            for label, (value, error, differs) in found[name].items()
        ]
        counts = [
            f"{label}: {sum(d for own in found.values() for k, (_, _, d) in own.items() if k == label)} differ"
            for label in labels
        ]
        alt = f"Distance of {len(names)} observables from {reference} in units of the floor. {'; '.join(counts)}"
        median = np.median([value for own in found.values() for value, _, _ in own.values()]) if found else np.nan
        header = ("observable", "candidate", "distance / floor", "±", "verdict")
        return Picture(figure, f"{alt}; median {number(float(median))}", Table(header, tuple(rows)))
