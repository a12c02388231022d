"""Our tuner against others on one surrogate, and the article's table of formats.

    python benchmarks/tuning.py [SURROGATE] [--tolerance T] [--only NAME ...] [--vnni] [--peers FOLDER] [--json FILE]

The first table has FP32, BF16, all INT8 and what `pareto` finds: speed, accuracy with interval, CERN's figure against Monte Carlo
events, share of the multiply-accumulates in int8. The second has the contestants: our strategies, NNCF's `quantize` and
`quantize_with_accuracy_control`, ONNX Runtime's static quantisation (extra `dev`), and Intel Neural Compressor 2.6, the last
version with the tuner of the article, which needs an environment of its own: `--peers FOLDER` makes it there and lets it take
part. Each gets the same calibration events and at most 100 trials; accuracy is our criterion (largest relative change of any
family of observables, the same latents, events that no contestant saw) with its 95 % interval, speed is interleaved with FP32
of OpenVINO on all cores. `--vnni` holds all to the instructions of the article's processors: no AMX, no bf16. Run on a quiet
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

if "--vnni" in sys.argv:
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"  # read once, when OpenVINO is loaded

from minicarlo.engines import machine, read_model, usable_cores
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.precision import Quantizer, SurrogateSubject, get_criterion, tune
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.plan import Plan, int8_share
from minicarlo.precision.quantization import _nncf
from minicarlo.precision.surrogates import BATCH
from minicarlo.surrogate import Surrogate, sample_path

EVENTS, CALIBRATION, SECONDS, TRIALS = 2048, 256, 4.0, 100
STRATEGIES = ("pareto", "basic", "mse", "mse_v2", "tpe", "random")
NEURAL_COMPRESSOR = ("neural-compressor==2.6", "numpy<2", "onnx<1.17", "onnxruntime<1.20", "setuptools<81", "six")


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

    def __init__(self, surrogate: Surrogate, tolerance: float, formats: tuple[str, ...]) -> None:
        self.surrogate, self.tolerance, self.formats = surrogate, tolerance, formats
        self.criterion = get_criterion(
            "fidelity", threshold_mev=surrogate.manifest.readout_threshold_mev, confidence=0.95, seed=1
        )
        self.subject = SurrogateSubject(surrogate, self.criterion, calibration_events=CALIBRATION, seed=1)
        self.calibration = self.subject.calibration()
        self.quantizer = Quantizer.of(self.subject)
        self.evaluation = Evaluation(self.subject, self.quantizer, events=EVENTS)
        self.judge = Evaluation(SurrogateSubject(surrogate, self.criterion, seed=2), self.quantizer, events=EVENTS)
        self.evaluations = self.events = 0

    def ours(self, strategy: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            result = tune(
                self.surrogate,
                Path(folder, "out"),
                strategy=strategy,
                formats=self.formats,
                tolerance=self.tolerance,
                max_trials=TRIALS,
                seed=1,
            )
            model, precision = read_model(Surrogate.load(Path(folder, "out")), "tuned")
        self.evaluations, self.events = result.full_evaluations, result.events
        return OpenVinoNetwork(model, precision, self.subject.shapes, streams=usable_cores())

    def uniform(self, form: str) -> Any:
        return self.evaluation.compile(Plan.uniform(self.quantizer.layers, form))

    def nncf_quantize(self) -> Any:
        nncf = _nncf()
        model, _ = read_model(self.surrogate)
        quantised = nncf.quantize(model, nncf.Dataset(self.calibration), fast_bias_correction=False)
        return self.compiled(quantised)

    def nncf_accuracy_control(self) -> Any:
        nncf = _nncf()
        model, _ = read_model(self.surrogate)
        batches = nncf.Dataset(self.calibration)
        quantised = nncf.quantize_with_accuracy_control(
            model,
            batches,
            batches,
            lambda compiled, _: (-self.loss(Wrapped(compiled)), None),
            max_drop=self.tolerance,
            drop_type=nncf.DropType.ABSOLUTE,
            fast_bias_correction=False,
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

    def neural_compressor(self, python: Path, strategy: str) -> Any:
        """Its process asks for the loss of one model after the other (`neural_compressor_peer.py`)."""
        with tempfile.TemporaryDirectory() as folder:
            names = list(self.calibration[0])
            np.savez(
                Path(folder, "calibration.npz"), **{n: np.concatenate([each[n] for each in self.calibration]) for n in names}
            )
            command = [python, Path(__file__).with_name("neural_compressor_peer.py"), self.surrogate.path.resolve() / "fp32.onnx"]
            arguments = ["calibration.npz", "out.onnx", strategy, self.tolerance, TRIALS, BATCH]
            peer = subprocess.Popen(
                list(map(str, command + arguments)),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert peer.stdin is not None and peer.stdout is not None
            for path in peer.stdout:
                try:
                    loss = self.loss(OnnxRuntimeGenerator(Path(path.strip())))
                except Exception as error:  # some that it asks for are no valid models
                    print(f"  (one of its models does not load: {str(error).splitlines()[0][:200]})", file=sys.stderr)
                    loss = 1e6
                print(loss, file=peer.stdin, flush=True)
            if peer.wait() != 0 or not Path(folder, "out.onnx").exists():
                raise RuntimeError(f"it found no model that meets the tolerance in {self.evaluations} evaluations")
            return OnnxRuntimeGenerator(Path(folder, "out.onnx"))

    def loss(self, generator: Any) -> float:
        self.evaluations, self.events = self.evaluations + 1, self.events + EVENTS
        return self.evaluation.search(generator).value

    def compiled(self, model: Any) -> Any:
        return OpenVinoNetwork(model, "f32", self.subject.shapes, streams=usable_cores())

    def judged(self, make: Callable[[], Any]) -> dict[str, Any]:
        self.evaluations = self.events = 0
        start = time.monotonic()
        generator = make()
        seconds = time.monotonic() - start
        found = self.judge.held_out(generator)
        speed = self.evaluation.speedup(generator, SECONDS)
        return {
            "speedup": speed.value,
            "spread": speed.spread,
            "loss": found.value,
            "low": found.low,
            "high": found.high,
            "within_tolerance": found.high <= self.tolerance,
            "full_evaluations": self.evaluations,
            "events": self.events,
            "seconds": seconds,
        }

    def format_row(self, make: Callable[[], Any], monte_carlo: Path) -> dict[str, Any]:
        """A row of the article's table."""
        generator = make()
        row = self.judged(lambda: generator)
        ran = generator.precision_report()
        against = self.subject.against_monte_carlo(self.evaluation, generator, monte_carlo, self.tolerance)
        return row | {"int8_share": int8_share(ran, self.quantizer.layers), "ran": ran, "monte_carlo": against}


