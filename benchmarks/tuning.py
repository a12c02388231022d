"""Our tuner against others on one surrogate: `python benchmarks/tuning.py [SURROGATE] [--tolerance T] [--json FILE]`.

Contestants: our strategies, NNCF's `quantize` and `quantize_with_accuracy_control`, ONNX Runtime's static quantisation (extra
`dev`). Each gets the same calibration events; accuracy is our criterion (largest relative change of any family of observables,
the same latents, events that no contestant saw) with its 95 % interval, speed is interleaved with FP32 of OpenVINO on all cores.
Run on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minicarlo.engines import machine, read_model, usable_cores
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.precision import Quantizer, SurrogateSubject, get_criterion, tune
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.plan import Plan
from minicarlo.precision.quantization import _nncf
from minicarlo.precision.surrogates import BATCH
from minicarlo.surrogate import Surrogate

EVENTS, CALIBRATION, SECONDS = 2048, 256, 4.0


class OnnxRuntimeGenerator:
    """A quantised ONNX model on ONNX Runtime, as many sessions at once as there are cores would share."""

    batch = BATCH

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def map(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        for key, inputs in batches:
            yield key, {"showers": self._session.run(None, inputs)[0]}


class Contest:
    """One surrogate, one criterion, one set of events."""

    def __init__(self, surrogate: Surrogate, tolerance: float) -> None:
        self.surrogate, self.tolerance = surrogate, tolerance
        self.criterion = get_criterion(
            "fidelity", threshold_mev=surrogate.manifest.readout_threshold_mev, confidence=0.95, seed=1
        )
        self.subject = SurrogateSubject(surrogate, self.criterion, calibration_events=CALIBRATION, seed=1)
        self.calibration = self.subject.calibration()
        self.quantizer = Quantizer.of(self.subject)
        self.evaluation = Evaluation(self.subject, self.quantizer, events=EVENTS)
        self.judge = Evaluation(SurrogateSubject(surrogate, self.criterion, seed=2), self.quantizer, events=EVENTS)
        self.evaluations = 0

    def ours(self, strategy: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            result = tune(
                self.surrogate, Path(folder, "out"), strategy=strategy, tolerance=self.tolerance, max_trials=100, seed=1
            )
        self.evaluations = result.full_evaluations
        return self.evaluation.compile(Plan.of(result.plan))

    def nncf_quantize(self) -> Any:
        nncf = _nncf()
        model, _ = read_model(self.surrogate)
        quantised = nncf.quantize(model, nncf.Dataset(self.calibration), fast_bias_correction=False)
        return self.compiled(quantised)

    def nncf_accuracy_control(self) -> Any:
        nncf = _nncf()
        model, _ = read_model(self.surrogate)

        def figure(compiled: Any, _: Any) -> tuple[float, None]:
            self.evaluations += 1
            return -self.evaluation.search(Wrapped(compiled)).value, None

        batches = nncf.Dataset(self.calibration)
        quantised = nncf.quantize_with_accuracy_control(
            model, batches, batches, figure, max_drop=self.tolerance, drop_type=nncf.DropType.ABSOLUTE, fast_bias_correction=False
        )
        return self.compiled(quantised)

    def onnx_runtime(self) -> Any:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
                self._left = iter(batches)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._left, None)

        with tempfile.TemporaryDirectory() as folder:
            quantize_static(
                self.surrogate.path / "fp32.onnx",
                Path(folder, "int8.onnx"),
                Reader(self.calibration),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return OnnxRuntimeGenerator(Path(folder, "int8.onnx"))

    def compiled(self, model: Any) -> Any:
        return OpenVinoNetwork(model, "f32", self.subject.shapes, streams=usable_cores())

    def judged(self, name: str, make: Any) -> dict[str, Any]:
        self.evaluations = 0
        start = time.monotonic()
        generator = make()
        seconds = time.monotonic() - start
        found = self.judge.held_out(generator)
        speed = self.evaluation.speedup(generator, SECONDS)
        return {
            "name": name,
            "speedup": speed.value,
            "spread": speed.spread,
            "loss": found.value,
            "low": found.low,
            "high": found.high,
            "within_tolerance": found.high <= self.tolerance,
            "full_evaluations": self.evaluations,
            "seconds": seconds,
        }


class Wrapped:
    """A compiled model of NNCF's as our criterion wants it."""

    batch = BATCH

    def __init__(self, model: Any) -> None:
        self._model = model

    def map(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        for key, inputs in batches:
            yield key, {"showers": next(iter(self._model(inputs).values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogate", nargs="?", default="clic-ecal")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    contest = Contest(Surrogate.load(arguments.surrogate), arguments.tolerance)
    contestants = {
        "minicarlo pareto": lambda: contest.ours("pareto"),
        "minicarlo mse_v2": lambda: contest.ours("mse_v2"),
        "NNCF quantize": contest.nncf_quantize,
        "NNCF accuracy control": contest.nncf_accuracy_control,
        "ONNX Runtime static": contest.onnx_runtime,
    }
    rows = []
    print(f"{'':24s} speed-up        loss [95 %]                 within   full evaluations   seconds")
    for name, make in contestants.items():
        try:
            row = contest.judged(name, make)
        except Exception as error:  # a peer that fails is a result
            print(f"{name:24s} failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            rows.append({"name": name, "error": f"{type(error).__name__}: {error}"})
            continue
        rows.append(row)
        print(
            f"{name:24s} {row['speedup']:5.2f} ± {row['spread']:.2f}   {row['loss']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            f"   {'yes' if row['within_tolerance'] else 'no':>6s}   {row['full_evaluations']:6d}   {row['seconds']:16.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "tolerance": arguments.tolerance, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
