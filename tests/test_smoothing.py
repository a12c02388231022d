"""Channels made smoother between layers: the same in float32, better resolved in int8."""

from __future__ import annotations

import json

import numpy as np
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13

from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.precision import Plan, Quantizer, tune
from minicarlo.precision.smoothing import Group, groups, smoothed

BETWEEN = {
    "relu": lambda x: opset13.relu(x),
    "prelu": lambda x: opset13.prelu(x, opset13.constant(np.full(1, 0.2, np.float32))),
    "upsampling": lambda x: opset13.interpolate(
        opset13.relu(x),
        [8, 8],
        "nearest",
        "sizes",
        axes=[2, 3],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "zeros around": lambda x: opset13.pad(x, [0, 0, 1, 1], [0, 0, 1, 1], "constant", opset13.constant(np.float32(0))),
    "pool": lambda x: opset13.max_pool(x, [1, 1], [1, 1], [0, 0], [0, 0], [2, 2]).output(0),
    "nothing": lambda x: x,
}
NOT_BETWEEN = {
    "tanh": lambda x: opset13.tanh(x),
    "ones around": lambda x: opset13.pad(x, [0, 0, 1, 1], [0, 0, 1, 1], "constant", opset13.constant(np.float32(1))),
    "linear upsampling": lambda x: opset13.interpolate(
        x, [8, 8], "linear_onnx", "sizes", axes=[2, 3], coordinate_transformation_mode="half_pixel"
    ),
}


def chain(between, seed=0, transposed=False, spread=1.0):
    """A convolution (transposed, if wanted), its bias, something, and two convolutions that read it."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, spread, 16)).astype(np.float32)
    x = opset13.parameter([-1, 8, 4, 4], np.float32, name="x")
    x.output(0).set_names({"x"})
    weights = random.normal(size=(16, 8, 3, 3)).astype(np.float32) * sizes[:, None, None, None]
    if transposed:
        y = opset13.convolution_backprop_data(x, opset13.constant(weights.swapaxes(0, 1).copy()), [1, 1], None, [1, 1], [1, 1])
    else:
        y = opset13.convolution(x, opset13.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1])
    y.set_friendly_name("first")
    y = opset13.add(y, opset13.constant((sizes * random.normal(size=16)).astype(np.float32).reshape(1, 16, 1, 1)))
    y = between(y)
    readers = []
    for name in ("a", "b"):
        reader = opset13.convolution(
            y, opset13.constant((random.normal(size=(4, 16, 3, 3)) / 12).astype(np.float32)), [1, 1], [1, 1], [1, 1], [1, 1]
        )
        reader.set_friendly_name(name)
        readers.append(reader)
    out = opset13.concat(readers, 1)
    out.output(0).set_names({"y"})
    model = openvino.Model([opset13.result(out)], [x], "chain")
    return model, {"x": random.normal(size=(16, 8, 4, 4)).astype(np.float32)}


@settings(max_examples=24, deadline=None)
@given(st.sampled_from(sorted(BETWEEN)), st.integers(0, 1000), st.booleans())
def test_in_float32_nothing_changes_but_rounding(between, seed, transposed):
    model, batch = chain(BETWEEN[between], seed, transposed)
    names = ["first", "a", "b"]
    assert groups(model, names) == [Group("first", ("a", "b"))]
    pair = [OpenVinoNetwork(each, "f32", {"x": (16, 8, 4, 4)}) for each in (model, smoothed(model, names, batch))]
    true, made = (each.run(batch)["y"] for each in pair)
    np.testing.assert_allclose(made, true, rtol=1e-4, atol=1e-5 * np.abs(true).max())


@pytest.mark.parametrize("between", NOT_BETWEEN)
def test_what_is_not_the_same_for_every_factor_is_left_alone(between):
    model, _ = chain(NOT_BETWEEN[between])
    assert groups(model, ["first", "a", "b"]) == []


def test_a_layer_with_another_reader_is_left_alone():
    model, _ = chain(BETWEEN["relu"])
    assert groups(model, ["first", "a"]) == []  # b reads it, too, and may not be changed


def test_channels_of_different_sizes_are_resolved_better_in_int8():
    """One range for channels whose sizes spread over two orders of magnitude loses the small ones; smoother, they are kept."""
    model, batch = chain(BETWEEN["relu"], spread=2.0)
    batches = [batch]
    error = {}
    for smooth in (False, True):
        quantizer = Quantizer(model, batches, "chain", smooth=smooth)
        plan = Plan.uniform(quantizer.layers, "fp32")
        true = quantizer.apply(plan).compile({"x": (16, 8, 4, 4)}).run(batch)["y"]
        int8 = quantizer.apply(plan.with_formats({"a": "int8", "b": "int8"}))
        made = int8.compile({"x": (16, 8, 4, 4)}, emulate=True).run(batch)["y"]
        error[smooth] = np.linalg.norm(made - true) / np.linalg.norm(true)
    assert error[True] < 0.7 * error[False]


def test_the_search_keeps_what_moves_events_less_and_a_plan_file_says_so(tmp_path):
    model, _ = chain(BETWEEN["relu"], spread=2.0)
    given = {"x": np.random.default_rng(5).normal(size=(600, 8, 4, 4)).astype(np.float32)}
    settings = {"inputs": given, "objective": "macs", "tolerance": 5.0, "calibration_events": 64, "portable": True}
    result = tune(model, tmp_path / "out", **settings)
    lines = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    (found,) = [line for line in lines if line["kind"] == "smoothing"]
    assert found["taken"] and result.smooth and found["smooth"] < 0.95 * found["plain"]
    plan = tmp_path / "out" / "plan.yaml"
    assert "smooth: true" in plan.read_text()
    again = tune(model, tmp_path / "again", plan=plan, **settings)
    assert again.smooth and again.criterion["value"] == result.criterion["value"]
    without = tune(model, tmp_path / "without", smooth=False, **settings)
    assert not without.smooth and without.criterion["value"] > result.criterion["value"]
