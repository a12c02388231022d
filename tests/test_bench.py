"""The benchmark measures every precision in turns and reports ratios of the same rounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino
import pytest
from click.testing import CliRunner

from minicarlo.cli import main
from minicarlo.engines import has_bf16, read_model, usable_cores
from minicarlo.errors import InvalidCondition, InvalidConfig, UnsupportedEngine, UnsupportedPrecision
from minicarlo.events import EventSet, write_events
from minicarlo.generation import bench, generate, sweep
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

PRECISIONS = ("fp32", "bf16", "tuned") if has_bf16() else ("fp32", "tuned")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("minicarlo.generation.settings._SECONDS", 0.01)  # a window of the search for settings


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    """With a "tuned" model that is FP32 again, so that its ratio is known."""
    folder = tmp_path_factory.mktemp("surrogates")
    small = make_small_surrogate(folder / "small", width=4)
    openvino.save_model(read_model(small)[0], folder / "model.xml", compress_to_fp16=False)
    plan = {"plan": {"shape.conv1": "fp32"}, "ran": {"shape.conv1": "fp32"}, "inference_precision": "f32"}
    return small.with_tuned(folder / "tuned", folder / "model.xml", folder / "model.bin", plan)


def simulated(path: Path, energies: list[float], **attributes: float | str) -> Path:
    samples = np.zeros((len(energies), 25, 25, 25), np.float32)
    write_events(path, EventSet({"incident_energy": np.array(energies, np.float32)}, samples, "clic-ecal", attributes))
    return path


@pytest.fixture(scope="module")
def result(surrogate, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("events")
    events = simulated(folder / "mc.h5", [5e3, 2e4], generator="Geant4", seconds=0.5)
    return bench(surrogate, events, seconds=1.0, streams=2, batch=8)


def test_every_precision_is_measured_on_one_stream_and_on_many(result):
    assert {(run["precision"], run["streams"]) for run in result["runs"]} == {
        (precision, streams) for precision in PRECISIONS for streams in (1, 2)
    }
    for run in result["runs"]:
        assert run["engine"] == "openvino" and run["batch"] == 8
        assert run["events_per_second"] > 0 and run["spread"] >= 0 and run["milliseconds_batch_1"] > 0


def test_reduced_precision_computes_about_what_fp32_does(result):
    assert all(run["deviation"] == 0 for run in result["runs"] if run["precision"] in ("fp32", "tuned"))
    assert all(0 < run["deviation"] < 0.1 for run in result["runs"] if run["precision"] == "bf16")


def test_a_precision_that_computes_something_else_is_refused(tmp_path):
    small, other = (make_small_surrogate(tmp_path / str(seed), width=4, seed=seed) for seed in (0, 1))
    openvino.save_model(read_model(other)[0], tmp_path / "model.xml", compress_to_fp16=False)
    plan = {"plan": {}, "ran": {}, "inference_precision": "f32"}
    broken = small.with_tuned(tmp_path / "broken", tmp_path / "model.xml", tmp_path / "model.bin", plan)
    with pytest.raises(UnsupportedPrecision, match="wrong values on this processor"):
        generate(broken, n=4, energy="10GeV", precision="tuned")
    assert len(generate(broken, n=4, energy="10GeV", precision="fp32")) == 4


def test_what_is_called_fp32_ran_in_fp32(result):
    assert all(set(run["formats"]) == {"fp32"} for run in result["runs"] if run["precision"] == "fp32")


def test_the_gain_over_the_simulator_is_core_for_core_at_its_energies(result):
    """0.5 s for two events are 0.25 s each, times the rate of one stream of one thread."""
    (tuned,) = [run for run in result["runs"] if run["precision"] == "tuned" and run["streams"] == 1]
    assert result["simulator"]["seconds_per_event"] == 0.25
    assert result["simulator"]["mean_energy_mev"] == pytest.approx(12_500)
    assert result["speedup"]["over_simulator"] == pytest.approx(0.25 * tuned["events_per_second"])


def test_the_keys_are_the_stable_ones(result):
    assert {"machine", "runs", "speedup"} <= set(result)
    assert {"tuned_over_fp32", "bf16_over_fp32", "streams", "over_simulator"} <= set(result["speedup"])
    assert all(result["speedup"][name] > 0 for name in ("tuned_over_fp32", "streams"))
    assert (result["speedup"]["bf16_over_fp32"] is not None) == has_bf16()
    assert result["machine"]["cores"] >= 1
    json.dumps(result, allow_nan=False)


def test_without_a_recorded_cost_there_is_no_gain_to_report(surrogate, tmp_path):
    events = simulated(tmp_path / "mc.h5", [5e3, 2e4])
    assert bench(surrogate, events, seconds=0.1, streams=1, batch=4)["speedup"]["over_simulator"] is None


def test_mistakes_are_named(surrogate, tmp_path):
    with pytest.raises(InvalidCondition, match="inside the range"):
        bench(surrogate, simulated(tmp_path / "low.h5", [10.0, 20.0]), seconds=0.1, batch=4)
    with pytest.raises(InvalidConfig, match="time"):
        bench(surrogate, seconds=-1)


def test_the_command_prints_a_table_or_json(surrogate, tmp_path):
    """One of the two with the all-INT8 model, which takes a calibration."""
    events = simulated(tmp_path / "mc.h5", [5e3, 2e4], seconds_per_event=0.1)
    arguments = ["bench", str(surrogate.path), "--against", str(events), "--seconds", "0.1", "--batch", "4", "--streams", "1"]
    arguments += ["--no-int8"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0 and "tuned over FP32" in shown.stdout and "core for core" in shown.stdout
    found = json.loads(CliRunner().invoke(main, [*arguments[:-1], "--json"]).stdout)
    assert {run["precision"] for run in found["runs"]} == {*PRECISIONS, "int8"}
    assert all("int8" in run["formats"] for run in found["runs"] if run["precision"] == "int8")
    assert found["speedup"]["int8_over_fp32"] > 0


def test_a_sweep_covers_batches_streams_and_threads_and_what_the_search_found(surrogate):
    found = sweep(surrogate, seconds=0.2, batches=(1, 8), most_streams=3)
    points = [(point["precision"], point["batch"], point["streams"], point["threads"]) for point in found]
    shapes = [(1, 1), (2, 1), (3, 1), *([(1, 2)] if usable_cores() > 1 else [])]
    grid = [(precision, batch, *shape) for precision in ("fp32", "tuned") for batch in (1, 8) for shape in shapes]
    assert set(grid) <= set(points) and len(set(points)) == len(points)
    assert [point["precision"] for point in found if point["chosen"]] == ["fp32", "tuned"]
    assert all(point["events_per_second"] > 0 and point["spread"] >= 0 for point in found)


def test_a_sweep_for_latency_is_about_the_threads_of_one_event(surrogate):
    found = sweep(surrogate, seconds=0.1, objective="latency")
    assert {(point["streams"], point["batch"]) for point in found} == {(1, 1)}
    threads = [point["threads"] for point in found if point["precision"] == "fp32"]
    assert threads[0] == 1 and max(threads) <= usable_cores()
    assert [point["precision"] for point in found if point["chosen"]] == ["fp32", "tuned"]


def test_another_engine_is_measured_in_the_formats_it_offers(surrogate, tmp_path):
    found = bench(surrogate, simulated(tmp_path / "mc.h5", [5e3, 2e4]), seconds=0.1, streams=2, batch=4, engine="onnxruntime")
    assert [(run["engine"], run["precision"], run["streams"]) for run in found["runs"]] == [
        ("onnxruntime", precision, streams) for precision in ("fp32", "tuned") for streams in (1, 2)
    ]
    assert all(run["deviation"] < 1e-5 for run in found["runs"])
    with pytest.raises(UnsupportedEngine, match="Known engines"):
        bench(surrogate, seconds=0.1, engine="abacus")


def test_a_sweep_of_no_events_is_refused(surrogate):
    with pytest.raises(InvalidConfig, match="batches of one or more"):
        sweep(surrogate, batches=(0,))
