"""Which layers hold the physics: the table that a tuning leaves, and its picture in the report."""

from __future__ import annotations

import json

import pytest

from minicarlo.engines import has_bf16
from minicarlo.precision import tune
from minicarlo.precision.history import History
from minicarlo.precision.judge import MOVED_EVENTS
from minicarlo.precision.scheme import Scheme
from minicarlo.precision.sensitivity import Probe
from minicarlo.report import sensitivity
from minicarlo.report.inputs import history_of, read_history, tuned_layers, tuning_of
from minicarlo.surrogate import Surrogate
from small_surrogate import LAYERS, make_small_surrogate

FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "timing_seconds": 0.1, "portable": True}
FORMATS = ("int8", "bf16") if has_bf16() else ("int8",)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    """A tuning whose first plan passes, so that the search itself probes nothing."""
    output = tmp_path_factory.mktemp("measured") / "tuned"
    return tune(small, output, tolerance=9.0, sensitivity=True, **FAST), output


def test_every_layer_is_measured_in_every_format_though_the_search_needed_none(measured):
    result, _ = measured
    assert result.full_evaluations == 1
    assert [row["name"] for row in result.layers] == list(result.plan)
    assert set(result.plan) == set(LAYERS)
    assert sum(row["mac_share"] for row in result.layers) == pytest.approx(1)
    for row in result.layers:
        assert row["format"] == result.plan[row["name"]] == row["ran"]
        assert set(row["harm"]) == set(row["moves"]) == set(FORMATS)
        assert set(row["seconds"]) == {*FORMATS, "fp32"} and min(row["seconds"].values()) > 0
        assert min(row["harm"].values()) > 0


def test_the_harm_of_a_layer_is_that_of_the_family_it_moves_most(measured):
    """Of all families the criterion counts but x and y, which are in it as rings."""
    _, output = measured
    lines = map(json.loads, (output / "tuned" / "history.jsonl").read_text().splitlines())
    for line in lines:
        if line["kind"] == "sensitivity":
            counted = {name: value for name, value in line["families"].items() if name not in ("x", "y")}
            assert line["value"] == max(counted.values())


def test_the_table_is_in_the_surrogate_and_survives_as_json(measured):
    result, output = measured
    assert Surrogate.load(output).tuned.plan.model_dump()["layers"] == result.to_dict()["layers"]


def test_a_plan_that_is_replayed_is_measured_when_asked(small, measured, tmp_path):
    _, output = measured
    plan = output / "tuned" / "plan.yaml"
    silent = tune(small, tmp_path / "silent", plan=plan, **FAST)
    assert not any(row["harm"] or row["seconds"] for row in silent.layers)
    told = tune(small, tmp_path / "told", plan=plan, formats=("int8",), sensitivity=True, **FAST)
    assert all(set(row["harm"]) == {"int8"} for row in told.layers)


def test_a_layer_that_does_harm_takes_another_scheme_only_where_that_moves_events_clearly_less(small, tmp_path):
    result = tune(small, tmp_path / "out", tolerance=0.004, formats=("int8",), sensitivity=True, max_trials=1, **FAST)
    lines = map(json.loads, (tmp_path / "out" / "tuned" / "history.jsonl").read_text().splitlines())
    probes = {line["layer"]: line for line in lines if line["kind"] == "sensitivity"}
    assert set(probes) == set(LAYERS)
    measured = others = 0
    for line in probes.values():
        (usual, movement), *rest = line["tried"].items()
        best = min(line["tried"], key=line["tried"].__getitem__)
        assert line["scheme"] == (best if line["tried"][best] < 0.9 * movement else usual)
        assert line["movement"] == line["tried"][line["scheme"]]
        assert len(rest) == (3 if line["value"] > 0.004 / len(LAYERS) ** 0.5 or line["scheme"] != usual else 0)
        measured, others = measured + 1 + (line["scheme"] != usual), others + len(rest)
    assert others > 0
    trials = sum(trial.events for trial in result.history)
    assert result.events == trials + measured * FAST["evaluation_events"] + others * MOVED_EVENTS


def test_what_was_measured_is_not_measured_again(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path, {"seed": 1})
    probe = Probe(0.5, 0.02, {"z": 0.5, "x": float("inf")}, 0.1, Scheme("kl"), {"min-max": 0.04, "kl": 0.02})
    history.add_sensitivity("a", "int8", probe)
    history.add_times("latency", "int8", {"a": 2e-6})
    again = History(path, {"seed": 1})
    assert again.sensitivities == {("a", "int8"): probe}
    assert again.times == {("latency", "int8"): {"a": 2e-6}}


def test_the_picture_has_a_bar_for_what_is_known_and_words_for_the_worst(measured):
    _, output = measured
    surrogate = Surrogate.load(output)
    layers = tuned_layers(tuning_of(surrogate), history_of(surrogate))
    picture = sensitivity.picture(layers, 0.03, "loss")
    harm, shares, times = picture.figure.axes[1:]
    bars = [len(axes.patches) / len(LAYERS) for axes in (harm, shares, times)]
    assert bars == [len(FORMATS), 1, len(FORMATS) + 1]
    worst = max(layers, key=lambda layer: max(layer.harm.values()))
    assert worst.name in picture.alt
    assert [row[0] for row in picture.table.rows] == [layer.name for layer in layers]
    assert picture.source.startswith("data:image/svg+xml")


def test_a_history_of_strangers_is_drawn_as_far_as_it_makes_sense():
    """Old ones know neither families nor times; a layer may not run in a format; nothing at all may be known."""
    lines = [
        '{"kind": "sensitivity", "layer": "a", "format": "int8", "value": 0.02}',
        '{"kind": "sensitivity", "layer": "a", "format": "odd", "value": null, "families": 7}',
        '{"kind": "sensitivity", "layer": "b", "format": "int8", "value": 0.0, "families": {"z": "much", "x": null}}',
        '{"kind": "times", "objective": [], "format": "int8", "seconds": {"a": "fast"}}',
    ]
    tuned = {"plan": {"a": "int8", "b": "$odd"}, "layers": [{"name": "a", "macs": "many"}, 3]}
    layers = tuned_layers(tuned, read_history(lines))
    assert [layer.mac_share for layer in layers] == [None, None]
    picture = sensitivity.picture(layers, None, "loss")
    assert picture.source and "a costs most" in picture.alt
    empty = sensitivity.picture(tuned_layers({"plan": {"a": "fp32"}}, read_history([])), 0.03, "loss")
    assert empty.source
