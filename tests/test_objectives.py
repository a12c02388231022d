"""What a plan is to be better at: memory and energy."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13

from minicarlo.errors import TuningError
from minicarlo.precision import Plan, Quantizer, tune
from minicarlo.precision.energy import POWERCAP, EnergyMeter
from minicarlo.precision.footprint import peak_bytes
from minicarlo.precision.timing import interleaved
from small_surrogate import make_small_surrogate

FAST = {"calibration_events": 64, "evaluation_events": 256, "portable": True}


def dense(inputs, outputs):
    random = np.random.default_rng(0)
    x = opset13.parameter([-1, inputs], np.float32, name="x")
    x.output(0).set_names({"x"})
    y = opset13.matmul(x, opset13.constant(random.normal(size=(inputs, outputs)).astype(np.float32)), False, False)
    y.set_friendly_name("dense")
    y.output(0).set_names({"y"})
    model = openvino.Model([opset13.result(y)], [x], "model")
    return Quantizer(model, [{"x": random.normal(size=(4, inputs)).astype(np.float32)}], "model")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_at_least_that_of_the_weights_and_falls_with_them():
    """64 MiB in fp32, a quarter of it in 8 bits; what compiling needs comes on top, never twice the same."""
    quantizer = dense(4096, 4096)
    peaks = {form: peak_bytes(quantizer.apply(Plan.uniform(quantizer.layers, form)), {"x": (1, 4096)}) for form in ("fp32", "w8")}
    assert peaks["w8"] > 16 * 2**20
    assert peaks["fp32"] > 64 * 2**20
    assert peaks["fp32"] - peaks["w8"] > (64 - 16) * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_an_objective(tmp_path):
    small = make_small_surrogate(tmp_path / "surrogate")
    result = tune(small, tmp_path / "out", objective="macs,memory", tolerance=0.5, **FAST)
    assert result.accepted and list(result.measures) == ["macs", "memory"] and result.measures["memory"] > 0


def counter(folder, name, joules, largest=1000.0):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{round(largest * 1e6)}\n")


def test_energy_is_that_of_all_sockets_and_goes_on_where_a_counter_wraps(tmp_path):
    """Parts of a socket (a second colon) are in its sum already."""
    counter(tmp_path, "intel-rapl:0", 10)
    counter(tmp_path, "intel-rapl:1", 990)
    counter(tmp_path, "intel-rapl:0:0", 5)
    meter = EnergyMeter(tmp_path)
    assert meter() == 0
    counter(tmp_path, "intel-rapl:0", 12)
    counter(tmp_path, "intel-rapl:1", 3)
    counter(tmp_path, "intel-rapl:0:0", 500)
    assert meter() == pytest.approx(2 + 13, abs=1e-5)
    assert meter() == pytest.approx(15, abs=1e-5)


def test_the_ratio_of_what_a_meter_says_is_measured_in_turns():
    used = {"total": 0.0}

    def uses(amount):
        def run():
            used["total"] += amount
            time.sleep(0.001)

        return run

    found = interleaved(uses(6.0), uses(2.0), seconds=0.1, meter=lambda: used["total"])
    assert found.value == pytest.approx(3) and found.spread == pytest.approx(0, abs=1e-9)


def test_where_no_energy_is_reported_the_objective_is_refused(tmp_path):
    with pytest.raises(TuningError, match="choose the objective throughput"):
        EnergyMeter(tmp_path)
    if POWERCAP.exists() and any(POWERCAP.glob("*:*")):
        pytest.skip("this machine has counters of energy")
    small = make_small_surrogate(tmp_path / "surrogate")
    with pytest.raises(TuningError, match="reports no energy"):
        tune(small, tmp_path / "out", objective="energy", **FAST)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
