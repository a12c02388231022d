"""Plots of classifiers: their scores on events of either kind, and how well each tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minicarlo.fidelity.scorecard import ClassifierScore
from minicarlo.report.figure import (
    DASHES,
    MARKERS,
    PALETTE,
    REFERENCE_LINE,
    SMALL,
    WIDE,
    Picture,
    Table,
    array,
    columns_table,
    drawing,
    legend,
    number,
    panel,
    plain,
    reference_steps,
)
from minicarlo.report.names import classifier_title


def score_distribution(method: str, label: str, found: ClassifierScore, reference: str, index: int) -> Picture:
    """Scores that a classifier gives to events of the reference and of candidate number `index`, each normalised to one."""
    with drawing(*SMALL) as figure:
        axes = panel(figure)
        edges = array(found.edges)
        ours, theirs = (np.asarray(counts, np.float64) for counts in (found.reference, found.candidate))
        ours, theirs = (counts / max(counts.sum(), 1) for counts in (ours, theirs))
        reference_steps(axes, edges, ours, plain(reference))
        words = f"{plain(label, 16)}, AUC {number(found.auc)}"
        axes.stairs(theirs, edges, color=PALETTE[index], linestyle=DASHES[index], linewidth=1.5, label=words)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.08 * max(ours.max(initial=0), theirs.max(initial=0), 1e-12))
        axes.set_xlabel("score (larger: more like the candidate)")
        axes.set_ylabel("fraction of held-out events")
        legend(axes, 2, small=True)
        alt = f"Scores of {classifier_title(method)}: {label} against {reference}, area under the curve {number(found.auc)}"
        return Picture(figure, alt, columns_table(("from", "to", reference, label), [edges[:-1], edges[1:], ours, theirs]))


def areas(found: Mapping[str, Mapping[str, ClassifierScore]]) -> Picture:
    """Areas under the curve (method to label to score) with errors; every training a small dot, the floor a grey bar."""
    methods = list(found)
    labels = list(dict.fromkeys(label for scores in found.values() for label in scores))
    with drawing(WIDE[0], 0.55 * len(methods) + 1.3) as figure:
        axes = panel(figure, left=1.6)
        rows = []
        for row, (method, scores) in enumerate(found.items()):
            floor = next(iter(scores.values())).floor
            if floor is not None:
                axes.plot(
                    [floor, floor], [row - 0.4, row + 0.4], color="#8A9099", linewidth=4, label="floor" if not row else None
                )
            for label, score in scores.items():
                index = labels.index(label)
                y = row + 0.55 * (index - (len(labels) - 1) / 2) / max(len(labels), 2)
                style: dict[str, Any] = {"color": PALETTE[index]}
                seeds = [seed.auc for seed in score.seeds if seed.auc is not None]
                axes.plot(seeds, [y] * len(seeds), ".", alpha=0.45, markersize=4, **style)
                if score.auc is not None:
                    words = None if row else plain(label)
                    axes.errorbar([score.auc], [y], xerr=[score.error or 0.0], fmt=MARKERS[index], label=words, **style)
                trainings = ", ".join(number(auc, 4) for auc in seeds) or "–"
                numbers = (number(value, 4) for value in (score.auc, score.error, score.floor, score.jsd, score.p_value))
                rows.append((classifier_title(method), label, *numbers, trainings))
        axes.axvline(0.5, color=REFERENCE_LINE, linewidth=0.8)
        axes.set_yticks(range(len(methods)), [plain(classifier_title(method)) for method in methods])
        axes.tick_params(axis="y", which="both", length=0)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, 0.45), max(right, 0.6))
        axes.set_xlabel("area under the ROC curve (0.5: cannot tell)")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="upper center", ncols=4, bbox_to_anchor=(0.5, 1.0), borderaxespad=0.1
        )
        figure.subplots_adjust(top=1 - (0.35 if len(labels) < 4 else 0.55) / figure.get_size_inches()[1])
        header = ("classifier", "candidate", "AUC", "±", "floor", "JSD [bit]", "p", "trainings")
        return Picture(
            figure, f"Areas under the ROC curve of {', '.join(map(classifier_title, methods))}", Table(header, tuple(rows))
        )
