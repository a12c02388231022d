"""Our tuner against others on several networks, and the article's table of formats.

    python benchmarks/tuning.py [SURROGATE ...] [--digits FOLDER] [--tolerance T] [--only NAME ...] [--vnni] [--peers FOLDER]
                                [--json FILE]

For each surrogate, and for the GAN of `digits_gan.py`, two tables. The first has FP32, BF16 and all INT8 of the graph as it is
given, FP32 of the graph that `tune` makes of it, and what `pareto` finds: speed, accuracy with interval, for surrogates CERN's
figure against Monte Carlo events, share of the multiply-accumulates in int8. The second has the contestants: our strategies,
NNCF's `quantize` and `quantize_with_accuracy_control`, ONNX Runtime's static quantisation (extra `dev`), and Intel Neural
Compressor 2.6, the last version with the tuner of the article, which needs an environment of its own: `--peers FOLDER` makes it
there and lets it take part. Each gets the same calibration events and at most `--trials` trials; accuracy is our criterion
(largest relative change of any family of observables; for the digits the relative change in the L2 norm) on the same latents and
on events that no contestant saw, with its 95 % interval; in the end all are timed in turns with FP32 of OpenVINO on all cores.
`--vnni` holds all to the instructions of the article's processors: no AMX, no bf16.
Run on a quiet machine.
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

from minicarlo.engines import has_bf16, machine, read_ir, usable_cores
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.precision import Plan, Quantizer, SurrogateSubject, get_criterion, int8_share, tune
from minicarlo.precision.audit import all_int8
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.losses import get_loss
from minicarlo.precision.networks import NetworkSubject
from minicarlo.precision.quantization import _nncf
from minicarlo.surrogate import Surrogate, sample_path

EVENTS, CALIBRATION, SECONDS, ROUNDS = 2048, 256, 4.0, 20
UNSEEN = 1 << 24
"""Added to the numbers of events that the last judgement is made on."""

STRATEGIES = ("pareto", "basic", "mse", "mse_v2", "tpe", "random")
NEURAL_COMPRESSOR = ("neural-compressor==2.6", "numpy<2", "onnx<1.17", "onnxruntime<1.20", "setuptools<81", "six")


class OnnxRuntimeNetwork:
    """An ONNX model on ONNX Runtime, with all cores for each inference."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = usable_cores(), 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def map(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        for key, inputs in batches:
            yield key, dict(zip(self._names, self._session.run(None, inputs), strict=True))


