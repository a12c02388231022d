"""Layers as fast convolutions in a plan: the same numbers, in the formats asked for, chosen and replayed."""

from __future__ import annotations

import json
import re

import numpy as np
import openvino
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from minicarlo.engines import has_bf16
from minicarlo.engines.network import read_network_file
from minicarlo.errors import TuningError
from minicarlo.graph.fast import PART, fast_alone
from minicarlo.precision import Quantizer, tune
from minicarlo.precision.layer import relative_error
from minicarlo.precision.plan import Plan

LAYERS = ("dense", "wide", "strided", "large")
POSSIBLE = ("wide", "large")


def network() -> bytes:
    """A dense layer and three convolutions of large kernels, one of them with a stride."""
    random = np.random.default_rng(3)
    weights = []

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array if array.dtype.kind == "i" else array.astype(np.float32), name))
        return name

    def convolution(name: str, source: str, inputs: int, outputs: int, kernel: tuple[int, int], **more: object):
        constant(f"{name}.w", random.normal(0, 1 / np.sqrt(inputs * kernel[0] * kernel[1]), (outputs, inputs, *kernel)))
        constant(f"{name}.b", random.normal(0, 0.1, outputs))
        return helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [f"{name}.out"], name=name, **more)

    nodes = [
        helper.make_node(
            "Gemm",
            ["z", constant("dense.w", random.normal(0, 0.3, (10, 16 * 18 * 15))), constant("dense.b", random.normal(0, 1, 4320))],
            ["hidden"],
            name="dense",
        ),
        helper.make_node("Reshape", ["hidden", constant("grid", np.array([-1, 16, 18, 15]))], ["cells"], name="cells"),
        convolution("wide", "cells", 16, 24, (8, 7), pads=[4, 3, 3, 3]),
        helper.make_node("Relu", ["wide.out"], ["wide.relu"], name="wide.relu"),
        convolution("strided", "wide.relu", 24, 16, (5, 5), strides=[2, 1]),
        helper.make_node("Relu", ["strided.out"], ["strided.relu"], name="strided.relu"),
        convolution("large", "strided.relu", 16, 8, (7, 8), pads=[3, 3, 3, 4]),
        helper.make_node("Softplus", ["large.out"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "large kernels",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 7, 11])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def inputs(first: int, last: int) -> dict[str, np.ndarray]:
    return {"z": np.random.default_rng([1, first]).normal(size=(last - first, 10)).astype(np.float32)}


@pytest.fixture(scope="module")
def quantizer():
    batches = [inputs(start, start + 16) for start in range(0, 64, 16)]
    return Quantizer(openvino.Core().read_model(network()), batches, "the network")


def run(quantizer, plan, fast, **how):
    quantizer.fast = fast
    try:
        compiled = quantizer.apply(plan).compile({"z": (16, 10)}, **how)
    finally:
        quantizer.fast = {}
    return compiled, compiled.run(inputs(100, 116))["y"]


def test_only_plain_convolutions_of_large_kernels_can_be_fast(quantizer):
    assert tuple(quantizer.fast_candidates) == POSSIBLE
    assert fast_alone("small", np.ones((4, 4, 1, 1), np.float32), [0, 0], [0, 0], [9, 9]) is None
    assert fast_alone("nothing left", np.ones((4, 4, 8, 8), np.float32), [0, 0], [0, 0], [5, 5]) is None


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(["int8", "fp32", "w8"]), min_size=4, max_size=4), st.sets(st.sampled_from(POSSIBLE)))
def test_fast_convolutions_change_nothing_but_rounding_in_any_plan(quantizer, formats, fast):
    plan = Plan.of(dict(zip(LAYERS, formats, strict=True)))
    chosen = {"fp32": tuple(sorted(fast))}
    quantizer.fast = chosen
    assert quantizer.fast_in(plan) == tuple(name for name in LAYERS if name in fast and plan[name] == "fp32")
    (plain, expected), (compiled, found) = (run(quantizer, plan, each, emulate=True) for each in ({}, chosen))
    # integers on either side of a rounding may differ
    assert relative_error(expected, found) < (1e-5 if set(formats) == {"fp32"} else 5e-3)
    assert compiled.precision_report().keys() == plain.precision_report().keys()


