"""JAX functions; needs `pip install 'minicarlo[jax]'`, which the extra `dev` leaves out because it brings forty packages."""

from __future__ import annotations

import numpy as np
import pytest

from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import InvalidModel
from minicarlo.models import read_network
from minicarlo.precision import tune

jax = pytest.importorskip("jax", reason="JAX is missing: pip install 'minicarlo[jax]' and run this file again")
pytest.importorskip("jax2onnx", reason="jax2onnx is missing: pip install 'minicarlo[jax]' and run this file again")


def test_a_jax_function_is_read_and_tuned(tmp_path):
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    table, dense = jax.random.normal(keys[0], (7, 9)), jax.random.normal(keys[1], (9, 8 * 25)) * 0.3
    kernel = jax.random.normal(keys[2], (3, 3, 8, 16)) * 0.1

    @jax.jit
    def generator(latent, kind):
        x = jax.nn.relu((latent + table[kind]) @ dense).reshape(-1, 5, 5, 8)
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.softplus(x)

    random = np.random.default_rng(0)
    inputs = {
        "latent": random.normal(size=(256, 9)).astype(np.float32),
        "kind": random.integers(7, size=256).astype(np.int32),
    }
    few = {name: array[:4] for name, array in inputs.items()}
    graph = read_network(generator, lambda: few).graph
    (found,) = OpenVinoNetwork(graph, "f32", {name: array.shape for name, array in few.items()}).run(few).values()
    np.testing.assert_allclose(found, generator(**few), atol=1e-5)
    fast = {"objective": "macs", "calibration_events": 32, "evaluation_events": 100, "max_trials": 4}
    assert tune(generator, tmp_path / "out", inputs=inputs, batch=16, tolerance=0.1, **fast).int8_share > 0.5


def test_a_function_of_other_parameters_than_the_inputs_is_refused():
    with pytest.raises(InvalidModel, match="parameters a, b"):
        read_network(lambda a, b: a + b, lambda: {"a": np.zeros((2, 3), np.float32), "c": np.zeros((2, 3), np.float32)})
