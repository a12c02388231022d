"""Precision plans: what they change, what the runtime makes of them, how they are judged, found, kept and resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from minicarlo.cli import main
from minicarlo.engines import compile_surrogate
from minicarlo.errors import OutputError, TuningError
from minicarlo.events import EventSet, write_events
from minicarlo.precision import Calibration, Plan, SurrogateSubject, compile_planned, get_criterion, surrogate_quantizer, tune
from minicarlo.precision.criterion import summarise
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.history import History
from minicarlo.precision.plan import Layer, estimated_speedup, int8_share
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate, save_surrogate
from small_surrogate import LAYERS, make_small_surrogate

FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "timing_seconds": 0.1}
HASH = "noise.project"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


@pytest.fixture(scope="module")
def quantizer(small):
    return surrogate_quantizer(small, 64)


@pytest.fixture(scope="module")
def delicate(tmp_path_factory):
    """A surrogate with noise from the fractional part of a projection of the latents: nothing but float32 keeps its bits."""
    return save_surrogate(
        tmp_path_factory.mktemp("delicate") / "surrogate",
        delicate_onnx(),
        name="delicate",
        generator="shower2d",
        conditions={"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}},
        latent_size=8,
        readout_threshold_mev=0.01,
    )


def delicate_onnx() -> bytes:
    """dense -> grid -> conv -> conv, times a pseudo-random uniform number per cell, normalised to a fraction of the energy."""
    random = np.random.default_rng(3)
    weights, nodes = [], []

    def constant(name, value):
        array = np.asarray(value)
        weights.append(numpy_helper.from_array(array if array.dtype.kind == "i" else array.astype(np.float32), name))
        return name

    def node(operator, inputs, name, **attributes):
        nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    weight = constant("dense.w", random.normal(0, 0.3, (16 * 25, 8)))
    x = node(
        "Relu", [node("Gemm", ["latent", weight, constant("dense.b", random.normal(0.2, 0.1, 400))], "dense", transB=1)], "r0"
    )
    x = node("Reshape", [x, constant("grid", [-1, 16, 5, 5])], "to_grid")
    scales = constant("scales", [1.0, 1.0, 5.0, 5.0])
    x = node("Resize", [x, "", scales], "up", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    for name, channels in (("conv1", 16), ("conv2", 25)):
        weight = constant(f"{name}.w", random.normal(0, 0.12, (channels, 16, 3, 3)))
        bias = constant(f"{name}.b", random.normal(0.3, 0.1, channels))
        x = node("Relu", [node("Conv", [x, weight, bias], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])], f"{name}.relu")
    phase = node("MatMul", ["latent", constant("projection", random.normal(0, 30, (8, 15625)))], HASH)
    residue = node("Abs", [node("Sub", [phase, node("Round", [phase], "noise.round")], "noise.residue")], "noise.abs")
    uniform = node("Reshape", [residue, constant("cells", [-1, 25, 25, 25])], "noise.cells")
    x = node("Mul", [node("Add", [x, constant("floor", [0.05])], "base"), uniform], "cells.noise")
    total = node("Add", [node("ReduceSum", [x, constant("axes", [2, 3])], "sum", keepdims=1), constant("eps", [1e-6])], "sum.eps")
    energy = node(
        "Reshape", [node("Mul", ["incident_energy", constant("f", [0.001])], "e"), constant("one", [-1, 1, 1, 1])], "e4"
    )
    cells = node("Mul", [node("Div", [x, total], "share"), energy], "cells.energy")
    above = node("Greater", [cells, constant("threshold", [0.01])], "above")
    nodes.append(helper.make_node("Where", [above, cells, constant("zero", [0.0])], ["showers"], name="showers"))
    shapes = {"latent": ["batch", 8], "incident_energy": ["batch", 1], "showers": ["batch", 25, 25, 25]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "delicate", [values["latent"], values["incident_energy"]], [values["showers"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def inputs(surrogate, count=64):
    latent = normal_latents(5, 0, count, surrogate.manifest.latent_size)
    return latent, EnergyDistribution(1e3, 1e5, "log").sample(5, 0, count)


def plan_of(quantizer, default, **changes):
    return Plan.uniform(quantizer.layers, default).with_formats({name.replace("_", "."): form for name, form in changes.items()})


def supports(form):
    import openvino

    found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return form.upper() in found


needs_bf16 = pytest.mark.skipif(not supports("bf16"), reason="this processor has no bf16")


# Plans


def test_every_layer_of_the_graph_is_found_once_with_its_multiply_accumulates(quantizer):
    macs = {layer.name: layer.macs for layer in quantizer.layers}
    assert set(macs) == set(LAYERS)
    assert macs["energies.0"] == 17 * 32
    assert macs["shape.conv1"] == 25 * 25 * 16 * 16 * 9


def test_a_plan_knows_its_share_of_int8_and_says_itself_in_words():
    layers = (Layer("a", "MatMul", 30), Layer("b", "MatMul", 70))
    plan = Plan.uniform(layers, "int8").with_formats({"a": "bf16"})
    assert plan == {"a": "bf16", "b": "int8"}
    assert int8_share(plan, layers) == 0.7
    assert estimated_speedup(plan, layers) == pytest.approx(400 / (60 + 70))
    assert plan.describe() in ("int8, but bf16: a", "bf16, but int8: b")
    assert Plan.uniform(layers, "fp32").describe() == "all fp32"
    with pytest.raises(TuningError, match="no layer 'c'"):
        plan.with_formats({"c": "int8"})
    with pytest.raises(TuningError, match="int4"):
        Plan.uniform(layers, "int4")


# Applying them


@pytest.mark.parametrize("form", ["int8", "fp32", pytest.param("bf16", marks=needs_bf16)])
def test_the_runtime_runs_every_layer_in_the_format_of_a_uniform_plan(quantizer, form):
    plan = Plan.uniform(quantizer.layers, form)
    assert compile_planned(quantizer.apply(plan)).precision_report() == dict(plan)


@needs_bf16
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("default", "other"), [("fp32", "int8"), ("fp32", "bf16"), ("int8", "bf16"), ("bf16", "fp32"), ("bf16", "int8")]
)
def test_the_runtime_follows_a_plan_that_treats_one_layer_differently(quantizer, layer, default, other):
    plan = Plan.uniform(quantizer.layers, default).with_formats({layer: other})
    assert compile_planned(quantizer.apply(plan)).precision_report() == dict(plan)


def test_an_all_fp32_plan_gives_the_reference_up_to_the_order_of_sums(small, quantizer):
    latent, energy = inputs(small)
    planned = compile_planned(quantizer.apply(Plan.uniform(quantizer.layers, "fp32"))).run(latent, energy)
    np.testing.assert_allclose(planned, compile_surrogate(small).run(latent, energy), rtol=1e-5, atol=1e-5)


def test_int8_showers_stay_close_to_fp32_and_are_not_the_same(small, quantizer):
    latent, energy = inputs(small)
    reference = compile_surrogate(small).run(latent, energy)
    int8 = compile_planned(quantizer.apply(Plan.uniform(quantizer.layers, "int8"))).run(latent, energy)
    difference = np.abs(int8 - reference).sum() / reference.sum()
    assert 1e-4 < difference < 0.05  # eight bits: a per cent or so


def test_only_planned_layers_are_quantised(delicate):
    quantizer = surrogate_quantizer(delicate, 64)
    plan = Plan.uniform(quantizer.layers, "int8").with_formats({HASH: "fp32", "conv1": "fp32"})
    root = ElementTree.fromstring(quantizer.apply(plan).xml)
    layers = {layer.get("id"): layer for layer in root.iterfind("./layers/layer")}
    consumers = {identifier: set() for identifier in layers}
    for edge in root.iterfind("./edges/edge"):
        consumers[edge.get("from-layer")].add(edge.get("to-layer"))

    def ends(identifier):
        found = set()
        for consumer in consumers[identifier]:
            carrier = layers[consumer].get("type") in ("FakeQuantize", "Interpolate", "Reshape", "ReLU")
            found |= ends(consumer) if carrier else {layers[consumer].get("name").removesuffix("/WithoutBiases")}
        return found

    quantised = [identifier for identifier, layer in layers.items() if layer.get("type") == "FakeQuantize"]
    assert quantised
    assert set().union(*map(ends, quantised)) == {"dense", "conv2"}
    small_integers = [
        layer.get("name")
        for layer in layers.values()
        if layer.find("data") is not None and layer.find("data").get("element_type") == "i8"
    ]
    assert len(small_integers) == 2


@needs_bf16
def test_the_delicate_tail_stays_float32_in_a_bf16_model(delicate):
    quantizer = surrogate_quantizer(delicate, 64)
    latent, energy = inputs(delicate)
    reference = compile_surrogate(delicate).run(latent, energy)

    def change(samples):
        return np.abs(samples - reference).sum() / reference.sum()

    plan = Plan.uniform(quantizer.layers, "bf16").with_formats({HASH: "fp32"})
    compiled = compile_planned(quantizer.apply(plan))
    assert compiled.precision_report() == dict(plan)
    tail = ("noise.", "sum", "share", "cells.", "above")
    rows = [row for row in compiled.runtime_layers() if row["type"] in ("Eltwise", "Reduce") and row["name"].startswith(tail)]
    assert rows and {row["precision"] for row in rows} <= {"f32", "u8"}  # u8: the boolean of the threshold
    assert change(compiled.run(latent, energy)) < 0.01
    naive = compile_surrogate(delicate, "bf16").run(latent, energy)
    assert change(naive) > 0.2  # the noise is gone when all is bf16: what the marks are for


def test_a_calibration_covers_the_whole_energy_range_in_every_batch(small):
    calibration = Calibration.over_range(small, 256, seed=1)
    assert calibration.incident_energy.min() == 1e3 and calibration.incident_energy.max() == 1e5
    for batch in calibration.batches():
        assert batch["incident_energy"].min() < 2e3 and batch["incident_energy"].max() > 5e4


def test_a_graph_without_layers_is_refused(tmp_path):
    value = {
        n: helper.make_tensor_value_info(n, 1, s)
        for n, s in {"latent": ["b", 4], "incident_energy": ["b", 1], "showers": ["b", 25, 25, 25]}.items()
    }
    shape = numpy_helper.from_array(np.array([1, 25, 25, 25]), "shape")
    nodes = [
        helper.make_node("Reshape", ["incident_energy", "four"], ["e"]),
        helper.make_node("Expand", ["e", "shape"], ["showers"]),
    ]
    four = numpy_helper.from_array(np.array([-1, 1, 1, 1]), "four")
    graph = helper.make_graph(nodes, "g", [value["latent"], value["incident_energy"]], [value["showers"]], [shape, four])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    surrogate = save_surrogate(
        tmp_path / "flat", model, name="flat", generator="shower2d", latent_size=4, readout_threshold_mev=0.0,
        conditions={"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}},
    )  # fmt: skip
    with pytest.raises(TuningError, match="no convolution or matrix product"):
        surrogate_quantizer(surrogate, 16)


# Criteria


@pytest.fixture(scope="module")
def showers():
    random = np.random.default_rng(0)
    energy = np.exp(random.uniform(np.log(1e3), np.log(1e5), 400)).astype(np.float32)
    samples = random.gamma(0.1, 1.0, (400, 25, 25, 25)).astype(np.float32) * (energy * 1e-5)[:, None, None, None]
    samples *= random.normal(1, 0.05, (400, 1, 1, 1)).astype(np.float32)
    return np.where(samples > 1e-3, samples, 0).astype(np.float32), energy


@pytest.mark.parametrize("name", ["fidelity", "profile"])
def test_a_criterion_is_exactly_zero_for_the_same_samples(showers, name):
    found = get_criterion(name, threshold_mev=0.0, confidence=0.95, seed=0).compare(showers[0], showers[0], showers[1])
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize("name", ["fidelity", "profile"])
def test_a_scale_of_two_per_cent_is_found_as_two_per_cent(showers, name):
    samples, energy = showers
    found = get_criterion(name, threshold_mev=0.0, confidence=0.95, seed=0).compare(samples, samples * np.float32(1.02), energy)
    assert found.families["response"] == pytest.approx(0.02, rel=1e-4)
    assert found.families["z"] == pytest.approx(0.02, rel=1e-4)
    assert found.families["resolution"] == pytest.approx(0, abs=1e-5)
    assert found.low <= found.value <= found.high
    if name == "profile":
        assert found.value == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize(
    ("family", "defect"),
    [
        ("resolution", lambda s, r: s * r.normal(1, 0.05, (len(s), 1, 1, 1))),
        ("z", lambda s, r: s * np.linspace(0.9, 1.1, 25)[None, :, None, None]),
        ("rings", lambda s, r: s * np.where(np.hypot(*np.mgrid[-12:13, -12:13]) < 6, 1.1, 0.95)),
        ("occupancy", lambda s, r: np.where(r.random(s.shape) < 0.1, 0, s)),
        ("spectrum", lambda s, r: np.where(s > np.median(s[s > 0]), s * 1.3, s * 0.7)),
    ],
)
def test_a_planted_defect_is_seen_by_its_family(showers, family, defect):
    samples, energy = showers
    changed = defect(samples, np.random.default_rng(1)).astype(np.float32)
    found = get_criterion("fidelity", threshold_mev=0.0, confidence=0.95, seed=0).compare(samples, changed, energy)
    assert found.families[family] > 0.03
    assert found.value == max(value for name, value in found.families.items() if name not in ("x", "y"))
    assert found.low > 0.02


def test_the_rows_of_a_summary_agree_with_plain_loops(showers):
    samples, energy = showers[0][:3], showers[1][:3]
    rows = summarise(samples, energy, 0.01).rows
    for event in range(3):
        assert rows["occupancy"][event, 0] == sum(cell > 0.01 for cell in samples[event].ravel())
        assert rows["spectrum"][event].sum() == np.count_nonzero(samples[event])
        for layer in (0, 24):
            assert rows["z"][event, layer] == pytest.approx(samples[event, layer].sum() / energy[event], rel=1e-5)
        weights = samples[event].sum((1, 2), dtype=np.float64)
        assert rows["moments"][event, 0] == pytest.approx(sum(z * w for z, w in enumerate(weights)) / weights.sum())
        ring3 = sum(samples[event, :, x, y].sum() for x in range(25) for y in range(25) if round(math.hypot(x - 12, y - 12)) == 3)
        assert rows["rings"][event, 3] == pytest.approx(ring3 / energy[event], rel=1e-4)


def test_the_interval_covers_the_change_of_the_population(showers):
    """Of 40 intervals from 100 events each, nearly all contain the figure of the 400 events they come from (nominal 95 %)."""
    samples, energy = showers
    random = np.random.default_rng(2)
    changed = (samples * (1.01 + 0.02 * random.standard_normal((400, 1, 1, 1)))).astype(np.float32)
    criterion = get_criterion("profile", threshold_mev=0.0, confidence=0.95, seed=0)
    reference, candidate = summarise(samples, energy), summarise(changed, energy)
    truth = criterion.compare_summaries(reference, candidate).value
    drawn = [np.sort(random.choice(400, 100)) for _ in range(40)]
    found = [criterion.compare_summaries(reference[part], candidate[part]) for part in drawn]
    assert sum(each.low <= truth <= each.high for each in found) >= 34


def test_samples_that_are_not_finite_never_pass(showers):
    samples, energy = showers
    broken = samples.copy()
    broken[3, 0, 0, 0] = np.nan
    assert get_criterion("fidelity", threshold_mev=0.0, confidence=0.95, seed=0).compare(samples, broken, energy).high == math.inf


def test_layer_costs_are_the_runtimes_own_and_cover_every_layer(small, quantizer):
    criterion = get_criterion("fidelity", threshold_mev=0.05, confidence=0.95, seed=0)
    evaluation = Evaluation(SurrogateSubject(small, criterion), quantizer, events=128)
    seconds = evaluation.layer_seconds(Plan.uniform(quantizer.layers, "fp32"))
    assert set(seconds) == set(LAYERS) and min(seconds.values()) > 0


# The study


@pytest.fixture(scope="module")
def tuned(small, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    return tune(small, output, **FAST), output


def test_tune_finds_a_plan_that_passes_and_writes_a_surrogate_that_loads(tuned):
    result, output = tuned
    surrogate = Surrogate.load(output)
    assert result.accepted and result.criterion["high"] <= result.criterion["tolerance"] and result.int8_share > 0.5
    assert surrogate.tuned.plan.plan == result.plan == result.ran == surrogate.tuned.plan.ran
    assert compile_surrogate(surrogate, "tuned").precision_report() == result.plan
    assert not list(output.parent.glob(".*")), "nothing of the search is left behind"


def test_the_history_tells_every_trial(tuned):
    result, output = tuned
    lines = [json.loads(line) for line in (output / "tuned" / "history.jsonl").read_text().splitlines()]
    trials = [line for line in lines if line["kind"] == "trial"]
    assert len(trials) == len(result.history) >= result.full_evaluations
    assert trials[0]["description"] == "all int8"
    assert all({"plan", "ran", "accepted", "value", "low", "high", "speedup", "reason"} <= set(trial) for trial in trials)
    accepted = [trial for trial in trials if trial["accepted"]]
    assert any(trial["plan"] == result.plan for trial in accepted)
    assert all(trial["held_out"]["high"] <= 0.03 for trial in accepted)


def test_the_tuned_showers_are_those_the_criterion_saw(small, tuned):
    """What is written, loaded and run again differs from fp32 by what the result says, on latents it never saw."""
    result, output = tuned
    latent, energy = normal_latents(99, 0, 256, 16), EnergyDistribution(1e3, 1e5, "log").sample(99, 0, 256)
    pair = [compile_surrogate(Surrogate.load(output), precision).run(latent, energy) for precision in ("fp32", "tuned")]
    found = get_criterion("fidelity", threshold_mev=0.05, confidence=0.95, seed=0).compare(*pair, energy)
    assert 0 < found.value < 3 * result.criterion["high"]


def test_without_a_plan_that_passes_the_result_is_fp32_and_says_why(small, tmp_path):
    result = tune(small, tmp_path / "out", tolerance=1e-9, max_trials=2, **FAST)
    assert not result.accepted and set(result.plan.values()) == {"fp32"} and result.speedup == 1
    assert "No plan below fp32" in result.reason and "1 failed" in result.reason
    assert Surrogate.load(tmp_path / "out").tuned.plan.inference_precision == "f32"


def test_formats_that_are_not_allowed_are_not_used(small, tmp_path):
    result = tune(small, tmp_path / "out", formats=("int8", "fp32"), tolerance=0.012, max_trials=6, **FAST)
    assert all("bf16" not in trial.plan.values() for trial in result.history)


def test_monte_carlo_events_confirm_or_refuse(small, tmp_path):
    """Against events made by fp32 itself a good plan passes; the figure of fp32 stands beside that of the tuned model."""
    latent, energy = normal_latents(7, 0, 200, 16), EnergyDistribution(1e3, 1e5, "log").sample(7, 0, 200)
    samples = compile_surrogate(small).run(latent, energy)
    write_events(tmp_path / "mc.h5", EventSet({"incident_energy": energy}, samples, "clic-ecal", {}))
    result = tune(small, tmp_path / "out", reference=tmp_path / "mc.h5", **FAST)
    assert (
        result.monte_carlo["events"] == 200
        and result.monte_carlo["low"] <= result.monte_carlo["difference"] <= result.monte_carlo["high"]
    )
    assert result.accepted == result.monte_carlo["accepted"]


def test_timing_measures_both_and_gives_a_ratio(small, tmp_path):
    result = tune(small, tmp_path / "out", **(FAST | {"objective": "time"}), max_trials=1)
    assert result.history[0].speedup > 0 and result.history[0].speedup_spread >= 0


def test_ctrl_c_returns_the_best_plan_so_far(small, tmp_path):
    """As when a person presses Ctrl-C after the first trial that passed."""
    seen = []

    def progress(done, total):
        seen.append(done)
        raise KeyboardInterrupt

    result = tune(small, tmp_path / "out", tolerance=0.5, progress=progress, **FAST)
    assert result.interrupted and result.accepted and len(result.history) == 1
    assert Surrogate.load(tmp_path / "out").tuned is not None


def test_a_search_for_the_first_success_ends_with_it(small, tmp_path):
    """All int8 fails here; the first plan after it that passes is the last that is tried."""
    first, all_of_it = (
        tune(small, tmp_path / policy, tolerance=0.014, exit_policy=policy, **FAST) for policy in ("first", "exhausted")
    )
    assert [trial.accepted for trial in first.history].index(True) == len(first.history) - 1
    assert first.accepted and len(first.history) <= len(all_of_it.history)


def test_the_status_names_the_trial_the_best_so_far_and_the_time_left(small, tmp_path):
    seen = []
    tune(small, tmp_path / "out", tolerance=0.014, time_limit=500, status=seen.append, **FAST)
    assert seen[0].doing.startswith("whether the kernels") and 0 < seen[0].seconds_left < 500
    assert seen[1].doing == "trial 1: all int8" and seen[1].best is None
    assert seen[2].doing.startswith("what int8: ") and seen[2].doing.endswith(" does alone")
    assert seen[-1].best is not None and seen[-1].best.accepted


def test_the_time_limit_ends_the_search(small, tmp_path):
    result = tune(small, tmp_path / "out", tolerance=1e-9, time_limit=1e-3, **FAST)
    assert not result.accepted and not result.interrupted


PROGRAM = """
import sys
from minicarlo.precision import tune
fast = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs"}
result = tune(sys.argv[1], sys.argv[2], tolerance=0.004, max_trials=6, **fast)
"""


def test_a_killed_run_goes_on_where_it_stopped(small, tmp_path):
    """kill -9 after the first probes; the second start keeps every line and ends with the plan of an undisturbed run."""
    output, history = tmp_path / "out", tmp_path / ".out.tuning.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(small.path), str(output)], env=environment)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if history.exists() and history.read_text().count("\n") >= 4:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    before = history.read_text().splitlines()
    with history.open("a") as stream:
        stream.write('{"kind": "sensitivity", "layer": "shape.co')  # as a kill in the middle of a line leaves it
    settings = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "tolerance": 0.004, "max_trials": 6}
    result = tune(small.path, output, **settings)
    after = (output / "tuned" / "history.jsonl").read_text().splitlines()
    assert after[: len(before)] == before and len(before) >= 4
    assert all(json.loads(line) for line in after)
    undisturbed = tune(small.path, tmp_path / "other", **settings)
    assert undisturbed.plan == result.plan and undisturbed.criterion == result.criterion


def test_a_history_of_another_request_is_not_taken_up(tmp_path):
    path = tmp_path / "history"
    History(path, {"seed": 1}).add_sensitivity("a", "int8", math.inf, 0.1)
    assert History(path, {"seed": 1}).sensitivities == {("a", "int8"): math.inf}
    assert History(path, {"seed": 2}).sensitivities == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ("int4",)}, "int4"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"confidence": 1.0}, "confidence"),
        ({"max_trials": 0}, "budget"),
        ({"criterion": "beauty"}, "fidelity, profile"),
        ({"exit_policy": "never"}, "first or exhausted"),
        ({"strategy": "luck"}, "pareto, basic"),
        ({"evaluation_events": 10}, "evaluation events"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_computed(small, tmp_path, settings, message):
    with pytest.raises(TuningError, match=message):
        tune(small, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_not_touched(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="already something"):
        tune(small, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_the_verb_prints_one_json_object(small, tmp_path):
    arguments = [
        str(small.path),
        "-o",
        str(tmp_path / "out"),
        "--evaluation-events",
        "256",
        "--calibration-events",
        "64",
        "--objective",
        "macs",
    ]
    ran = CliRunner().invoke(main, ["tune", *arguments, "--json"])
    found = json.loads(ran.stdout)
    keys = {"accepted", "trials", "full_evaluations", "seconds", "plan", "ran", "int8_share", "speedup", "criterion"}
    assert ran.exit_code == 0 and keys <= set(found)
    assert {"name", "reference", "value", "low", "high", "tolerance"} <= set(found["criterion"])


def test_the_verb_says_a_mistake_in_one_paragraph(small, tmp_path):
    ran = CliRunner().invoke(main, ["tune", str(small.path), "-o", str(tmp_path / "out"), "--strategy", "luck"])
    assert ran.exit_code == 2 and "pareto" in ran.stderr and "Traceback" not in ran.output
