"""Plans as files for people: written with every tuned network, edited, applied again, and refused when they make no sense."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from minicarlo.cli import main
from minicarlo.engines import compile_surrogate
from minicarlo.errors import TuningError
from minicarlo.graph.model import Graph
from minicarlo.graph.recipe import Rewrite, rewritten
from minicarlo.precision import tune
from minicarlo.precision.plan import Layer, Plan
from minicarlo.precision.planfile import PlanFile, plan_yaml
from minicarlo.precision.scheme import Scheme
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate
from small_surrogate import LAYERS, make_small_surrogate, with_padding_apart

FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


@pytest.fixture(scope="module")
def tuned(small, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    return tune(small, output, **FAST), output


def written(path, layers, **more):
    path.write_text(yaml.safe_dump({"version": 1, "layers": layers} | more))
    return path


def test_a_plan_comes_back_from_its_file_whatever_the_names_of_the_layers(tmp_path):
    layers = tuple(Layer(name, "MatMul", 10) for name in ("plain", "a: b # c", "yes", "/m/conv.1/Conv", "näher"))
    plan = Plan.of(dict(zip((layer.name for layer in layers), ("int8", "bf16", "fp32", "int8", "bf16"), strict=True)))
    plan = plan.with_schemes({"plain": Scheme("kl", half_range=True), "/m/conv.1/Conv": Scheme("mse")})
    rewrites = (Rewrite("dense", "fc"), Rewrite("axes", "2,0,1"))
    (tmp_path / "plan.yaml").write_bytes(plan_yaml(plan, layers, rewrites))
    found = PlanFile.read(tmp_path / "plan.yaml")
    assert found.rewrites == rewrites and found.plan(layers) == plan and found.plan(layers).key == plan.key
    assert "# 20.0% of the multiply-accumulates" in (tmp_path / "plan.yaml").read_text()


def test_the_plan_file_of_a_tuned_surrogate_gives_the_same_network_again(small, tuned, tmp_path):
    result, output = tuned
    again = tune(small, tmp_path / "again", plan=output / "tuned" / "plan.yaml", **FAST)
    assert again.accepted and again.plan == result.plan and again.criterion == result.criterion
    assert len(again.history) == 1 and again.trials == 1
    inputs = normal_latents(5, 0, 64, 16), EnergyDistribution(1e3, 1e5, "log").sample(5, 0, 64)
    first, second = (compile_surrogate(Surrogate.load(path), "tuned").run(*inputs) for path in (output, tmp_path / "again"))
    np.testing.assert_array_equal(first, second)


def test_an_edited_plan_is_applied_exactly_and_says_that_it_fails(small, tuned, tmp_path):
    """All int8 fails at a tolerance of 0.004; it is written all the same, for it was asked for."""
    plan = written(tmp_path / "plan.yaml", dict.fromkeys(LAYERS, "int8"))
    result = tune(small, tmp_path / "out", plan=plan, tolerance=0.004, **FAST)
    assert not result.accepted and "above the tolerance 0.004" in result.reason
    assert set(result.plan.values()) == set(result.ran.values()) == {"int8"} and result.criterion["high"] > 0.004
    assert set(Surrogate.load(tmp_path / "out").tuned.plan.plan.values()) == {"int8"}


def test_a_plan_for_a_rewritten_graph_rewrites_it_first(tmp_path):
    """The shipped surrogate, with a rewrite that it offers; applied to the result, nothing is rewritten twice."""
    plan = tmp_path / "plan.yaml"
    original = Surrogate.load("clic-ecal")
    facts = original.manifest.graph or {}
    layers = {layer["name"]: "fp32" for layer in original.tuned.plan.model_dump()["layers"]}
    written(plan, layers, rewrites=facts.get("recipe", []))
    result = tune(original, tmp_path / "out", plan=plan, **FAST)
    assert result.plan == layers and result.criterion["value"] < 1e-3
    assert tune(tmp_path / "out", tmp_path / "again", plan=plan, **FAST).plan == layers


def test_no_rewrites_means_the_normal_form_and_null_the_graph_as_it_is(small, tmp_path):
    small = with_padding_apart(small, tmp_path / "padded")
    normal = rewritten(Graph(small.onnx), []).serialise()
    for name, rewrites, onnx in (("normal", [], normal), ("given", None, small.onnx)):
        plan = written(tmp_path / f"{name}.yaml", dict.fromkeys(LAYERS, "fp32"), rewrites=rewrites)
        tune(small, tmp_path / name, plan=plan, **FAST)
        assert Surrogate.load(tmp_path / name).onnx == onnx
        assert PlanFile.read(tmp_path / name / "tuned" / "plan.yaml").rewrites == (None if rewrites is None else ())
        tune(tmp_path / name, tmp_path / f"{name} again", plan=plan, **FAST)  # the result is left as it is
        assert Surrogate.load(tmp_path / f"{name} again").onnx == onnx


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: 1\nlayers: {shape.conv1: int8, nothing: int8}", "no layer 'nothing'; its layers are"),
        (
            "version: 1\nlayers: {shape.conv1: int7}",
            "layer shape.conv1 has the format 'int7'; choose among int8, bf16, fp16, w4, w8, fp32",
        ),
        ("version: 1\nlayers: {shape.conv1: int8 best}", "layer shape.conv1: 'best' does not say how a layer is quantised"),
        ("version: 1\nlayers: {shape.conv1: fp32 kl}", "is fp32, which takes no 'kl'"),
        ("version: 1\nlayers: {shape.conv1: int8}", "has no format"),
        ("version: 1\nlayers: {}", "field layers"),
        ("version: 2\nlayers: {a: int8}", "field version"),
        ("version: 1\nlayers: {a: int8}\nlayer: {}", "field layer"),
        ("version: 1\nlayers: {a: 8}", "field layers.a"),
        ("version: 1\nrewrites: [{kind: magic, target: a}]\nlayers: {a: int8}", "field rewrites.0.kind"),
        (
            "version: 1\nrewrites: [{kind: dense, target: nothing}]\nlayers: {a: int8}",
            "does not offer the rewrite dense of 'nothing'",
        ),
        ("version: 1\nlayers: [", "no valid YAML, line 2"),
        ("!!python/object/apply:os.system [true]", "no valid YAML"),
        ("42", "field the whole"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_is_written(small, tmp_path, content, message):
    (tmp_path / "plan.yaml").write_text(content)
    with pytest.raises(TuningError, match=message):
        tune(small, tmp_path / "out", plan=tmp_path / "plan.yaml", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_plan_that_is_not_there_is_named(small, tmp_path):
    with pytest.raises(TuningError, match="nothing.yaml cannot be read"):
        tune(small, tmp_path / "out", plan=tmp_path / "nothing.yaml", **FAST)


def test_the_verb_applies_a_plan(small, tmp_path):
    plan = written(tmp_path / "plan.yaml", dict.fromkeys(LAYERS, "int8") | {"energies.0": "fp32", "energies.1": "fp32"})
    arguments = ["--plan", str(plan), "--evaluation-events", "256", "--calibration-events", "64", "--objective", "macs", "--json"]
    ran = CliRunner().invoke(main, ["tune", str(small.path), "-o", str(tmp_path / "out"), *arguments])
    assert ran.exit_code == 0 and json.loads(ran.stdout)["plan"]["energies.0"] == "fp32"
