"""The kernel audit: right kernels pass, really wrong ones are named, and what is wrong is not offered to the search."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from minicarlo.cli import main
from minicarlo.engines import machine
from minicarlo.errors import TuningError
from minicarlo.precision import tune
from minicarlo.precision.audit import audit, relative_error
from small_surrogate import LAYERS, make_small_surrogate

INSTRUCTIONS = set(machine()["instructions"])
sound = pytest.mark.skipif(
    "avx512_vnni" not in INSTRUCTIONS or "amx_int8" in INSTRUCTIONS,
    reason="only processors with VNNI and without AMX are known to have no wrong kernel",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A plain network of two convolutions, one transposed, and a matrix product."""
    random = np.random.default_rng(0)
    weights = {
        "a.w": random.normal(0, 0.2, (16, 3, 3, 3)),
        "b.w": random.normal(0, 0.2, (16, 8, 4, 4)),
        "c.w": random.normal(0, 0.1, (8 * 16 * 16, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a.w"], ["a"], name="a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["a.relu"], name="a.relu"),
        helper.make_node("ConvTranspose", ["a.relu", "b.w"], ["b"], name="b", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["b"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "c.w"], ["y"], name="c"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "plain",
        [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    path = tmp_path_factory.mktemp("network") / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@sound
def test_right_kernels_are_exact_but_for_the_rounding_of_their_output(small):
    """Integer sums are exact, so int8 agrees to float32's rounding; bf16 has 8 bits of mantissa."""
    result = audit(small)
    assert {(check.layer, check.format) for check in result.checks} == {(n, f) for n in LAYERS for f in ("int8", "bf16")}
    errors = {form: [c.error for c in result.checks if c.format == form and c.ran == form] for form in ("int8", "bf16")}
    assert len(errors["int8"]) == len(LAYERS) and max(errors["int8"]) < 1e-5
    assert not errors["bf16"] or max(errors["bf16"]) < 0.004
    assert not result.wrong and all(check.kernel for check in result.checks)


@sound
def test_any_onnx_file_is_audited_with_unit_normal_inputs_or_given_ones(network, tmp_path):
    result = audit(network)
    assert {check.layer for check in result.checks} == {"a", "b", "y"}  # OpenVINO calls the last one by its output
    assert not result.wrong
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(200, 3, 8, 8)))
    assert not audit(network, inputs=tmp_path / "x.npz", formats=("int8",)).wrong


def test_values_half_way_between_two_integers_are_not_taken_for_wrong_kernels(network, tmp_path):
    """Which of the two the runtime takes is a matter of rounding; half of these inputs are such values."""
    values = (np.random.default_rng(1).integers(0, 511, (256, 3, 8, 8)) - 152) / 777  # zero is the integer 76
    np.savez(tmp_path / "x.npz", x=values)
    first = next(check for check in audit(network, inputs=tmp_path / "x.npz", formats=("int8",)).checks if check.layer == "a")
    assert (first.half_range if first.wrong else first.error) < 1e-5


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels without VNNI are those of x86")
def test_int8_kernels_that_saturate_are_named_and_the_exit_code_is_one():
    """Held to AVX2, oneDNN adds pairs of products in 16 bits: these kernels are really wrong wherever the sums are large."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "minicarlo.cli", "audit", "clic-ecal", "--formats", "int8", "--json"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    found = json.loads(ran.stdout)
    wrong = {check["layer"]: check["error"] for check in found["checks"] if check["wrong"]}
    assert ran.returncode == 1 and found["wrong"] == len(wrong) > 0
    assert wrong["noise.matmul"] > 0.01  # of the uniform latents, which have large values throughout
    assert all(check["half_range"] < 1e-5 for check in found["checks"] if check["wrong"])  # sums of such weights cannot saturate


def test_what_the_audit_found_wrong_is_not_offered_and_is_named(small, tmp_path):
    """A search that was cut short goes on with a history in which the audit names a kernel."""
    settings = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "tolerance": 0.014}
    history = tmp_path / ".out.tuning.jsonl"

    def cut(done, total):
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        tune(small, tmp_path / "out", progress=cut, **settings)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["request", "smoothing", "audit", "trial"]
    wrong = {"layer": "shape.conv1", "format": "int8", "ran": "int8", "kernel": "some_I8", "error": 0.9, "wrong": True}
    history.write_text("".join(json.dumps(line) + "\n" for line in (*lines[:2], {"kind": "audit", "wrong": [wrong]})))
    result = tune(small, tmp_path / "out", **settings)
    assert result.wrong_kernels == (wrong,) and result.history
    assert all(trial.plan["shape.conv1"] != "int8" for trial in result.history)
    kept = [json.loads(line) for line in (tmp_path / "out" / "tuned" / "history.jsonl").read_text().splitlines()]
    assert kept[2] == {"kind": "audit", "wrong": [wrong]}
    assert not [
        line for line in kept if line["kind"] == "sensitivity" and (line["layer"], line["format"]) == ("shape.conv1", "int8")
    ]


def test_a_kernel_that_saturates_is_offered_with_weights_of_half_the_range(small, tmp_path):
    settings = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "tolerance": 0.5}
    history = tmp_path / ".out.tuning.jsonl"

    def cut(done, total):
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        tune(small, tmp_path / "out", progress=cut, **settings)
    request = history.read_text().splitlines()[0]
    wrong = {"layer": "shape.conv1", "format": "int8", "ran": "int8", "kernel": "some_I8", "error": 0.03, "wrong": True}
    wrong["half_range"] = 1e-6
    history.write_text("\n".join([request, json.dumps({"kind": "audit", "wrong": [wrong]}), ""]))
    result = tune(small, tmp_path / "out", **settings)
    assert result.accepted and result.plan["shape.conv1"] == result.ran["shape.conv1"] == "int8"
    assert result.schemes == {"shape.conv1": "min-max half-range"} and result.wrong_kernels == (wrong,)
    assert "shape.conv1: int8 min-max half-range" in (tmp_path / "out" / "tuned" / "plan.yaml").read_text()
    again = tune(small, tmp_path / "again", plan=tmp_path / "out" / "tuned" / "plan.yaml", **settings)
    assert again.schemes["shape.conv1"] == "min-max half-range" and again.plan == result.plan


def test_what_the_processor_lacks_is_not_offered_and_the_result_says_so(small, tmp_path, monkeypatch):
    monkeypatch.setattr("minicarlo.precision.tuning.has_bf16", lambda: False)
    settings = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "tolerance": 0.5}
    result = tune(small, tmp_path / "out", **settings)
    assert result.not_offered == {"bf16": "This processor has no arithmetic in bf16."}
    with pytest.raises(TuningError, match="no arithmetic in bf16"):
        tune(small, tmp_path / "other", formats=("bf16",), **settings)
    shown = CliRunner().invoke(main, ["tune", str(small.path), "-o", str(tmp_path / "third"), "--objective", "macs"])
    assert shown.exit_code == 0 and "not offered: bf16" in shown.stdout


def test_an_error_is_relative_and_infinite_for_what_is_no_number():
    values = np.array([3.0, 4.0], np.float32)
    assert relative_error(values, values) == 0 and relative_error(values, 0 * values) == 1
    assert relative_error(0 * values, 0 * values) == 0 and relative_error(0 * values, values) == 1
    assert relative_error(values, np.array([3.0, np.nan], np.float32)) == math.inf


def test_the_verb_shows_a_table_and_says_mistakes_in_one_paragraph(small, tmp_path):
    shown = CliRunner().invoke(main, ["audit", str(small.path), "--formats", "int8"])
    assert shown.exit_code in (0, 1) and "shape.conv1" in shown.stdout and "kernel" in shown.stdout
    with pytest.raises(TuningError, match="choose among int8, bf16"):
        audit(small, formats=("fp32",))
    ran = CliRunner().invoke(main, ["audit", str(tmp_path / "nothing.onnx")])
    assert ran.exit_code == 2 and "Traceback" not in ran.output
