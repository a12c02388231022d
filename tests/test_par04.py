"""An exported surrogate under ONNX Runtime, following the steps of Geant4's example Par04, against our own generation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from minicarlo import export
from minicarlo.cli import main
from minicarlo.detectors import PAR04_SIW, get_detector
from minicarlo.errors import InvalidConfig
from minicarlo.generation import generate
from minicarlo.sampling import normal_latents
from minicarlo.surrogate import Surrogate, save_surrogate

LATENTS = 10
SEED = 5


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory) -> Surrogate:
    """A surrogate of par04-siw with random weights, whose cells depend on their position, the latents and the energy."""
    random = np.random.default_rng(0)
    shape = get_detector(PAR04_SIW).shape
    constants = {
        "weight": random.normal(0, 0.5, (LATENTS + 1, np.prod(shape))),
        "scale": 1e-4,
        "shape": np.array([-1, *shape]),
        "row": np.array([-1, 1, 1, 1]),
        "threshold": 0.01515,
        "zero": 0.0,
    }
    nodes = [
        helper.make_node("Log", ["incident_energy"], ["log"]),
        helper.make_node("Concat", ["latent", "log"], ["condition"], axis=1),
        helper.make_node("MatMul", ["condition", "weight"], ["linear"]),
        helper.make_node("Reshape", ["linear", "shape"], ["cells"]),
        helper.make_node("Mul", ["incident_energy", "scale"], ["visible"]),
        helper.make_node("Reshape", ["visible", "row"], ["visibles"]),
        helper.make_node("Mul", ["cells", "visibles"], ["energies"]),
        helper.make_node("Greater", ["energies", "threshold"], ["above"]),
        helper.make_node("Where", ["above", "energies", "zero"], ["showers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cylinder",
        [
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", LATENTS]),
            helper.make_tensor_value_info("incident_energy", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("showers", TensorProto.FLOAT, ["batch", *shape])],
        [
            numpy_helper.from_array(np.asarray(value).astype(np.int64 if name in ("shape", "row") else np.float32), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return save_surrogate(
        tmp_path_factory.mktemp("surrogate") / "cylinder",
        model.SerializeToString(),
        name="cylinder",
        generator="shower2d",
        conditions={"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}},
        latent_size=LATENTS,
        sample_shape=shape,
        detector=PAR04_SIW,
        readout_threshold_mev=0.01515,
    )


def par04(path: Path, latents: np.ndarray, energy_mev: float, angle_deg: float = 0.0) -> list[tuple[float, float, float, float]]:
    """(x, y, z, energy) of the deposits that Par04 would make: one particle, batch 1, optimisation off, one thread.

    The steps are those of `Par04InferenceSetup::GetEnergies`, `GetPositions` and `Par04OnnxInference::RunInference`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    vector = np.array([*latents, energy_mev / 1_024_000.0, angle_deg / 90.0, 0, 1], np.float32)
    flat = session.run(None, {name: vector[None]})[0].ravel()
    rings, sectors, layers = 9, 16, 45
    assert flat.shape == (rings * sectors * layers,)
    deposits = []
    for r in range(rings):
        for phi in range(sectors):
            for z in range(layers):
                angle = (phi + 0.5) * 2 * np.pi / sectors - np.pi
                radius = (r + 0.5) * 4.65
                energy = float(flat[len(deposits)]) * energy_mev
                deposits.append((radius * np.cos(angle), radius * np.sin(angle), (z + 0.5) * 3.4, energy))
    return deposits


def test_par04_deposits_cell_by_cell_what_we_generate(surrogate, tmp_path) -> None:
    result = export(surrogate, tmp_path / "Generator.onnx")
    assert (result.latent_size, result.conditions, result.mesh) == (LATENTS, 4, (9, 16, 45))
    events = generate(surrogate, n=3, seed=SEED, precision="fp32", streams=1, threads=1, batch=1)
    latents = normal_latents(SEED, 0, 3, LATENTS)
    detector = get_detector(PAR04_SIW)
    x, y = detector.transverse()
    for event, sample in enumerate(events.samples):
        deposits = np.array(par04(result.path, latents[event], float(events.incident_energy[event])))
        seen = {tuple(np.round(deposit[:3], 3) + 0.0): deposit[3] for deposit in deposits}
        ours = sample.reshape(detector.layers, -1) / detector.energy_scale  # Par04 counts the energy in silicon
        assert (ours > 0).sum() > 100
        for layer in range(detector.layers):
            found = [seen[tuple(np.round((x[i], y[i], (layer + 0.5) * 3.4), 3) + 0.0)] for i in range(len(x))]
            np.testing.assert_allclose(found, ours[layer], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("energy", "nearest"), [(100.0, 1e3), (5e5, 1e5)])
def test_energies_outside_the_trained_range_get_the_nearest_shower_scaled(surrogate, tmp_path, energy, nearest) -> None:
    path = export(surrogate, tmp_path / "Generator.onnx").path
    latents = normal_latents(SEED, 0, 1, LATENTS)[0]
    outside, inside = (np.array(par04(path, latents, value))[:, 3] for value in (energy, nearest))
    np.testing.assert_allclose(outside / energy, inside / nearest, rtol=1e-5)


def test_the_angle_and_the_geometry_are_taken_and_ignored(surrogate, tmp_path) -> None:
    path = export(surrogate, tmp_path / "Generator.onnx").path
    latents = normal_latents(SEED, 0, 1, LATENTS)[0]
    assert par04(path, latents, 1e4, 0.0) == par04(path, latents, 1e4, 45.0)


def test_the_verb_writes_the_graph_and_the_commands_for_it(surrogate, tmp_path) -> None:
    arguments = ["export", str(surrogate.path), "--to", "par04", "-o", str(tmp_path / "Generator.onnx"), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mesh"] == [9, 16, 45]
    assert [entry.name for entry in onnx.load(result["path"]).graph.input] == ["par04"]
    commands = Path(result["macro"]).read_text().splitlines()
    assert {
        "/Par04/inference/setSizeLatentVector 10",
        "/Par04/inference/setModelPathName Generator.onnx",
        "/Par04/inference/setNbOfPhiCells 16",
        "/Par04/mesh/setSizeOfRhoCells 4.65 mm",
        "/Par04/mesh/setSizeOfZCells 3.4 mm",
    } <= set(commands)
    assert commands[-1] == "/Par04/inference/setInferenceLibrary ONNX"


def test_a_cartesian_surrogate_is_refused_with_the_reason(tmp_path) -> None:
    with pytest.raises(InvalidConfig, match=r"clic-ecal, whose grid is cartesian.*for example par04-siw"):
        export("clic-ecal", tmp_path / "Generator.onnx")
    assert list(tmp_path.iterdir()) == []
