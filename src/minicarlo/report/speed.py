"""Plots of the benchmark: showers per second of every precision, and against batch and streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from minicarlo.report.figure import (
    DASHES,
    MARKERS,
    PALETTE,
    REFERENCE_LINE,
    WIDE,
    Picture,
    Table,
    drawing,
    legend,
    number,
    panel,
    plain,
)
from minicarlo.report.names import FORMAT_COLORS


def throughput(runs: Sequence[Mapping[str, Any]], simulator: str, simulator_rate: float | None) -> Picture:
    """Showers per second for every measured run, with the spread; the Monte Carlo's own rate as the last bar."""
    bars = [
        (
            f"{precision_title(run['precision'])}, {run['streams']} stream{'s' if run['streams'] != 1 else ''}",
            float(run["events_per_second"]),
            float(run.get("spread") or 0.0),
            FORMAT_COLORS.get(str(run["precision"]), PALETTE[1]),
        )
        for run in runs
    ]
    if simulator_rate is not None:
        bars.append((f"{simulator}, 1 core", simulator_rate, 0.0, REFERENCE_LINE))
    with drawing(WIDE[0], 0.32 * len(bars) + 1.0) as figure:
        axes = panel(figure, left=1.3)
        places = np.arange(len(bars))[::-1]
        rates = [rate for _, rate, _, _ in bars]
        spreads = [spread for _, _, spread, _ in bars]
        colors = [color for *_, color in bars]
        axes.barh(places, rates, xerr=spreads, color=colors, height=0.68, error_kw={"linewidth": 1, "capsize": 2})
        axes.set_yticks(places, [plain(label) for label, *_ in bars])
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        logarithmic = max(rates) > 50 * min(rates)
        if logarithmic:
            axes.set_xscale("log")
        low = min(rates) / 2 if logarithmic else 0.0
        axes.set_xlim(low, max(rates) * (6 if logarithmic else 1.25))
        for place, (_, rate, spread, _) in zip(places, bars, strict=True):
            axes.annotate(number(rate), (rate + spread, place), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_xlabel("showers per second")
        rows = tuple((label, number(rate), number(spread)) for label, rate, spread, _ in bars)
        return Picture(figure, "Showers per second", Table(("run", "showers per second", "spread"), rows))


def sweep(points: Sequence[Mapping[str, Any]], precision: str) -> Picture:
    """Showers per second against the batch, a line per number of streams."""
    with drawing(*WIDE) as figure:
        axes = panel(figure)
        streams = sorted({int(point["streams"]) for point in points})
        shown = (
            streams
            if len(streams) <= len(PALETTE)
            else [streams[k] for k in np.linspace(0, len(streams) - 1, 6).round().astype(int)]
        )
        for index, count in enumerate(shown):
            own = sorted((point for point in points if point["streams"] == count), key=lambda point: int(point["batch"]))
            batch, rate, spread = (
                [float(point.get(name) or 0.0) for point in own] for name in ("batch", "events_per_second", "spread")
            )
            style: dict[str, Any] = {"color": PALETTE[index], "linestyle": DASHES[index], "fmt": MARKERS[index]}
            axes.errorbar(batch, rate, yerr=spread, label=f"{count} stream{'s' if count != 1 else ''}", linewidth=1.2, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, None)
        axes.set_xlabel("events per inference (batch)")
        axes.set_ylabel("showers per second")
        legend(axes, len(shown))
        best = max(points, key=lambda point: float(point["events_per_second"]))
        alt = (
            f"{precision_title(precision)}: showers per second against batch and streams; "
            f"most with batch {best['batch']} on {best['streams']} streams"
        )
        rows = tuple(
            (str(p["streams"]), str(p["batch"]), number(p["events_per_second"]), number(p.get("spread"))) for p in points
        )
        return Picture(figure, alt, Table(("streams", "batch", "showers per second", "spread"), rows))


def precision_title(precision: object) -> str:
    """`fp32` becomes `FP32`; `tuned` stays."""
    return "tuned" if precision == "tuned" else str(precision).upper()
