"""Plots of a tuning: accuracy against speed, formats of the layers in every trial, and what each layer alone costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from minicarlo.report.figure import FULL, PALETTE, REFERENCE_LINE, WIDE, Picture, Table, drawing, number, panel, plain
from minicarlo.report.inputs import Trial
from minicarlo.report.names import FORMAT_COLORS, OTHER_FORMAT


def trials_picture(trials: Sequence[Trial], tolerance: float | None, criterion: str) -> Picture:
    """Loss of accuracy against speed with intervals, one point a trial, and the Pareto front of the accepted ones and FP32."""
    with drawing(*WIDE) as figure:
        axes = panel(figure)
        shown = [trial for trial in trials if trial.speedup is not None and trial.value is not None]
        for trial in shown:
            _point(axes, trial)
        front = pareto([(1.0, 0.0), *((t.speedup or 0.0, t.value or 0.0) for t in shown if t.accepted)])
        axes.step(
            *zip(*front, strict=True), where="pre", color=PALETTE[0], linewidth=1, label="Pareto front, from FP32", zorder=1
        )
        axes.plot([], [], "o", color=PALETTE[2], label="accepted")
        axes.plot([], [], "X", color=PALETTE[1], label="rejected")
        if tolerance is not None:
            axes.axhline(tolerance, color=REFERENCE_LINE, linestyle="--", linewidth=1, label="tolerance")
        reach = [trial.high if trial.high is not None else trial.value or 0.0 for trial in shown]
        if reach and max(reach) > 30 * (tolerance or max(reach)):
            axes.set_yscale("symlog", linthresh=tolerance)
        axes.set_ylim(0, None)
        axes.set_xlabel("speed-up over FP32")
        axes.set_ylabel(plain(criterion, 40))
        axes.legend(loc="best")
        header = ("trial", "plan", "speed-up", "±", criterion, "low", "high", "decision")
        rows = tuple(
            (
                trial.trial,
                trial.description,
                *(number(value) for value in (trial.speedup, trial.speedup_spread, trial.value, trial.low, trial.high)),
                "accepted" if trial.accepted else "rejected",
            )
            for trial in trials
        )
        accepted = sum(trial.accepted for trial in trials)
        return Picture(figure, f"Tuning history: {accepted} of {len(trials)} trials accepted", Table(header, rows))


def _point(axes: Axes, trial: Trial) -> None:
    speedup, value = trial.speedup or 0.0, trial.value or 0.0
    reach = None if trial.low is None or trial.high is None else ([max(value - trial.low, 0.0)], [max(trial.high - value, 0.0)])
    spread = None if trial.speedup_spread is None else [trial.speedup_spread]
    marker, color = ("o", PALETTE[2]) if trial.accepted else ("X", PALETTE[1])
    axes.errorbar([speedup], [value], yerr=reach, xerr=spread, fmt=marker, color=color, markersize=6, linewidth=1, capsize=2)
    axes.annotate(plain(trial.trial), (speedup, value), xytext=(6, 4), textcoords="offset points", fontsize=8)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (gain, loss) that no other one beats in both, by rising gain."""
    front: list[tuple[float, float]] = []
    for gain, loss in sorted(points, key=lambda point: (-point[0], point[1])):
        if not front or loss < front[-1][1]:
            front.append((gain, loss))
    return front[::-1]


def plans_picture(trials: Sequence[Trial]) -> Picture:
    """Which format every layer ran in, a row per trial."""
    trials = [trial for trial in trials if trial.ran]
    layers = list(dict.fromkeys(layer for trial in trials for layer in trial.ran))
    formats = {name: letters for name, letters in (("int8", "8"), ("bf16", "b"), ("fp16", "h"), ("fp32", "32"))}
    colours = np.array([[to_rgb(FORMAT_COLORS.get(t.ran.get(layer, ""), OTHER_FORMAT)) for layer in layers] for t in trials])
    with drawing(FULL, 0.24 * len(trials) + 1.7, "constrained") as figure:
        axes = figure.subplots()
        axes.imshow(colours, aspect="auto", interpolation="nearest")
        for row, trial in enumerate(trials):
            for column, layer in enumerate(layers):
                dark = trial.ran.get(layer) == "int8"
                words = formats.get(trial.ran.get(layer, ""), "?")
                axes.text(column, row, words, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xticks(range(len(layers)), [plain(layer, 20) for layer in layers], rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(trials)), [f"{plain(trial.trial)} {'✓' if trial.accepted else '✗'}" for trial in trials])
        axes.set_xticks(np.arange(1, len(layers)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, len(trials)) - 0.5, minor=True)
        axes.tick_params(which="both", length=0)
        axes.grid(which="minor", color="white", linewidth=1.5, linestyle="-")
        axes.set_ylabel("trial")
        used = {form for trial in trials for form in trial.ran.values()}
        patches = [Patch(color=FORMAT_COLORS[form], label=f"{form} ({formats[form]})") for form in formats if form in used]
        figure.legend(handles=patches, loc="outside upper right", ncols=len(patches) or 1)
        rows = tuple((trial.trial, *(trial.ran.get(layer, "–") for layer in layers)) for trial in trials)
        return Picture(figure, f"Formats of {len(layers)} layers in {len(trials)} trials", Table(("trial", *layers), rows))
