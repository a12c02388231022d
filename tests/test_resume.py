"""A search that is cut short: it ends with the best so far, or goes on where it was killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from minicarlo.precision import tune
from minicarlo.precision.history import History
from minicarlo.precision.sensitivity import Probe
from minicarlo.surrogate import Surrogate
from small_surrogate import make_small_surrogate

FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "timing_seconds": 0.1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


def test_ctrl_c_returns_the_best_plan_so_far(small, tmp_path):
    """As when a person presses Ctrl-C after the first trial that passed."""
    seen = []

    def progress(done, total):
        seen.append(done)
        raise KeyboardInterrupt

    result = tune(small, tmp_path / "out", tolerance=0.5, progress=progress, **FAST)
    assert result.interrupted and result.accepted and len(result.history) == 1
    assert Surrogate.load(tmp_path / "out").tuned is not None


PROGRAM = """
import sys
from minicarlo.precision import tune
fast = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs"}
result = tune(sys.argv[1], sys.argv[2], tolerance=0.004, max_trials=6, **fast)
"""


def test_a_killed_run_goes_on_where_it_stopped(small, tmp_path):
    """kill -9 after the first probes; the second start keeps every line and ends with the plan of an undisturbed run."""
    output, history = tmp_path / "out", tmp_path / ".out.tuning.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(small.path), str(output)], env=environment)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if history.exists() and history.read_text().count("\n") >= 4:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    before = history.read_text().splitlines()
    with history.open("a") as stream:
        stream.write('{"kind": "sensitivity", "layer": "shape.co')  # as a kill in the middle of a line leaves it
    settings = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "tolerance": 0.004, "max_trials": 6}
    result = tune(small.path, output, **settings)
    after = (output / "tuned" / "history.jsonl").read_text().splitlines()
    assert after[: len(before)] == before and len(before) >= 4
    assert all(json.loads(line) for line in after)
    undisturbed = tune(small.path, tmp_path / "other", **settings)
    assert undisturbed.plan == result.plan and undisturbed.criterion == result.criterion


def test_a_history_of_another_request_is_not_taken_up(tmp_path):
    path = tmp_path / "history"
    probe = Probe(math.inf, math.inf, seconds=0.1)
    History(path, {"seed": 1}).add_sensitivity("a", "int8", probe)
    assert History(path, {"seed": 1}).sensitivities == {("a", "int8"): probe}
    assert History(path, {"seed": 2}).sensitivities == {}
