"""How numbers become integers: ranges, their estimators, schemes, and the bias that makes up for rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import openvino
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from openvino import opset13

from minicarlo.errors import TuningError
from minicarlo.precision import Plan, Quantizer, surrogate_quantizer
from minicarlo.precision.layer import alone, compiled, int8_alone, output
from minicarlo.precision.ranges import Histogram, bounds, histograms, on_grid
from minicarlo.precision.scheme import RANGES, Scheme
from small_surrogate import make_small_surrogate

SCHEMES = st.builds(Scheme, st.sampled_from(RANGES), st.booleans(), st.booleans())
FINITE = st.floats(-1e4, 1e4, width=32)


def histogram(values):
    return histograms(lambda: iter([{"x": values}]))["x"]


def rounded(values, scheme):
    low, high, *_ = bounds(histogram(values), scheme)
    step = (high - low) / 255
    return np.rint((np.clip(values, low, high) - low) / step) * step + low


@given(SCHEMES)
def test_a_scheme_is_read_as_it_was_written(scheme):
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize("text", ["", "beauty", "kl mse", "min-max symmetric twice"])
def test_what_is_no_scheme_is_refused_with_those_there_are(text):
    with pytest.raises(TuningError, match="min-max, percentile, mse, kl"):
        Scheme.parse(text)


@given(FINITE, FINITE, st.booleans())
def test_zero_is_one_of_the_levels_and_the_range_covers_what_it_should(first, second, symmetric):
    low, high = min(first, second), max(first, second)
    assume(high - low > 1e-3)
    bottom, top, *_ = (float(each) for each in on_grid(low, high, symmetric))
    step = (top - bottom) / 255
    assert abs(bottom / step - round(bottom / step)) < 1e-3
    assert bottom <= min(low, 0) + 1e-4 * (high - low) and top >= max(high, 0) - 1e-4 * (high - low)
    if low >= 0:
        assert bottom == 0
    elif symmetric:
        assert round(-bottom / step) == 128


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(RANGES), st.integers(0, 100), st.booleans(), st.floats(1.0, 60.0))
def test_no_estimator_reaches_beyond_the_values(ranges, seed, signed, outlier):
    values = np.random.default_rng(seed).normal(size=4000).astype(np.float32)
    values = values if signed else np.maximum(values, 0)
    values[0] *= np.float32(outlier)
    low, high, *_ = (float(each) for each in bounds(histogram(values), Scheme(ranges)))
    slack = 2 * (values.max() - min(values.min(), 0)) / 255  # zero is moved onto the grid
    assert values.min() - slack <= low <= 0 < high <= values.max() + slack


def test_an_outlier_is_clipped_where_that_makes_less_error():
    """One value in 10,000 a hundred times the others' spread: all but the extremes themselves clip it."""
    values = np.maximum(np.random.default_rng(0).normal(size=20_000), 0).astype(np.float32)
    values[0], values[1] = 60.0, 59.0
    inside = values[2:]
    error = {}
    for ranges in RANGES:
        high = float(bounds(histogram(values), Scheme(ranges))[1])
        assert (high > 50) == (ranges in ("min-max", "mse"))  # its square outweighs all others' rounding
        error[ranges] = float(np.square(rounded(values, Scheme(ranges))[2:] - inside).mean())
    assert error["percentile"] < error["min-max"] / 50 and error["kl"] < error["min-max"] / 50


def test_the_ends_of_least_squared_error_make_no_more_of_it_than_the_others():
    random = np.random.default_rng(1)
    for values in (random.normal(size=50_000), random.laplace(size=50_000), np.maximum(random.standard_t(3, 50_000), 0)):
        values = values.astype(np.float32)
        error = {ranges: float(np.square(rounded(values, Scheme(ranges)) - values).mean()) for ranges in RANGES}
        assert error["mse"] <= 1.05 * min(error.values()), error


def test_histograms_add_up_over_batches():
    random = np.random.default_rng(2)
    batches = [{"x": random.normal(size=(8, 10)).astype(np.float32)} for _ in range(5)]
    found = histograms(lambda: iter(batches))["x"]
    whole = histogram(np.concatenate([batch["x"] for batch in batches]))
    assert found.counts.sum() == 400 and np.array_equal(found.counts, whole.counts)
    assert isinstance(found, Histogram) and (found.low, found.high) == (whole.low, whole.high)