class Wrapped:
    """A compiled model of NNCF's as our criterion wants it."""

    batch = BATCH

    def __init__(self, model: Any) -> None:
        self._model = model

    def map(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        for key, inputs in batches:
            yield key, {"showers": next(iter(self._model(inputs).values()))}


def neural_compressor_python(folder: Path) -> Path:
    """The interpreter of an environment with Neural Compressor 2.6, made in `folder` if it is not there."""
    environment = folder / "neural-compressor-2.6"
    python = environment / "bin" / "python"
    if not (environment / "installed").exists():
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEURAL_COMPRESSOR], check=True)
        (environment / "installed").touch()
    return python


def print_formats(rows: dict[str, dict[str, Any]]) -> None:
    print("| | speed-up | loss, 95 % interval | CERN's figure, difference from FP32 | int8 |\n|---|---|---|---|---|")
    for name, row in rows.items():
        mc = row["monte_carlo"]
        print(
            f"| {name} | {row['speedup']:.2f} ± {row['spread']:.2f} | {row['loss']:.4f} ({row['low']:.4f} to {row['high']:.4f}) "
            f"| {mc['tuned']:.4f}, {mc['low']:+.4f} to {mc['high']:+.4f} | {row['int8_share']:.0%} |"
        )


def print_contestant(name: str, row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"| {name} | {row['error']} | | | | | |", flush=True)
        return
    within = "yes" if row["within_tolerance"] else "no"
    print(
        f"| {name} | {row['speedup']:.2f} ± {row['spread']:.2f} | {row['loss']:.4f} ({row['low']:.4f} to {row['high']:.4f}) "
        f"| {within} | {row['full_evaluations']} | {row['events']:,} | {row['seconds']:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogate", nargs="?", default="clic-ecal")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--only", nargs="+", help="contestants (parts of their names) to run; 'formats' is the first table")
    parser.add_argument("--vnni", action="store_true", help="no AMX and no bf16, as on the article's processors")
    parser.add_argument("--peers", type=Path, help="folder for the environment of Neural Compressor 2.6")
    parser.add_argument("--reference", type=Path, help="Monte Carlo events of the first table; the shipped sample if not given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    formats = ("int8", "fp32") if arguments.vnni else ("int8", "bf16", "fp32")
    surrogate = Surrogate.load(arguments.surrogate)
    contest = Contest(surrogate, arguments.tolerance, formats)

    def wanted(name: str) -> bool:
        return not arguments.only or any(part in name for part in arguments.only)

    contestants: dict[str, Callable[[], Any]] = {
        f"minicarlo {name}": lambda name=name: contest.ours(name)  # type: ignore[misc]
        for name in STRATEGIES
    } | {
        "NNCF quantize": contest.nncf_quantize,
        "NNCF accuracy control": contest.nncf_accuracy_control,
        "ONNX Runtime static": contest.onnx_runtime,
    }
    if arguments.peers is not None:
        python = neural_compressor_python(arguments.peers.resolve())
        for name in ("basic", "mse_v2"):
            contestants[f"Neural Compressor {name}"] = lambda name=name: contest.neural_compressor(python, name)  # type: ignore[misc]
    report: dict[str, Any] = {"machine": machine(), "isa": os.environ.get("ONEDNN_MAX_CPU_ISA"), "tolerance": arguments.tolerance}
    if wanted("formats"):
        monte_carlo = arguments.reference or sample_path(surrogate.manifest.detector)
        makers: dict[str, Callable[[], Any]] = {
            name: lambda form=form: contest.uniform(form)  # type: ignore[misc]
            for name, form in (("FP32", "fp32"), ("BF16", "bf16"), ("all INT8", "int8"))
            if form in formats
        } | {"tuned": lambda: contest.ours("pareto")}
        report["formats"] = {name: contest.format_row(make, monte_carlo) for name, make in makers.items()}
        print_formats(report["formats"])
    print("\n| | speed-up | loss, 95 % interval | within tolerance | evaluations | events | seconds |")
    print("|---|---|---|---|---|---|---|")
    rows = report["contestants"] = {}
    for name, make in contestants.items():
        if not wanted(name):
            continue
        try:
            rows[name] = contest.judged(make)
        except Exception as error:  # a peer that fails is a result
            rows[name] = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}
        print_contestant(name, rows[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
