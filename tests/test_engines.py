"""An engine computes in the precision asked for, says so itself, and gives the same bits however the work is cut."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

from minicarlo.engines import compile_model, compile_surrogate, has_bf16, mac_layers, read_model, usable_cores
from minicarlo.engines.base import cpu_quota
from minicarlo.errors import UnsupportedPrecision
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate
from small_surrogate import LAYERS, LOW_MEV, THRESHOLD_MEV, make_small_surrogate

COUNT = 70
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=8)


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return normal_latents(3, 0, COUNT, 16)


@pytest.fixture(scope="module")
def energy() -> np.ndarray:
    return EnergyDistribution.parse("1GeV:100GeV:log").sample(3, 0, COUNT)


@pytest.fixture(scope="module")
def reference(surrogate, latent, energy) -> dict[str, np.ndarray]:
    precisions = surrogate.precisions if has_bf16() else ("fp32",)
    return {p: compile_surrogate(surrogate, p, batch=8).run(latent, energy) for p in precisions}


def test_fp32_is_fp32_by_the_runtimes_own_report(surrogate):
    compiled = compile_surrogate(surrogate, "fp32", batch=4)
    assert compiled.precision_report() == dict.fromkeys(compiled.precision_report(), "fp32")
    assert set(compiled.precision_report()) == set(LAYERS)
    compiled.assert_precision("fp32")


@needs_bf16
def test_bf16_leaves_the_noise_of_cells_alone(surrogate):
    """The shipped network's noise is what a phase of many periods leaves modulo one, of which bf16 keeps next to nothing."""
    shipped = Surrogate.load("clic-ecal")
    energy = np.geomspace(1e3, 1e5, 64).astype(np.float32)
    latent = normal_latents(1, 0, 64, shipped.manifest.latent_size)
    compiled = compile_surrogate(shipped, "bf16", batch=16)
    true, made = (each.run(latent, energy) for each in (compile_surrogate(shipped, batch=16), compiled))
    assert abs(np.count_nonzero(made) / np.count_nonzero(true) - 1) < 0.02
    ran = compiled.precision_report()
    assert {name for name, form in ran.items() if form == "fp32"} == {"noise.matmul"}
    assert set(compile_surrogate(surrogate, "bf16", batch=16).precision_report().values()) == {"bf16"}


@needs_bf16
def test_the_processors_default_would_not_have_been_fp32_here(surrogate):
    compiled = compile_surrogate(surrogate, "bf16", batch=4)
    assert "bf16" in compiled.precision_report().values()
    with pytest.raises(UnsupportedPrecision, match=r"in bf16 \(not fp32\)"):
        compiled.assert_precision("fp32")


def test_a_plan_that_the_runtime_does_not_follow_is_told_layer_by_layer(surrogate):
    compiled = compile_surrogate(surrogate, "fp32", batch=4)
    with pytest.raises(UnsupportedPrecision, match=r"shape\.conv2 in fp32 \(not int8\)"):
        compiled.assert_precision({"shape.conv1": "fp32", "shape.conv2": "int8"})


def test_fp32_agrees_with_the_onnx_standard(surrogate, latent, energy, reference):
    """Relative 1e-4 of the largest cell: float32 sums of a few thousand terms in another order, through an exponential."""
    model = onnx.load_model_from_string(surrogate.onnx)
    inputs = {"latent": latent[:4], "incident_energy": energy[:4, None]}
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    ours = reference["fp32"][:4]
    near_threshold = np.abs(expected - THRESHOLD_MEV) < 1e-4 * expected.max()
    assert np.abs(ours - expected)[~near_threshold].max() < 1e-4 * expected.max()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize(("batch", "streams", "threads"), [(2, 1, 1), (7, 2, 1), (64, 1, 2), (128, 2, 1), (None, 2, 2)])