@pytest.fixture(scope="module")
def network():
    """A transposed convolution, a convolution and a matrix product, with biases, on inputs with a tail."""
    random = np.random.default_rng(3)

    def constant(*shape):
        return opset13.constant(random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32))

    x = opset13.parameter([-1, 8, 6, 6], np.float32, name="x")
    x.output(0).set_names({"x"})
    y = opset13.convolution_backprop_data(x, constant(8, 16, 4, 4), [2, 2], None, [1, 1], [1, 1])
    y.set_friendly_name("up")
    y = opset13.relu(opset13.add(y, constant(1, 16, 1, 1)))
    z = opset13.convolution(y, constant(16, 16, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    z.set_friendly_name("conv")
    z = opset13.relu(opset13.add(z, constant(1, 16, 1, 1)))
    flat = opset13.reshape(z, opset13.constant(np.array([0, -1])), True)
    out = opset13.matmul(flat, constant(16 * 12 * 12, 10), False, False)
    out.set_friendly_name("dense")
    out = opset13.add(out, constant(1, 10))
    out.output(0).set_names({"y"})
    model = openvino.Model([opset13.result(out)], [x], "network")
    batches = [{"x": random.standard_t(4, (32, 8, 6, 6)).astype(np.float32)} for _ in range(3)]
    return Quantizer(model, batches, "network")


@pytest.mark.parametrize("layer", ["up", "conv", "dense"])
@pytest.mark.parametrize("scheme", [Scheme("percentile"), Scheme("mse", half_range=True), Scheme("kl", symmetric=True)], ids=str)
def test_the_corrected_bias_gives_every_channel_its_mean_back(network, layer, scheme):
    """Transposed convolutions as well, which NNCF's fast correction leaves out."""
    operation = next(name for name, each in network.operations.items() if each == layer)
    values = network._first_values[operation, 0]
    single = alone(network.model, operation, values.shape)
    true = output(compiled(single, "f32", values.shape), values)
    axes = (0,) if layer == "dense" else (0, 2, 3)
    shifts = {}
    quantised = network.quantised(layer, scheme)
    for name, bias in (("corrected", quantised.bias), ("not", None)):
        made, _ = int8_alone(single, operation, replace(quantised, bias=bias))
        shifts[name] = np.abs((output(compiled(made, "f32", values.shape), values) - true).mean(axes)).max()
    assert shifts["corrected"] < 1e-4 < shifts["not"]


def test_a_plan_with_schemes_is_another_plan_and_runs_in_int8(network):
    plain = Plan.uniform(network.layers, "int8").with_schemes({layer.name: Scheme(half_range=True) for layer in network.layers})
    clipped = plain.with_schemes({layer.name: Scheme("percentile", half_range=True) for layer in network.layers})
    assert plain.key != clipped.key and dict(plain) == dict(clipped)
    assert "percentile half-range: 3 layers" in clipped.describe()
    assert clipped.with_formats({"conv": "fp32"}).schemes == tuple(
        (name, Scheme("percentile", half_range=True)) for name in ("up", "dense")
    )
    x = network.batches[0]
    made = {}
    for name, plan in (("plain", plain), ("clipped", clipped), ("fp32", Plan.uniform(network.layers, "fp32"))):
        compiled_plan = network.apply(plan).compile({"x": x["x"].shape})
        assert set(compiled_plan.precision_report().values()) == {"fp32" if name == "fp32" else "int8"}
        made[name] = compiled_plan.run(x)["y"]
    error = {name: np.linalg.norm(made[name] - made["fp32"]) / np.linalg.norm(made["fp32"]) for name in ("plain", "clipped")}
    assert 0 < error["plain"] < 0.1 and 0 < error["clipped"] < 0.1 and error["plain"] != error["clipped"]


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_parts_that_are_put_together_before_a_layer_share_a_range_so_that_it_runs_in_int8(small_quantizer, ranges, symmetric):
    """Latent and condition are concatenated before two of its layers; parts of different scales would be float32 again."""
    scheme = Scheme(ranges, symmetric, half_range=True)
    layers = small_quantizer.layers
    plan = Plan.uniform(layers, "int8").with_schemes({layer.name: scheme for layer in layers})
    network = small_quantizer.apply(plan).compile({"latent": (8, 16), "incident_energy": (8, 1)})
    assert network.precision_report() == plan


@pytest.fixture(scope="module")
def small_quantizer(tmp_path_factory):
    return surrogate_quantizer(make_small_surrogate(tmp_path_factory.mktemp("small") / "surrogate"), 64)
