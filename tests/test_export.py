"""What was tuned as ONNX with QuantizeLinear and DequantizeLinear: the same scales, and the same values in ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from minicarlo.cli import main
from minicarlo.engines import compile_surrogate, read_ir
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.engines.onnx_writer import to_onnx
from minicarlo.errors import InvalidConfig, InvalidModel, TuningError
from minicarlo.precision import Plan, surrogate_quantizer
from minicarlo.precision.portable import TOLERANCE, export_qdq
from minicarlo.precision.scheme import Scheme
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate
from small_surrogate import LAYERS, make_small_surrogate, with_fast_convolutions

PORTABLE = {name: Scheme(half_range=True) for name in LAYERS}  # so that no kernel saturates, on whatever processor


def with_plan(surrogate, output, **formats):
    """A surrogate that was tuned to a given plan; layers without a format are int8."""
    quantizer = surrogate_quantizer(surrogate, 64)
    plan = Plan.uniform(quantizer.layers, "int8").with_formats({name.replace("_", "."): form for name, form in formats.items()})
    plan = plan.with_schemes(PORTABLE)
    planned = quantizer.apply(plan)
    facts = {"plan": dict(plan), "ran": dict(plan), "inference_precision": planned.inference_precision}
    return surrogate.with_tuned(output, planned.xml, planned.weights, facts)


def events(surrogate, count=64):
    allowed = surrogate.manifest.conditions["incident_energy"]
    energy = EnergyDistribution(allowed.low, allowed.high, "log").sample(5, 0, count)
    return normal_latents(5, 0, count, surrogate.manifest.latent_size), energy


def in_onnx_runtime(path, surrogate, optimised=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    latent, energy = events(surrogate)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (showers,) = session.run(None, {"latent": latent, "incident_energy": energy[:, None]})
    return showers


def in_float32(surrogate):
    """The tuned model in OpenVINO with its bf16 layers in float32."""
    latent, energy = events(surrogate)
    inputs = {"latent": latent, "incident_energy": energy[:, None]}
    graph = read_ir(surrogate.tuned.xml, surrogate.tuned.weights)
    return OpenVinoNetwork(graph, "f32", {name: array.shape for name, array in inputs.items()}).run(inputs)["showers"]


def distance(first, second):
    return np.linalg.norm(first - second) / np.linalg.norm(second)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return with_plan(make_small_surrogate(folder / "small"), folder / "tuned")


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export_qdq(tuned, path), path


def test_onnx_runtime_computes_what_openvino_does(tuned, exported):
    """Within the stated tolerance, which is far less than int8 itself changes."""
    found = in_onnx_runtime(exported[1], tuned)
    expected = compile_surrogate(tuned, "tuned").run(*events(tuned))
    assert distance(found, expected) < TOLERANCE
    assert distance(found, expected) < 0.3 * distance(expected, compile_surrogate(tuned).run(*events(tuned)))


def test_the_shipped_surrogate_as_it_was_tuned_runs_in_onnx_runtime_partly_on_int8_kernels(tmp_path):
    """ONNX Runtime has int8 kernels where a layer's output is quantised, too, and for products of matrices."""
    surrogate = Surrogate.load("clic-ecal")
    result = export_qdq("clic-ecal", tmp_path / "model.onnx")
    plan = surrogate.tuned.plan.plan
    assert result.int8 == sum(form == "int8" for form in plan.values()) >= 8 and result.deviation < 1e-4
    found = in_onnx_runtime(tmp_path / "model.onnx", surrogate, tmp_path / "optimised.onnx")
    assert distance(found, in_float32(surrogate)) < TOLERANCE
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kernels["QLinearConv"] + kernels["QGemm"] > 0


def test_scales_and_integers_are_those_of_the_tuned_model(tuned, exported):
    model = onnx.load(exported[1])
    onnx.checker.check_model(model, full_check=True)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    kinds = Counter(node.op_type for node in model.graph.node)
    graph = read_ir(tuned.tuned.xml, tuned.tuned.weights)
    ranges = sum(op.get_type_name() == "FakeQuantize" for op in graph.get_ops())
    assert kinds["QuantizeLinear"] == ranges >= len(LAYERS) - 1
    for op in graph.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize":
            low, high = (float(op.input_value(i).get_node().get_data().item()) for i in (1, 2))
            scale = constants[f"{op.get_friendly_name()}/scale"]
            assert scale == pytest.approx((high - low) / 255, rel=1e-6)
            assert constants[f"{op.get_friendly_name()}/zero"] == round(-low / float(scale))
    written = [value.astype(int) for value in constants.values() if value.dtype == np.int8 and value.ndim > 1]
    stored = [
        op.get_data().astype(int)
        for op in graph.get_ordered_ops()
        if op.get_type_name() == "Constant" and op.get_output_element_type(0).to_string() == "i8" and op.get_data().ndim > 1
    ]
    # the two products of latents and condition, quantised apart, have the same weights as float32 numbers
    assert len(written) == len(stored) - 2
    assert {(value.size, np.abs(value).sum()) for value in written} <= {(value.size, np.abs(value).sum()) for value in stored}


