"""A surrogate on disk is loaded whole, unchanged and described, or refused in one paragraph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest
from click.testing import CliRunner

from minicarlo import surrogate as module
from minicarlo.cli import main
from minicarlo.engines import read_model
from minicarlo.errors import InvalidCondition, InvalidSurrogate, OutputError
from minicarlo.events import EventSet, write_events
from minicarlo.surrogate import Surrogate, info, save_surrogate
from small_surrogate import HIGH_MEV, LOW_MEV, make_small_surrogate, small_onnx


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small")


@pytest.fixture
def copy(original: Surrogate, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.path, tmp_path / "copy"))


def test_what_is_saved_is_what_is_loaded(original):
    loaded = Surrogate.load(original.path)
    assert loaded == original
    assert loaded.onnx == small_onnx()
    assert loaded.manifest.sample_shape == (25, 25, 25)
    assert loaded.precisions == ("fp32", "bf16")
    assert sorted(path.name for path in original.path.iterdir()) == ["fp32.onnx", "surrogate.json"]


def test_the_same_seed_makes_the_same_surrogate_and_another_seed_another(original, tmp_path):
    assert make_small_surrogate(tmp_path / "again").hash == original.hash
    assert make_small_surrogate(tmp_path / "other", seed=1).hash != original.hash


@pytest.mark.parametrize("where", [0, 1000, -1])
def test_an_altered_byte_is_found(copy, where):
    data = bytearray((copy / "fp32.onnx").read_bytes())
    data[where] ^= 1
    (copy / "fp32.onnx").write_bytes(data)
    with pytest.raises(InvalidSurrogate, match=r"fp32\.onnx does not match its checksum.*copy it again"):
        Surrogate.load(copy)


@pytest.mark.parametrize("kept", [0, 1, 5000])
def test_a_truncated_graph_is_found(copy, kept):
    (copy / "fp32.onnx").write_bytes((copy / "fp32.onnx").read_bytes()[:kept])
    with pytest.raises(InvalidSurrogate, match=r"fp32\.onnx has \d+ bytes.*truncated"):
        Surrogate.load(copy)


def test_a_truncated_graph_is_found_even_when_its_checksum_was_made_to_fit(copy):
    rewrite(copy, "fp32.onnx", (copy / "fp32.onnx").read_bytes()[:5000])
    with pytest.raises(InvalidSurrogate, match=r"fp32\.onnx cannot be used"):
        Surrogate.load(copy)


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_a_truncated_manifest_is_found(copy, kept):
    (copy / "surrogate.json").write_bytes((copy / "surrogate.json").read_bytes()[:kept])
    with pytest.raises(InvalidSurrogate, match=r"surrogate\.json is not valid JSON"):
        Surrogate.load(copy)


def test_a_missing_file_is_named(copy):
    (copy / "fp32.onnx").unlink()
    with pytest.raises(InvalidSurrogate, match=r"fp32\.onnx is missing"):
        Surrogate.load(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format_version"),
        ("latent_size", 17, "latent"),
        ("latent_size", "many", "latent_size"),
        ("sample_shape", [25, 25, 24], "sample_shape"),
        ("unit", "GeV", "unit"),
        ("detector", "par99", "detector"),
        ("readout_threshold_mev", -1, "readout_threshold_mev"),
        ("conditions", {}, "conditions"),
        ("conditions", {"incident_energy": {"unit": "MeV", "low": 5, "high": 1}}, "conditions"),
        ("conditions", {"incident_energy": {"unit": "GeV", "low": 1, "high": 5}}, "unit"),
        ("surprise", 1, "surprise"),
        ("files", {}, "files"),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(copy, field, value, message):
    manifest = json.loads((copy / "surrogate.json").read_text())
    (copy / "surrogate.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(InvalidSurrogate, match=message):
        Surrogate.load(copy)


@pytest.mark.parametrize("path", ["no-such-thing", __file__, str(Path(__file__).parent)])
def test_what_is_no_surrogate_says_so(path):
    with pytest.raises(InvalidSurrogate, match="Give the directory of a surrogate"):
        Surrogate.load(path)


def test_a_bare_name_means_the_shipped_surrogate_and_a_path_the_directory(original, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "shipped_surrogates", lambda: {"clic-ecal": original.path})
    monkeypatch.chdir(tmp_path)
    local = make_small_surrogate(tmp_path / "clic-ecal", seed=5)
    assert Surrogate.load("clic-ecal").hash == original.hash
    assert Surrogate.load("./clic-ecal").hash == local.hash
    assert Surrogate.load(Path("clic-ecal")).hash == local.hash


def test_nothing_is_overwritten_unless_asked_and_nothing_half_written_is_left(original, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="occupied"):
        make_small_surrogate(occupied)
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]
    with pytest.raises(InvalidSurrogate):
        save(tmp_path / "new", onnx=b"rubbish")
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]


def test_a_tuned_surrogate_keeps_its_reference_and_adds_its_model(tmp_path):
    small = save(tmp_path / "small", readme="# small")
    openvino.save_model(read_model(small)[0], tmp_path / "m.xml", compress_to_fp16=False)
    plan = {
        "plan": {"shape.conv1": "fp32"},
        "ran": {"shape.conv1": "fp32"},
        "inference_precision": "f32",
        "int8_share": 0.0,
        "trial": 3,
    }
    tuned = small.with_tuned(tmp_path / "tuned", tmp_path / "m.xml", tmp_path / "m.bin", plan, b"{}\n", speed={"ratio": 3.0})
    assert tuned.onnx == small.onnx and tuned.hash != small.hash and tuned.precisions == ("fp32", "bf16", "tuned")
    assert tuned.tuned.plan.model_dump() == plan and tuned.manifest.speed == {"ratio": 3.0}
    assert sorted(tuned.manifest.files) == [
        "README.md",
        "fp32.onnx",
        "tuned/history.jsonl",
        "tuned/model.bin",
        "tuned/model.xml",
        "tuned/plan.json",
    ]
    assert tuned.with_tuned(tmp_path / "again", tuned.tuned.xml, tuned.tuned.weights, plan).hash == tuned.hash
    assert sorted(path.name for path in small.path.iterdir()) == ["README.md", "fp32.onnx", "surrogate.json"]
    shown = CliRunner().invoke(main, ["info", str(tuned.path)])
    assert shown.exit_code == 0 and "shape.conv1" in shown.stdout


@pytest.mark.parametrize("energy", [LOW_MEV, HIGH_MEV, np.float32(HIGH_MEV), 5e3, [LOW_MEV, HIGH_MEV]])
def test_energies_inside_the_range_are_accepted(original, energy):
    original.check_conditions({"incident_energy": energy})


@pytest.mark.parametrize("energy", [999.0, 100_001.0, 0.0, -5e3, np.nan, np.inf])
def test_energies_outside_the_range_are_named_with_their_event(original, energy):
    with pytest.raises(InvalidCondition, match=r"incident_energy of event 2 is .* 1000 to 100000 MeV.*does not extrapolate"):
        original.check_conditions({"incident_energy": [2e3, 3e3, energy, 1.0]})


def test_conditions_must_be_those_of_the_surrogate(original):
    with pytest.raises(InvalidCondition, match="theta"):
        original.check_conditions({"incident_energy": [5e3], "theta": [0.1]})
    with pytest.raises(InvalidCondition, match="needs the condition incident_energy"):
        original.check_conditions({})


def test_info_has_the_stable_keys_for_a_surrogate(original):
    found = info(original.path)
    assert found["kind"] == "surrogate" and found["version"] == 1 and found["count"] is None
    assert found["conditions"] == {"incident_energy": {"unit": "MeV", "low": LOW_MEV, "high": HIGH_MEV}}
    assert found["sample_shape"] == [25, 25, 25] and found["unit"] == "MeV" and found["detector"] == "clic-ecal"


def test_info_has_the_stable_keys_for_an_event_set(tmp_path):
    events = EventSet({"incident_energy": np.array([2e3, 4e3], np.float32)}, np.zeros((2, 25, 25, 25), np.float32), "clic-ecal")
    write_events(tmp_path / "events.h5", events)
    result = CliRunner().invoke(main, ["info", str(tmp_path / "events.h5"), "--json"])
    found = json.loads(result.stdout)
    assert found["kind"] == "events" and found["count"] == 2 and found["sample_shape"] == [25, 25, 25]
    assert found["conditions"]["incident_energy"] == {"unit": "MeV", "low": 2e3, "high": 4e3}
    assert {"version", "unit", "detector"} <= set(found)


def test_the_command_prints_an_account_and_refuses_with_exit_code_2(original, copy):
    shown = CliRunner().invoke(main, ["info", str(original.path)])
    assert shown.exit_code == 0 and "1000 to 100000 MeV" in shown.stdout
    (copy / "fp32.onnx").write_bytes(b"")
    refused = CliRunner().invoke(main, ["info", str(copy)])
    assert refused.exit_code == 2 and refused.stdout == "" and "Traceback" not in refused.stderr


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Replace a file and record its checksum: what an attacker would do."""
    import hashlib

    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(data)
    manifest = json.loads((directory / "surrogate.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (directory / "surrogate.json").write_text(json.dumps(manifest))


def save(directory: Path, **changes: object) -> Surrogate:
    fields = {
        "onnx": small_onnx(),
        "name": "small",
        "generator": "shower2d",
        "conditions": {"incident_energy": {"unit": "MeV", "low": LOW_MEV, "high": HIGH_MEV}},
        "latent_size": 16,
        "readout_threshold_mev": 0.05,
    } | changes
    return save_surrogate(directory, fields.pop("onnx"), **fields)  # type: ignore[arg-type]
