"""The plots of the report. Each takes scorecards as JSON objects (label to scorecard) and returns a `Picture`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from minicarlo.report.figure import (
    BAND,
    DASHES,
    MARKERS,
    PALETTE,
    REFERENCE_FILL,
    REFERENCE_LINE,
    Array,
    Picture,
    Table,
    divide,
    drawing,
    is_logarithmic,
    number,
    panel,
    picture,
    plain,
    ratio_panel,
    with_ratio,
)
from minicarlo.report.names import FORMAT_COLORS

Cards = Mapping[str, Mapping[str, Any]]


def _array(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def profile(
    profiles: Mapping[str, Mapping[str, Any]], reference: str, *, title: str, x_label: str, y_label: str, small: bool = False
) -> Picture:
    """Mean profiles (label to profile) with their uncertainty, the reference as filled steps; below, ratios to the reference."""
    with drawing(*((3.7, 3.1) if small else (5.2, 4.1))) as figure:
        upper, lower = with_ratio(figure)
        first = next(iter(profiles.values()))
        x, y, error = (_array(first[key]) for key in ("x", "reference", "reference_error"))
        edges = _edges(x)
        _reference_steps(upper, edges, y, plain(reference))
        lower.stairs(1 + divide(error, y), edges, baseline=1 - divide(error, y), fill=True, color=BAND, linewidth=0)
        ratios, errors, places = [], [], []
        header, columns = [x_label, reference, "±"], [x, y, error]
        for index, (label, own) in enumerate(profiles.items()):
            values, spread = _array(own["candidate"]), _array(own["candidate_error"])
            denominator = _array(own["reference"])
            low, high = values - spread, values + spread
            upper.stairs(high, edges, baseline=low, fill=True, color=PALETTE[index], alpha=0.25, linewidth=0)
            upper.stairs(values, edges, color=PALETTE[index], linestyle=DASHES[index], linewidth=1.5, label=plain(label))
            ratios.append(divide(values, denominator))
            errors.append(divide(spread, denominator))
            places.append(_ratio_points(lower, edges, ratios[-1], errors[-1], index, len(profiles)))
            header += [label, "±"]
            columns += [values, spread]
        if (positive := y[y > 0]).size and positive[0] > 50 * positive[-1]:
            upper.set_yscale("log")
            upper.set_ylim(positive.min() / 2, positive.max() * 4)
        else:
            upper.set_ylim(0, None)
        upper.set_xlim(edges[0], edges[-1])
        upper.set_ylabel(plain(y_label, 40))
        upper.legend()
        lower.set_xlabel(plain(x_label, 40))
        ratio_panel(lower, places, ratios, errors, "ratio to\n" + plain(reference, 14))
        alt = f"{title}: {_worst_words(ratios, errors, list(profiles))}"
        return picture(figure, alt, _table(header, columns))


def histogram(
    histograms: Mapping[str, Mapping[str, Any]], reference: str, *, title: str, x_label: str, y_label: str, wide: bool = False
) -> Picture:
    """Distribution of one observable (label to histogram), normalised to one; below, ratios to the reference."""
    with drawing(*((5.2, 4.1) if wide else (3.7, 3.1))) as figure:
        upper, lower = with_ratio(figure)
        histograms = {label: _merged(own) for label, own in histograms.items()}
        first = next(iter(histograms.values()))
        edges, counts = first["edges"], first["reference"]
        fraction, spread = _fractions(counts)
        logarithmic = is_logarithmic(edges)
        _reference_steps(upper, edges, fraction, plain(reference))
        relative = np.nan_to_num(divide(spread, fraction))
        lower.stairs(1 + relative, edges, baseline=1 - relative, fill=True, color=BAND, linewidth=0)
        ratios, errors, places = [], [], []
        header: list[str] = ["from", "to", reference, "±"]
        columns = [edges[:-1], edges[1:], fraction, spread]
        for index, (label, own) in enumerate(histograms.items()):
            values, poisson = _fractions(own["candidate"])
            denominator, _ = _fractions(own["reference"])
            own_edges = own["edges"]
            upper.stairs(values, own_edges, color=PALETTE[index], linestyle=DASHES[index], linewidth=1.5, label=plain(label))
            if own_edges.shape == edges.shape and np.allclose(own_edges, edges):
                ratios.append(divide(values, denominator))
                errors.append(divide(poisson, denominator))
                places.append(_ratio_points(lower, edges, ratios[-1], errors[-1], index, len(histograms)))
                header += [label, "±"]
                columns += [values, poisson]
        if logarithmic:
            upper.set_xscale("log")
        if (positive := fraction[fraction > 0]).size and positive.max() > 300 * positive.min():
            upper.set_yscale("log")
            upper.set_ylim(positive.min() / 3, positive.max() * 6)
            upper.yaxis.set_minor_formatter(NullFormatter())
        else:
            upper.set_ylim(0, 1.45 * max(positive.max(initial=0.0), 1e-12))
        upper.set_xlim(edges[0], edges[-1])
        upper.set_ylabel(plain(y_label, 40))
        upper.legend(loc="best")
        lower.set_xlabel(plain(x_label, 40))
        ratio_panel(lower, places, ratios, errors, "ratio to\n" + plain(reference, 14))
        alt = f"{title}: {_worst_words(ratios, errors, list(histograms))}"
        return picture(figure, alt, _table(header, columns))


def against_energy(name: str, cards: Cards, reference: str, *, title: str, y_label: str, band: float | None = None) -> Picture:
    """Response or resolution per interval of incident energy for every sample, and the ratio to the reference.

    `band`: half width of a shaded guide around a ratio of one.
    """
    with drawing(5.2, 4.1) as figure:
        upper, lower = with_ratio(figure)
        rows = next(iter(cards.values()))[name]
        low, high = (_array([row[key] for row in rows]) / 1000 for key in ("low", "high"))
        centres = np.sqrt(np.maximum(low, 1e-9) * high)
        values, spread = (_array([row[key] for row in rows]) for key in ("reference", "reference_error"))
        black: dict[str, Any] = {"fmt": "o", "color": REFERENCE_LINE, "markerfacecolor": "white", "linewidth": 1, "markersize": 5}
        upper.errorbar(centres, values, yerr=spread, xerr=(centres - low, high - centres), label=plain(reference), **black)
        header, columns = ["from [GeV]", "to [GeV]", reference, "±"], [low, high, values, spread]
        ratios: list[Array] = []
        errors: list[Array] = []
        places: list[Array] = []
        if band is not None:
            lower.axhspan(1 - band, 1 + band, color=REFERENCE_FILL, linewidth=0, zorder=0)
        for index, (label, card) in enumerate(cards.items()):
            names = ("candidate", "candidate_error", "ratio", "error")
            candidate, candidate_error, ratio, error = (_array([row[key] for row in card[name]]) for key in names)
            x = centres * (1 + 0.05 * (index - (len(cards) - 1) / 2 + (0.5 if len(cards) % 2 else 0)))
            style: dict[str, Any] = {"fmt": MARKERS[index], "color": PALETTE[index], "linewidth": 1.2, "markersize": 4.5}
            upper.errorbar(x, candidate, yerr=candidate_error, label=plain(label), **style)
            lower.errorbar(x, ratio, yerr=error, **style)
            places.append(x)
            ratios.append(ratio)
            errors.append(error)
            header += [label, "±", "ratio", "±"]
            columns += [candidate, candidate_error, ratio, error]
        lower.set_xscale("log")
        lower.xaxis.set_major_formatter("{x:g}")
        lower.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        lower.xaxis.set_minor_locator(NullLocator())
        lower.set_xlim(low.min() * 0.93, high.max() * 1.07)
        ratio_panel(lower, places, ratios, errors, "ratio to\n" + plain(reference, 14))
        upper.set_ylabel(plain(y_label, 40))
        lower.set_xlabel("incident energy [GeV]")
        upper.legend()
        alt = f"{title} against incident energy: {_worst_words(ratios, errors, list(cards))}"
        return picture(figure, alt, _table(header, columns))


def shower_images(name: str, cards: Cards, reference: str, *, x_label: str, y_label: str, title: str) -> Picture:
    """Average shower in a projection in MeV per cell, every sample on one logarithmic scale."""
    first = next(iter(cards.values()))["images"][name]
    panels = {reference: np.asarray(first["reference"], dtype=np.float64)}
    panels |= {label: np.asarray(card["images"][name]["candidate"], dtype=np.float64) for label, card in cards.items()}
    top = max(float(image.max()) for image in panels.values())
    norm = LogNorm(vmin=max(top * 1e-5, 1e-12), vmax=max(top, 1e-7), clip=True)
    with drawing(2.75 * len(panels) + 0.8, 2.9, "constrained") as figure:
        row = np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True))
        for axes, (label, image) in zip(row, panels.items(), strict=True):
            drawn = axes.imshow(image, origin="lower", norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
            axes.set_title(plain(label, 26))
            axes.set_xlabel(plain(x_label, 40))
            axes.minorticks_off()
        row[0].set_ylabel(plain(y_label, 40))
        figure.colorbar(drawn, ax=list(row), label="mean energy per cell [MeV]", pad=0.01)
        sums = [[label, number(float(image.sum())), number(float(image.max()))] for label, image in panels.items()]
        return picture(
            figure,
            f"{title}, average of all showers: " + ", ".join(panels),
            Table(("sample", "sum [MeV]", "largest [MeV]"), tuple(tuple(row) for row in sums)),
        )


def tuning_history(trials: Sequence[Mapping[str, Any]], tolerance: float | None, criterion: str) -> Picture:
    """Loss of accuracy against speed, one point a trial; accepted trials are filled, the last accepted one is ringed."""
    with drawing(5.2, 3.6) as figure:
        axes = panel(figure)
        rows = []
        for trial in trials:
            speedup, value = trial.get("speedup"), trial.get("value")
            low, high = trial.get("low"), trial.get("high")
            rows.append(
                (
                    str(trial["trial"]),
                    str(trial.get("description", "")),
                    number(speedup),
                    number(value),
                    number(low),
                    number(high),
                    "accepted" if trial["accepted"] else "rejected",
                )
            )
            if speedup is None or value is None:
                continue
            color = PALETTE[2] if trial["accepted"] else PALETTE[1]
            reach = None if low is None or high is None else ([max(value - low, 0.0)], [max(high - value, 0.0)])
            axes.errorbar(
                [speedup],
                [value],
                yerr=reach,
                fmt="o" if trial["accepted"] else "X",
                color=color,
                markersize=6,
                linewidth=1,
                capsize=2,
            )
            axes.annotate(rows[-1][0], (speedup, value), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.plot([], [], "o", color=PALETTE[2], label="accepted")
        axes.plot([], [], "X", color=PALETTE[1], label="rejected")
        if tolerance is not None:
            axes.axhline(tolerance, color=REFERENCE_LINE, linestyle="--", linewidth=1, label="tolerance")
        values = [float(trial["value"]) for trial in trials if trial.get("value")]
        if values and min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, None)
        axes.set_xlabel("speed-up over FP32")
        axes.set_ylabel(plain(criterion))
        axes.legend(loc="best")
        header = ("trial", "plan", "speed-up", criterion, "low", "high", "decision")
        return picture(figure, f"Tuning history, {len(trials)} trials", Table(header, tuple(rows)))


def throughput(runs: Sequence[Mapping[str, Any]], simulator_rate: float | None) -> Picture:
    """Showers per second for every measured run, with the spread; the Monte Carlo's own rate as the last bar."""
    bars = [
        (
            f"{str(run['precision']).upper() if run['precision'] != 'tuned' else 'tuned'}, "
            f"{run['streams']} stream{'s' if run['streams'] != 1 else ''}",
            float(run["events_per_second"]),
            float(run.get("spread") or 0.0),
            FORMAT_COLORS.get(str(run["precision"]), PALETTE[1]),
        )
        for run in runs
    ]
    if simulator_rate is not None:
        bars.append(("Geant4, 1 core", simulator_rate, 0.0, REFERENCE_LINE))
    with drawing(5.2, 0.32 * len(bars) + 1.0) as figure:
        axes = panel(figure, left=1.3)
        places = np.arange(len(bars))[::-1]
        rates = [rate for _, rate, _, _ in bars]
        axes.barh(
            places,
            rates,
            xerr=[spread for _, _, spread, _ in bars],
            color=[color for *_, color in bars],
            height=0.68,
            error_kw={"linewidth": 1, "capsize": 2},
        )
        axes.set_yticks(places, [plain(label) for label, *_ in bars])
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        logarithmic = max(rates) > 50 * min(rates)
        if logarithmic:
            axes.set_xscale("log")
        low = min(rates) / 2 if logarithmic else 0.0
        axes.set_xlim(low, max(rates) * (4 if logarithmic else 1.2))
        for place, (_, rate, spread, _) in zip(places, bars, strict=True):
            axes.annotate(number(rate), (rate + spread, place), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_xlabel("showers per second")
        rows = tuple((label, number(rate), number(spread)) for label, rate, spread, _ in bars)
        return picture(figure, "Showers per second", Table(("run", "showers per second", "spread"), rows))


def _edges(x: Array) -> Array:
    """Edges half way between equally spaced or widening centres."""
    if len(x) < 2:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    edges = np.concatenate(([2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]))
    return np.maximum(edges, 0) if x[0] >= 0 else edges


def _reference_steps(axes: Axes, edges: Array, values: Array, label: str) -> None:
    axes.stairs(values, edges, fill=True, facecolor=REFERENCE_FILL, edgecolor=REFERENCE_LINE, linewidth=1, label=label)


def _ratio_points(axes: Axes, edges: Array, ratio: Array, error: Array, index: int, count: int) -> Array:
    """Draw the points of one candidate, set side by side with those of the others, and return where they lie."""
    place = 0.5 + 0.22 * (index - (count - 1) / 2) if count < 4 else 0.5
    low, high = edges[:-1], edges[1:]
    x = low * (high / low) ** place if is_logarithmic(edges) else low + place * (high - low)
    axes.errorbar(x, ratio, yerr=error, fmt=MARKERS[index], color=PALETTE[index], markersize=3, linewidth=0.9)
    return x


def _merged(histogram: Mapping[str, Any]) -> dict[str, Array]:
    """The histogram with neighbouring bins merged: about as many as the root of the number of entries."""
    edges, counts = _array(histogram["edges"]), _array(histogram["reference"])
    wanted = float(np.clip(np.sqrt(counts.sum()), 20, 100))
    starts = np.arange(0, len(counts), max(1, round(len(counts) / wanted)))
    merged = {name: np.add.reduceat(_array(histogram[name]), starts) for name in ("reference", "candidate")}
    return {"edges": np.append(edges[starts], edges[-1]), **merged}


def _fractions(counts: Array) -> tuple[Array, Array]:
    """Normalised counts and their Poisson errors."""
    total = max(float(counts.sum()), 1e-300)
    return counts / total, np.sqrt(counts) / total


def _table(header: Sequence[str], columns: Sequence[Array]) -> Table:
    rows = tuple(tuple(number(float(value), 4) for value in row) for row in zip(*columns, strict=True))
    return Table(tuple(header), rows)


def _worst_words(ratios: Sequence[Array], errors: Sequence[Array], labels: Sequence[str]) -> str:
    """The largest well-measured deviation of each candidate, for the words that stand for the picture."""
    words = []
    for label, ratio, error in zip(labels, ratios, errors, strict=False):
        measured = np.isfinite(ratio) & (error < 0.1)
        if measured.any():
            words.append(f"{label} differs from the reference by up to {100 * np.abs(ratio[measured] - 1).max():.1f} %")
    return "; ".join(words) or "too few events for a statement"