def test_a_plan_with_fast_convolutions_is_written_to_the_same_values(tmp_path):
    plain = make_small_surrogate(tmp_path / "plain")
    fast = with_fast_convolutions(plain, "shape.conv2")
    planned = surrogate_quantizer(fast, 64).apply(Plan.of(dict.fromkeys(LAYERS, "int8")).with_schemes(PORTABLE))
    latent, energy = events(plain, 16)
    inputs = {"latent": latent, "incident_energy": energy[:, None]}
    expected = planned.compile({"latent": (16, 16), "incident_energy": (16, 1)}).run(inputs)["showers"]
    written = to_onnx(read_ir(planned.xml, planned.weights), "fast")
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    assert distance(session.run(["showers"], inputs)[0], expected) < TOLERANCE


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(["int8", "fp32"]), min_size=len(LAYERS), max_size=len(LAYERS)))
def test_every_mixture_of_int8_and_float32_is_written_to_the_same_values(tuned, formats):
    quantizer = surrogate_quantizer(tuned, 64)
    planned = quantizer.apply(Plan.of(dict(zip(LAYERS, formats, strict=True))).with_schemes(PORTABLE))
    graph = read_ir(planned.xml, planned.weights)
    latent, energy = events(tuned, 16)
    inputs = {"latent": latent, "incident_energy": energy[:, None]}
    expected = planned.compile({"latent": (16, 16), "incident_energy": (16, 1)}).run(inputs)["showers"]
    session = onnxruntime.InferenceSession(to_onnx(graph, "mixture"), providers=["CPUExecutionProvider"])
    assert distance(session.run(["showers"], inputs)[0], expected) < TOLERANCE


def test_layers_in_bf16_are_written_in_float32(tuned, tmp_path):
    surrogate = with_plan(tuned, tmp_path / "tuned", shape_conv2="bf16", shape_conv3="bf16")
    result = export_qdq(surrogate, tmp_path / "model.onnx")
    assert (result.int8, result.fp32, result.bf16) == (4, 2, 2)
    found = in_onnx_runtime(tmp_path / "model.onnx", surrogate)
    assert distance(found, in_float32(surrogate)) < TOLERANCE