def test_bits_do_not_depend_on_batch_streams_or_threads(surrogate, latent, energy, reference, precision, batch, streams, threads):
    """A batch of one is left out: some processors then multiply in another order; generation notices (see test_generate)."""
    compiled = compile_surrogate(surrogate, precision, batch=batch, streams=streams, threads=threads)
    assert np.array_equal(compiled.run(latent, energy), reference[precision])
    step = batch or 9
    pieces = [(i, latent[i : i + step], energy[i : i + step]) for i in range(0, COUNT, step)]
    results = list(compiled.map(iter(pieces)))
    assert [key for key, _ in results] == [key for key, _, _ in pieces]
    assert np.array_equal(np.concatenate([samples for _, samples in results]), reference[precision])


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16), "tuned"])
@pytest.mark.parametrize("batch", [1, 8, 14, 32])
def test_small_products_in_sequence_compile_and_report_their_format_at_any_batch(precision, batch):
    shipped = Surrogate.load("clic-ecal")  # OpenVINO's fusion of its layer energies crashes below 15 events
    compiled = compile_surrogate(shipped, precision, batch=batch)
    assert set(compiled.precision_report()) == set(mac_layers(read_model(shipped, precision)[0]).values())
    showers = compiled.run(normal_latents(3, 0, batch, shipped.manifest.latent_size), np.full(batch, 2e4, np.float32))
    assert np.isfinite(showers).all()


def test_an_error_in_the_input_ends_the_map_and_leaves_the_engine_usable(surrogate, latent, energy, reference):
    compiled = compile_surrogate(surrogate, "fp32", batch=8, streams=2)

    def failing():
        yield 0, latent[:8], energy[:8]
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        list(compiled.map(failing()))
    stopped = compiled.map((i, latent[:8], energy[:8]) for i in range(100))
    next(stopped)
    stopped.close()
    assert np.array_equal(compiled.run(latent, energy), reference["fp32"])


def test_energies_may_be_a_column(surrogate, latent, energy, reference):
    compiled = compile_surrogate(surrogate, "fp32", batch=8)
    assert np.array_equal(compiled.run(latent, energy[:, None]), reference["fp32"])


def test_results_belong_to_the_caller(surrogate, latent):
    compiled = compile_surrogate(surrogate, "fp32", batch=8)
    low = compiled.run(latent[:8], np.full(8, LOW_MEV, np.float32))
    kept = low.copy()
    compiled.run(latent[:8], np.full(8, 50 * LOW_MEV, np.float32))
    assert np.array_equal(low, kept)


def test_layers_are_known_by_their_onnx_names(surrogate):
    model, precision = read_model(surrogate)
    assert set(mac_layers(model).values()) == set(LAYERS) and precision == "f32"


def test_a_model_of_ones_own_is_left_as_it_was(surrogate, latent, energy):
    model, _ = read_model(surrogate)
    compile_model(model, "f32", batch=4).run(latent[:4], energy[:4])
    assert model.input("latent").get_partial_shape()[0].is_dynamic


def test_precisions_that_are_not_there_are_refused(surrogate):
    with pytest.raises(UnsupportedPrecision, match="minicarlo tune"):
        compile_surrogate(surrogate, "tuned")
    with pytest.raises(UnsupportedPrecision, match="fp4"):
        compile_surrogate(surrogate, "fp4")


def test_a_processor_without_bf16_says_so_and_runs_the_rest_in_fp32(surrogate, monkeypatch):
    for module in ("openvino", "runtime"):
        monkeypatch.setattr(f"minicarlo.engines.{module}.has_bf16", lambda: False)
    reduced = compile_model(read_model(surrogate)[0], "bf16", batch=2)
    assert set(reduced.precision_report().values()) == {"fp32"}
    with pytest.raises(UnsupportedPrecision, match="does not compute in bf16"):
        compile_surrogate(surrogate, "bf16", batch=2)


def test_cores_come_from_the_affinity_mask():
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, mask)


def cgroup(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_smallest_quota_of_all_control_groups_above_counts(tmp_path):
    """Version 2: one tree, the process somewhere in it, a limit at any height."""
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    cgroup(root / "batch.slice", cpu__max="350000 100000\n")
    cgroup(root / "batch.slice" / "job-7", cpu__max="max 100000\n")
    membership.write_text("0::/batch.slice/job-7\n")
    assert cpu_quota(root, membership) == 3.5
    cgroup(root / "batch.slice" / "job-7", cpu__max="150000 100000\n")
    assert cpu_quota(root, membership) == 1.5


def test_in_a_container_the_quota_is_that_of_the_visible_root(tmp_path):
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    cgroup(root, cpu__max="200000 100000\n")
    membership.write_text("0::/../../outside\n")
    assert cpu_quota(root, membership) == 2


def test_quotas_of_the_first_version_of_control_groups_count(tmp_path):
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    cgroup(root / "cpu,cpuacct" / "job", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    cgroup(root / "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    membership.write_text("4:memory:/elsewhere\n1:cpu,cpuacct:/job\n0::/\n")
    assert cpu_quota(root, membership) == 4


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path / "nothing") == math.inf