def test_the_report_and_the_clock_speak_of_layers_alone(quantizer):
    plan = Plan.uniform(quantizer.layers, "fp32")
    compiled, _ = run(quantizer, plan, {"fp32": POSSIBLE}, profile=True)
    assert compiled.precision_report() == dict.fromkeys(LAYERS, "fp32")
    assert any(PART in row["name"] for row in compiled.runtime_layers())
    seconds = compiled.layer_seconds(inputs(0, 16))
    assert tuple(seconds) == LAYERS and min(seconds.values()) > 0


def test_around_a_float32_layer_nothing_computes_in_bf16(quantizer):
    if not has_bf16():
        pytest.skip("this processor has no bf16")
    formats = {"dense": "bf16", "wide": "fp32", "strided": "bf16", "large": "bf16"}
    compiled, found = run(quantizer, Plan.of(formats), {"fp32": ("wide",), "bf16": ("large",)})
    _, expected = run(quantizer, Plan.of(formats), {})
    assert compiled.precision_report() == formats and relative_error(expected, found) < 0.02
    computing = [row for row in compiled.runtime_layers() if row["type"] in ("MatMul", "FullyConnected")]
    wide = [row["precision"] for row in computing if row["name"].startswith("wide")]
    assert len(wide) == 5 and set(wide) == {"f32"}


def test_a_plan_file_says_which_layers_are_fast_and_gives_the_same_network_again(tmp_path):
    how = {"inputs": inputs, "calibration_events": 64, "evaluation_events": 256, "batch": 16, "tolerance": 0.1}
    model = tmp_path / "net.onnx"
    model.write_bytes(network())
    tune(model, tmp_path / "tuned", max_trials=1, timing_seconds=0.05, **how)
    facts = json.loads((tmp_path / "tuned" / "plan.json").read_text())
    assert set(facts["fast"]) <= set(POSSIBLE)
    plan = yaml.safe_load((tmp_path / "tuned" / "plan.yaml").read_text())
    assert plan["fast"] == facts["fast"]
    plan["layers"] = {"dense": "int8", "wide": "fp32", "strided": "int8", "large": "fp32"}
    written = {}
    for fast in ([], ["wide"]):
        path = tmp_path / f"{len(fast)}.yaml"
        path.write_text(yaml.safe_dump(plan | {"fast": fast}))
        result = tune(model, tmp_path / f"out{len(fast)}", plan=path, **how)
        assert result.accepted and list(result.fast) == fast and result.ran == plan["layers"]
        written[len(fast)] = (tmp_path / f"out{len(fast)}" / "model.xml").read_text()
    around = [name for name in re.findall('name="([^"]*)"', written[1]) if PART in name]
    assert PART not in written[0] and around and all(name.startswith("wide") for name in around)
    for fast in (["strided"], ["dense"], ["nobody"]):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(plan | {"fast": fast}))
        with pytest.raises(TuningError, match="cannot be a fast convolution.* are wide, large"):
            tune(model, tmp_path / "wrong", plan=tmp_path / "wrong.yaml", **how)
    assert not (tmp_path / "wrong").exists()


def test_a_fast_convolution_alone_is_the_convolution():
    random = np.random.default_rng(5)
    weights = random.normal(size=(8, 16, 5, 6)).astype(np.float32)
    values = random.normal(size=(3, 16, 12, 14)).astype(np.float32)
    data = fast_alone("layer", weights, [2, 1], [1, 3], [12, 14])
    fast = openvino.Core().compile_model(read_network_file(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    padded = np.pad(values, ((0, 0), (0, 0), (2, 1), (1, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 6), axis=(2, 3))
    assert relative_error(np.einsum("ncxyab,ocab->noxy", windows, weights), fast(values)[0]) < 1e-5
