"""The last convolutions of few channels as one kernel: the same numbers as the runtime's."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as ops

from minicarlo.engines.convolution_end import convolution_end
from minicarlo.engines.dense_code import bf16_bits
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.engines.runtime import has_bf16
from minicarlo.graph.fast import PART
from minicarlo.graph.recipe import Rewrite
from minicarlo.llvm import has
from minicarlo.precision import Calibration, Plan, surrogate_quantizer
from minicarlo.precision.audit import all_int8
from minicarlo.precision.rewriting import with_rewrites
from minicarlo.surrogate import save_surrogate

EVENTS = 5


def constant(numbers: np.ndarray | float, kind: type = np.float32) -> openvino.Node:
    return ops.constant(np.asarray(numbers, kind))


def convolution(value, random, rows, window, padding, form, *, strides=1, low=-1.0, width=4.0):
    """A convolution of `value` with a bias; `form` int8: rounded to bytes before, by weights of half the range."""
    depth, axes = value.output(0).get_partial_shape()[1].get_length(), len(window)
    if form == "int8":
        weights = random.integers(-64, 65, (rows, depth, *window)).astype(np.int8)
        scale = random.uniform(0.5, 2, (rows, *(1,) * (axes + 1))) / 64 / np.sqrt(depth * np.prod(window))
        kernel = ops.multiply(ops.convert(ops.constant(weights), np.float32), constant(scale))
        step = width / 255
        ends = [constant(round(low / step) * step), constant((round(low / step) + 255) * step)]
        value = ops.fake_quantize(value, *ends, *ends, 256)
    else:
        kernel = constant(random.normal(size=(rows, depth, *window)) / np.sqrt(depth * np.prod(window)))
    before, after = padding
    found = ops.convolution(value, kernel, [strides] * axes, before, after, [1] * axes)
    return ops.add(found, constant(random.normal(size=(1, rows, *(1,) * axes))))


def activation(value, random, name):
    rows = value.output(0).get_partial_shape()[1].get_length()
    if name == "prelu":
        return ops.prelu(value, constant(random.uniform(-0.5, 1.5, rows)))
    if name == "leaky":
        return ops.prelu(value, constant([0.3]))
    if name == "norm":
        numbers = [constant(random.uniform(0.5, 1.5, rows)) for _ in range(4)]
        return ops.batch_norm_inference(ops.relu(value), *numbers, 1e-3)
    if name == "relu":
        return ops.relu(value)
    return value


def model_of(source, value) -> openvino.Model:
    model = openvino.Model([ops.result(value)], [source], "test")
    model.outputs[0].get_tensor().set_names({"y"})
    model.inputs[0].get_tensor().set_names({"x"})
    return model


def shuffled(value, block):
    """Phases of a finer grid to their places."""
    rows, *places = [each.get_length() for each in list(value.output(0).get_partial_shape())[1:]]
    axes = len(places)
    depth = rows // block**axes
    value = ops.reshape(value, constant([-1, *(block,) * axes, depth, *places], np.int64), False)
    order = [0, 1 + axes, *(each for axis in range(axes) for each in (2 + axes + axis, 1 + axis))]
    value = ops.transpose(value, constant(order, np.int64))
    return ops.reshape(value, constant([-1, depth, *(block * each for each in places)], np.int64), False)


def both(model: openvino.Model, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What our kernel makes, and what the runtime does, or what right kernels would."""
    shape = [EVENTS, *(each.get_length() for each in list(model.inputs[0].get_partial_shape())[1:])]
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    ours = OpenVinoNetwork(model, "f32", {"x": shape})
    assert "epilogue" in {layer["name"] for layer in ours.runtime_layers()}
    theirs = OpenVinoNetwork(model, "f32", {"x": shape}, whole=True, emulate=exact)
    alone = OpenVinoNetwork(model, "f32", {"x": [1, *shape[1:]]})
    made = ours.run({"x": x})["y"]
    assert np.array_equal(alone.run({"x": x})["y"], made)
    return made, theirs.run({"x": x})["y"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_same_as_the_runtime(data):
    """Chains of convolutions in one to three dimensions, of any channels, windows and padding."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    axes = data.draw(st.integers(1, 3))
    form = data.draw(st.sampled_from(["fp32", "int8"]))
    places = data.draw(st.tuples(*[st.integers(3, 7)] * axes))
    source = ops.parameter([-1, data.draw(st.sampled_from([1, 3, 6, 7])), *places], np.float32, name="x")
    value = source
    for _ in range(data.draw(st.integers(1, 3))):
        lengths = [each.get_length() for each in list(value.output(0).get_partial_shape())[2:]]
        window = data.draw(st.tuples(*[st.integers(1, min(3, length)) for length in lengths]))
        padding = [[data.draw(st.integers(0, length - 1)) for length in window] for _ in range(2)]
        rows = data.draw(st.sampled_from([1, 2, 5, 8, 16, 23, 72]))
        value = convolution(value, random, rows, window, padding, form)
        value = activation(value, random, data.draw(st.sampled_from(["none", "relu", "leaky", "prelu", "norm"])))
        if rows == 8 and data.draw(st.booleans()):
            value = shuffled(value, 2)
    lengths = [each.get_length() for each in list(value.output(0).get_partial_shape())[2:]]
    cut = [max(1, length - 1) for length in lengths]
    numbers = [constant(each, np.int64) for each in ([0] * axes, cut, [1] * axes, range(2, 2 + axes))]
    value = ops.slice(value, *numbers)
    value = ops.multiply(value, ops.convert(ops.greater(value, constant(0.1)), np.float32))
    value = ops.transpose(value, constant([0, *range(axes + 1, 0, -1)], np.int64))
    made, wanted = both(model_of(source, value), exact=form == "int8")
    if form == "fp32":
        near = np.isclose(made, wanted, atol=1e-5, rtol=1e-5)
        assert near.mean() > 0.999 and np.abs(made - wanted)[~near].max(initial=0) < 0.11  # at the threshold
    else:  # where a number lies between two bytes, rounding may decide for either
        assert np.abs(made - wanted).mean() < 0.01 * max(np.abs(wanted).mean(), 0.1)


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
def test_cerns_network(form, tmp_path):
    """`gan3d`, rewritten: its last convolutions are ours, and its layer energies what they were."""
    torch = pytest.importorskip("torch")
    from minicarlo.generators.gan3d import Gan3D
    from minicarlo.training.export import to_onnx

    torch.manual_seed(1)
    conditions = {"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}}
    surrogate = save_surrogate(
        tmp_path / "gan3d",
        to_onnx(Gan3D()),
        name="gan3d",
        generator="gan3d",
        conditions=conditions,
        latent_size=200,
        readout_threshold_mev=0.05,
    )
    if form == "bf16" and not has_bf16():
        pytest.skip("this processor has no bf16")
    units = {"fp32": True, "bf16": has("avx512bf16") and not has("amx-bf16"), "int8": has("avx512vnni")}
    made, ours = [], units[form]  # AVX2 multiplies weights of half the range
    folded = [
        Rewrite("upsampling", "conv2"),
        Rewrite("upsampling", "conv3"),
        Rewrite("shuffle", "conv4"),
        Rewrite("dense", "conv1"),
    ]
    surrogate = with_rewrites(surrogate, [Rewrite("axes", "2,0,1"), *folded])
    quantizer = surrogate_quantizer(surrogate, 64)
    plan = all_int8(quantizer) if form == "int8" else Plan.uniform(quantizer.layers, "fp32")
    inputs = Calibration.over_range(surrogate, 16, 7).batches()[0]
    shapes = {name: array.shape for name, array in inputs.items()}
    planned = quantizer.apply(plan)
    with planned.on_disk() as path:
        for whole in (False, True):
            network = OpenVinoNetwork(path, planned.inference_precision, shapes, whole=whole)
            assert ("epilogue" in {layer["name"] for layer in network.runtime_layers()}) == (ours and not whole)
            assert set(network.precision_report().values()) == {form}
            made.append(network.run(inputs)["showers"])
    found, wanted = (each.sum((2, 3)) for each in made)
    assert np.abs(found - wanted).max() < {"fp32": 1e-5, "bf16": 3e-2, "int8": 1e-2}[form] * wanted.max()


@pytest.mark.parametrize(
    "what",
    [
        "strides",
        "stored as float16",
        "many channels",
        "zero between bytes",
        "many weights",
        "wide borders",
        "cut borders",
        "unsaid borders",
        "part of a fast one",
        "repeated for another",
    ],
)
def test_what_is_left_to_the_runtime(what):
    random = np.random.default_rng(4)
    channels = 32 if what == "many channels" else 6
    source = ops.parameter([-1, channels, 6, 6], np.float32, name="x")
    padding = [[1, 1], [1, 1]]
    if what == "strides":
        value = convolution(source, random, 5, (3, 3), padding, "fp32", strides=2)
    elif what == "stored as float16":
        kernel = ops.convert(constant(random.normal(size=(5, 6, 3, 3)), np.float16), np.float32)
        value = ops.convolution(source, kernel, [1, 1], *padding, [1, 1])
    elif what == "wide borders":  # of which a grid of few features would take gigabytes
        value = convolution(source, random, 1, (1, 1), [[900, 900], [900, 900]], "fp32")
    elif what == "cut borders":
        value = convolution(source, random, 5, (3, 3), [[-1, 0], [1, 1]], "fp32")
    elif what == "unsaid borders":
        kernel = constant(random.normal(size=(5, 6, 3, 3)))
        value = ops.convolution(source, kernel, [1, 1], [0, 0], [0, 0], [1, 1], "same_upper")
    elif what == "repeated for another":
        column = convolution(source, random, 5, (6, 6), [[0, 0], [0, 0]], "fp32")
        value = ops.add(column, ops.reshape(column, constant([-1, 1, 5, 1], np.int64), False))
    elif what == "part of a fast one":
        value = ops.convolution(source, constant(random.normal(size=(5, 6, 3, 3))), [1, 1], *padding, [1, 1])
        value.set_friendly_name(f"conv{PART}in")
    elif what == "many weights":
        value = convolution(source, random, 256, (9, 9), [[4, 4], [4, 4]], "fp32")
    elif what == "zero between bytes":
        ends = [constant(-1.0), constant(2.9)]
        kernel = ops.multiply(ops.convert(constant(random.integers(-64, 65, (5, 6, 3, 3)), np.int8), np.float32), constant(0.01))
        value = ops.convolution(ops.fake_quantize(source, *ends, *ends, 256), kernel, [1, 1], *padding, [1, 1])
    else:
        value = convolution(source, random, 16, (3, 3), padding, "fp32")
    assert convolution_end(model_of(source, value)) is None


def test_what_no_one_understands_ends_the_search():
    """Behind a logarithm the last convolution is still taken; in front of it the runtime goes on."""
    random = np.random.default_rng(5)
    source = ops.parameter([-1, 6, 6, 6], np.float32, name="x")
    value = convolution(source, random, 7, (3, 3), [[1, 1], [1, 1]], "fp32")
    value = ops.log(ops.add(ops.abs(value), constant(1.0)))
    value = convolution(value, random, 3, (2, 2), [[0, 0], [1, 1]], "fp32")
    end = convolution_end(model_of(source, value))
    assert end is not None and len(end.taken) == 1
    assert "Log" in {op.get_type_name() for op in end.rest().get_ordered_ops()}
    made, wanted = both(model_of(source, value))
    assert np.allclose(made, wanted, atol=1e-5)


def test_bf16(monkeypatch):
    """Features and weights are rounded to bf16 in front of each layer, sums are float32. The instruction is that of convolutions
    of single cells; here two multiply-adds stand for it, so that any processor can run what is around it."""

    def two_products(body, how, so_far, value, weight):
        for shift in (False, True):
            parts = []
            for bits in (value, weight):
                kept = body.let(f"shl <16 x i32> {bits}, {body.splat('16', 16, 'i32')}") if shift else bits
                kept = body.let(f"and <16 x i32> {kept}, {body.splat(str(-65536), 16, 'i32')}")
                parts.append(body.let(f"bitcast <16 x i32> {kept} to <16 x float>"))
            so_far = body.intrinsic("fma", 16, *parts, so_far)
        return so_far

    monkeypatch.setattr("minicarlo.engines.dense_code.more", two_products)
    monkeypatch.setattr("minicarlo.engines.convolution_end.computable", lambda _: True)
    random = np.random.default_rng(6)
    source = ops.parameter([-1, 6, 5, 5, 7], np.float32, name="x")
    layers, value = [], source
    for rows in (9, 3):
        read = ops.parameter([-1, *(each.get_length() for each in list(value.output(0).get_partial_shape())[1:])], np.float32)
        state = random.bit_generator.state
        value = activation(convolution(value, random, rows, (2, 1, 3), [[1, 0, 1], [0, 0, 1]], "fp32"), random, "leaky")
        random.bit_generator.state = state
        alone = activation(convolution(read, random, rows, (2, 1, 3), [[1, 0, 1], [0, 0, 1]], "fp32"), random, "leaky")
        layers.append(openvino.Model([ops.result(alone)], [read]))
    end = convolution_end(model_of(source, value), "bf16")
    assert end is not None and {taken.format for taken in end.taken.values()} == {"bf16"}
    x = random.normal(size=(EVENTS, 6, 5, 5, 7)).astype(np.float32)
    wanted = x
    for layer in layers:
        (op,) = (each for each in layer.get_ops() if each.get_type_name() == "Convolution")
        weights = np.array(op.input_value(1).get_node().get_data())
        op.input(1).replace_source_output(constant(rounded(weights)).output(0))
        wanted = np.array(openvino.Core().compile_model(layer, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([rounded(wanted)])[0])
    bits = np.ascontiguousarray(bf16_bits(x).transpose(0, 2, 3, 4, 1))
    made = np.zeros((EVENTS, *end.sample), np.float32)
    end.kernel.prepare()([bits.ctypes.data], made.ctypes.data, EVENTS)
    assert np.allclose(made, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())
    assert np.abs(made - wanted).mean() < 1e-3 * np.abs(wanted).mean()


def rounded(numbers):
    return (bf16_bits(numbers).astype(np.uint32) << 16).view(np.float32)
