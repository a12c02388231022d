"""Our way of running a generator against everybody else's, on the same networks, interleaved.

    python benchmarks/engines.py [--networks gan3d,gan2d,shower2d] [--seconds 4] [--only NAME ...] [--json FILE] [--plot FILE.png]
                                 [--quick]

Networks: CERN's `gan3d`, three-branch `gan2d` and `shower2d` as they are exported, with random weights (they decide no timing).
Or surrogates of one's own, by path; a tuned one brings its plan, `shower2d` that of the shipped surrogate. Contestants:

- OpenVINO as its manual says: throughput hint, in f32 and in its own default precision; and with NNCF's post-training INT8;
- ONNX Runtime in fp32 and statically quantised (QDQ, per channel); PyTorch eager and inductor, in fp32 and bf16;
- ours: the rewritten graph in fp32, bf16, INT8 (rest fp32 or bf16), in each format with those layers as fast convolutions that
  are faster so, in INT8 where that beats int8; and tuned where the surrogate is.

Everybody gets the batch, streams and threads that a race over the same candidates finds. Then all run in turns: showers per
second on all cores (medians of windows), milliseconds for one shower alone (in memory of its own where the engine has that), the
change of the layer energies against FP32, and the share of what the arithmetic unit in use can do (`peak.c`, compiled here). Run
on a quiet machine; `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from graph import random_gan3d

from minicarlo.engines import CompiledGenerator, Inference, compile_model, compile_surrogate, get_engine, has_bf16, machine
from minicarlo.engines import usable_cores as cores_of
from minicarlo.engines.account import RuntimeAccount
from minicarlo.engines.base import Array, Key
from minicarlo.engines.onnxruntime import OnnxRuntimeGenerator
from minicarlo.engines.runtime import core, keep_products_apart
from minicarlo.errors import MinicarloError
from minicarlo.files import write_json
from minicarlo.generation.settings import Settings, deviation, latency, race, throughput
from minicarlo.graph.model import Graph
from minicarlo.graph.recipe import multiply_accumulates, rewritten
from minicarlo.precision import Calibration, Plan, SurrogateSubject, get_criterion, surrogate_quantizer
from minicarlo.precision.audit import all_int8
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.fast_layers import choose_fast
from minicarlo.precision.quantization import PlannedModel
from minicarlo.precision.rewriting import fastest
from minicarlo.surrogate import Surrogate, save_surrogate

REFERENCE = "OpenVINO f32"
WINDOWS = 7
UNITS = {"fp32": ("f32",), "bf16": ("amx_bf16", "bf16"), "int8": ("amx_int8", "int8")}
Make = Callable[[Settings], CompiledGenerator]


class PlainOpenVino(RuntimeAccount, CompiledGenerator):
    """OpenVINO as its manual says: a performance hint decides streams and threads, requests are kept in flight.

    Element-wise operations between small products are kept apart as in our engine, without which 2026.4.1 crashes on `shower2d`.
    """

    def __init__(self, model: openvino.Model, settings: Settings, precision: str | None, hint: str) -> None:
        model = model.clone()
        self._watch(model)
        ports = [model.input(name) for name in ("latent", "incident_energy")]
        model.reshape({port: [settings.batch, port.get_partial_shape()[1].get_length()] for port in ports})
        keep_products_apart(model)
        properties = {"PERFORMANCE_HINT": hint} | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})
        self._compiled = core().compile_model(model, "CPU", properties)
        self._ports = *(self._compiled.input(name) for name in ("latent", "incident_energy")), self._compiled.output("showers")
        self.batch, self.threads = settings.batch, 1
        self.streams = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.sample_shape = tuple(self._ports[2].get_shape())[1:]
        self._requests = [self._compiled.create_infer_request() for _ in range(self.streams)]

    def inference(self) -> Inference:
        return PlainInference(self._compiled, self.batch or 1, self.sample_shape)

    def run(self, latent: Array, incident_energy: Array) -> Array:
        return np.concatenate([samples for _, samples in self.map([(0, latent, incident_energy)])])

    def map(self, batches: Iterable[tuple[Key, Array, Array]]) -> Iterator[tuple[Key, Array]]:
        running: list[tuple[Key, Any]] = []
        idle = list(self._requests)
        for key, latent, energy in batches:
            if not idle:
                yield self._finish(running, idle)
            request = idle.pop()
            request.start_async({self._ports[0]: latent, self._ports[1]: energy.reshape(-1, 1)})
            running.append((key, request))
        while running:
            yield self._finish(running, idle)

    def _finish(self, running: list[tuple[Key, Any]], idle: list[Any]) -> tuple[Key, Array]:
        key, request = running.pop(0)
        request.wait()
        idle.append(request)
        return key, request.get_tensor(self._ports[2]).data.copy()


class PlainInference(Inference):
    """The runtime's bare call, on tensors that were set once."""

    def __init__(self, compiled: openvino.CompiledModel, batch: int, sample_shape: tuple[int, ...]) -> None:
        (_, latent_size) = compiled.input("latent").get_shape()
        super().__init__(batch, latent_size, sample_shape)
        self._request = compiled.create_infer_request()
        arrays = {"latent": self.latent, "incident_energy": self.incident_energy}
        for name, array in arrays.items():
            self._request.set_tensor(compiled.input(name), openvino.Tensor(array, shared_memory=True))
        self._request.set_tensor(compiled.output("showers"), openvino.Tensor(self.samples, shared_memory=True))

    def __call__(self) -> Array:
        self._request.infer()
        return self.samples