class Wrapped:
    """A compiled model of NNCF's as our criterion wants it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def map(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        for key, inputs in batches:
            yield key, {min(port.get_names()): array for port, array in self._model(inputs).items()}


class Contest:
    """One network, one criterion, one set of events.

    `tuned` is what `tune` takes, `onnx` the same network as a file, `settings` are more for `tune`; `subject` has the events of
    the search, `unseen` those of the last judgement.
    """

    def __init__(self, tuned: Any, onnx: Path, subject: Any, unseen: Any, settings: dict[str, Any]) -> None:
        self.tuned, self.onnx, self.subject, self.settings = tuned, onnx, subject, settings
        self.tolerance, self.trials, events = settings["tolerance"], settings["max_trials"], settings["evaluation_events"]
        self.batch = next(iter(subject.shapes.values()))[0]
        self.calibration = subject.calibration()
        self.quantizer = Quantizer.of(subject)
        self.evaluation = Evaluation(subject, self.quantizer, events=events)
        self.judge = Evaluation(unseen, self.quantizer, events=events)
        self.evaluations = self.events = 0

    @classmethod
    def of_surrogate(cls, surrogate: Surrogate, settings: dict[str, Any]) -> Contest:
        threshold = surrogate.manifest.readout_threshold_mev
        criterion = get_criterion("fidelity", threshold_mev=threshold, confidence=0.95, seed=1)
        search, unseen = (SurrogateSubject(surrogate, criterion, calibration_events=CALIBRATION, seed=seed) for seed in (1, 2))
        return cls(surrogate, surrogate.path / "fp32.onnx", search, unseen, settings)

    @classmethod
    def of_digits(cls, folder: Path, settings: dict[str, Any]) -> Contest:
        import digits_gan

        path = digits_gan.make(folder / "digits.onnx")
        loss = get_loss("relative-l2", confidence=0.95, seed=1)
        subject = NetworkSubject(path, digits_gan.inputs, loss, calibration_events=CALIBRATION)
        unseen = NetworkSubject(path, lambda first, last: digits_gan.inputs(first + UNSEEN, last + UNSEEN), loss)
        return cls(path, path, subject, unseen, settings | {"inputs": digits_gan.inputs})

    def ours(self, strategy: str, **more: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "out")
            result = tune(self.tuned, output, strategy=strategy, seed=1, **(self.settings | more))
            place = output / "tuned" if (output / "tuned").exists() else output
            xml, weights = ((place / name).read_bytes() for name in ("model.xml", "model.bin"))
            facts = json.loads((place / "plan.json").read_text())
        self.evaluations, self.events = result.full_evaluations, result.events
        return OpenVinoNetwork(read_ir(xml, weights), facts["inference_precision"], self.subject.shapes, streams=usable_cores())

    def uniform(self, form: str) -> Any:
        """Every layer in one format; int8 with weights of half the range where sums would saturate."""
        return self.evaluation.compile(all_int8(self.quantizer) if form == "int8" else Plan.uniform(self.quantizer.layers, form))

    def nncf_quantize(self) -> Any:
        nncf = _nncf()
        quantised = nncf.quantize(self.subject.model, nncf.Dataset(self.calibration), fast_bias_correction=False)
        return self.compiled(quantised)

    def nncf_accuracy_control(self) -> Any:
        nncf = _nncf()
        batches = nncf.Dataset(self.calibration)
        quantised = nncf.quantize_with_accuracy_control(
            self.subject.model,
            batches,
            batches,
            lambda compiled, _: (1 - self.loss(Wrapped(compiled)), None),  # it divides by that of fp32
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
                self.onnx,
                Path(folder, "int8.onnx"),
                Reader(self.calibration),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return OnnxRuntimeNetwork(Path(folder, "int8.onnx"))

    def neural_compressor(self, python: Path, strategy: str) -> Any:
        """Its process asks for the loss of one model after the other (`neural_compressor_peer.py`)."""
        with tempfile.TemporaryDirectory() as folder:
            names = list(self.calibration[0])
            np.savez(
                Path(folder, "calibration.npz"), **{n: np.concatenate([each[n] for each in self.calibration]) for n in names}
            )
            command = [python, Path(__file__).with_name("neural_compressor_peer.py"), self.onnx.resolve()]
            arguments = ["calibration.npz", "out.onnx", strategy, self.tolerance, self.trials, self.batch]
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
                    loss = self.loss(OnnxRuntimeNetwork(Path(path.strip())))
                except Exception as error:  # some that it asks for are no valid models
                    print(f"  (one of its models does not load: {str(error).splitlines()[0][:200]})", file=sys.stderr)
                    loss = 1e6
                print(loss, file=peer.stdin, flush=True)
            if peer.wait() != 0 or not Path(folder, "out.onnx").exists():
                raise RuntimeError(f"it found no model that meets the tolerance in {self.evaluations} evaluations")
            return OnnxRuntimeNetwork(Path(folder, "out.onnx"))

    def loss(self, network: Any) -> float:
        self.evaluations, self.events = self.evaluations + 1, self.events + self.evaluation.events
        return self.evaluation.search(network).value

    def compiled(self, model: Any) -> Any:
        return OpenVinoNetwork(model, "f32", self.subject.shapes, streams=usable_cores())

    def judged(self, make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """What a contestant makes, and what is known of it before it is timed."""
        self.evaluations = self.events = 0
        start = time.monotonic()
        network = make()
        seconds = time.monotonic() - start
        found = self.judge.held_out(network)
        return network, {
            "loss": found.value,
            "low": found.low,
            "high": found.high,
            "within_tolerance": found.high <= self.tolerance,
            "full_evaluations": self.evaluations,
            "events": self.events,
            "seconds": seconds,
        }

    def speeds(self, networks: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Speed of all over FP32 of OpenVINO: medians of the ratios within a round, and half of the central 68 %.

        Each round has its own order, and a pass that is not timed before each that is, so that nobody always follows the same.
        """
        passes = {name: self.evaluation.run_of(network) for name, network in networks.items()}
        passes |= {"": self.evaluation.run_of(self.evaluation.reference)}
        times: dict[str, list[float]] = {name: [] for name in passes}
        random = np.random.default_rng(1)
        for _ in range(1 + ROUNDS):
            for name in random.permutation(list(passes)):
                passes[name]()
                start, runs = time.perf_counter(), 0
                while time.perf_counter() - start < SECONDS / ROUNDS or runs == 0:
                    passes[name]()
                    runs += 1
                times[name].append((time.perf_counter() - start) / runs)
        found = {}
        for name in networks:
            ratios = np.array(times[""][1:]) / np.array(times[name][1:])
            low, median, high = np.percentile(ratios, [16, 50, 84])
            found[name] = {"speedup": float(median), "spread": float(high - low) / 2}
        return found

    def format_row(self, make: Callable[[], Any], monte_carlo: Path) -> tuple[Any, dict[str, Any]]:
        """A row of the article's table, without its speed."""
        network, row = self.judged(make)
        row |= {"int8_share": int8_share(network.precision_report(), self.quantizer.layers), "ran": network.precision_report()}
        if isinstance(self.subject, SurrogateSubject):
            row["monte_carlo"] = self.subject.against_monte_carlo(self.evaluation, network, monte_carlo, self.tolerance)
        return network, row


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
        mc = row.get("monte_carlo")
        against = f"{mc['tuned']:.4f}, {mc['low']:+.4f} to {mc['high']:+.4f}" if mc else ""
        print(
            f"| {name} | {row['speedup']:.2f} ± {row['spread']:.2f} | {row['loss']:.4f} ({row['low']:.4f} to {row['high']:.4f}) "
            f"| {against} | {row['int8_share']:.0%} |",
            flush=True,
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


def compare(contest: Contest, monte_carlo: Path, peers: Path | None, formats: tuple[str, ...], only: list[str]) -> dict[str, Any]:
    """Both tables of one network."""

    def wanted(name: str) -> bool:
        return not only or any(part in name for part in only)

    report: dict[str, Any] = {}
    if wanted("formats"):
        makers: dict[str, Callable[[], Any]] = {
            name: lambda form=form: contest.uniform(form)  # type: ignore[misc]
            for name, form in (("FP32", "fp32"), ("BF16", "bf16"), ("all INT8", "int8"))
            if form in formats
        } | {
            "FP32, our graph": lambda: contest.ours("pareto", formats=("fp32",)),
            "tuned": lambda: contest.ours("pareto"),
        }
        made = {name: contest.format_row(make, monte_carlo) for name, make in makers.items()}
        speeds = contest.speeds({name: network for name, (network, _) in made.items()})
        report["formats"] = {name: row | speeds[name] for name, (_, row) in made.items()}
        print_formats(report["formats"])
    contestants: dict[str, Callable[[], Any]] = {
        f"minicarlo {name}": lambda name=name: contest.ours(name)  # type: ignore[misc]
        for name in STRATEGIES
    } | {
        "NNCF quantize": contest.nncf_quantize,
        "NNCF accuracy control": contest.nncf_accuracy_control,
        "ONNX Runtime static": contest.onnx_runtime,
    }
    if peers is not None:
        python = neural_compressor_python(peers.resolve())
        for name in ("basic", "mse_v2"):
            contestants[f"Neural Compressor {name}"] = lambda name=name: contest.neural_compressor(python, name)  # type: ignore[misc]
    rows: dict[str, dict[str, Any]] = {}
    networks = {}
    for name, make in contestants.items():
        if not wanted(name):
            continue
        try:
            networks[name], rows[name] = contest.judged(make)
        except Exception as error:  # a peer that fails is a result
            rows[name] = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}
        print(f"  {name}: {rows[name].get('error', 'done')}", file=sys.stderr, flush=True)
    speeds = contest.speeds(networks)
    print("\n| | speed-up | loss, 95 % interval | within tolerance | evaluations | events | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        row |= speeds.get(name, {})
        print_contestant(name, row)
    return report | {"contestants": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogates", nargs="*")
    parser.add_argument("--digits", type=Path, help="folder for the GAN of digits, which then takes part")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--events", type=int, default=EVENTS, help="of an evaluation, and as many held out, and as many unseen")
    parser.add_argument("--only", nargs="+", default=[], help="contestants (parts of their names); 'formats' is the first table")
    parser.add_argument("--vnni", action="store_true", help="no AMX and no bf16, as on the article's processors")
    parser.add_argument("--peers", type=Path, help="folder for the environment of Neural Compressor 2.6")
    parser.add_argument("--reference", type=Path, help="Monte Carlo events of the first table; the shipped sample if not given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    formats = ("int8", "fp32") if arguments.vnni or not has_bf16() else ("int8", "bf16", "fp32")
    settings = {"formats": formats, "tolerance": arguments.tolerance, "max_trials": arguments.trials}
    settings |= {"evaluation_events": arguments.events, "calibration_events": CALIBRATION}
    report: dict[str, Any] = {"machine": machine(), "isa": os.environ.get("ONEDNN_MAX_CPU_ISA"), "tolerance": arguments.tolerance}
    for name in arguments.surrogates or ([] if arguments.digits else ["clic-ecal"]):
        surrogate = Surrogate.load(name)
        monte_carlo = arguments.reference or sample_path(surrogate.manifest.detector)
        print(f"\n### {surrogate.manifest.name}\n", flush=True)
        contest = Contest.of_surrogate(surrogate, settings)
        report[surrogate.manifest.name] = compare(contest, monte_carlo, arguments.peers, formats, arguments.only)
    if arguments.digits:
        print("\n### digits\n", flush=True)
        contest = Contest.of_digits(arguments.digits, settings)
        report["digits"] = compare(contest, Path(), arguments.peers, formats, arguments.only)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
