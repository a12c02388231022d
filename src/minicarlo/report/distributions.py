"""Plots of distributions and profiles, each with its ratio to the reference, and of distances layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from minicarlo.fidelity.scorecard import Histogram, LayerScore, Profile
from minicarlo.report.figure import (
    BAND,
    DASHES,
    FLOOR,
    MARKERS,
    PALETTE,
    SMALL,
    WIDE,
    Array,
    Picture,
    array,
    columns_table,
    divide,
    drawing,
    is_logarithmic,
    legend,
    panel,
    plain,
    ratio_panel,
    reference_steps,
    with_ratio,
    worst_words,
)

_MOST_BINS = {False: 60, True: 34}  # of wide and of small plots; two thirds of that for more than three candidates


def profile(
    profiles: Mapping[str, Profile], reference: str, *, title: str, x_label: str, y_label: str, small: bool = False
) -> Picture:
    """Mean profiles (label to profile) with their uncertainty, the reference as filled steps; below, ratios to the reference."""
    with drawing(*(SMALL if small else WIDE)) as figure:
        upper, lower = with_ratio(figure)
        first = next(iter(profiles.values()))
        x, y, error = array(first.x), array(first.reference), array(first.reference_error)
        edges = np.maximum(_edges(x), 0)
        reference_steps(upper, edges, y, plain(reference))
        scatter = np.max([np.hypot(array(own.reference_error), array(own.candidate_error)) for own in profiles.values()], axis=0)
        _bands(lower, edges, divide(error, y), divide(2 * scatter, y))
        ratios, errors, places = [], [], []
        header, columns = [x_label, reference, "±"], [x, y, error]
        for index, (label, own) in enumerate(profiles.items()):
            values, spread = array(own.candidate), array(own.candidate_error)
            low, high = values - spread, values + spread
            upper.stairs(high, edges, baseline=low, fill=True, color=PALETTE[index], alpha=0.25, linewidth=0)
            upper.stairs(values, edges, color=PALETTE[index], linestyle=DASHES[index], linewidth=1.5, label=plain(label))
            ratios.append(divide(values, array(own.reference)))
            errors.append(divide(spread, array(own.reference)))
            places.append(_ratio_points(lower, edges, ratios[-1], errors[-1], index, len(profiles)))
            header += [label, "±"]
            columns += [values, spread]
        if (positive := y[y > 0]).size and positive[0] > 50 * positive[-1]:
            upper.set_yscale("log")
            upper.set_ylim(positive.min() / 2, positive.max() * 1.5)
        else:
            upper.set_ylim(0, None)
        upper.set_xlim(edges[0], edges[-1])
        upper.set_ylabel(plain(y_label, 40))
        legend(upper, len(profiles) + 1, small=small)
        lower.set_xlabel(plain(x_label, 40))
        ratio_panel(lower, places, ratios, errors, "ratio to\n" + plain(reference, 14))
        return Picture(figure, f"{title}: {worst_words(ratios, errors, list(profiles))}", columns_table(header, columns))


def histogram(
    histograms: Mapping[str, Histogram], reference: str, *, title: str, x_label: str, y_label: str, wide: bool = False
) -> Picture:
    """Distribution of one observable (label to histogram), normalised to one; below, ratios to the reference."""
    with drawing(*(WIDE if wide else SMALL)) as figure:
        upper, lower = with_ratio(figure)
        most = _MOST_BINS[not wide] * (3 if len(histograms) < 4 else 2) // 3
        merged = {label: _merged(own, most) for label, own in histograms.items()}
        edges, counts, _ = next(iter(merged.values()))
        fraction, spread = _fractions(counts)
        reference_steps(upper, edges, fraction, plain(reference))
        fewest = min(float(candidate.sum()) for _, _, candidate in merged.values())
        relative = divide(spread, fraction)
        _bands(lower, edges, relative, 2 * relative * np.sqrt(1 + counts.sum() / max(fewest, 1.0)))
        ratios, errors, places = [], [], []
        header = ["from", "to", reference, "±"]
        columns = [edges[:-1], edges[1:], fraction, spread]
        for index, (label, (own_edges, own_reference, candidate)) in enumerate(merged.items()):
            values, poisson = _fractions(candidate)
            denominator, _ = _fractions(own_reference)
            upper.stairs(values, own_edges, color=PALETTE[index], linestyle=DASHES[index], linewidth=1.5, label=plain(label))
            if own_edges.shape == edges.shape and np.allclose(own_edges, edges):
                ratios.append(divide(values, denominator))
                errors.append(divide(poisson, denominator))
                places.append(_ratio_points(lower, edges, ratios[-1], errors[-1], index, len(merged)))
                header += [label, "±"]
                columns += [values, poisson]
        if is_logarithmic(edges):
            upper.set_xscale("log")
        if (positive := fraction[fraction > 0]).size and positive.max() > 300 * positive.min():
            upper.set_yscale("log")
            upper.set_ylim(positive.min() / 3, positive.max() * 2)
            upper.yaxis.set_minor_formatter(NullFormatter())
        else:
            upper.set_ylim(0, 1.08 * max(positive.max(initial=0.0), 1e-12))
        upper.set_xlim(edges[0], edges[-1])
        upper.set_ylabel(plain(y_label, 40))
        legend(upper, len(merged) + 1, small=not wide)
        lower.set_xlabel(plain(x_label, 40))
        ratio_panel(lower, places, ratios, errors, "ratio to\n" + plain(reference, 14))
        return Picture(figure, f"{title}: {worst_words(ratios, errors, list(merged))}", columns_table(header, columns))


def by_layer(layers: Mapping[str, Sequence[LayerScore]], *, title: str, x_label: str, wide: bool = False) -> Picture:
    """Wasserstein distance of every layer (label to layers) with its error, over the floor as filled steps."""
    with drawing(*(WIDE if wide else SMALL)) as figure:
        axes = panel(figure)
        first = next(iter(layers.values()))
        place = np.array([score.layer for score in first], dtype=np.float64)
        floor = array([score.wasserstein.floor for score in first])
        reference_steps(axes, _edges(place), floor, "floor")
        header, columns = ["layer", "floor"], [place, floor]
        for index, (label, own) in enumerate(layers.items()):
            value, error = (array([getattr(score.wasserstein, name) for score in own]) for name in ("value", "error"))
            x = np.array([score.layer for score in own]) + 0.2 * (index - (len(layers) - 1) / 2)
            style: dict[str, Any] = {"fmt": MARKERS[index], "color": PALETTE[index], "markersize": 3.5, "linewidth": 0.9}
            axes.errorbar(x, value, yerr=error, label=plain(label), **style)
            header += [label, "±"]
            columns += [value, error]
        axes.set_ylim(0, None)
        axes.set_xlim(place[0] - 0.7, place[-1] + 0.7)
        axes.set_xlabel(plain(x_label))
        axes.set_ylabel("Wasserstein distance [σ]")
        legend(axes, len(layers) + 1, small=not wide)
        worst = "; ".join(f"{label} is farthest in layer {_farthest(own)}" for label, own in layers.items())
        return Picture(figure, f"{title}, distance by layer: {worst}", columns_table(header, columns))


def _farthest(layers: Sequence[LayerScore]) -> int:
    return max(layers, key=lambda score: score.wasserstein.value or 0.0).layer


def _edges(x: Array) -> Array:
    """Edges half way between equally spaced or widening centres."""
    if len(x) < 2:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate(([2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]))


def _bands(axes: Axes, edges: Array, uncertainty: Array, floor: Array) -> None:
    """Around a ratio of one: the reference's uncertainty, and where a perfect candidate's points would scatter (two sigma)."""
    for half, color in ((floor, FLOOR), (uncertainty, BAND)):
        half = np.nan_to_num(half)
        axes.stairs(1 + half, edges, baseline=1 - half, fill=True, color=color, linewidth=0)


def _ratio_points(axes: Axes, edges: Array, ratio: Array, error: Array, index: int, count: int) -> Array:
    """Draw the points of one candidate, set side by side with those of the others, and return where they lie."""
    place = 0.5 + 0.7 * (index - (count - 1) / 2) / max(count, 3)
    low, high = edges[:-1], edges[1:]
    x = low * (high / low) ** place if is_logarithmic(edges) else low + place * (high - low)
    axes.errorbar(x, ratio, yerr=error, fmt=MARKERS[index], color=PALETTE[index], markersize=3, linewidth=0.9)
    return x


def _merged(histogram: Histogram, most: int) -> tuple[Array, Array, Array]:
    """Edges, reference and candidate with neighbouring bins merged: about as many as the root of the number of entries."""
    edges, counts = array(histogram.edges), np.array(histogram.reference, dtype=np.float64)
    wanted = float(np.clip(np.sqrt(counts.sum()), 20, most))
    starts = np.arange(0, len(counts), max(1, round(len(counts) / wanted)))
    merged = [np.add.reduceat(np.asarray(part, np.float64), starts) for part in (histogram.reference, histogram.candidate)]
    return np.append(edges[starts], edges[-1]), merged[0], merged[1]


def _fractions(counts: Array) -> tuple[Array, Array]:
    """Normalised counts and their Poisson errors."""
    total = max(float(counts.sum()), 1e-300)
    return counts / total, np.sqrt(counts) / total
