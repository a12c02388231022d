"""The tuning loop: what it finds and writes, how it ends, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from minicarlo.cli import main
from minicarlo.cli.tune import _Display
from minicarlo.engines import compile_surrogate
from minicarlo.errors import OutputError, TuningError
from minicarlo.events import EventSet, write_events
from minicarlo.precision import Trial, get_criterion, tune
from minicarlo.precision.objectives import front
from minicarlo.precision.result import Status
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

# half-range weights make every processor of a kind compute the same, with VNNI or without
FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "timing_seconds": 0.1, "portable": True}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


@pytest.fixture(scope="module")
def tuned(small, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    return tune(small, output, **FAST), output


def test_tune_finds_a_plan_that_passes_and_writes_a_surrogate_that_loads(tuned):
    result, output = tuned
    surrogate = Surrogate.load(output)
    assert result.accepted and result.criterion["high"] <= result.criterion["tolerance"]
    assert result.int8_share > 0.3 and result.speedup > 2  # by the estimate; where there is bf16, some layers have that
    assert surrogate.tuned.plan.plan == result.plan == result.ran == surrogate.tuned.plan.ran
    assert compile_surrogate(surrogate, "tuned").precision_report() == result.plan
    assert not list(output.parent.glob(".*")), "nothing of the search is left behind"


def test_the_history_tells_every_trial(tuned):
    result, output = tuned
    lines = [json.loads(line) for line in (output / "tuned" / "history.jsonl").read_text().splitlines()]
    trials = [line for line in lines if line["kind"] == "trial"]
    assert len(trials) == len(result.history) >= result.full_evaluations
    assert trials[0]["description"] == "all int8 (min-max half-range: 6 layers)"
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


def test_zero_in_the_middle_of_the_integers_is_another_way_to_quantise(small, tmp_path):
    result = tune(small, tmp_path / "out", ranges=("mse symmetric",), tolerance=0.5, max_trials=1, **FAST)
    assert result.accepted and set(result.schemes.values()) == {"mse symmetric half-range"}


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


def test_several_objectives_give_a_front_and_the_first_decides(small, tmp_path):
    result = tune(small, tmp_path / "out", tolerance=0.02, **(FAST | {"objective": "size,macs"}))
    assert result.accepted and list(result.measures) == ["size", "macs"] and result.speedup == result.measures["macs"]
    sizes = [each["measures"]["size"] for each in result.candidates]
    assert result.measures["size"] == max(sizes) and len(sizes) == sum(trial.accepted for trial in result.history)
    for each in result.candidates:
        beaten = any(all(o["measures"][n] >= v for n, v in each["measures"].items()) and o is not each for o in result.candidates)
        assert each["front"] != beaten
    assert 1 < result.measures["size"] < 4  # int8 is a quarter of float32, and the graph itself has its bytes


def test_latency_is_measured_for_a_single_event(small, tmp_path):
    result = tune(small, tmp_path / "out", max_trials=1, **(FAST | {"objective": "latency"}))
    assert result.history[0].measures["latency"] == result.history[0].speedup > 0 and result.history[0].speedup_spread >= 0


def test_the_front_is_what_no_other_beats():
    plans = [{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}]
    assert front(plans) == [True, True, False, True]


def test_a_search_for_the_first_success_ends_with_it(small, tmp_path):
    """All int8 fails here; the first plan after it that passes is the last that is tried."""
    first, all_of_it = (
        tune(small, tmp_path / policy, tolerance=0.02, exit_policy=policy, **FAST) for policy in ("first", "exhausted")
    )
    assert [trial.accepted for trial in first.history].index(True) == len(first.history) - 1
    assert first.accepted and len(first.history) <= len(all_of_it.history)


def test_the_status_names_the_trial_the_best_so_far_and_the_time_left(small, tmp_path):
    seen = []
    tune(small, tmp_path / "out", formats=("int8",), tolerance=0.016, time_limit=500, status=seen.append, **FAST)
    assert seen[0].doing.startswith("whether the kernels") and 0 < seen[0].seconds_left < 500
    assert seen[1].doing.startswith("trial 1: all int8") and seen[1].best is None
    assert seen[2].doing.startswith("what int8: ") and seen[2].doing.endswith(" does alone")
    assert seen[-1].best is not None and seen[-1].best.accepted


def test_the_time_limit_ends_the_search(small, tmp_path):
    result = tune(small, tmp_path / "out", tolerance=1e-9, time_limit=1e-3, **FAST)
    assert not result.accepted and not result.interrupted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ("int4",)}, "int4"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"confidence": 1.0}, "confidence"),
        ({"max_trials": 0}, "budget"),
        ({"criterion": "beauty"}, "fidelity, profile"),
        ({"objective": "beauty"}, "choose among throughput, latency, size, memory, energy, macs"),
        ({"ranges": ("min-max", "best")}, "min-max, percentile, mse, kl"),
        ({"ranges": ()}, "No ranges are given"),
        ({"exit_policy": "never"}, "first or exhausted"),
        ({"strategy": "exhaustive", "formats": ("int8",)}, "64 plans for 6 layers, and at most 20 trials"),
        ({"strategy": "luck"}, "pareto, basic"),
        ({"evaluation_events": 10}, "evaluation events"),
    ],
)
def test_impossible_settings_are_refused_and_leave_nothing(small, tmp_path, settings, message):
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


def test_the_note_beside_the_progress_says_what_is_tried_what_is_best_and_what_is_left():
    shown = []
    display = _Display(lambda done, total, note="": shown.append((done, total, note)))
    display.progress(3, 20)
    best = Trial(2, {}, "", {}, True, True, "", high=0.0123, measures={"throughput": 2.5}, speedup=2.5)
    display.status(Status("trial 3: all bf16", best, 75.0))
    display.status(Status("trial 4: " + "int8, " * 20, None, None))
    assert shown[1] == (3, 20, "trial 3: all bf16; best so far 2.50 times with 0.012; 1 min 15 s left")
    assert shown[2][2].endswith("…; none passed yet") and len(shown[2][2]) < 90


def test_the_verb_says_a_mistake_in_one_paragraph(small, tmp_path):
    ran = CliRunner().invoke(main, ["tune", str(small.path), "-o", str(tmp_path / "out"), "--strategy", "luck"])
    assert ran.exit_code == 2 and "pareto" in ran.stderr and "Traceback" not in ran.output
