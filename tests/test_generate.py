"""Same seed, same bits: for any streams, batch and threads, and after a kill; and a mistake leaves nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import minicarlo
from minicarlo.cli import main
from minicarlo.detectors import get_detector
from minicarlo.engines import has_bf16
from minicarlo.errors import InvalidCondition, InvalidConfig, InvalidEventSet, InvalidSurrogate, OutputError, UnsupportedPrecision
from minicarlo.events import EventSet, read_events, write_events
from minicarlo.files import sha256
from minicarlo.generation import Settings, generate, settings
from minicarlo.generation.writer import EventFile
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

ENERGY = "1GeV:100GeV:log"
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=4)


@pytest.fixture(scope="module")
def reference(surrogate: Surrogate) -> EventSet:
    return generate(surrogate, 150, ENERGY, seed=7, streams=1, batch=8, threads=1)


def shards(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("shard-*.h5"))}


def test_one_file_is_the_same_bytes_for_any_streams_batch_and_threads(surrogate, reference, tmp_path):
    digests = set()
    for number, (streams, batch, threads) in enumerate([(1, 8, 1), (2, 8, 1), (1, 7, 2), (2, 64, 1), (1, 1, 1), (2, 150, 2)]):
        path = tmp_path / f"{number}.h5"
        result = generate(surrogate, 150, ENERGY, seed=7, output=path, streams=streams, batch=batch, threads=threads)
        assert result.streams == streams and result.batch in (batch, settings.CANONICAL.batch)
        digests.add(sha256(path))
    assert len(digests) == 1
    written = read_events(tmp_path / "0.h5")
    assert np.array_equal(written.samples, reference.samples)
    assert np.array_equal(written.incident_energy, reference.incident_energy)


def test_shards_are_the_same_bytes_for_any_streams_and_batch_and_hold_the_same_events(surrogate, reference, tmp_path):
    found = []
    for number, (streams, batch) in enumerate([(1, 8), (2, 13)]):
        result = generate(
            surrogate, 150, ENERGY, seed=7, output=tmp_path / str(number), streams=streams, batch=batch, shard_size=60
        )
        found.append(shards(result.path))
    assert list(found[0]) == ["shard-00000.h5", "shard-00001.h5", "shard-00002.h5"]
    assert found[0] == found[1]
    assert np.array_equal(read_events(tmp_path / "0").samples, reference.samples)


def test_more_events_of_a_seed_begin_with_the_fewer(surrogate, reference):
    fewer = generate(surrogate, 20, ENERGY, seed=7, streams=1, batch=32)
    assert np.array_equal(fewer.samples, reference.samples[:20])
    other = generate(surrogate, 20, ENERGY, seed=8, streams=1, batch=32)
    assert not np.array_equal(other.samples, fewer.samples)


def test_two_processes_give_the_same_file(surrogate, tmp_path):
    for number in range(2):
        run(surrogate, tmp_path / f"{number}.h5", "-n", "100", "--seed", "7", "--streams", str(number + 1))
    assert sha256(tmp_path / "0.h5") == sha256(tmp_path / "1.h5")


def test_a_killed_run_is_completed_by_the_same_command_with_the_same_files(surrogate, tmp_path):
    """kill -9 once after the first shard is there and once more later; the third start ends the run."""
    arguments = ("-n", "2000", "--seed", "7", "--shard-size", "250")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(surrogate, whole, *arguments, "--streams", "1")
    for wanted in (1, 3):
        process = start(surrogate, broken, *arguments, "--streams", "2", "--batch", "16")
        wait_until(lambda wanted=wanted: len(list(broken.glob("shard-*.h5"))) >= wanted, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        survivors = shards(broken)
        assert wanted <= len(survivors) < 8
        assert survivors.items() <= shards(whole).items()  # whole shards only, already right
    result = run(surrogate, broken, *arguments, "--streams", "2", "--batch", "16")
    assert result["events"] == 2000 and result["resumed"] >= 250
    assert shards(broken) == shards(whole)
    assert [path.name for path in broken.iterdir() if path.name.startswith(".")] == []  # the killed writer's leftovers are gone


def test_a_damaged_or_missing_shard_is_made_again(surrogate, tmp_path):
    generate(surrogate, 90, ENERGY, output=tmp_path / "run", shard_size=30)
    before = shards(tmp_path / "run")
    (tmp_path / "run" / "shard-00001.h5").unlink()
    with open(tmp_path / "run" / "shard-00002.h5", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    result = generate(surrogate, 90, ENERGY, output=tmp_path / "run", shard_size=30)
    assert result.resumed == 30 and shards(tmp_path / "run") == before
    again = generate(surrogate, 90, ENERGY, output=tmp_path / "run", shard_size=30)
    assert again.resumed == 90 and again.events_per_second is None


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"n": 91}, {"energy": "10GeV"}, {"precision": "bf16"}, {"shard_size": 31}],
    ids=lambda c: next(iter(c)),
)
def test_another_request_in_the_same_folder_is_refused_and_touches_nothing(surrogate, tmp_path, change):
    request = {"n": 60, "energy": ENERGY, "seed": 1, "precision": "fp32", "shard_size": 30}
    generate(surrogate, output=tmp_path / "run", **request)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(OutputError, match="holds another run"):
        generate(surrogate, output=tmp_path / "run", **(request | change))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"n": 59}, {"energy": "10GeV"}, pytest.param({"precision": "bf16"}, marks=needs_bf16)],
    ids=lambda c: next(iter(c)),
)
def test_a_file_of_another_request_is_refused_unless_it_may_be_overwritten(surrogate, tmp_path, change):
    request = {"n": 60, "energy": ENERGY, "seed": 1, "precision": "fp32"}
    first = generate(surrogate, output=tmp_path / "a.h5", **request)
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(OutputError, match="it holds other events.*--overwrite"):
        generate(surrogate, output=tmp_path / "a.h5", **(request | change))
    again = generate(surrogate, output=tmp_path / "a.h5", **request)
    assert first.resumed == 0 and again.resumed == 60 and (tmp_path / "a.h5").read_bytes() == before
    generate(surrogate, output=tmp_path / "a.h5", overwrite=True, **(request | change))
    assert (tmp_path / "a.h5").read_bytes() != before


def test_a_file_that_is_not_ours_is_refused_and_left_alone(surrogate, tmp_path):
    (tmp_path / "a.h5").write_text("thesis")
    with pytest.raises(OutputError, match="no event set"):
        generate(surrogate, 60, output=tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_text() == "thesis"


def test_a_folder_is_overwritten_but_not_what_is_not_ours_in_it(surrogate, tmp_path):
    generate(surrogate, 90, ENERGY, output=tmp_path / "run", shard_size=30)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    generate(surrogate, 30, ENERGY, seed=2, output=tmp_path / "run", shard_size=30, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["notes.txt", "run.json", "shard-00000.h5"]
    assert read_events(tmp_path / "run").attributes["seed"] == 2


@pytest.mark.parametrize(("events", "size"), [(150, 64), (150, 1), (193, 100), (128, 64), (65, 64)])
def test_one_file_is_the_same_bytes_from_shards_of_any_size(surrogate, tmp_path, events, size):
    generate(surrogate, events, ENERGY, seed=7, output=tmp_path / "whole.h5")
    generate(surrogate, events, ENERGY, seed=7, output=tmp_path / "joined.h5", shard_size=size)
    assert sha256(tmp_path / "joined.h5") == sha256(tmp_path / "whole.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joined.h5", "whole.h5"]


def test_a_killed_run_into_one_file_is_completed_with_the_same_bytes(surrogate, tmp_path):
    arguments = ("-n", "2000", "--seed", "7", "--shard-size", "256")
    run(surrogate, tmp_path / "whole.h5", *arguments)
    hidden = tmp_path / ".broken.h5.shards"
    for wanted in (1, 3):
        process = start(surrogate, tmp_path / "broken.h5", *arguments, "--streams", "2", "--batch", "16")
        wait_until(lambda wanted=wanted: len(list(hidden.glob("shard-*.h5"))) >= wanted, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "broken.h5").exists()
    with pytest.raises(OutputError, match="holds another run"):
        generate(surrogate, 2000, seed=8, output=tmp_path / "broken.h5", shard_size=256)
    result = run(surrogate, tmp_path / "broken.h5", *arguments)
    assert result["resumed"] >= 256 and result["files"] == [str(tmp_path / "broken.h5")]
    assert sha256(tmp_path / "broken.h5") == sha256(tmp_path / "whole.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.h5", "whole.h5"]


def test_conditions_are_used_event_by_event(surrogate, reference, tmp_path):
    energies = np.array([5e3, 1e3, 1e5, 2.5e4], np.float32)
    (tmp_path / "c.csv").write_text("event,incident_energy [MeV]\n" + "".join(f"{i},{e}\n" for i, e in enumerate(energies)))
    write_events(tmp_path / "c.h5", EventSet({"incident_energy": energies}, np.zeros((4, 25, 25, 25), np.float32), "clic-ecal"))
    results = [generate(surrogate, conditions=source, seed=7) for source in (energies, tmp_path / "c.csv", tmp_path / "c.h5")]
    for events in results:
        assert np.array_equal(events.incident_energy, energies)
        assert np.array_equal(events.samples, results[0].samples)
    first = generate(surrogate, 2, conditions=energies, seed=7)
    assert np.array_equal(first.samples, results[0].samples[:2])
    same = generate(surrogate, conditions=reference.incident_energy, seed=7)
    assert np.array_equal(same.samples, reference.samples)


def test_energy_is_by_default_the_trained_range(surrogate):
    energies = generate(surrogate, 200, seed=1).incident_energy
    assert 1e3 <= energies.min() < 1.2e3 and 8e4 < energies.max() <= 1e5
    assert abs(np.log(energies).mean() - np.log(1e4)) < 4 * np.log(100) / np.sqrt(12 * 200)  # four standard errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 5, "energy": "500MeV"}, InvalidCondition, "outside the range 1000 to 100000 MeV"),
        ({"n": 5, "energy": "1GeV:200GeV:log"}, InvalidCondition, "outside the range"),
        ({"n": 5, "energy": "ten"}, InvalidCondition, "ten"),
        ({"n": 0}, InvalidCondition, "at least 1"),
        ({}, InvalidCondition, "number of events is missing"),
        ({"n": 5, "seed": -1}, InvalidCondition, "seed"),
        ({"n": 5, "conditions": [5e3, 6e3]}, InvalidCondition, "hold only 2"),
        ({"conditions": []}, InvalidCondition, "no event"),
        ({"conditions": [5e3, 5e2]}, InvalidCondition, "event 1 is 500 MeV"),
        ({"conditions": [5e3, np.nan]}, InvalidCondition, "event 1 is nan"),
        ({"conditions": "no-such-file.h5"}, InvalidEventSet, "no-such-file"),
        ({"conditions": "no-such-file.csv"}, InvalidCondition, "no-such-file"),
        ({"n": 5, "energy": "10GeV", "conditions": [5e3]}, InvalidCondition, "not both"),
        ({"n": 5, "precision": "tuned"}, UnsupportedPrecision, "minicarlo tune"),
        ({"n": 5, "precision": "fp8"}, UnsupportedPrecision, "fp8"),
        ({"n": 5, "batch": 0}, InvalidConfig, "batch must be between"),
        ({"n": 5, "streams": 0}, InvalidConfig, "streams must be between"),
        ({"n": 5, "shard_size": 0}, InvalidConfig, "shard size"),
        ({"n": 5, "mantissa_bits": 23}, InvalidConfig, "1 to 22 bits"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(surrogate, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        generate(surrogate, output=tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_csv_without_the_column_or_with_text_in_it_is_refused(surrogate, tmp_path):
    (tmp_path / "a.csv").write_text("energy\n5000\n")
    with pytest.raises(InvalidCondition, match=r"a\.csv have no column incident_energy"):
        generate(surrogate, conditions=tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("incident_energy\n5000\nfive\n")
    with pytest.raises(InvalidCondition, match=r"b\.csv, line 3"):
        generate(surrogate, conditions=tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["missing/run", "missing/run.h5", "file/run", "file/run.h5", "file", "full", "folder.h5"])
def test_an_impossible_output_is_named_and_left_alone(surrogate, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "folder.h5").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=name.split("/")[-1]):
        generate(surrogate, 5, output=tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_not_ours_to_write_is_refused(surrogate, tmp_path):
    if os.geteuid() == 0:
        # root may write anywhere but into what the kernel itself keeps
        target = Path("/proc/minicarlo-run")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "run"
    for output in (target, target.with_suffix(".h5")):
        with pytest.raises(OutputError, match=target.name):
            generate(surrogate, 5, output=output)


@pytest.mark.parametrize("name", ["run.h5", "run"])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(surrogate, tmp_path, name):
    """The file-size limit of the process stands for the disk: the kernel refuses the same write calls."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = call(surrogate, tmp_path / name, "-n", "500", "--seed", "7", "--shard-size", "200", preexec_fn=limit)
    assert result.returncode == 2, result.stderr
    assert "Cannot write" in result.stderr and name in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_really_full_is_a_clear_error_and_leaves_nothing_half_written(surrogate, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        for name in ("run.h5", "run"):
            result = call(surrogate, disk / name, "-n", "500", "--seed", "7", "--shard-size", "400")
            assert result.returncode == 2, result.stderr
            assert "disk is full" in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_runs_never_write_the_same_folder_at_once(surrogate, tmp_path):
    process = start(surrogate, tmp_path / "run", "-n", "100000", "--shard-size", "5000", "--streams", "1", "--batch", "8")
    try:
        wait_until(lambda: (tmp_path / "run" / "run.json").exists(), process)
        with pytest.raises(OutputError, match="another run is writing"):
            generate(surrogate, 100000, output=tmp_path / "run", shard_size=5000)
    finally:
        process.kill()
        process.wait()


def test_the_file_is_plain_gzip_hdf5_that_any_reader_opens(surrogate, reference, tmp_path):
    generate(surrogate, 150, ENERGY, seed=7, output=tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["showers"].compression == "gzip" and file["showers"].chunks == (64, 15625)
        assert np.array_equal(file["showers"][...], reference.samples.reshape(150, -1))
        assert np.array_equal(file["incident_energies"][:, 0], reference.incident_energy)


@pytest.mark.parametrize("bits", [1, 7, 11, 22])
def test_energies_are_rounded_to_the_declared_bits_and_no_further(surrogate, reference, tmp_path, bits):
    generate(surrogate, 150, ENERGY, seed=7, output=tmp_path / "a.h5", mantissa_bits=bits)
    generate(surrogate, 150, ENERGY, seed=7, output=tmp_path / "b.h5", mantissa_bits=bits, shard_size=64, batch=13)
    assert sha256(tmp_path / "a.h5") == sha256(tmp_path / "b.h5")
    made = read_events(tmp_path / "a.h5")
    exact, stored = reference.samples.astype(np.float64), made.samples.astype(np.float64)
    assert np.array_equal(exact > 0, stored > 0)
    hit = exact > 0
    error = np.abs(stored[hit] / exact[hit] - 1)
    assert 0.7 * 2.0 ** -(bits + 1) < error.max() <= 2.0 ** -(bits + 1)
    assert not (made.samples.view(np.uint32) & ((1 << (23 - bits)) - 1)).any()
    assert made.attributes["cell_energy_rounding"] == f"{bits} mantissa bits (relative error below 2^-{bits + 1})"
    with pytest.raises(OutputError, match="cell_energy_rounding"):
        generate(surrogate, 150, ENERGY, seed=7, output=tmp_path / "a.h5")


def test_provenance_is_recorded_without_what_does_not_decide_the_bits(surrogate, tmp_path):
    generate(surrogate, 10, "10GeV", seed=3, output=tmp_path / "a.h5")
    attributes = read_events(tmp_path / "a.h5").attributes
    assert attributes["seed"] == 3 and attributes["precision"] == "fp32" and attributes["energy_distribution"] == "10GeV"
    assert attributes["surrogate_hash"] == surrogate.hash and "small" in attributes["generator"]
    assert not {"streams", "batch", "seconds", "date"} & set(attributes)


def test_samples_that_are_no_energies_are_never_written(tmp_path):
    samples = np.zeros((10, 25, 25, 25), np.float32)
    samples[7, 3, 3, 3] = np.nan
    with (
        pytest.raises(InvalidSurrogate, match="event 107"),
        EventFile(tmp_path / "a.h5", 10, get_detector("clic-ecal"), {}, first_event=100) as file,
    ):
        file.append(samples, np.ones(10, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_number_of_events(surrogate, tmp_path):
    seen = []
    generate(
        surrogate, 100, output=tmp_path / "run", shard_size=40, batch=16, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (100, 100) and seen == sorted(seen)


def test_the_json_of_the_command_has_the_stable_keys(surrogate, tmp_path):
    arguments = ["generate", str(surrogate.path), "-n", "20", "-o", str(tmp_path / "a.h5"), "--json"]
    result = CliRunner().invoke(main, arguments)
    found = json.loads(result.stdout)
    wanted = {"events", "seconds", "events_per_second", "path", "files", "precision", "streams", "batch", "seed"}
    assert wanted <= set(found) and found["events"] == 20 and found["files"] == [str(tmp_path / "a.h5")]
    assert set(found["precision_report"].values()) == {"fp32"}


def test_the_command_refuses_a_mistake_in_one_paragraph_with_exit_code_2(surrogate, tmp_path):
    arguments = ["generate", str(surrogate.path), "-n", "20", "--energy", "1TeV", "-o", str(tmp_path / "a.h5"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and result.stdout == "" and "\n\n" not in result.stderr.strip()
    assert "1000 to 100000 MeV" in " ".join(result.stderr.split())


def test_the_measured_setting_is_remembered_and_what_is_given_goes_before_it(surrogate, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(settings, "_SECONDS", 0.02)
    measured = settings.choose_settings(surrogate, "fp32")
    assert settings.remembered(surrogate, "fp32") == measured
    monkeypatch.setattr(settings, "measure", lambda *_: pytest.fail("measured twice"))
    assert settings.choose_settings(surrogate, "fp32") == measured
    assert settings.choose_settings(surrogate, "fp32", streams=3, threads=1, batch=5) == Settings(3, 1, 5)
    assert settings.choose_settings(surrogate, "fp32", batch=5).batch == 5
    (tmp_path / "minicarlo" / "settings.json").write_text("{ rubbish")
    assert settings.remembered(surrogate, "fp32") is None


def test_a_setting_that_changes_bits_is_not_used(surrogate, monkeypatch, tmp_path, reference):
    """No engine here does that; one that did would be run in the canonical batch instead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(settings.np, "array_equal", lambda *_: False)
    _, used = settings.compile_reproducible(surrogate, "fp32", Settings(2, 2, 64))
    assert used == Settings(2, 1, settings.CANONICAL.batch)


def command(surrogate: Surrogate, output: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "minicarlo.cli", "generate", str(surrogate.path), "-o", str(output), "--json", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(minicarlo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def start(surrogate: Surrogate, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(surrogate, output, *arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def call(surrogate: Surrogate, output: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    full = command(surrogate, output, *arguments)
    return subprocess.run(full, env=environment(), capture_output=True, text=True, check=False, timeout=300, **options)


def run(surrogate: Surrogate, output: Path, *arguments: str) -> dict[str, object]:
    result = call(surrogate, output, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def wait_until(condition, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < end, "the process did not get far enough"
        time.sleep(0.005)