OPERATIONS = {
    "strided slice": lambda op, x: op.strided_slice(x, [0, 1, 0, 5], [0, 4, 0, 0], [1, 1, 1, -2], [1, 0, 1, 0], [1, 0, 1, 1]),
    "slice that drops an axis": lambda op, x: op.strided_slice(
        x, [0, 2, 0, 0], [0, 3, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1], [], [0, 1, 0, 0], []
    ),
    "nearest upsampling": lambda op, x: op.interpolate(
        x, [6, 12], "nearest", "sizes", axes=[2, 3], coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "linear upsampling": lambda op, x: op.interpolate(
        x, [9, 12], "linear_onnx", "sizes", axes=[2, 3], coordinate_transformation_mode="half_pixel"
    ),
    "padding": lambda op, x: op.pad(x, [0, 0, 1, 2], [0, 0, 0, 1], "constant", op.constant(np.float32(0.5))),
    "reflection": lambda op, x: op.pad(x, [0, 0, 1, 1], [0, 0, 1, 1], "reflect"),
    "average pool": lambda op, x: op.avg_pool(x, [1, 2], [0, 0], [0, 1], [2, 2], True, "floor"),
    "depth to space": lambda op, x: op.depth_to_space(x, "depth_first", 2),
    "space to depth": lambda op, x: op.space_to_depth(op.pad(x, [0, 0, 0, 0], [0, 0, 1, 0], "edge"), "blocks_first", 2),
    "split": lambda op, x: op.concat([op.split(x, 1, 2).output(1), op.split(x, 1, 2).output(0)], 1),
    "layer norm": lambda op, x: op.mvn(x, [2, 3], True, 1e-3, "inside_sqrt"),
    "swish": lambda op, x: op.swish(x, op.constant(np.float32(1.3))),
    "gelu": lambda op, x: op.gelu(x, "tanh"),
    "clamp": lambda op, x: op.clamp(x, -0.3, 0.4),
    "floor mod": lambda op, x: op.floor_mod(x, op.constant(np.float32(0.3))),
    "prelu": lambda op, x: op.prelu(x, op.constant(np.linspace(0, 1, 4, dtype=np.float32))),
    "softmax": lambda op, x: op.softmax(x, 1),
    "batch norm": lambda op, x: op.batch_norm_inference(
        x, *(op.constant(np.linspace(low, 2, 4, dtype=np.float32)) for low in (0.5, -1, 0, 1)), 1e-3
    ),
    "grouped convolution": lambda op, x: op.group_convolution(
        x, op.constant(weights(2, 3, 2, 3, 3)), [1, 1], [1, 0], [1, 2], [1, 1], "explicit"
    ),
    "transposed convolution": lambda op, x: op.convolution_backprop_data(
        x, op.constant(weights(4, 3, 4, 3)), [2, 2], pads_begin=[1, 0], pads_end=[1, 1], dilations=[1, 1], output_padding=[0, 1]
    ),
    "grouped transposed convolution": lambda op, x: op.group_convolution_backprop_data(
        x, op.constant(weights(2, 2, 3, 3, 3)), [2, 1], pads_begin=[1, 1], pads_end=[0, 1], dilations=[1, 1]
    ),
    "reduce": lambda op, x: op.reduce_l2(x, [1, 3], True),
    "comparison": lambda op, x: op.select(op.greater(x, op.constant(np.float32(0))), x, op.constant(np.float32(-1))),
    "shape": lambda op, x: op.reshape(
        x, op.concat([op.gather(op.shape_of(x), [0], 0), op.constant(np.array([2, -1]))], 0), False
    ),
}


def weights(*shape):
    return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_an_operation_is_written_as_onnx_that_computes_the_same(name):
    import openvino
    from openvino import opset13

    x = opset13.parameter([-1, 4, 3, 6], np.float32, name="x")
    x.output(0).get_tensor().set_names({"x"})
    made = OPERATIONS[name](opset13, x)
    result = opset13.result(made)
    result.output(0).get_tensor().set_names({"y"})
    graph = openvino.Model([result], [x], name)
    values = weights(5, 4, 3, 6)
    expected = OpenVinoNetwork(graph, "f32", {"x": values.shape}).run({"x": values})["y"]
    session = onnxruntime.InferenceSession(to_onnx(graph, name), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["y"], {"x": values})[0], expected, atol=2e-5)


def test_the_verb_says_what_it_wrote(tuned, tmp_path):
    arguments = ["export", str(tuned.path), "--to", "onnx-qdq", "-o", str(tmp_path / "model.onnx")]
    ran = CliRunner().invoke(main, [*arguments, "--json"])
    assert ran.exit_code == 0 and json.loads(ran.stdout)["int8"] == len(LAYERS)
    assert "6 layers in int8, 0 in float32" in CliRunner().invoke(main, arguments).output


def test_what_is_not_tuned_or_was_altered_is_refused(tuned, tmp_path):
    with pytest.raises(TuningError, match="not tuned"):
        export_qdq(make_small_surrogate(tmp_path / "small"), tmp_path / "model.onnx")
    with pytest.raises(InvalidConfig, match=r"\.onnx"):
        export_qdq(tuned, tmp_path / "model.xml")
    network = tmp_path / "network"
    shutil.copytree(tuned.path / "tuned", network)
    assert export_qdq(network, tmp_path / "model.onnx").int8 == len(LAYERS)  # a directory of a network is read as well
    (tmp_path / "model.onnx").unlink()
    plain = (network / "model.xml").read_text()
    for evil, message in ((plain.replace('type="Concat"', 'type="Loop"'), "cannot be"), ("<!DOCTYPE a><net/>", "IR")):
        (network / "model.xml").write_text(evil)
        with pytest.raises(InvalidModel, match=message):
            export_qdq(network, tmp_path / "model.onnx")
    (network / "model.bin").unlink()
    (network / "model.bin").symlink_to("/etc/passwd")
    with pytest.raises(InvalidModel, match=r"model\.bin"):
        export_qdq(network, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
