"""Plots against incident energy: response and resolution, the CERN figure; every observable in every bin of energy or angle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from minicarlo.events import ENERGY, PHI, THETA
from minicarlo.fidelity.scorecard import (
    DIFFERS,
    NOT_ENOUGH,
    AngleBins,
    BinScore,
    CernBin,
    CernScore,
    ObservableScore,
    ResolutionFit,
    Scorecard,
)
from minicarlo.report.figure import (
    FLOOR,
    FULL,
    MARKERS,
    PALETTE,
    REFERENCE_LINE,
    WIDE,
    Array,
    Picture,
    Table,
    array,
    drawing,
    legend,
    number,
    panel,
    plain,
    ratio_panel,
    reference_steps,
    with_ratio,
    worst_words,
)
from minicarlo.report.names import gev, observable_title

_SMALLEST_P = 1e-3
_WORTH_A_FRAME = 0.5
_LABELS = {
    ENERGY: "incident energy [GeV]",
    THETA: "angle to the normal of the front face [degrees]",
    PHI: "azimuthal angle of incidence [degrees]",
}


def against_energy(
    name: Literal["response", "resolution"],
    cards: Mapping[str, Scorecard],
    reference: str,
    *,
    title: str,
    y_label: str,
    band: float | None = None,
) -> Picture:
    """Response or resolution per bin of incident energy for every sample, the fits of the resolution, and ratios.

    `band`: half width of a shaded guide around a ratio of one.
    """
    with drawing(*WIDE) as figure:
        upper, lower = with_ratio(figure)
        rows = getattr(next(iter(cards.values())), name)
        low, high, centres = _limits(rows)
        values, spread = array([row.reference for row in rows]), array([row.reference_error for row in rows])
        black: dict[str, Any] = {"fmt": "o", "color": REFERENCE_LINE, "markerfacecolor": "white", "linewidth": 1, "markersize": 5}
        upper.errorbar(centres, values, yerr=spread, xerr=(centres - low, high - centres), label=plain(reference), **black)
        table = _rows(reference, low, high, [values, spread])
        ratios: list[Array] = []
        errors: list[Array] = []
        places: list[Array] = []
        if band is not None:
            lower.axhspan(1 - band, 1 + band, color=FLOOR, linewidth=0, zorder=0)
        for index, (label, card) in enumerate(cards.items()):
            own = getattr(card, name)
            own_low, own_high, x = _limits(own)
            keys = ("candidate", "candidate_error", "ratio", "error")
            candidate, candidate_error, ratio, error = (array([getattr(row, key) for row in own]) for key in keys)
            x = x * (1 + 0.05 * (index - (len(cards) - 1) / 2 + (0.5 if len(cards) % 2 else 0)))
            style: dict[str, Any] = {"fmt": MARKERS[index], "color": PALETTE[index], "linewidth": 1.2, "markersize": 4.5}
            upper.errorbar(x, candidate, yerr=candidate_error, label=plain(label), **style)
            lower.errorbar(x, ratio, yerr=error, **style)
            places.append(x)
            ratios.append(ratio)
            errors.append(error)
            table += _rows(label, own_low, own_high, [candidate, candidate_error, ratio, error])
        if name == "resolution":
            _fits(upper, cards, np.geomspace(low.min(), high.max(), 100))
        _energy_axis(lower, low, high)
        ratio_panel(lower, places, ratios, errors, "ratio to\n" + plain(reference, 14))
        upper.set_ylabel(plain(y_label, 40))
        legend(upper, len(cards) + 1)
        alt = f"{title} against incident energy: {worst_words(ratios, errors, list(cards))}"
        return Picture(figure, alt, Table(("sample", "from [GeV]", "to [GeV]", title.lower(), "±", "ratio", "±"), tuple(table)))


def _limits(bins: Sequence[Any]) -> tuple[Array, Array, Array]:
    """Lower limits, upper limits and logarithmic centres of bins, GeV."""
    low, high = (array([getattr(entry, name) for entry in bins]) / 1000 for name in ("low", "high"))
    return low, high, np.sqrt(np.maximum(low, 1e-9) * high)


def _rows(label: str, low: Array, high: Array, columns: Sequence[Array]) -> list[tuple[str, ...]]:
    """Rows of a table, filled up to four numbers after the limits."""
    filled = zip(low, high, *columns, strict=True)
    return [(label, *(number(float(value), 4) for value in row), *([""] * (4 - len(columns)))) for row in filled]


def _fits(axes: Axes, cards: Mapping[str, Scorecard], energy: Array) -> None:
    first = next(iter(cards.values())).resolution_fit.get("reference")
    curves = [
        (first, REFERENCE_LINE),
        *((card.resolution_fit.get("candidate"), PALETTE[k]) for k, card in enumerate(cards.values())),
    ]
    for fit, color in curves:
        if fit is not None and fit.stochastic is not None and fit.noise is not None and fit.constant is not None:
            squares = fit.stochastic**2 / energy + (fit.noise / energy) ** 2 + fit.constant**2
            axes.plot(energy, np.sqrt(squares), color=color, linewidth=0.9, alpha=0.8, zorder=1)


def fit_words(fit: ResolutionFit | None) -> str:
    """`12.1 %/√E ⊕ 98 MeV/E ⊕ 4.6 %`, terms that are zero left out; empty without a fit."""
    if fit is None or fit.stochastic is None or fit.noise is None or fit.constant is None:
        return ""
    terms = (f"{100 * fit.stochastic:.1f} %/√E", f"{1000 * fit.noise:.0f} MeV/E", f"{100 * fit.constant:.1f} %")
    return " ⊕ ".join(term for term, value in zip(terms, (fit.stochastic, fit.noise, fit.constant), strict=True) if value > 1e-4)


def cern_figure(scores: Mapping[str, CernScore]) -> Picture:
    """The CERN figure per bin of incident energy (label to figure) with errors, over its floor."""
    with drawing(*WIDE) as figure:
        axes = panel(figure)
        low, high, _ = _limits(bins := _inner(next(iter(scores.values()))))
        floor = array([entry.floor for entry in bins])
        reference_steps(axes, np.append(low, high[-1]), floor, "floor")
        table: list[tuple[str, ...]] = []
        for index, (label, own) in enumerate(scores.items()):
            own_low, own_high, x = _limits(shown := _inner(own))
            value, error, own_floor = (array([getattr(entry, key) for entry in shown]) for key in ("value", "error", "floor"))
            x = x * (1 + 0.05 * (index - (len(scores) - 1) / 2))
            axes.errorbar(x, value, yerr=error, fmt=MARKERS[index], color=PALETTE[index], label=plain(label), linewidth=1.2)
            table += _rows(label, own_low, own_high, [value, error, own_floor])
        _energy_axis(axes, low, high)
        axes.set_ylim(0, None)
        axes.set_ylabel("mean relative error of moments")
        legend(axes, len(scores) + 1)
        header = ("sample", "from [GeV]", "to [GeV]", "CERN figure", "±", "floor", "")
        return Picture(figure, "CERN figure against incident energy: " + ", ".join(scores), Table(header, tuple(table)))


def _inner(score: CernScore) -> list[CernBin]:
    """The bins of energy without the one of all energies."""
    return [entry for entry in score.bins if entry.low is not None]


def _energy_axis(axes: Axes, low: Array, high: Array) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low.min() * 0.93, high.max() * 1.07)
    axes.set_xlabel("incident energy [GeV]")


def conditional(observables: Mapping[str, ObservableScore], *, title: str, condition: str = ENERGY) -> Picture:
    """p-values of every observable that has bins of a condition, as a table of colours; the worst bin of each is framed.

    `condition`: incident energy, or the name of an angle of incidence. A cross means that the observable differs in the bin, `n`
    that the bin has not enough events.
    """
    rows = {name: found for name, score in observables.items() if (found := _bins_of(score, condition))}
    bins = next(iter(rows.values())).bins
    words = [_limit_words(entry, condition) for entry in bins]
    p_values = np.array([array([entry.p_value for entry in row.bins]) for row in rows.values()])
    with drawing(FULL, 0.25 * len(rows) + 0.9, "constrained") as figure:
        axes = figure.subplots()
        drawn = axes.imshow(p_values, norm=LogNorm(_SMALLEST_P, 1, clip=True), cmap="YlOrBr_r", aspect="auto")
        for number_of_row, row in enumerate(rows.values()):
            for column, entry in enumerate(row.bins):
                dark = entry.p_value is not None and entry.p_value < 0.012
                axes.text(
                    column,
                    number_of_row,
                    _cell_words(entry.verdict, entry.p_value),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else REFERENCE_LINE,
                )
            if p_values[number_of_row, row.worst_bin] < _WORTH_A_FRAME:
                corner = (row.worst_bin - 0.48, number_of_row - 0.46)
                axes.add_patch(Rectangle(corner, 0.96, 0.92, fill=False, linewidth=1.6))
        axes.set_xticks(range(len(bins)), words)
        axes.set_yticks(range(len(rows)), [plain(observable_title(name)) for name in rows])
        axes.tick_params(which="both", length=0)
        axes.set_xticks(np.arange(1, len(bins)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1, linestyle="-")
        axes.set_xlabel(_LABELS.get(condition, plain(condition)))
        figure.colorbar(drawn, ax=axes, label="p-value", pad=0.01, aspect=30)
        table = [
            (observable_title(name), *(_cell_words(e.verdict, e.p_value) for e in row.bins), words[row.worst_bin])
            for name, row in rows.items()
        ]
        differing = sum(entry.verdict == DIFFERS for row in rows.values() for entry in row.bins)
        what = "energy" if condition == ENERGY else "angle"
        alt = f"{title}: {differing} of {p_values.size} pairs of observable and {what} bin differ"
        return Picture(figure, alt, Table(("observable", *words, "worst bin"), tuple(table)))


def _bins_of(score: ObservableScore, condition: str) -> AngleBins | None:
    if condition != ENERGY:
        return (score.angles or {}).get(condition)
    return AngleBins(bins=score.bins, worst_bin=score.worst_bin or 0) if score.bins else None


def _cell_words(verdict: str, p_value: float | None) -> str:
    p = "–" if p_value is None else "<0.001" if p_value < _SMALLEST_P else number(p_value, 1 + (p_value < 0.1))
    return f"✗ {p}" if verdict == DIFFERS else f"{p} n" if verdict == NOT_ENOUGH else p


def _limit_words(entry: BinScore, condition: str) -> str:
    if condition == ENERGY:
        return f"{gev(entry.low)} – {gev(entry.high)}" + " held out" * entry.held_out
    low, high = (np.degrees(limit or 0.0) for limit in (entry.low, entry.high))
    return f"{low:.3g} – {high:.3g}"
