"""Precision plans: what they change, what the runtime makes of them, how they are judged."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from minicarlo.engines import compile_model, compile_surrogate, read_model
from minicarlo.engines.openvino import OpenVinoGenerator
from minicarlo.errors import TuningError
from minicarlo.precision import Calibration, Plan, SurrogateSubject, compile_planned, get_criterion, surrogate_quantizer
from minicarlo.precision.criterion import summarise
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.plan import Layer, estimated_speedup, int8_share
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate, save_surrogate
from small_surrogate import LAYERS, make_small_surrogate, with_fast_convolutions

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


def test_products_of_a_fast_convolution_stay_float32_where_all_is_int8(small):
    quantizer = surrogate_quantizer(with_fast_convolutions(small, "shape.conv2"), 64)
    assert {layer.name for layer in quantizer.layers} == set(LAYERS)
    assert quantizer.quantised("shape.conv2") is None
    planned = compile_planned(quantizer.apply(Plan.uniform(quantizer.layers, "int8")))
    report = {name: form for name, form in planned.precision_report().items() if name in LAYERS}
    assert report == {name: "fp32" if name == "shape.conv2" else "int8" for name in LAYERS}
    latent, energy = inputs(small)
    reference = compile_surrogate(small).run(latent, energy)
    assert np.abs(planned.run(latent, energy) - reference).sum() < 0.05 * reference.sum()


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
    assert change(compile_surrogate(delicate, "bf16").run(latent, energy)) < 0.01
    naive = compile_model(read_model(delicate)[0], "bf16").run(latent, energy)
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


def test_families_with_weights_are_one_figure(showers):
    samples, energy = showers
    changed = (samples * np.linspace(0.9, 1.1, 25)[None, :, None, None]).astype(np.float32)
    settings = {"threshold_mev": 0.0, "confidence": 0.95, "seed": 0}
    found = get_criterion("response=3, z=1", **settings).compare(samples, changed, energy)
    families = found.families
    assert found.value == pytest.approx(0.75 * families["response"] + 0.25 * families["z"]) and found.low < found.high
    alone = get_criterion("z", **settings).compare(samples, changed, energy)
    assert alone.value == pytest.approx(families["z"]) and alone.high != found.high


@pytest.mark.parametrize("text", ["beauty", "response=0", "response=much", "response=1,beauty=1", "", "z=inf"])
def test_weights_that_make_no_sense_are_refused_with_the_families_there_are(text):
    with pytest.raises(TuningError, match="fidelity, profile.* response, resolution, z"):
        get_criterion(text, threshold_mev=0.0, confidence=0.95, seed=0)


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


def test_what_moves_phases_about_moves_integers():
    """NNCF quantises behind a slice; the plan puts that before all that moves values."""
    network = OpenVinoGenerator(*read_model(Surrogate.load("clic-ecal"), "tuned"), batch=8, whole=True).network
    layers = [layer for layer in network.runtime_layers() if layer["name"].startswith("shape.conv5/")]
    moved = {layer["type"]: layer["precision"] for layer in layers if layer["type"] != "Const"}
    assert moved == dict.fromkeys(["Concatenation", "DepthToSpace", "StridedSlice"], "u8")
