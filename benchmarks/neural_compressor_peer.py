"""Intel Neural Compressor 2.6, the last with the article's tuner, in an environment of its own that `tuning.py` makes.

    python neural_compressor_peer.py MODEL.onnx CALIBRATION.npz OUTPUT.onnx STRATEGY TOLERANCE MAX_TRIALS BATCH

For every model that it wants judged it prints a line with the path of an ONNX file and reads a line with the loss.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

channel = os.fdopen(os.dup(1), "w", buffering=1)  # its messages go to standard error
os.dup2(2, 1)

from neural_compressor import PostTrainingQuantConfig, quantization  # noqa: E402
from neural_compressor.config import AccuracyCriterion, TuningCriterion  # noqa: E402

OTHERS = "^(?!Conv$|ConvTranspose$|MatMul$|Gemm$).*"
"""All operations but these stay fp32: with others among them it writes models that lack an input and do not load."""


class Batches:
    """Calibration events as it wants them: (inputs, label)."""

    def __init__(self, arrays: dict[str, np.ndarray], batch: int) -> None:
        self.arrays, self.batch_size = arrays, batch

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        count = len(next(iter(self.arrays.values())))
        for start in range(0, count, self.batch_size):
            yield {name: array[start : start + self.batch_size] for name, array in self.arrays.items()}, 0


def main() -> None:
    model, calibration, output, strategy, tolerance, trials, batch = sys.argv[1:]

    def loss(candidate: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "candidate.onnx")
            onnx.save(getattr(candidate, "model", candidate), path)
            print(path, file=channel)
            return float(sys.stdin.readline())

    with np.load(calibration) as arrays:
        batches = Batches(dict(arrays), int(batch))
    config = PostTrainingQuantConfig(
        approach="static",
        quant_level=1,
        calibration_sampling_size=[len(next(iter(batches.arrays.values())))],
        op_type_dict={OTHERS: {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}},
        accuracy_criterion=AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=float(tolerance)),
        tuning_criterion=TuningCriterion(strategy=strategy, max_trials=int(trials), timeout=0),
    )
    found = quantization.fit(model, config, calib_dataloader=batches, eval_func=loss)
    if found is not None:
        found.save(output)


if __name__ == "__main__":
    main()
