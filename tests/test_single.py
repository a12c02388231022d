"""One shower at a time: the same as in bulk, in memory that stays where it is."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest

import minicarlo
import minicarlo.generation.single as single
from minicarlo.engines import compile_surrogate, usable_cores
from minicarlo.errors import InvalidCondition, InvalidConfig, UnsupportedPrecision
from minicarlo.generation.settings import choose_settings, remembered
from minicarlo.graph.verify import ROUNDING, deviation
from minicarlo.surrogate import Surrogate
from small_surrogate import HIGH_MEV, LOW_MEV, THRESHOLD_MEV, make_small_surrogate


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("minicarlo.generation.settings._SECONDS", 0.01)


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory) -> Surrogate:
    return make_small_surrogate(tmp_path_factory.mktemp("surrogates") / "small", width=8)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "pytorch"])
def test_single_showers_are_those_of_a_batch_up_to_rounding(surrogate, engine):
    random = np.random.default_rng(2)
    latents, energies = random.standard_normal((8, 16), np.float32), np.geomspace(LOW_MEV, HIGH_MEV, 8, dtype=np.float32)
    expected = compile_surrogate(surrogate, batch=8).run(latents, energies)
    shower = minicarlo.load(surrogate, engine=engine)
    found = []
    for latent, energy in zip(latents, energies, strict=True):
        shower.latent[:], shower.incident_energy[:] = latent, energy
        found.append(shower().copy())
    assert np.count_nonzero(expected) > 100
    assert deviation(expected, np.concatenate(found), THRESHOLD_MEV) < ROUNDING


def test_the_memory_stays_and_a_call_allocates_none_worth_mentioning(surrogate):
    """One shower has 62,500 bytes; a few hundred are Python's own numbers and the runtime's table of results."""
    shower = minicarlo.load(surrogate)
    random, memory = np.random.default_rng(1), shower.samples
    for _ in range(3):
        shower()
    tracemalloc.start()
    for _ in range(20):
        random.standard_normal(out=shower.latent, dtype=np.float32)
        assert shower() is memory
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000


def test_the_arrays_whose_addresses_the_runtime_knows_cannot_be_replaced(surrogate):
    shower = minicarlo.load(surrogate, threads=1)
    for name in ("latent", "incident_energy", "samples"):
        with pytest.raises(AttributeError):
            setattr(shower, name, np.zeros(3))


@pytest.mark.parametrize("energy", [0.99 * LOW_MEV, 1.01 * HIGH_MEV, np.nan])
@pytest.mark.parametrize("batch", [1, 3])
def test_energies_outside_the_trained_range_are_refused(surrogate, energy, batch):
    shower = minicarlo.load(surrogate, batch=batch, threads=1)
    assert shower.latent.shape == (batch, 16) and shower().shape == (batch, 25, 25, 25)
    shower.incident_energy[-1] = energy
    with pytest.raises(InvalidCondition, match="does not extrapolate"):
        shower()


def test_the_tuned_model_is_taken_where_the_engine_has_it():
    assert minicarlo.load("clic-ecal", threads=1).precision == "tuned"
    assert minicarlo.load("clic-ecal", engine="pytorch", threads=1).precision == "fp32"
    with pytest.raises(UnsupportedPrecision, match="does not compute in tuned"):
        minicarlo.load("clic-ecal", "tuned", engine="pytorch")


def test_the_setting_for_latency_is_one_stream_of_one_event_and_remembered_beside_that_for_throughput(surrogate):
    found = choose_settings(surrogate, "fp32", objective="latency")
    assert (found.streams, found.batch) == (1, 1) and 1 <= found.threads <= usable_cores()
    assert remembered(surrogate, "fp32", objective="latency") == found
    assert remembered(surrogate, "fp32") is None
    assert remembered(surrogate, "fp32", "onnxruntime", "latency") is None


def test_impossible_numbers_are_refused(surrogate):
    with pytest.raises(InvalidConfig, match="batch must be between"):
        minicarlo.load(surrogate, batch=0)
    with pytest.raises(InvalidConfig, match="threads must be between"):
        minicarlo.load(surrogate, threads=0)


def test_the_example_runs():
    assert doctest.testmod(single).failed == 0


@pytest.mark.parametrize("engine", ["onnxruntime", "pytorch"])
def test_bulk_runs_on_another_engine_say_so_and_repeat_whatever_the_streams(surrogate, tmp_path, engine):
    """A batch of one gives other bits there, and is replaced by the batch that gives the reference's."""
    expected = minicarlo.generate(surrogate, 40, seed=3)
    found = [minicarlo.generate(surrogate, 40, seed=3, engine=engine, batch=batch, streams=2) for batch in (1, 16)]
    assert found[0].attributes["engine"] == engine and expected.attributes["engine"] == "openvino"
    assert np.array_equal(found[0].samples, found[1].samples)
    assert deviation(expected.samples, found[0].samples, THRESHOLD_MEV) < ROUNDING
