"""Every engine makes the same showers as OpenVINO in float32, in the order asked for, and says what its layers ran in."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from minicarlo.cli import main
from minicarlo.engines import compile_model, compile_surrogate, engines, find_offer, has_bf16, mac_layers, read_model
from minicarlo.engines.onnxruntime import OnnxRuntimeGenerator
from minicarlo.engines.pytorch import PyTorchGenerator
from minicarlo.errors import UnsupportedEngine, UnsupportedPrecision
from minicarlo.generation.settings import available_precisions
from minicarlo.graph.verify import ROUNDING, deviation
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate
from small_surrogate import LATENT_SIZE, LAYERS, THRESHOLD_MEV, make_small_surrogate, small_onnx, with_fast_convolutions

COUNT = 70
ENERGY = EnergyDistribution.parse("1GeV:100GeV:log").sample(3, 0, COUNT)


@pytest.fixture(params=["openvino", "onnxruntime", "pytorch"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=8)


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return normal_latents(3, 0, COUNT, LATENT_SIZE)


@pytest.fixture(scope="module")
def expected(small, latent) -> np.ndarray:
    return compile_surrogate(small, batch=8).run(latent, ENERGY)


@pytest.mark.parametrize("batch", [1, 7, 64, None])
def test_showers_are_those_of_openvino_up_to_rounding(engine, small, latent, expected, batch):
    found = compile_surrogate(small, engine=engine, batch=batch).run(latent, ENERGY)
    assert np.count_nonzero(expected) > 1000
    assert deviation(expected, found, THRESHOLD_MEV) < ROUNDING


@pytest.mark.parametrize("batch", [1, 7])
def test_fast_convolutions_give_the_same_showers(engine, small, latent, expected, batch):
    fast = with_fast_convolutions(small, "shape.conv2", "shape.conv3")
    compiled = compile_surrogate(fast, engine=engine, batch=batch)
    assert deviation(expected, compiled.run(latent, ENERGY), THRESHOLD_MEV) < ROUNDING
    report = compiled.precision_report()
    assert set(LAYERS) <= set(report) and set(report.values()) == {"fp32"}


def test_the_shipped_surrogate_gives_the_same_showers(engine):
    """Its cells take a fourth root near zero, which makes up to a thousandth of the rounding of one phase in some 1e7."""
    shipped = Surrogate.load("clic-ecal")
    latent = normal_latents(3, 0, 16, shipped.manifest.latent_size)
    expected, found = (compile_surrogate(shipped, engine=each, batch=8).run(latent, ENERGY[:16]) for each in ("openvino", engine))
    difference = np.abs(found - expected) / expected.max(axis=(1, 2, 3), keepdims=True)
    assert np.quantile(difference, 0.999) < ROUNDING
    np.testing.assert_allclose(found.sum((2, 3)), expected.sum((2, 3)), rtol=0, atol=1e-4 * expected.sum((2, 3)).max())


def test_streams_change_no_bit_and_the_order_is_that_asked_for(engine, small, latent):
    """For one batch and number of threads; whether other batches give the same bits is measured before one is used."""
    one, three = (compile_surrogate(small, engine=engine, batch=8, streams=streams) for streams in (1, 3))
    pieces = [(f"from {i}", latent[i : i + 8], ENERGY[i : i + 8]) for i in range(0, COUNT, 8)]
    results = list(three.map(iter(pieces)))
    assert [key for key, _ in results] == [key for key, _, _ in pieces]
    assert np.array_equal(np.concatenate([samples for _, samples in results]), one.run(latent, ENERGY))


def test_every_layer_reports_the_format_it_ran_in(engine, small):
    assert compile_surrogate(small, engine=engine, batch=4).precision_report() == dict.fromkeys(LAYERS, "fp32")
    if "bf16" in find_offer(engine).formats:
        assert set(compile_surrogate(small, "bf16", engine=engine, batch=4).precision_report().values()) == {"bf16"}


def test_every_layer_of_the_shipped_surrogate_reports_its_format(engine):
    shipped = Surrogate.load("clic-ecal")
    layers = set(mac_layers(read_model(shipped)[0]).values())
    assert compile_surrogate(shipped, engine=engine, batch=2).precision_report() == dict.fromkeys(layers, "fp32")


def test_an_inference_with_memory_of_its_own_computes_the_same(engine, small, latent):
    compiled = compile_surrogate(small, engine=engine, batch=1)
    inference = compiled.inference()
    memory = inference.samples
    for event in range(4):
        inference.latent[:], inference.incident_energy[:] = latent[event], ENERGY[event]
        assert inference() is memory
        assert np.array_equal(memory, compiled.run(latent[event : event + 1], ENERGY[event : event + 1]))


def test_an_error_in_the_input_ends_the_map_and_leaves_the_engine_usable(engine, small, latent):
    compiled = compile_surrogate(small, engine=engine, batch=8, streams=2)
    before = compiled.run(latent, ENERGY)

    def failing():
        yield 0, latent[:8], ENERGY[:8]
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        list(compiled.map(failing()))
    with pytest.raises(ValueError, match="do not fit a batch of 8"):
        list(compiled.map([(0, latent[:9], ENERGY[:9])]))
    stopped = compiled.map((i, latent[:8], ENERGY[:8]) for i in range(100))
    next(stopped)
    stopped.close()
    assert np.array_equal(compiled.run(latent, ENERGY), before)


def test_results_belong_to_the_caller_and_inputs_may_be_used_again(engine, small, latent):
    compiled = compile_surrogate(small, engine=engine, batch=8, streams=2)
    latents, energies = latent[:8].copy(), ENERGY[:8].copy()
    expected = compiled.run(latents, energies)

    def reusing():
        for number in range(6):
            yield number, latents, energies
            energies[:] = 5e4  # a later batch in the same memory
            yield -1, latents, energies
            energies[:] = ENERGY[:8]

    for key, samples in compiled.map(reusing()):
        assert key < 0 or np.array_equal(samples, expected)


BUSY = """
import os, sys
from pathlib import Path
import numpy as np
from minicarlo.engines import compile_surrogate
from minicarlo.surrogate import Surrogate

