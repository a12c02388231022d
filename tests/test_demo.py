"""The demo: every stage runs on real files, leaves them in one folder, and says what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minicarlo.cli import main
from minicarlo.demo import STAGES
from minicarlo.events import events_info, read_events, write_events
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate
from test_report import events

FILES = {"reference.h5", "reference-tuning.h5", "fp32.h5", "tuned.h5", "tuned-surrogate", "report.html"}
FILES |= {"tune.json", "bench.json", "validate-fp32.json", "validate-tuned.json", "demo.json"}


def run(folder: Path, *arguments: str) -> Result:
    quick = [
        "--sample",
        str(folder / "sample.h5"),
        "--tuning-seconds",
        "20",
        "--bench-seconds",
        "0.5",
        "-o",
        str(folder / "demo"),
    ]
    return CliRunner().invoke(main, ["demo", str(folder / "small"), *quick, *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("demo")
    make_small_surrogate(folder / "small")
    write_events(folder / "sample.h5", events(480, attributes={"generator": "Geant4 11.4.1", "seconds_per_event": 0.1}))
    return folder, run(folder)


def test_demo_leaves_its_files_and_nothing_else(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 0, result.output
    assert {path.name for path in (folder / "demo").iterdir()} == FILES
    assert Surrogate.load(folder / "demo" / "tuned-surrogate").tuned is not None


def test_every_stage_is_told(finished: tuple[Path, Result]) -> None:
    _, result = finished
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/{len(STAGES)}] {stage} ..." in result.stderr
    for words in ("CERN figure", "verdict", "times as fast as FP32", "times as fast as the simulator", "report.html"):
        assert words in result.stdout


def test_both_precisions_answer_the_same_energies_and_tuning_saw_none_of_the_reference(finished: tuple[Path, Result]) -> None:
    demo = finished[0] / "demo"
    reference, fp32, tuned = (read_events(demo / f"{name}.h5") for name in ("reference", "fp32", "tuned"))
    assert (reference.incident_energy == fp32.incident_energy).all() and (
        reference.incident_energy == tuned.incident_energy
    ).all()
    seen = set(read_events(demo / "reference-tuning.h5").incident_energy.tolist())
    assert not seen & set(reference.incident_energy.tolist())
    assert events_info(demo / "reference.h5")["count"] == 360


def test_the_numbers_in_the_table_are_those_of_the_files(finished: tuple[Path, Result]) -> None:
    demo = finished[0] / "demo"
    summary, speeds, tuned = (json.loads((demo / name).read_text()) for name in ("demo.json", "bench.json", "tune.json"))
    assert summary["speedup"] == speeds["speedup"] and summary["int8_share"] == tuned["int8_share"]
    assert summary["verdict"]["FP32"] == json.loads((demo / "validate-fp32.json").read_text())["verdict"]
    html = (demo / "report.html").read_text()
    assert f"{speeds['speedup']['tuned_over_fp32']:.2f} ×" in html and "Precision plan" in html and "Throughput" in html
    assert 'id="showers"' in html


def test_a_second_run_replaces_the_first(finished: tuple[Path, Result]) -> None:
    result = run(finished[0], "--events", "400", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["reference_events"] == 400
    assert events_info(finished[0] / "demo" / "reference.h5")["count"] == 300


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    make_small_surrogate(tmp_path / "small")
    write_events(tmp_path / "sample.h5", events(400))
    precious = tmp_path / "demo" / "tuned-surrogate" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("x")
    result = run(tmp_path)
    assert result.exit_code == 2 and "tuned-surrogate" in result.stderr
    assert precious.read_text() == "x"


def test_too_few_events_in_range_is_one_paragraph(tmp_path: Path) -> None:
    make_small_surrogate(tmp_path / "small")
    write_events(tmp_path / "sample.h5", events(60))
    result = run(tmp_path)
    assert result.exit_code == 2 and "400 or more" in result.stderr and "Traceback" not in result.output
