"""Draw the losses and validation figures of a training run from its TensorBoard log.

    python scripts/plot_training.py runs/gan3d docs/images/gan3d-losses.png

Needs the extra `train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SMOOTHED = 9  # points in a running median of many


def main(run: str, target: str) -> None:
    log = EventAccumulator(str(Path(run) / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    groups: dict[str, list[str]] = {}
    for tag in log.Tags()["scalars"]:
        groups.setdefault(tag.split("/")[0], []).append(tag)
    figure = Figure(figsize=(4.6 * len(groups), 4.8), layout="constrained")
    for axis, (group, tags) in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups.items(), strict=True):
        for index, tag in enumerate(tags):
            points = [(event.step, abs(event.value)) for event in log.Scalars(tag)]
            steps, values = np.array(points).T
            style = "-" if index < len(COLOURS) else "--"
            axis.plot(steps, running_median(values), style, color=COLOURS[index % len(COLOURS)], label=tag.split("/", 1)[1])
        axis.set(title=group, xlabel="step", yscale="log")
        axis.legend(fontsize=6.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(target, dpi=110)


def running_median(values: np.ndarray) -> np.ndarray:
    half = min(SMOOTHED // 2, len(values) // 20)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


if __name__ == "__main__":
    main(*sys.argv[1:])