def spent():
    fields = {}
    for task in Path("/proc/self/task").iterdir():
        numbers = (task / "stat").read_text().rsplit(")", 1)[1].split()
        fields[task.name] = int(numbers[11]) + int(numbers[12])
    return fields

surrogate = Surrogate.load("clic-ecal")
compiled = compile_surrogate(surrogate, engine=sys.argv[1], batch=8, streams=int(sys.argv[2]), threads=int(sys.argv[3]))
latent = np.zeros((8, surrogate.manifest.latent_size), np.float32)
batches = [(i, latent, np.full(8, 2e4, np.float32)) for i in range(120)]
list(compiled.map(batches[:8]))
before = spent()
list(compiled.map(batches))
after = spent()
ticks = {task: after[task] - before.get(task, 0) for task in after}
print(sum(ticks[task] > 0.1 * max(ticks.values()) for task in ticks if task != str(os.getpid())))
"""


@pytest.mark.parametrize(("streams", "threads"), [(2, 1), (1, 2)])
def test_no_more_threads_compute_than_were_asked_for(engine, streams, threads):
    """Threads that took at least a tenth of the busiest's time, besides the one that feeds them, whatever the machine's cores."""
    command = [sys.executable, "-c", BUSY, engine, str(streams), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= streams * threads


def test_processors_that_are_not_there_are_refused_with_a_reason(small):
    for offer in engines():
        assert offer.formats or offer.reason
        if offer.reason is not None:
            with pytest.raises(UnsupportedEngine, match="minicarlo engines"):
                compile_surrogate(small, engine=f"{offer.engine}:{offer.device}")
    with pytest.raises(UnsupportedEngine, match="openvino, onnxruntime, pytorch"):
        compile_surrogate(small, engine="abacus")
    with pytest.raises(UnsupportedEngine, match="it knows cpu, cuda"):
        compile_surrogate(small, engine="pytorch:abacus")


def test_precisions_that_an_engine_does_not_offer_are_refused(small):
    with pytest.raises(UnsupportedPrecision, match="fp32 or tuned"):
        compile_surrogate(small, "bf16", engine="onnxruntime")
    with pytest.raises(UnsupportedPrecision, match="no tuned model. Run `minicarlo tune` first"):
        compile_surrogate(small, "tuned", engine="onnxruntime")


def test_the_command_lists_engines_with_the_reason_why_some_are_not_offered():
    shown = CliRunner().invoke(main, ["engines"])
    assert shown.exit_code == 0 and "onnxruntime" in shown.stdout and "Not offered here" in shown.stdout
    found = json.loads(CliRunner().invoke(main, ["engines", "--json"]).stdout)["engines"]
    assert {"engine", "version", "device", "hardware", "formats", "reason"} == set(found[0])
    assert {"openvino", "onnxruntime", "pytorch", "inductor"} <= {offer["engine"] for offer in found}
    assert ("bf16" in found[0]["formats"]) == has_bf16()


class Calibration(CalibrationDataReader):
    """Two batches."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        energy = np.full((4, 1), 2e4, np.float32)
        self.left = [{"latent": random.normal(size=(4, LATENT_SIZE)).astype(np.float32), "incident_energy": energy}] * 2

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def test_without_the_other_runtimes_everything_else_works_and_says_how_to_get_them(tmp_path):
    """As in the plain install."""
    code = "import sys; sys.modules['onnxruntime'] = sys.modules['torch'] = None; from minicarlo.cli import main; main()"

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)

    shown = call("engines").stdout
    assert "pip install 'minicarlo[onnxruntime]'" in shown and "pip install 'minicarlo[pytorch]'" in shown
    output = tmp_path / "showers.h5"
    refused = call("generate", "clic-ecal", "-n", "3", "--engine", "pytorch", "-o", str(output))
    assert refused.returncode == 2 and "minicarlo[pytorch]" in refused.stderr and not output.exists()
    assert call("generate", "clic-ecal", "-n", "3", "-o", str(output)).returncode == 0 and output.exists()


