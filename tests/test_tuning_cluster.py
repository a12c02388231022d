"""Tuning with workers finds what one machine finds, also when workers are killed, and none of other bits."""

from __future__ import annotations

import os

import numpy as np
import pytest

from dask_cluster import OLDER, kill, worker, working
from minicarlo.errors import ClusterError, InvalidConfig
from minicarlo.precision import tune
from small_surrogate import make_small_surrogate

pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("dask_folders")

FAST = {"calibration_events": 64, "evaluation_events": 256, "objective": "macs", "portable": True}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate")


def outcome(result):
    trials = [(trial.plan, trial.schemes, trial.value, trial.high, trial.held_out, trial.accepted) for trial in result.history]
    return trials, result.plan, result.schemes, result.criterion, [row["harm"] for row in result.layers]


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    return tune(small, tmp_path_factory.mktemp("alone") / "out", tolerance=0.016, sensitivity=True, **FAST)


def test_workers_find_the_plan_that_one_machine_finds_by_the_same_figures(small, alone, address, tmp_path):
    with worker(address), worker(address):
        found = tune(small, tmp_path / "out", tolerance=0.016, sensitivity=True, cluster=address, **FAST)
    assert outcome(found) == outcome(alone)


def test_plans_that_do_not_depend_on_one_another_are_judged_by_workers(small, address, tmp_path):
    settings = FAST | {"strategy": "random", "max_trials": 5, "tolerance": 0.05}
    with worker(address):
        found = tune(small, tmp_path / "out", cluster=address, **settings)
    assert len(found.history) == 5 and outcome(found) == outcome(tune(small, tmp_path / "alone", **settings))


def test_a_worker_that_is_killed_while_it_probes_changes_nothing(small, alone, tmp_path):
    """Dask's nannies start another."""
    killed = []

    def disturb(done, total):
        if done == 3 and not killed:
            killed.append(kill(working(os.getpid())[:1]))

    found = tune(small, tmp_path / "out", tolerance=0.016, sensitivity=True, cluster="local:2", progress=disturb, **FAST)
    assert killed == [1] and outcome(found) == outcome(alone)


def test_a_network_of_the_users_is_judged_by_workers_on_the_users_inputs(address, tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(0, 0.1, (64, 64)).astype(np.float32), name) for name in "ab"]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    value = helper.make_tensor_value_info
    ends = [[value(name, TensorProto.FLOAT, ["n", 64])] for name in "xy"]
    graph = helper.make_graph(nodes, "net", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=random.normal(size=(2000, 64)))
    settings = {"inputs": tmp_path / "x.npz", "objective": "macs", "tolerance": 0.008, "calibration_events": 64, "portable": True}
    with worker(address):
        found = tune(tmp_path / "net.onnx", tmp_path / "out", cluster=address, sensitivity=True, **settings)
    assert outcome(found) == outcome(tune(tmp_path / "net.onnx", tmp_path / "alone", sensitivity=True, **settings))


def test_a_worker_that_computes_other_bits_is_refused(small, address, tmp_path):
    with worker(address, ONEDNN_MAX_CPU_ISA=OLDER), pytest.raises(ClusterError, match="other bits"):
        tune(small, tmp_path / "out", tolerance=0.016, sensitivity=True, cluster=address, **FAST)


def test_a_time_limit_ends_the_search_while_nobody_works(small, address, tmp_path):
    """No worker ever comes."""
    result = tune(small, tmp_path / "out", tolerance=1e-9, time_limit=8, cluster=address, **FAST)
    assert not result.accepted and set(result.plan.values()) == {"fp32"}


def test_a_cluster_that_is_none_is_named(small, tmp_path):
    with pytest.raises(InvalidConfig, match="local"):
        tune(small, tmp_path / "out", cluster="cloud", **FAST)
    assert not list(tmp_path.iterdir())