@dataclasses.dataclass
class Contestant:
    """One way to run a network: how it is compiled, for many showers and for one, and which format does most of the work."""

    name: str
    unit: str
    make: Make
    single: Make
    macs: int
    ours: bool = False
    searches: bool = True  # whether streams and threads are ours to choose
    surrogate: Surrogate | None = None  # with whose FP32 its showers are compared, if not with the network's

    settings: Settings | None = None
    compiled: CompiledGenerator | None = None
    alone: CompiledGenerator | None = None
    change: float = 0.0
    rates: list[float] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=list)


def random_network(folder: Path, name: str) -> Surrogate:
    """CERN's three-branch generator (gan2d) or shower2d with random weights, the graph as it is exported."""
    import torch

    from minicarlo.generators.gan2d import Gan2D
    from minicarlo.generators.shower2d import Shower2D
    from minicarlo.training.export import to_onnx

    torch.manual_seed(1)
    generator = Gan2D() if name == "gan2d" else Shower2D()
    energies = {"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}}
    facts: dict[str, Any] = {"name": name, "generator": name, "conditions": energies, "latent_size": generator.latent_size}
    return save_surrogate(folder / name, to_onnx(generator), readout_threshold_mev=0.05, **facts)


def network(name: str, folder: Path) -> Surrogate:
    """A network by name, or a surrogate by path."""
    if name == "gan3d":
        return random_gan3d(folder)
    return random_network(folder, name) if name in ("gan2d", "shower2d") else Surrogate.load(name)


def nncf_int8(surrogate: Surrogate, events: int) -> openvino.Model:
    """What `nncf.quantize` makes of the given graph when it is left alone."""
    import nncf

    batches = Calibration.over_range(surrogate, events, 1).batches()
    return nncf.quantize(core().read_model(surrogate.onnx), nncf.Dataset(batches), subset_size=len(batches))


def onnx_int8(surrogate: Surrogate, events: int, folder: Path) -> Path:
    """ONNX Runtime's static quantisation, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = Calibration.over_range(surrogate, events, 1).batches()

        def get_next(self) -> dict[str, Array] | None:
            return self.left.pop() if self.left else None

    given, made = folder / "given.onnx", folder / "int8.onnx"
    given.write_bytes(surrogate.onnx)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    layers = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    quantize_static(given, made, Reader(), QuantFormat.QDQ, per_channel=True, op_types_to_quantize=layers, **types)
    return made


class Planner:
    """Plans for a surrogate, some of whose layers are fast convolutions in some formats if `fast`."""

    def __init__(self, surrogate: Surrogate, events: int, *, fast: bool) -> None:
        self.quantizer = surrogate_quantizer(surrogate, events)
        self._formats = ("fp32", *(["bf16"] if has_bf16() else []))
        self._macs = multiply_accumulates(Graph(surrogate.onnx))
        criterion = get_criterion("fidelity", threshold_mev=surrogate.manifest.readout_threshold_mev, confidence=0.95, seed=1)
        subject = SurrogateSubject(surrogate, criterion, calibration_events=events)
        self._evaluation = Evaluation(subject, self.quantizer, events=100)
        if fast:
            choose_fast(self.quantizer, self._evaluation, self._formats)

    def int8(self) -> Plan:
        """Every layer in int8, but those that are faster as fast convolutions, with more digits."""
        plan = all_int8(self.quantizer)
        lowest = self._evaluation.layer_seconds(plan)
        chosen: dict[str, str] = {}
        for form in reversed(self._formats):
            taken = self._evaluation.layer_seconds(Plan.uniform(self.quantizer.layers, form))
            for name in self.quantizer.fast.get(form, ()):
                if taken[name] < lowest[name]:
                    chosen[name], lowest[name] = form, taken[name]
        return plan.with_formats(chosen)

    def layer_macs(self, plan: Plan) -> dict[str, int]:
        """Multiply-accumulates of each layer in a plan for one shower, the matrices of fast convolutions included."""
        parts, fast = self.quantizer.fast_candidates, self.quantizer.fast_in(plan)
        counted = {name: multiply_accumulates(Graph(parts[name])) for name in fast}
        return {layer.name: counted.get(layer.name, layer.macs) for layer in self.quantizer.layers}

    def macs(self, plan: Plan) -> int:
        """Multiply-accumulates of a plan for one shower."""
        return self._macs + sum(self.layer_macs(plan).values()) - sum(layer.macs for layer in self.quantizer.layers)


def contestants(surrogate: Surrogate, folder: Path, events: int, quick: bool) -> list[Contestant]:
    """Everybody who can run here."""
    macs = multiply_accumulates(Graph(surrogate.onnx))
    found: list[Contestant] = []
    plain = core().read_model(surrogate.onnx)
    quantised = nncf_int8(surrogate, events)
    default = "bf16" if has_bf16() else "fp32"
    for name, model, precision, unit in (
        (REFERENCE, plain, "f32", "fp32"),
        ("OpenVINO default", plain, None, default),
        ("OpenVINO + NNCF INT8", quantised, None, "int8"),
    ):

        def make(settings: Settings, model: openvino.Model = model, precision: str | None = precision) -> CompiledGenerator:
            return PlainOpenVino(model, settings, precision, "THROUGHPUT")

        def single(settings: Settings, model: openvino.Model = model, precision: str | None = precision) -> CompiledGenerator:
            return PlainOpenVino(model, settings, precision, "LATENCY")

        found.append(Contestant(name, unit, make, single, macs, searches=False))

    int8 = onnx_int8(surrogate, events, folder)

    def onnx_runtime(settings: Settings) -> CompiledGenerator:
        return OnnxRuntimeGenerator(int8, batch=settings.batch, streams=settings.streams, threads=settings.threads)

    found.append(engine_contestant("ONNX Runtime FP32", surrogate, "fp32", "onnxruntime", macs))
    found.append(Contestant("ONNX Runtime INT8", "int8", onnx_runtime, onnx_runtime, macs))
    for name, engine in (("PyTorch eager", "pytorch"), ("PyTorch inductor", "inductor")):
        if quick and engine == "inductor":
            continue
        for precision in get_engine(engine).offers()[0].formats:
            found.append(engine_contestant(f"{name} {precision.upper()}", surrogate, precision, engine, macs))

    graph = Graph(surrogate.onnx)
    faster = dataclasses.replace(surrogate, onnx=rewritten(graph, []).serialise(), tuned=None) if quick else fastest(surrogate)
    planner = Planner(faster, events, fast=not quick)
    rests: list[Any] = ["f32", *(["bf16"] if has_bf16() else [])]
    plans: list[tuple[str, str, Plan, Any]] = [
        (f"ours {form.upper()}", form, Plan.uniform(planner.quantizer.layers, form), rest)
        for form, rest in zip(("fp32", "bf16"), rests, strict=False)
    ]
    plans += [(f"ours INT8, rest {rest}", "int8", planner.int8(), rest) for rest in rests]
    for name, unit, plan, rest in plans:
        planned = planner.quantizer.apply(plan)

        def ours(settings: Settings, planned: PlannedModel = planned, rest: Any = rest) -> CompiledGenerator:
            with planned.on_disk() as path:
                return compile_model(path, rest, batch=settings.batch, streams=settings.streams, threads=settings.threads)

        found.append(Contestant(name, unit, ours, ours, planner.macs(plan), ours=True))
    shipped = Surrogate.load("clic-ecal") if surrogate.manifest.name == "shower2d" else surrogate
    if shipped.tuned is not None:
        macs = multiply_accumulates(Graph(shipped.onnx))
        unit = "int8" if "int8" in shipped.tuned.plan.ran.values() else default
        for name, engine in (("ours tuned", "openvino"), ("ONNX Runtime, our plan", "onnxruntime")):
            tuned = engine_contestant(name, shipped, "tuned", engine, macs, ours=engine == "openvino")
            found.append(dataclasses.replace(tuned, unit=unit))
    return found


def engine_contestant(name: str, surrogate: Surrogate, precision: str, engine: str, macs: int, ours: bool = False) -> Contestant:
    """One of our engines."""

    def make(settings: Settings) -> CompiledGenerator:
        shape = {"batch": settings.batch, "streams": settings.streams, "threads": settings.threads}
        return compile_surrogate(surrogate, precision, engine=engine, **shape)

    return Contestant(name, precision, make, make, macs, ours, engine != "inductor", surrogate)


def choose(contestant: Contestant, surrogate: Surrogate, batches: list[int], seconds: float, quick: bool) -> None:
    """The best batch, streams and threads of this contestant, and both its networks compiled."""
    cores = cores_of()
    compiled: dict[Settings, CompiledGenerator] = {}

    def rate(settings: Settings) -> float:
        if settings not in compiled:
            compiled[settings] = contestant.make(settings)
        return throughput(surrogate, compiled[settings], settings.batch, seconds)

    shapes = sorted({(cores, 1), (1, cores)}) if contestant.searches and not quick else [(cores, 1)]
    if contestant.name.startswith("PyTorch inductor"):
        batches = batches[-1:]  # each takes a minute to compile
    candidates = [Settings(*shape, batch) for batch in batches for shape in shapes]
    found = race(candidates, rate) if len(candidates) > 1 else {candidates[0]: rate(candidates[0])}
    contestant.settings = max(found, key=found.__getitem__)
    contestant.compiled = compiled[contestant.settings]
    alone = {threads: contestant.single(Settings(1, threads, 1)) for threads in ({1, cores} if contestant.searches else {cores})}
    contestant.alone = min(alone.values(), key=lambda each: latency(surrogate, each, seconds))
    contestant.change = deviation(contestant.surrogate or surrogate, contestant.compiled)


def peaks(folder: Path, threads: int, seconds: float) -> dict[str, float]:
    """Operations per second of each arithmetic unit on all cores; empty without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return {}
    program, source = folder / "peak", Path(__file__).with_name("peak.c")
    subprocess.run([compiler, "-O2", "-march=native", "-pthread", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program), str(threads), str(seconds)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def result(contestant: Contestant, reference: Contestant, peak: dict[str, float]) -> dict[str, Any]:
    """What is known about a contestant in the end; ratios are medians of the ratios within a window."""
    assert contestant.settings is not None and contestant.compiled is not None and contestant.alone is not None
    rates, base = np.array(contestant.rates), np.array(reference.rates)
    unit = next((name for name in UNITS[contestant.unit] if name in peak), None)
    low, high = np.percentile(rates, [16, 84])
    ran = list(contestant.compiled.precision_report().values())
    return {
        "name": contestant.name,
        "ours": contestant.ours,
        "settings": dataclasses.asdict(dataclasses.replace(contestant.settings, streams=contestant.compiled.streams)),
        "showers_per_second": float(np.median(rates)),
        "spread": float(high - low) / 2,
        "over_openvino_f32": float(np.median(rates / base)),
        "milliseconds_batch_1": 1e3 * float(np.median(contestant.times)),
        "threads_batch_1": contestant.alone.threads,
        "deviation": contestant.change,
        "formats": {form: ran.count(form) for form in sorted(set(ran))},
        "mega_macs": contestant.macs / 1e6,
        "share_of_peak": 2 * contestant.macs * float(np.median(rates)) / peak[unit] if unit else None,
        "unit": unit,
    }


def compare(
    surrogate: Surrogate, folder: Path, seconds: float, quick: bool, peak: dict[str, float], only: list[str]
) -> list[dict[str, Any]]:
    """All contestants on one network, or some (parts of their names), in turns."""
    field: list[Contestant] = []
    for contestant in contestants(surrogate, folder, 32 if quick else 256, quick):
        if only and not any(part in contestant.name for part in (REFERENCE, *only)):
            continue
        try:
            choose(contestant, surrogate, [2] if quick else [1, 8, 32, 64], 0.01 if quick else 0.1, quick)
        except (MinicarloError, RuntimeError) as error:
            print(f"  {contestant.name} does not run here: {str(error).splitlines()[0][:120]}", flush=True)
            continue
        field.append(contestant)
    windows = 2 if quick else WINDOWS
    for number in range(windows):
        for each in field[number % len(field) :] + field[: number % len(field)]:
            assert each.settings is not None and each.compiled is not None and each.alone is not None
            each.rates.append(throughput(surrogate, each.compiled, each.settings.batch, seconds / windows))
            each.times.append(latency(surrogate, each.alone, 0.2 * seconds / windows))
    reference = next(each for each in field if each.name == REFERENCE)
    return [result(each, reference, peak) for each in field]


def show(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"{name}: showers/s on {cores_of()} cores, over plain OpenVINO f32, ms at batch 1, share of peak, change of showers")
    for row in sorted(rows, key=lambda row: float(row["showers_per_second"])):
        share = f"{row['share_of_peak']:6.1%} of {row['unit']}" if row["share_of_peak"] else ""
        shape = f"batch {row['settings']['batch']}, {row['settings']['streams']} streams"
        print(
            f"  {row['name']:24s} {row['showers_per_second']:9.0f} +- {row['spread']:<7.0f} {row['over_openvino_f32']:6.2f}  "
            f"{row['milliseconds_batch_1']:7.3f}  {share:20s} {row['deviation']:8.1e}  {shape}, {row['formats']}",
            flush=True,
        )


def plot(path: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """Showers per second of every contestant, a panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(results), 1, figsize=(8, 0.6 + 3.6 * len(results)), layout="constrained", squeeze=False)
    for axes, (name, rows) in zip(panels[:, 0], results.items(), strict=True):
        ordered = sorted(rows, key=lambda row: float(row["showers_per_second"]))
        rates = [row["showers_per_second"] for row in ordered]
        for height, row in enumerate(ordered):
            colour = "#0072B2" if row["ours"] else "#606060"
            rate, spread = row["showers_per_second"], row["spread"]
            axes.errorbar(rate, height, xerr=spread, fmt="o" if row["ours"] else "s", color=colour, capsize=3)
            axes.annotate(f"{rate:,.0f}", (rate, height), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        axes.set_yticks(range(len(ordered)), [row["name"] for row in ordered])
        axes.grid(axis="x", which="both", linewidth=0.3)
        axes.margins(y=0.08)
        axes.set_xscale("log")
        axes.set_xlim(0.6 * min(rates), 3 * max(rates))
        axes.set_title(name, loc="left")
        axes.set_xlabel("showers per second, all cores")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="gan3d,gan2d,shower2d")
    parser.add_argument("--seconds", type=float, default=4.0, help="per network and contestant")
    parser.add_argument("--only", nargs="+", default=[], help=f"contestants (parts of their names), besides {REFERENCE}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="seconds in all, for nothing but to see that it runs")
    options = parser.parse_args()
    seconds = 0.1 if options.quick else options.seconds
    logging.getLogger().setLevel(logging.ERROR)  # the quantisers have much to say
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peak = peaks(folder, cores_of(), 0.1 if options.quick else 1.0)
        print("peak: " + ", ".join(f"{unit} {value / 1e12:.2f} TOP/s" for unit, value in peak.items()), flush=True)
        for each in options.networks.split(","):
            results[each] = compare(network(each, folder), folder, seconds, options.quick, peak, options.only)
            show(each, results[each])
    if options.json:
        write_json(options.json, {"machine": machine(), "peak": peak, "seconds": seconds, "results": results})
    if options.plot:
        plot(options.plot, results)


if __name__ == "__main__":
    main()