def uncommon_onnx() -> bytes:
    """Layers that runtimes rename: a product and a sum in its own node, a transposed convolution with a bias."""
    random = np.random.default_rng(0)
    shapes = {"w": (6, 5), "b": (5,), "w2": (5, 3 * 16), "k": (3, 2, 3, 3), "kb": (2,)}
    weights = [numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([-1, 3, 4, 4]), "grid"))
    nodes = [
        helper.make_node("MatMul", ["latent", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b"], ["sum"], name="sum"),
        helper.make_node("Mul", ["sum", "incident_energy"], ["scaled"], name="scaled"),
        helper.make_node("MatMul", ["scaled", "w2"], ["second"], name="second"),
        helper.make_node("Reshape", ["second", "grid"], ["cells"], name="cells"),
        helper.make_node("ConvTranspose", ["cells", "k", "kb"], ["fine"], name="up", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["fine"], ["showers"], name="showers"),
    ]
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("latent", 6), ("incident_energy", 1))]
    made = [helper.make_tensor_value_info("showers", TensorProto.FLOAT, ["n", 2, 9, 9])]
    model = helper.make_model(
        helper.make_graph(nodes, "uncommon", given, made, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(model.SerializeToString())


def test_layers_that_runtimes_rename_are_reported_by_their_own_names(tmp_path):
    onnx, path = uncommon_onnx(), tmp_path / "uncommon.onnx"
    path.write_bytes(onnx)
    compiled = [compile_model(path, "f32", batch=2), OnnxRuntimeGenerator(onnx, batch=2), PyTorchGenerator(onnx, batch=2)]
    latent, energy = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32), np.ones(2, np.float32)
    expected = compiled[0].run(latent, energy)
    for each in compiled:
        assert each.precision_report() == dict.fromkeys(("product", "second", "up"), "fp32")
        np.testing.assert_allclose(each.run(latent, energy), expected, rtol=1e-4, atol=1e-4)


def test_onnx_runtime_runs_what_was_tuned_and_says_which_layers_are_int8_there():
    """It has fewer int8 kernels than OpenVINO: what it does not quantise runs in float32, with the tuned weights."""
    shipped = Surrogate.load("clic-ecal")
    latent = normal_latents(3, 0, 32, shipped.manifest.latent_size)
    engines_of = {name: compile_surrogate(shipped, "tuned", engine=name, batch=8) for name in ("openvino", "onnxruntime")}
    reports = {name: compiled.precision_report() for name, compiled in engines_of.items()}
    assert set(reports["onnxruntime"]) == set(reports["openvino"]) and "int8" in reports["onnxruntime"].values()
    int8 = {name: {layer for layer, form in report.items() if form == "int8"} for name, report in reports.items()}
    assert int8["onnxruntime"] <= int8["openvino"]
    expected, found = (compiled.run(latent, ENERGY[:32]).sum((2, 3)) for compiled in engines_of.values())
    assert np.abs(found - expected).mean() < 0.01 * expected.mean()
    assert "tuned" in available_precisions(shipped, "onnxruntime") and "tuned" not in available_precisions(shipped, "pytorch")


def test_onnx_runtime_says_which_layers_of_a_quantised_graph_it_really_runs_in_int8(tmp_path):
    """It leaves a dense layer with a computed bias in float32 although its weights are int8, and says so."""
    (tmp_path / "fp32.onnx").write_bytes(small_onnx(width=8))
    quantize_static(
        tmp_path / "fp32.onnx", tmp_path / "int8.onnx", Calibration(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"]
    )
    report = OnnxRuntimeGenerator(tmp_path / "int8.onnx", batch=4).precision_report()
    assert report == {name: "int8" if "conv" in name else "fp32" for name in LAYERS}
